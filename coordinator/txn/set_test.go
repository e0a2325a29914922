package txn

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/protocol"
)

func TestSet(t *testing.T) {
	a, b := protocol.TopicID{1}, protocol.TopicID{2}
	s := NewSet(Partition{b, 0}, Partition{a, 5}, Partition{a, 3}, Partition{a, 4}, Partition{a, 4}, Partition{a, 9})
	if want := (Set{{a, 3}, {a, 4}, {a, 5}, {a, 9}, {b, 0}}); !slices.Equal(s, want) {
		t.Errorf("got %v, want %v", s, want)
	}
	text, err := s.MarshalText()
	if want := a.String() + ":3-5,9 " + b.String() + ":0"; err != nil || string(text) != want {
		t.Errorf("got %s, %v, want %s", text, err, want)
	}
	other := Set{{a, 4}, {b, 0}, {b, 1}}
	if got, want := s.Missing(other), (Set{{b, 1}}); !slices.Equal(got, want) {
		t.Errorf("missing %v, want %v", got, want)
	}
	if got := s.Missing(s); got != nil {
		t.Errorf("missing of itself: %v", got)
	}
	if got, want := s.Union(other), append(slices.Clone(s), Partition{b, 1}); !slices.Equal(got, want) {
		t.Errorf("union %v, want %v", got, want)
	}
}

func TestSetRefusesText(t *testing.T) {
	id := protocol.TopicID{1}.String()
	for _, text := range []string{
		"x", id, id + ":", id + ":1,", id + ":2-1", id + ":1-", id + ":2147483648", id + ":0-2147483647", "short:1",
		strings.Repeat(id+":0-1048574 ", 2),
	} {
		var s Set
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is read as %d partitions", text, len(s))
		}
	}
}

func FuzzSet(f *testing.F) {
	f.Add([]byte(protocol.TopicID{}.String() + ":7 " + protocol.TopicID{1}.String() + ":0-63,70"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s, again Set
		if s.UnmarshalText(text) != nil {
			return
		}
		first, err := s.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if err := again.UnmarshalText(first); err != nil || !slices.Equal(s, again) {
			t.Fatalf("%q is read as %v, %v, want %v", first, again, err, s)
		}
		if second, _ := again.MarshalText(); !bytes.Equal(first, second) {
			t.Fatalf("%q, then %q", first, second)
		}
	})
}

func TestSnapshotFormat(t *testing.T) {
	// As etcd holds it: what is written here is read by every later version.
	const text = `{"format":1,"state":"PrepareCommit","producer":7,"epoch":32767,"last_producer":7,"last_epoch":32766,"next_producer":9,` +
		`"version2":true,"timeout_ms":60000,"partitions":"AAAAAAAAAAAAAAAAAAAAAA:7 AQAAAAAAAAAAAAAAAAAAAA:0-1","started_ms":1000,"updated_ms":2000}`
	var s Snapshot
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	if got, err := json.Marshal(s); err != nil || string(got) != text {
		t.Errorf("got %s, %v, want %s", got, err, text)
	}
	m, err := Load(Config{}, time.UnixMilli(5000), s)
	if err != nil {
		t.Fatal(err)
	}
	want := "PrepareCommit producer=7/32767 last=7/32766 next=9 v2 [AAAAAAAAAAAAAAAAAAAAAA:7 AQAAAAAAAAAAAAAAAAAAAA:0-1]"
	if m.String() != want {
		t.Errorf("got %s, want %s", m, want)
	}
}

func TestLoadRefuses(t *testing.T) {
	for name, change := range map[string]func(*Snapshot){
		"newer format":   func(s *Snapshot) { s.Format = snapshotFormat + 1 },
		"no format":      func(s *Snapshot) { s.Format = 0 },
		"dead":           func(s *Snapshot) { s.State = Dead },
		"no producer id": func(s *Snapshot) { s.ProducerID = -1 },
		"no epoch":       func(s *Snapshot) { s.Epoch = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			s := noRecord
			s.State, s.ProducerID, s.Epoch = Empty, 1, 0
			if _, err := Load(Config{}, time.UnixMilli(0), s); err != nil {
				t.Fatal(err)
			}
			change(&s)
			if m, err := Load(Config{}, time.UnixMilli(0), s); err == nil {
				t.Errorf("loaded %s", m)
			}
		})
	}
}

// TestEnd is the table of TransactionCoordinator.endTransaction (second version) and endTransactionWithTV1: state, claim
// and outcome asked for. The producer is 5/3; what it had before is 5/2.
func TestEnd(t *testing.T) {
	const (
		none    = protocol.None
		state   = protocol.InvalidTxnState
		fenced  = protocol.ProducerFenced
		mapping = protocol.InvalidProducerIDMapping
		decides = protocol.ErrorCode(1000) // not answered before a write
	)
	for _, c := range []struct {
		version2 bool
		state    State
		epoch    protocol.ProducerEpoch
		commit   protocol.ErrorCode
		abort    protocol.ErrorCode
	}{
		{false, Empty, 3, state, state},
		{false, Ongoing, 3, decides, decides},
		{false, CompleteCommit, 3, none, state},
		{false, CompleteAbort, 3, state, none},
		{false, Ongoing, 2, fenced, fenced},
		{false, Ongoing, 4, fenced, fenced},
		{false, CompleteCommit, 2, fenced, fenced},
		{true, Empty, 3, state, decides},
		{true, Empty, 2, fenced, fenced},
		{true, Ongoing, 3, decides, decides},
		{true, Ongoing, 2, fenced, fenced},
		{true, Ongoing, 4, fenced, fenced},
		{true, CompleteCommit, 3, state, decides},
		{true, CompleteCommit, 2, none, state},
		{true, CompleteCommit, 4, fenced, fenced},
		{true, CompleteAbort, 3, state, decides},
		{true, CompleteAbort, 2, state, none},
		{true, CompleteAbort, 1, fenced, fenced},
	} {
		s := noRecord
		s.State, s.ProducerID, s.Epoch, s.LastProducerID, s.LastEpoch, s.Version2, s.TimeoutMs = c.state, 5, 3, 5, 2, true, 1000
		for commit, want := range map[bool]protocol.ErrorCode{true: c.commit, false: c.abort} {
			for id, want := range map[protocol.ProducerID]protocol.ErrorCode{5: want, 6: mapping} {
				m, err := Load(Config{ParkedMax: 1}, time.UnixMilli(0), s)
				if err != nil {
					t.Fatal(err)
				}
				m.record.StartedMs = 0
				got := decides
				effects := m.Step(time.UnixMilli(0), End{Request: 1, ProducerID: id, Epoch: c.epoch, Commit: commit, Version2: c.version2})
				if r, ok := effects[0].(Reply); ok {
					got = r.Result.Code
				}
				if got != want || len(effects) != 1 {
					t.Errorf("version2=%t %s, producer %d/%d, commit=%t: %v, want %s", c.version2, c.state, id, c.epoch, commit, effects, want)
				}
			}
		}
	}
}
