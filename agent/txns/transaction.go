package txns

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/ledger"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

// transaction is one transactional id while its shard is led.
type transaction struct {
	c     *Coordinator
	id    string
	shard *shard

	mu       sync.Mutex
	machine  *txn.Machine
	requests txn.RequestID // the newest
	waiting  map[txn.RequestID]chan txn.Reply
	timer    *time.Timer // of the machine's deadline; nil until there is one
	gone     bool        // it has no record and nobody knows it any more: another may take its place
}

func (c *Coordinator) newTransaction(s *shard, id string, m *txn.Machine) *transaction {
	return &transaction{c: c, id: id, shard: s, machine: m, waiting: make(map[txn.RequestID]chan txn.Reply)}
}

func compare(a, b *transaction) int {
	return cmp.Or(cmp.Compare(a.shard.id, b.shard.id), strings.Compare(a.id, b.id))
}

// step gives the machine an event and carries out what follows.
func (t *transaction) step(event txn.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stepLocked(event)
}

func (t *transaction) stepLocked(event txn.Event) {
	if t.shard.led.Err() != nil {
		return
	}
	for _, effect := range t.machine.Step(t.c.deps.Now(), event) {
		switch e := effect.(type) {
		case txn.Reply:
			if answer := t.waiting[e.Request]; answer != nil {
				delete(t.waiting, e.Request)
				answer <- e
			}
		case txn.Persist:
			t.write(e.Write, coordinator.Op{Key: t.key(), Value: coordinator.Encode(e.Snapshot)})
		case txn.Delete:
			t.write(e.Write, coordinator.Op{Key: t.key(), Delete: true})
		case txn.Mark:
			t.c.markers.send(t, e)
		case txn.Note:
			t.c.deps.Log.Info("transaction", "event", e.Message, "id", t.id, "producer", e.ProducerID, "epoch", e.Epoch, "reason", e.Reason)
		}
	}
	t.schedule()
}

func (t *transaction) key() string { return coordinator.KeyTxn(t.shard.id, t.id) }

// write writes, or deletes, the machine's record.
func (t *transaction) write(number uint64, op coordinator.Op) {
	t.c.metrics.writes.Inc()
	t.c.deps.Ledger.Write(t.shard.id, []coordinator.Op{op}, func(err error) {
		t.step(txn.Persisted{Write: number, Code: outcome(err)})
		t.c.forget(t)
	})
}

// outcome is what a write's error means to a client.
func outcome(err error) protocol.ErrorCode {
	switch {
	case err == nil:
		return protocol.None
	case errors.Is(err, coordinator.ErrFenced), errors.Is(err, ledger.ErrNotLed):
		return protocol.NotCoordinator
	case errors.Is(err, coordinator.ErrLimit):
		return protocol.InvalidRequest
	}
	return protocol.CoordinatorNotAvailable
}

// schedule sets the timer to the machine's deadline. The caller holds the lock.
func (t *transaction) schedule() {
	at, ok := t.machine.Deadline()
	switch {
	case !ok:
		if t.timer != nil {
			t.timer.Stop()
		}
	case t.timer == nil:
		t.timer = time.AfterFunc(at.Sub(t.c.deps.Now()), func() { t.step(txn.Tick{}) })
	default:
		t.timer.Reset(at.Sub(t.c.deps.Now()))
	}
}

// ask has the machine of an id answer a request; fresh is a producer id that was never used, if the machine may need one. What is said without a write is proved: an agent that has lost the
// id could tell a producer that it is fenced, or that what it ends has ended.
func (c *Coordinator) ask(ctx context.Context, id string, create bool, event func(id txn.RequestID, fresh protocol.ProducerID) txn.Event) txn.Result {
	reply, code := c.answer(ctx, id, create, event)
	if code != protocol.None {
		return txn.Result{Code: code}
	}
	if !reply.Written && reply.Result.Code != protocol.ConcurrentTransactions && c.deps.Prove(ctx) != nil {
		return txn.Result{Code: protocol.NotCoordinator}
	}
	return reply.Result
}

// answer is ask without the proof.
func (c *Coordinator) answer(ctx context.Context, id string, create bool, event func(id txn.RequestID, fresh protocol.ProducerID) txn.Event) (txn.Reply, protocol.ErrorCode) {
	for {
		t, code := c.find(ctx, id, create)
		switch {
		case code != protocol.None:
			return txn.Reply{}, code
		case t == nil:
			return txn.Reply{Result: txn.Result{Code: protocol.InvalidProducerIDMapping}}, protocol.None
		}
		fresh := protocol.NoProducerID
		if t.needsID() {
			var err error
			if fresh, err = c.deps.NextID(ctx); err != nil {
				c.deps.Log.Warn("no producer id", "err", err)
				c.forget(t)
				return txn.Reply{}, protocol.CoordinatorNotAvailable
			}
		}
		reply, code, ok := t.ask(ctx, func(id txn.RequestID) txn.Event { return event(id, fresh) })
		if ok {
			c.forget(t)
			return reply, code
		}
	}
}

// forget takes an id out that has no record, so that ids which were asked for in vain, or have expired, cost nothing.
func (c *Coordinator) forget(t *transaction) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone || t.machine.State() != txn.Dead || !t.machine.Idle() || len(t.waiting) > 0 {
		return
	}
	t.gone = true
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shards[t.shard.id] == t.shard && t.shard.txns[t.id] == t {
		delete(t.shard.txns, t.id)
		c.ids--
	}
}

// stop ends the timer of an id whose shard is not led any more.
func (t *transaction) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil {
		t.timer.Stop()
	}
}

func (t *transaction) needsID() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.machine.NeedsID()
}

// ask gives the machine a request and waits for the answer; ok is false if the id is gone.
func (t *transaction) ask(ctx context.Context, event func(txn.RequestID) txn.Event) (reply txn.Reply, code protocol.ErrorCode, ok bool) {
	answer := make(chan txn.Reply, 1)
	t.mu.Lock()
	if t.gone {
		t.mu.Unlock()
		return txn.Reply{}, protocol.None, false
	}
	t.requests++
	id := t.requests
	t.waiting[id] = answer
	t.stepLocked(event(id))
	t.mu.Unlock()
	limit := time.NewTimer(t.c.cfg.WaitMax)
	defer limit.Stop()
	for code == protocol.None {
		select {
		case reply := <-answer:
			return reply, protocol.None, true
		case <-limit.C: // what is being written goes on; what waits for others is told to come again
			t.step(txn.Cancel{Request: id})
		case <-t.shard.led.Done():
			code = protocol.NotCoordinator
		case <-ctx.Done():
			t.step(txn.Cancel{Request: id})
			code = protocol.CoordinatorNotAvailable
		}
	}
	t.mu.Lock()
	delete(t.waiting, id)
	t.mu.Unlock()
	select {
	case reply := <-answer:
		return reply, protocol.None, true
	default:
		return txn.Reply{}, code, true
	}
}
