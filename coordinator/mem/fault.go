package mem

import (
	"fmt"
	"slices"

	"github.com/varve-io/varve/coordinator"
)

// Call names a method of [Store] that a [Fault] can hit. Watches are not among them: a real one reconnects unseen.
type Call uint8

// The calls. CallAny stands for each of the others; CallKeepAlive hits [Store.Renew].
const (
	CallAny Call = iota
	CallGet
	CallList
	CallTxn
	CallGrant
	CallKeepAlive
	CallRevoke
	CallClusterID
	CallStatus
	CallCompact
)

// FaultKind is what happens to a call.
type FaultKind uint8

// The kinds. All but Unavailable concern transactions; other calls that they hit fail as with Unavailable.
const (
	Unavailable    FaultKind = iota + 1 // ErrUnavailable; nothing is applied
	UnknownApplied                      // ErrUnknownOutcome; the transaction ran
	UnknownLate                         // ErrUnknownOutcome; the transaction runs, comparisons included, when Settle is called
	UnknownLost                         // ErrUnknownOutcome; the transaction never runs
	NoSpace                             // ErrNoSpace; nothing is applied
	NoSpaceApplied                      // ErrNoSpace and ErrUnknownOutcome; the transaction ran and met the quota then
)

// Fault makes calls fail.
type Fault struct {
	Call  Call
	Skip  int // matching calls to let pass first
	Times int // how many to fail then; 0 means 1
	Kind  FaultKind
}

// pendingTxn is a transaction that waits for Settle.
type pendingTxn struct {
	compares []coordinator.Compare
	ops      []coordinator.Op
}

// pendingTxnsMax bounds what waits for Settle; a transaction over it is lost instead, which its caller cannot tell.
const pendingTxnsMax = 1024

// Inject adds faults. Each counts the calls that reach it; a call is hit by the first fault that is due, and passes
// those before it that skip.
func (s *Store) Inject(faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range faults {
		f.Times = max(f.Times, 1)
		s.faults = append(s.faults, f)
	}
}

// Heal removes all faults. Transactions that wait for Settle still wait.
func (s *Store) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Settle runs the transactions that [UnknownLate] held back, in their order, and returns how many succeeded.
func (s *Store) Settle() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	succeeded := 0
	for _, p := range s.pending {
		// A lease that ended meanwhile makes the transaction fail, like a comparison.
		if result, err := s.txn(p.compares, p.ops); err == nil && result.Succeeded {
			succeeded++
		}
	}
	s.pending = nil
	return succeeded
}

// Pending returns how many transactions wait for Settle.
func (s *Store) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

// takeFault returns the kind of the fault that this call meets, or 0. The caller holds mu.
func (s *Store) takeFault(call Call) FaultKind {
	for i := range s.faults {
		f := &s.faults[i]
		if f.Call != CallAny && f.Call != call {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		kind := f.Kind
		if f.Times--; f.Times == 0 {
			s.faults = slices.Delete(s.faults, i, i+1)
		}
		return kind
	}
	return 0
}

// failTxn gives a transaction the fate that kind says and returns its error. The caller holds mu.
func (s *Store) failTxn(kind FaultKind, compares []coordinator.Compare, ops []coordinator.Op) error {
	switch kind {
	case UnknownApplied, NoSpaceApplied:
		if _, err := s.txn(compares, ops); err != nil {
			return err
		}
	case UnknownLate:
		if len(s.pending) < pendingTxnsMax {
			s.pending = append(s.pending, pendingTxn{compares: cloneCompares(compares), ops: cloneOps(ops)})
		}
	case Unavailable, UnknownLost, NoSpace:
	}
	switch kind {
	case NoSpace:
		return fmt.Errorf("%w: injected", coordinator.ErrNoSpace)
	case NoSpaceApplied:
		return fmt.Errorf("%w: %w: injected", coordinator.ErrUnknownOutcome, coordinator.ErrNoSpace)
	case UnknownApplied, UnknownLate, UnknownLost:
		return fmt.Errorf("%w: injected", coordinator.ErrUnknownOutcome)
	case Unavailable:
	}
	return fmt.Errorf("%w: injected", coordinator.ErrUnavailable)
}

func cloneCompares(compares []coordinator.Compare) []coordinator.Compare {
	compares = slices.Clone(compares)
	for i := range compares {
		compares[i].Value = slices.Clone(compares[i].Value)
	}
	return compares
}

func cloneOps(ops []coordinator.Op) []coordinator.Op {
	ops = slices.Clone(ops)
	for i := range ops {
		ops[i].Value = slices.Clone(ops[i].Value)
	}
	return ops
}
