package groups

import (
	"context"
	"errors"
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
	completions []func()           // outcomes of writes, and of what was done aside
	reason      protocol.ErrorCode // what requests are told once it has ended; set once

	// owned
	machine  *group.Machine
	recorded bool // the group's record is, or has been, durable
	offsets  map[blockKey]*block
	open     map[protocol.ProducerID]*openTransaction
	askAt    time.Time // when transactions in doubt are asked about; zero if there are none
	waiting  map[group.RequestID]func(group.Result)
	requests group.RequestID // number of the newest
	inFlight int             // writes
	used     time.Time       // when it last did something for a client
	undone   bool            // the group's deletion has failed
}

// shown is what ListGroups sees of a live group.
type shown struct {
	state        group.State
	protocolType string
	exists       bool
}

func newOwner(c *Coordinator, name string, shard coordinator.ShardID, epoch int32) *owner {
	ctx, stop := context.WithCancel(c.base)
	return &owner{
		c: c, name: name, shard: shard, epoch: epoch, ctx: ctx, stop: stop,
		mailbox: make(chan func(), c.cfg.MailboxMax), signal: make(chan struct{}, 1), ended: make(chan struct{}),
		offsets: map[blockKey]*block{}, open: map[protocol.ProducerID]*openTransaction{}, waiting: map[group.RequestID]func(group.Result){},
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

// run is the owner's goroutine.
func (o *owner) run() {
	defer o.c.ending.Done()
	pprof.Do(o.ctx, pprof.Labels("varve", "group owner"), func(ctx context.Context) {
		if err := o.load(ctx); err != nil {
			if ctx.Err() == nil {
				o.c.log.Warn("load group", "group", o.name, "error", err)
			}
			o.tellEnd(protocol.CoordinatorLoadInProgress)
			return
		}
		if !o.leads() {
			o.tellEnd(protocol.NotCoordinator)
			return
		}
		o.loop(ctx)
		o.hide()
	})
	o.stop()
	o.c.mu.Lock()
	if o.c.owners[o.name] == o {
		delete(o.c.owners, o.name)
	}
	o.c.mu.Unlock()
	close(o.ended)
}

func (o *owner) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		o.show()
		if ctx.Err() != nil || o.forget() {
			return
		}
		mailbox := o.mailbox
		if o.inFlight >= o.c.cfg.WritesInFlightMax {
			mailbox = nil // its clients wait for the coordinator
		}
		timer.Reset(o.untilTimer())
		select {
		case <-ctx.Done():
		case task := <-mailbox:
			task()
		case <-o.signal:
			o.complete()
		case <-timer.C:
			if at, ok := o.machine.Deadline(); ok && !o.c.deps.Now().Before(at) {
				o.step(group.Tick{})
			}
			if !o.askAt.IsZero() && !o.c.deps.Now().Before(o.askAt) {
				o.askDoubts()
			}
		}
	}
}

// untilTimer returns how long nothing happens unless somebody asks for it.
func (o *owner) untilTimer() time.Duration {
	wait := time.Hour
	now := o.c.deps.Now()
	if at, ok := o.machine.Deadline(); ok {
		wait = min(wait, at.Sub(now))
	}
	if !o.askAt.IsZero() {
		wait = min(wait, o.askAt.Sub(now))
	}
	if o.idle() {
		if left := o.used.Add(o.c.cfg.IdleTimeout).Sub(now); left > 0 {
			wait = min(wait, left) // else release will wake it
		}
	}
	return max(wait, 0)
}

// idle tells whether nothing that is not durable would be lost if the owner ended.
func (o *owner) idle() bool {
	return o.machine.Idle() && o.inFlight == 0 && len(o.waiting) == 0
}

// forget takes the owner out of the coordinator if its group is idle, has been for a while, and nobody uses it; or at
// once if the group must be loaded anew. True if the owner must end.
func (o *owner) forget() bool {
	switch {
	case !o.idle():
		return false
	case o.undone:
		o.tellEnd(protocol.CoordinatorNotAvailable)
		return true
	case len(o.open) > 0: // a marker is to come
		return false
	case o.c.deps.Now().Before(o.used.Add(o.c.cfg.IdleTimeout)):
		return false
	}
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	if o.refs > 0 {
		return false
	}
	delete(o.c.owners, o.name)
	o.reindex()
	return true
}

// show lets ListGroups and the metrics see the group as it is.
func (o *owner) show() {
	now := shown{state: o.machine.State(), protocolType: o.machine.ProtocolType(), exists: o.exists()}
	before := o.shown.Load()
	if before != nil && *before == now {
		return
	}
	stored := now
	o.shown.Store(&stored)
	if before != nil {
		o.c.metrics.live.WithLabelValues(before.state.String()).Dec()
	}
	o.c.metrics.live.WithLabelValues(now.state.String()).Inc()
}

// hide ends what show began.
func (o *owner) hide() {
	if last := o.shown.Load(); last != nil {
		o.c.metrics.live.WithLabelValues(last.state.String()).Dec()
	}
}

// exists tells whether the group exists for clients: a group comes into being with its first member or offset.
func (o *owner) exists() bool {
	return o.machine.State() != group.Dead && (o.recorded || !o.machine.Idle())
}

// ask passes an event with a request to the machine; done gets the answer.
func (o *owner) ask(event func(group.RequestID) group.Event, done func(group.Result)) {
	o.used = o.c.deps.Now()
	o.requests++
	o.waiting[o.requests] = done
	o.step(event(o.requests))
}

// step passes an event to the machine and carries out what follows from it.
func (o *owner) step(event group.Event) {
	for _, effect := range o.machine.Step(o.c.deps.Now(), event) {
		switch e := effect.(type) {
		case group.Reply:
			if done := o.waiting[e.Request]; done != nil {
				delete(o.waiting, e.Request)
				done(e.Result)
			}
		case group.Persist:
			o.persist(e)
		case group.Moved:
			if e.To == group.Preparing {
				o.c.metrics.rebalances.Inc()
			}
			o.c.log.Info("group changed its state", "group", o.name, "from", e.From.String(), "to", e.To.String(),
				"generation", e.Generation)
		case group.Note:
			o.c.log.Info("group event", "group", o.name, "event", e.Message, "generation", e.Generation,
				"member", e.Member, "reason", e.Reason)
		}
	}
}

// write hands writes to the ledger; after is called on the owner's goroutine, with None once they are durable.
// Writes take effect in the order of the calls. Nothing is written in another epoch than the owner's.
func (o *owner) write(ops []coordinator.Op, after func(protocol.ErrorCode)) {
	if !o.leads() {
		o.tellEnd(protocol.NotCoordinator)
		return
	}
	o.inFlight++
	o.c.deps.Ledger.Write(o.shard, ops, func(err error) {
		o.comeBack(func() {
			o.inFlight--
			code := o.code(err)
			if err != nil {
				o.c.log.Warn("write group", "group", o.name, "error", err)
			}
			if code == protocol.NotCoordinator {
				o.tellEnd(code)
			}
			after(code)
		})
	})
}

// aside carries out a task that may take its time, within VerifyTimeout, on a goroutine of its own; what it returns is called on the
// owner's, unless the owner has ended.
func (o *owner) aside(task func(context.Context) (outcome func())) {
	o.c.ending.Go(func() {
		pprof.Do(o.ctx, pprof.Labels("varve", "group transaction"), func(ctx context.Context) {
			ctx, cancel := context.WithTimeout(ctx, o.c.cfg.VerifyTimeout)
			defer cancel()
			o.comeBack(task(ctx))
		})
	})
}

// comeBack has the owner take an outcome. It may be called from any goroutine.
func (o *owner) comeBack(outcome func()) {
	o.mu.Lock()
	o.completions = append(o.completions, outcome)
	o.mu.Unlock()
	o.wake()
}

// complete takes the outcomes that there are.
func (o *owner) complete() {
	o.mu.Lock()
	completions := o.completions
	o.completions = nil
	o.mu.Unlock()
	for _, outcome := range completions {
		outcome()
	}
}

// code is what a request is told whose write ended with err.
func (o *owner) code(err error) protocol.ErrorCode {
	switch {
	case err == nil:
		return protocol.None
	case errors.Is(err, coordinator.ErrFenced), !o.leads():
		return protocol.NotCoordinator
	}
	return protocol.CoordinatorNotAvailable
}
