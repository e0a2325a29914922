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
	waiting  map[txn.RequestID]chan txn.Result
	timer    *time.Timer // of the machine's deadline; nil until there is one
}

func (c *Coordinator) newTransaction(s *shard, id string, m *txn.Machine) *transaction {
	return &transaction{c: c, id: id, shard: s, machine: m, waiting: make(map[txn.RequestID]chan txn.Result)}
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
				answer <- e.Result
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
		if err == nil && op.Delete {
			t.c.forget(t)
		}
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

// ask gives the machine a request and waits for the answer. written says that it was given after something had been written, in which case the shard was led here.
func (t *transaction) ask(ctx context.Context, event func(txn.RequestID) txn.Event) (result txn.Result, written bool, code protocol.ErrorCode) {
	answer := make(chan txn.Result, 1)
	t.mu.Lock()
	t.requests++
	id := t.requests
	t.waiting[id] = answer
	t.stepLocked(event(id))
	t.mu.Unlock()
	select {
	case result := <-answer:
		return result, false, protocol.None
	default:
	}
	limit := time.NewTimer(t.c.cfg.WaitMax)
	defer limit.Stop()
	done := ctx.Done()
	for {
		select {
		case result := <-answer:
			return result, true, protocol.None
		case <-t.shard.led.Done():
			t.forgetRequest(id)
			return txn.Result{}, false, protocol.NotCoordinator
		case <-limit.C: // what is being written goes on; what waits for others is told to come again
			t.step(txn.Cancel{Request: id})
		case <-done:
			done = nil
			t.step(txn.Cancel{Request: id})
			select {
			case result := <-answer:
				return result, true, protocol.None
			default:
			}
			t.forgetRequest(id)
			return txn.Result{}, false, protocol.CoordinatorNotAvailable
		}
	}
}

func (t *transaction) forgetRequest(id txn.RequestID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, id)
}

// askFresh is ask for a request that may need a new producer id.
func (t *transaction) askFresh(ctx context.Context, event func(id txn.RequestID, fresh protocol.ProducerID) txn.Event) (txn.Result, protocol.ErrorCode) {
	fresh := protocol.NoProducerID
	t.mu.Lock()
	needs := t.machine.NeedsID()
	t.mu.Unlock()
	if needs {
		var err error
		if fresh, err = t.c.deps.NextID(ctx); err != nil {
			t.c.deps.Log.Warn("no producer id", "err", err)
			return txn.Result{}, protocol.CoordinatorNotAvailable
		}
	}
	result, _, code := t.ask(ctx, func(id txn.RequestID) txn.Event { return event(id, fresh) })
	return result, code
}
