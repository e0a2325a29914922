package partition

import (
	"testing"

	"github.com/varve-io/varve/protocol"
)

// step is one thing that happens to a partition; every step is checked against the offsets that must follow from it.
type step struct {
	do     func(*script) error
	code   protocol.ErrorCode
	stable protocol.Offset // last stable offset after it
	atEnd  protocol.Offset // the same if all were durable
}

// script plays steps. Batches are of one record, and not durable until a step says so.
type script struct {
	log     *Log
	tickets map[string]*Ticket
}

const producer protocol.ProducerID = 7

// data appends a transactional batch with the ticket of that name.
func data(id protocol.ProducerID, epoch protocol.ProducerEpoch, sequence int32, ticket string) func(*script) error {
	return func(s *script) error {
		_, err := s.log.Append(0, Batch{ProducerID: id, ProducerEpoch: epoch, BaseSequence: sequence, Records: 1, Transactional: true, Ticket: s.tickets[ticket]})
		return err
	}
}

// plain appends a batch of no transaction.
func plain(id protocol.ProducerID, epoch protocol.ProducerEpoch, sequence int32) func(*script) error {
	return func(s *script) error {
		_, err := s.log.Append(0, Batch{ProducerID: id, ProducerEpoch: epoch, BaseSequence: sequence, Records: 1})
		return err
	}
}

// verify takes a ticket, for a producer whose epoch is raised by each transaction or not.
func verify(name string, id protocol.ProducerID, epoch protocol.ProducerEpoch, sequence int32, raised bool) func(*script) error {
	return func(s *script) error {
		t, needed := s.log.Producers().Verify(id, epoch, sequence, raised)
		if !needed {
			return protocol.InvalidRequest.Errorf("no ticket is needed")
		}
		s.tickets[name] = t
		return nil
	}
}

// mark appends a marker; again says that it must be found to be in the log already.
func mark(id protocol.ProducerID, epoch protocol.ProducerEpoch, coordinator int32, strict, again bool) func(*script) error {
	return func(s *script) error {
		end := s.log.End()
		got, err := s.log.Append(0, Batch{
			ProducerID: id, ProducerEpoch: epoch, BaseSequence: protocol.NoSequence, Records: 1, Transactional: true,
			Marker: true, CoordinatorEpoch: coordinator, Strict: strict,
		})
		if err == nil && (got.Duplicate != again || again != (s.log.End() == end) || got.Last != s.log.End()-1) {
			return protocol.UnknownServerError.Errorf("marker: %+v and the log ends at %d, was %d", got, s.log.End(), end)
		}
		return err
	}
}

func durable(next protocol.Offset) func(*script) error {
	return func(s *script) error { s.log.Durable(next); return nil }
}

func start(offset protocol.Offset) func(*script) error {
	return func(s *script) error { return s.log.SetStart(offset) }
}

func expire(s *script) error { s.log.Producers().Expire(1, 0); return nil }

func drop(name string) func(*script) error {
	return func(s *script) error { s.log.Producers().Drop(producer, s.tickets[name]); return nil }
}

// begun opens a transaction of the producer at offset 0, durable.
var begun = []step{
	{verify("a", producer, 0, 0, false), 0, 0, 0},
	{data(producer, 0, 0, "a"), 0, 0, 0},
	{durable(1), 0, 0, 0},
}

func TestTransactions(t *testing.T) {
	const (
		fenced  = protocol.TransactionCoordinatorFenced
		epoch   = protocol.InvalidProducerEpoch
		order   = protocol.OutOfOrderSequenceNumber
		state   = protocol.InvalidTxnState
		again   = protocol.NotEnoughReplicas
		notNew  = protocol.InvalidRequest // no ticket is needed
		unknown = "unknown"               // a ticket that nobody was given
	)
	for name, c := range map[string]struct {
		begun bool
		steps []step
	}{
		"without a ticket": {false, []step{{data(producer, 0, 0, unknown), again, 0, 0}, {plain(producer, 0, 0), 0, 0, 1}}},
		"an open one needs none": {true, []step{
			{verify("b", producer, 0, 1, false), notNew, 0, 0}, {data(producer, 0, 1, unknown), 0, 0, 0}, {durable(2), 0, 0, 0},
		}},
		"a marker ends it once durable": {true, []step{
			{plain(9, 0, 0), 0, 0, 0}, {mark(producer, 0, 3, false, false), 0, 0, 3}, {durable(2), 0, 0, 3}, {durable(3), 0, 3, 3},
		}},
		"the first of several counts": {true, []step{
			{plain(9, 0, 0), 0, 0, 0},
			{verify("b", 8, 0, 0, false), 0, 0, 0},
			{data(8, 0, 0, "b"), 0, 0, 0},
			{durable(3), 0, 0, 0},
			{mark(producer, 0, 1, false, false), 0, 0, 2},
			{durable(4), 0, 2, 2},
			{verify("c", producer, 0, 1, false), 0, 2, 2},
			{data(producer, 0, 1, "c"), 0, 2, 2},
			{mark(8, 0, 1, false, false), 0, 2, 4},
			{durable(5), 0, 2, 4},
			{durable(6), 0, 4, 4},
			{mark(producer, 0, 1, false, false), 0, 4, 7},
			{durable(7), 0, 7, 7},
		}},
		"a later one ends first": {true, []step{
			{verify("b", 8, 0, 0, false), 0, 0, 0},
			{data(8, 0, 0, "b"), 0, 0, 0},
			{mark(8, 0, 1, false, false), 0, 0, 0},
			{durable(3), 0, 0, 0},
			{mark(producer, 0, 1, false, false), 0, 0, 4},
			{durable(4), 0, 4, 4},
		}},
		"a marker voids tickets": {true, []step{
			{mark(producer, 0, 1, false, false), 0, 0, 2},
			{verify("b", producer, 0, 1, false), 0, 0, 2},
			{mark(producer, 0, 1, false, true), 0, 0, 2},
			{data(producer, 0, 1, "b"), again, 0, 2},
			{verify("c", producer, 0, 1, false), 0, 0, 2},
			{data(producer, 0, 1, "c"), 0, 0, 2},
		}},
		"a marker voids tickets of a producer that is not known": {false, []step{
			{verify("a", producer, 0, 0, false), 0, 0, 0}, {mark(producer, 0, 1, false, false), 0, 0, 1}, {data(producer, 0, 0, "a"), again, 0, 1},
		}},
		"a ticket begins one transaction": {true, []step{
			{mark(producer, 0, 1, false, false), 0, 0, 2}, {data(producer, 0, 1, "a"), again, 0, 2},
		}},
		"a ticket of another producer, or epoch": {false, []step{
			{verify("a", 8, 0, 0, false), 0, 0, 0},
			{verify("b", producer, 1, 0, false), 0, 0, 0},
			{data(producer, 0, 0, "a"), again, 0, 0},
			{data(producer, 0, 0, "b"), again, 0, 0},
			{data(producer, 1, 0, "b"), 0, 0, 0},
		}},
		"a ticket of an older epoch is void": {false, []step{
			{verify("a", producer, 0, 0, false), 0, 0, 0},
			{verify("b", producer, 1, 0, false), 0, 0, 0},
			{data(producer, 0, 0, "a"), again, 0, 0},
			{verify("c", producer, 0, 0, false), 0, 0, 0},
			{data(producer, 0, 0, "c"), again, 0, 0},
			{data(producer, 1, 0, "b"), 0, 0, 0},
		}},
		"a dropped ticket": {false, []step{
			{verify("a", producer, 0, 0, false), 0, 0, 0},
			{drop("a"), 0, 0, 0},
			{data(producer, 0, 0, "a"), again, 0, 0},
			{verify("b", producer, 0, 0, false), 0, 0, 0},
			{drop("a"), 0, 0, 0},
			{data(producer, 0, 0, "b"), 0, 0, 0},
		}},
		"a ticket that is used lives on, another does not": {false, []step{
			{verify("a", producer, 0, 0, false), 0, 0, 0},
			{expire, 0, 0, 0},
			{verify("b", producer, 0, 0, false), 0, 0, 0},
			{expire, 0, 0, 0},
			{data(producer, 0, 0, "a"), 0, 0, 0},
			{verify("c", 8, 0, 0, false), 0, 0, 0},
			{expire, 0, 0, 0},
			{expire, 0, 0, 0},
			{data(8, 0, 0, "c"), again, 0, 0},
		}},
		"the first of several in flight begins": {false, []step{
			{verify("a", producer, 0, 4, false), 0, 0, 0},
			{verify("b", producer, 0, 6, false), 0, 0, 0},
			{data(producer, 0, 6, "b"), order, 0, 0},
			{data(producer, 0, 4, "b"), 0, 0, 0},
			{data(producer, 0, 5, unknown), 0, 0, 0},
		}},
		"with raised epochs sequence 0 begins": {false, []step{
			{verify("a", producer, 3, 6, true), 0, 0, 0}, {data(producer, 3, 6, "a"), order, 0, 0}, {data(producer, 3, 0, "a"), 0, 0, 0},
		}},
		"a plain batch in it": {true, []step{{plain(producer, 0, 1), state, 0, 0}, {plain(producer, 1, 0), state, 0, 0}}},
		"a newer epoch in it": {true, []step{{verify("b", producer, 1, 0, false), 0, 0, 0}, {data(producer, 1, 0, "b"), state, 0, 0}}},
		"an older epoch after a raise": {true, []step{
			{mark(producer, 1, 1, false, false), 0, 0, 2}, {data(producer, 0, 1, unknown), epoch, 0, 2}, {plain(producer, 0, 1), epoch, 0, 2},
		}},
		"sequence 0 after a raise": {true, []step{
			{mark(producer, 1, 1, true, false), 0, 0, 2},
			{verify("b", producer, 1, 1, true), 0, 0, 2},
			{data(producer, 1, 1, "b"), order, 0, 2},
			{data(producer, 1, 0, "b"), 0, 0, 2},
			{data(producer, 1, 1, unknown), 0, 0, 2},
		}},
		"the sequence goes on without a raise": {true, []step{
			{mark(producer, 0, 1, false, false), 0, 0, 2},
			{verify("b", producer, 0, 0, false), 0, 0, 2},
			{data(producer, 0, 2, "b"), order, 0, 2},
			{data(producer, 0, 1, "b"), 0, 0, 2},
		}},
		"an earlier coordinator": {true, []step{
			{mark(producer, 0, 5, false, false), 0, 0, 2},
			{verify("b", producer, 0, 1, false), 0, 0, 2},
			{data(producer, 0, 1, "b"), 0, 0, 2},
			{mark(producer, 0, 4, false, false), fenced, 0, 2},
			{mark(producer, 1, 4, true, false), fenced, 0, 2},
			{mark(producer, 0, 5, false, false), 0, 0, 4},
		}},
		"an earlier coordinator, after a copy of its marker by a later one": {true, []step{
			{mark(producer, 0, 4, false, false), 0, 0, 2},
			{mark(producer, 0, 5, false, false), 0, 0, 3},
			{verify("b", producer, 0, 1, false), 0, 0, 3},
			{mark(producer, 0, 4, false, false), fenced, 0, 3},
			{data(producer, 0, 1, "b"), 0, 0, 3},
			{mark(producer, 0, 4, false, false), fenced, 0, 3},
		}},
		"an older marker": {true, []step{
			{mark(producer, 2, 1, false, false), 0, 0, 2}, {mark(producer, 1, 1, false, false), epoch, 0, 2}, {mark(producer, 1, 1, true, false), epoch, 0, 2},
		}},
		"a strict marker of the open transaction's epoch": {true, []step{
			{mark(producer, 0, 1, true, false), epoch, 0, 0},
			{mark(producer, 1, 1, true, false), 0, 0, 2},
			{mark(producer, 1, 1, true, true), 0, 0, 2},
			{verify("b", producer, 1, 0, true), 0, 0, 2},
			{data(producer, 1, 0, "b"), 0, 0, 2},
			{mark(producer, 1, 1, true, false), epoch, 0, 2},
		}},
		"a marker without a transaction raises the epoch": {false, []step{
			{mark(producer, 3, 1, true, false), 0, 0, 1},
			{verify("a", producer, 2, 0, true), 0, 0, 1},
			{data(producer, 2, 0, "a"), epoch, 0, 1},
			{verify("b", producer, 3, 0, true), 0, 0, 1},
			{data(producer, 3, 1, "b"), order, 0, 1},
			{data(producer, 3, 0, "b"), 0, 0, 1},
		}},
		"producers do not expire while it is open": {true, []step{
			{plain(9, 0, 0), 0, 0, 0},
			{expire, 0, 0, 0},
			{data(producer, 0, 2, unknown), order, 0, 0},
			{mark(producer, 0, 1, false, false), 0, 0, 3},
			{plain(9, 0, 50), 0, 0, 4},
			{expire, 0, 0, 4},
			{plain(producer, 0, 50), 0, 0, 5},
			{durable(5), 0, 5, 5},
		}},
		"the log start passes it": {true, []step{
			{plain(9, 0, 0), 0, 0, 0}, {plain(9, 0, 1), 0, 0, 0}, {durable(3), 0, 0, 0}, {start(2), 0, 2, 0}, {mark(producer, 0, 1, false, false), 0, 2, 4}, {durable(4), 0, 4, 4},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{log: New(1), tickets: make(map[string]*Ticket)}
			steps := c.steps
			if c.begun {
				steps = append(append([]step(nil), begun...), steps...)
			}
			for i, step := range steps {
				end := s.log.End()
				err := step.do(s)
				if protocol.CodeOf(err) != step.code {
					t.Fatalf("step %d: %v, want code %v", i, err, step.code)
				}
				if err != nil && s.log.End() != end {
					t.Fatalf("step %d was refused, but the log grew", i)
				}
				if got := s.log.LastStable(); got != step.stable {
					t.Fatalf("step %d: last stable offset %d, want %d", i, got, step.stable)
				}
				if got := s.log.StableAtEnd(); got != step.atEnd {
					t.Fatalf("step %d: last stable offset at the end %d, want %d", i, got, step.atEnd)
				}
			}
		})
	}
}

// TestTicketsAreBounded holds that a partition remembers a limited number of tickets, and that those who held one ask again.
func TestTicketsAreBounded(t *testing.T) {
	var s Producers
	first, _ := s.Verify(0, 0, 0, false)
	for id := range protocol.ProducerID(ticketsMax) {
		s.Verify(id+1, 0, 0, false)
	}
	used := len(s.tickets)
	s.Append(0, Batch{ProducerID: ticketsMax, Records: 1, Transactional: true}, 0)
	if len(s.tickets) != used-1 {
		t.Error("a ticket is kept when its transaction has begun")
	}
	if used > ticketsMax {
		t.Errorf("%d tickets are remembered, want at most %d", used, ticketsMax)
	}
	_, err := s.Check(Batch{ProducerID: 0, Records: 1, Transactional: true, Ticket: first})
	if protocol.CodeOf(err) != protocol.NotEnoughReplicas {
		t.Errorf("a forgotten ticket: %v", err)
	}
}

// TestDuplicateInTransaction holds that a batch which is in the log already is found, whether its transaction is over or not.
func TestDuplicateInTransaction(t *testing.T) {
	s := &script{log: New(1), tickets: make(map[string]*Ticket)}
	for _, step := range begun {
		if err := step.do(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, when := range []string{"open", "over"} {
		got, err := s.log.Append(0, Batch{ProducerID: producer, Records: 1, Transactional: true})
		if err != nil || !got.Duplicate || got.Base != 0 {
			t.Errorf("the batch again while its transaction is %s: %+v, %v", when, got, err)
		}
		_ = mark(producer, 0, 1, false, false)(s) // the second time it is there already
	}
}
