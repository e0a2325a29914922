package partition

import (
	"math"
	"testing"

	"github.com/varve-io/varve/protocol"
)

// sent is one batch of a producer and what must become of it.
type sent struct {
	epoch    protocol.ProducerEpoch
	sequence int32
	records  int32
	base     protocol.Offset // where it is, or was, placed
	dup      bool
	err      protocol.ErrorCode
}

func TestSequences(t *testing.T) {
	for name, batches := range map[string][]sent{
		"in order":                    {{0, 0, 3, 0, false, 0}, {0, 3, 1, 3, false, 0}, {0, 4, 2, 4, false, 0}},
		"unknown starts anywhere":     {{0, 70, 3, 0, false, 0}, {0, 73, 1, 3, false, 0}},
		"gap":                         {{0, 0, 3, 0, false, 0}, {0, 4, 1, 0, false, protocol.OutOfOrderSequenceNumber}, {0, 3, 1, 3, false, 0}},
		"the last one again":          {{0, 0, 3, 0, false, 0}, {0, 0, 3, 0, true, 0}, {0, 3, 1, 3, false, 0}},
		"an earlier one again":        {{0, 0, 1, 0, false, 0}, {0, 1, 1, 1, false, 0}, {0, 2, 1, 2, false, 0}, {0, 0, 1, 0, true, 0}, {0, 1, 1, 1, true, 0}},
		"same start, other length":    {{0, 0, 3, 0, false, 0}, {0, 0, 2, 0, false, protocol.OutOfOrderSequenceNumber}},
		"older than what is kept":     {{0, 0, 1, 0, false, 0}, {0, 1, 1, 1, false, 0}, {0, 2, 1, 2, false, 0}, {0, 3, 1, 3, false, 0}, {0, 4, 1, 4, false, 0}, {0, 5, 1, 5, false, 0}, {0, 0, 1, 0, false, protocol.OutOfOrderSequenceNumber}, {0, 1, 1, 1, true, 0}},
		"new epoch":                   {{0, 0, 3, 0, false, 0}, {1, 0, 1, 3, false, 0}, {0, 3, 1, 0, false, protocol.InvalidProducerEpoch}, {0, 0, 3, 0, false, protocol.InvalidProducerEpoch}},
		"new epoch must start at 0":   {{0, 0, 3, 0, false, 0}, {1, 3, 1, 0, false, protocol.OutOfOrderSequenceNumber}},
		"sequences wrap around":       {{0, math.MaxInt32 - 1, 2, 0, false, 0}, {0, 0, 5, 2, false, 0}, {0, 5, 1, 7, false, 0}},
		"wrap around within a batch":  {{0, math.MaxInt32, 3, 0, false, 0}, {0, 2, 1, 3, false, 0}, {0, math.MaxInt32, 3, 0, true, 0}},
		"duplicate of another length": {{0, 0, 3, 0, false, 0}, {0, 3, 3, 3, false, 0}, {0, 3, 4, 0, false, protocol.OutOfOrderSequenceNumber}},
	} {
		t.Run(name, func(t *testing.T) {
			l := New(1)
			for i, s := range batches {
				end := l.End()
				got, err := l.Append(0, Batch{ProducerID: 7, ProducerEpoch: s.epoch, BaseSequence: s.sequence, Records: s.records})
				if code := protocol.CodeOf(err); code != s.err {
					t.Fatalf("batch %d: %v, want %v", i, err, s.err)
				}
				if err != nil || s.dup {
					if l.End() != end {
						t.Fatalf("batch %d was refused or repeated, but the log grew", i)
					}
				}
				if err == nil && (got.Base != s.base || got.Duplicate != s.dup || got.Last != s.base+protocol.Offset(s.records)-1) {
					t.Fatalf("batch %d: %+v, want base %d, duplicate %v", i, got, s.base, s.dup)
				}
			}
		})
	}
}

// TestRefused: where nothing is to be appended, a batch that is in the log is a duplicate all the same, and all others are told why, even if one before them is missing.
func TestRefused(t *testing.T) {
	l := New(1)
	first := Batch{ProducerID: 7, Records: 3}
	if _, err := l.Append(0, first); err != nil {
		t.Fatal(err)
	}
	again, next, gap, plain := first, Batch{ProducerID: 7, BaseSequence: 3, Records: 1}, Batch{ProducerID: 7, BaseSequence: 4, Records: 1}, Batch{ProducerID: protocol.NoProducerID, Records: 1}
	for _, b := range []*Batch{&again, &next, &gap, &plain} {
		b.Refused = protocol.NotEnoughReplicas.Err()
		got, err := l.Append(0, *b)
		if want := b == &again; got.Duplicate != want || want != (err == nil) || !want && protocol.CodeOf(err) != protocol.NotEnoughReplicas {
			t.Errorf("sequence %d of producer %d: %+v, %v", b.BaseSequence, b.ProducerID, got, err)
		}
	}
	if l.End() != 3 {
		t.Errorf("the log ends at %d, want 3", l.End())
	}
	if _, err := l.Append(0, Batch{ProducerID: 7, BaseSequence: 3, Records: 1}); err != nil {
		t.Errorf("then: %v", err)
	}
}

func TestProducersAreApart(t *testing.T) {
	l := New(1)
	for id := protocol.ProducerID(1); id <= 3; id++ {
		if _, err := l.Append(0, Batch{ProducerID: id, Records: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := l.Append(0, Batch{ProducerID: protocol.NoProducerID, Records: 2}); err != nil || got.Base != 3 {
		t.Fatalf("batch without producer: %+v, %v", got, err)
	}
	if n := l.Producers().Len(); n != 3 {
		t.Errorf("%d producers are remembered, want 3", n)
	}
}

func TestExpire(t *testing.T) {
	var s Producers
	for i := range 5 {
		s.Append(int64(i*10), Batch{ProducerID: protocol.ProducerID(i), Records: 1}, protocol.Offset(i))
	}
	s.Expire(10, 3)
	all := s.All()
	if len(all) != 3 || all[0].ID != 2 || all[2].ID != 4 {
		t.Errorf("left are %+v, want 2, 3 and 4", all)
	}
}

func TestHighWatermark(t *testing.T) {
	l := New(1)
	if _, err := l.Append(0, Batch{ProducerID: -1, Records: 10}); err != nil {
		t.Fatal(err)
	}
	if l.HighWatermark() != 0 {
		t.Error("a batch is readable before it is durable")
	}
	if !l.Durable(10) || l.Durable(5) || l.HighWatermark() != 10 {
		t.Errorf("high watermark is %d, want 10, and never back", l.HighWatermark())
	}
	if err := l.SetStart(11); protocol.CodeOf(err) != protocol.OffsetOutOfRange {
		t.Errorf("log start past the high watermark: %v", err)
	}
	if err := l.SetStart(4); err != nil {
		t.Error(err)
	}
	if err := l.SetStart(2); err != nil || l.Start() != 4 {
		t.Errorf("log start is %d after moving it back, want 4", l.Start())
	}
	defer func() {
		if recover() == nil {
			t.Error("durable beyond the end went unnoticed")
		}
	}()
	l.Durable(11)
}

// TestRestore holds that a new leader continues where the committed log ends, with its producers: a retry of a batch that was acknowledged by the
// old leader is a duplicate.
func TestRestore(t *testing.T) {
	l := New(5)
	l.RestoreStart(3)
	l.RestoreEnd(2, 3, 10)
	l.Restore(0, 4, 10, Batch{ProducerID: 7, BaseSequence: 40, Records: 5})
	if l.Start() != 3 || l.End() != 15 || l.HighWatermark() != 15 || l.LastStable() != 15 {
		t.Fatalf("start %d, high watermark %d, end %d", l.Start(), l.HighWatermark(), l.End())
	}
	got, err := l.Append(0, Batch{ProducerID: 7, BaseSequence: 40, Records: 5})
	if err != nil || !got.Duplicate || got.Base != 10 {
		t.Errorf("retry of a restored batch: %+v, %v", got, err)
	}
	if got, err = l.Append(0, Batch{ProducerID: 7, BaseSequence: 45, Records: 1}); err != nil || got.Base != 15 {
		t.Errorf("next batch: %+v, %v", got, err)
	}
}

func TestEpochs(t *testing.T) {
	l := New(6)
	l.RestoreEnd(2, 0, 10)
	l.RestoreEnd(2, 10, 20)
	l.RestoreEnd(4, 20, 30)
	if _, err := l.Append(0, Batch{ProducerID: -1, Records: 5}); err != nil {
		t.Fatal(err)
	}
	l.Durable(35)
	for _, c := range []struct {
		asked, epoch protocol.LeaderEpoch
		end          protocol.Offset
		ok           bool
	}{
		{1, 1, 0, true},
		{2, 2, 20, true},
		{3, 2, 20, true},
		{4, 4, 30, true},
		{5, 4, 30, true},
		{6, 6, 35, true},
		{7, protocol.NoLeaderEpoch, protocol.NoOffset, false},
	} {
		epoch, end, ok := l.EpochEnd(c.asked)
		if epoch != c.epoch || end != c.end || ok != c.ok {
			t.Errorf("end of epoch %d: %d ends at %d (%v), want %d at %d (%v)", c.asked, epoch, end, ok, c.epoch, c.end, c.ok)
		}
	}
	for offset, want := range map[protocol.Offset]protocol.LeaderEpoch{0: 2, 19: 2, 20: 4, 29: 4, 30: 6, 34: 6, 35: 6} {
		if got := l.EpochOf(offset); got != want {
			t.Errorf("epoch of offset %d is %d, want %d", offset, got, want)
		}
	}
}
