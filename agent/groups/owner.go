package groups

import (
	"context"
	"fmt"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// owner runs one live group. Fields below "owned" belong to its goroutine.
type owner struct {
	c       *Coordinator
	name    string
	shard   coordinator.ShardID
	epoch   int32
	mailbox chan func()
	signal  chan struct{} // capacity 1: something is in completions, or refs has become 0
	stop    context.CancelFunc
	ctx     context.Context // ends when the owner is told to end
	ended   chan struct{}   // closed when it has ended
	refs    int             // calls that use it; under Coordinator.mu
	shown   atomic.Pointer[shown]

	mu          sync.Mutex
	completions []func()           // outcomes of writes
	reason      protocol.ErrorCode // what requests are told once it has ended; set once

	// owned
	machine  *group.Machine
	recorded bool // the group's record is, or has been, durable
	offsets  map[blockKey]*block
	waiting  map[group.RequestID]func(group.Result)
	requests group.RequestID // number of the newest
	inFlight int             // writes
	used     time.Time       // when it last did something for a client
	gone     bool            // the group was deleted
}

// shown is what ListGroups sees of a live group.
type shown struct {
	state        group.State
	protocolType string
	exists       bool
}

func newOwner(c *Coordinator, name string, shard coordinator.ShardID, epoch int32) *owner {
	ctx, stop := context.WithCancel(context.Background())
	return &owner{
		c: c, name: name, shard: shard, epoch: epoch, ctx: ctx, stop: stop,
		mailbox: make(chan func(), c.cfg.MailboxMax), signal: make(chan struct{}, 1), ended: make(chan struct{}),
		offsets: map[blockKey]*block{}, waiting: map[group.RequestID]func(group.Result){},
	}
}

// tellEnd makes the owner end, and requests that wait be answered with code. Only the first call's code counts.
func (o *owner) tellEnd(code protocol.ErrorCode) {
	o.mu.Lock()
	if o.reason == protocol.None {
		o.reason = code
	}
	o.mu.Unlock()
	o.stop()
}

func (o *owner) endCode() protocol.ErrorCode {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.reason
}

func (o *owner) wake() {
	select {
	case o.signal <- struct{}{}:
	default:
	}
}

func (o *owner) leads() bool {
	epoch, ok := o.c.deps.Leads(o.shard)
	return ok && epoch == o.epoch
}

func (o *owner) run() {
	defer o.c.ending.Done()
	labels := pprof.Labels("varve", "group owner")
	pprof.Do(o.ctx, labels, func(context.Context) {
		if err := o.load(); err != nil {
			if o.ctx.Err() == nil {
				o.c.log.Warn("load group", "group", o.name, "error", err)
			}
			o.tellEnd(protocol.CoordinatorLoadInProgress)
		} else {
			o.c.metrics.moved(nil, o.machine)
			o.loop()
			o.c.metrics.moved(o.machine, nil)
		}
	})
	o.stop()
	o.c.mu.Lock()
	delete(o.c.owners, o.name)
	if o.machine != nil && o.endCode() == protocol.None {
		o.reindex()
	}
	o.c.mu.Unlock()
	close(o.ended)
}
