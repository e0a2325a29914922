package mem_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/coordtest"
	"github.com/varve-io/varve/coordinator/mem"
)

func TestContract(t *testing.T) {
	coordtest.Run(t, func(*testing.T) coordinator.KV { return mem.New(mem.Config{ClusterID: 7}) })
}

func put(key, value string) []coordinator.Op {
	return []coordinator.Op{{Key: key, Value: []byte(value)}}
}

func value(t *testing.T, s *mem.Store, key string) string {
	t.Helper()
	item, _, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return string(item.Value)
}

func TestFaultKinds(t *testing.T) {
	for _, c := range []struct {
		kind    mem.FaultKind
		want    []error
		now     string // value after the call
		settled string // value after Settle
	}{
		{mem.Unavailable, []error{coordinator.ErrUnavailable}, "0", "0"},
		{mem.UnknownApplied, []error{coordinator.ErrUnknownOutcome}, "1", "1"},
		{mem.UnknownLate, []error{coordinator.ErrUnknownOutcome}, "0", "1"},
		{mem.UnknownLost, []error{coordinator.ErrUnknownOutcome}, "0", "0"},
		{mem.NoSpace, []error{coordinator.ErrNoSpace}, "0", "0"},
		{mem.NoSpaceApplied, []error{coordinator.ErrNoSpace, coordinator.ErrUnknownOutcome}, "1", "1"},
	} {
		s := mem.New(mem.Config{})
		if _, err := s.Txn(t.Context(), nil, put("a", "0")); err != nil {
			t.Fatal(err)
		}
		s.Inject(mem.Fault{Call: mem.CallTxn, Kind: c.kind})
		_, err := s.Txn(t.Context(), nil, put("a", "1"))
		for _, kind := range []error{coordinator.ErrUnavailable, coordinator.ErrUnknownOutcome, coordinator.ErrNoSpace} {
			if errors.Is(err, kind) != slices.Contains(c.want, kind) {
				t.Errorf("kind %d: error %v, want that it is %v and nothing else", c.kind, err, c.want)
			}
		}
		if got := value(t, s, "a"); got != c.now {
			t.Errorf("kind %d: value %s after the call, want %s", c.kind, got, c.now)
		}
		s.Settle()
		if got := value(t, s, "a"); got != c.settled {
			t.Errorf("kind %d: value %s when settled, want %s", c.kind, got, c.settled)
		}
	}
}

// A late transaction is decided when it runs, which is what makes a guard work.
func TestLateTransactionMeetsGuard(t *testing.T) {
	s := mem.New(mem.Config{})
	s.Inject(mem.Fault{Call: mem.CallTxn, Kind: mem.UnknownLate})
	absent := []coordinator.Compare{{Key: "guard"}}
	if _, err := s.Txn(t.Context(), absent, put("guard", "late")); !errors.Is(err, coordinator.ErrUnknownOutcome) {
		t.Fatalf("Txn: %v", err)
	}
	if s.Pending() != 1 {
		t.Fatalf("%d transactions wait, want 1", s.Pending())
	}
	if result, err := s.Txn(t.Context(), absent, put("guard", "next")); err != nil || !result.Succeeded {
		t.Fatalf("Txn = %+v, %v", result, err)
	}
	if n := s.Settle(); n != 0 || value(t, s, "guard") != "next" {
		t.Errorf("%d late transactions succeeded, and the value is %q; want 0 and next", n, value(t, s, "guard"))
	}
}

func TestFaultSkipsAndCounts(t *testing.T) {
	s := mem.New(mem.Config{})
	s.Inject(
		mem.Fault{Call: mem.CallGet, Skip: 1, Times: 2, Kind: mem.Unavailable},
		mem.Fault{Call: mem.CallList, Kind: mem.UnknownLost},
	)
	for i, want := range []bool{true, false, false, true} {
		if _, _, err := s.Get(t.Context(), "a"); (err == nil) != want {
			t.Errorf("Get %d: %v, want success %t", i, err, want)
		}
	}
	if _, _, err := s.List(t.Context(), "", 0); !errors.Is(err, coordinator.ErrUnavailable) {
		t.Errorf("List: %v, want ErrUnavailable", err)
	}
	s.Inject(mem.Fault{Times: 1000, Kind: mem.Unavailable})
	if _, err := s.Grant(t.Context(), 5); !errors.Is(err, coordinator.ErrUnavailable) {
		t.Errorf("Grant: %v, want ErrUnavailable", err)
	}
	s.Heal()
	if _, err := s.Grant(t.Context(), 5); err != nil {
		t.Errorf("Grant, healed: %v", err)
	}
}

func TestRenewAndAdvance(t *testing.T) {
	s := mem.New(mem.Config{Start: time.Unix(100, 0)})
	lease, err := s.Grant(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(t.Context(), nil, []coordinator.Op{{Key: "a", Value: []byte("1"), Lease: lease}}); err != nil {
		t.Fatal(err)
	}
	s.Advance(time.Unix(109, 0))
	if err := s.Renew(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	s.Advance(time.Unix(118, 0))
	s.Advance(time.Unix(50, 0))
	if !s.Now().Equal(time.Unix(118, 0)) || value(t, s, "a") != "1" {
		t.Errorf("at %v, 9 s after a renewal, the value is %q", s.Now(), value(t, s, "a"))
	}
	s.Advance(time.Unix(119, 0))
	if value(t, s, "a") != "" {
		t.Error("the key outlived its lease")
	}
	if err := s.Renew(t.Context(), lease); !errors.Is(err, coordinator.ErrLeaseGone) {
		t.Errorf("Renew: %v, want ErrLeaseGone", err)
	}
}

func TestCursor(t *testing.T) {
	s := mem.New(mem.Config{HistoryRevisionsMax: 10})
	cursor, behind := s.NewCursor("a", 1), s.NewCursor("a", 1)
	if b, ok, err := cursor.Next(); ok || err != nil {
		t.Fatalf("Next on an empty store = %+v, %t, %v", b, ok, err)
	}
	write := func(key string) {
		t.Helper()
		if _, err := s.Txn(t.Context(), nil, put(key, "1")); err != nil {
			t.Fatal(err)
		}
	}
	write("a1") // revision 2
	write("b1")
	write("a2")
	write("b2")
	for _, want := range []coordinator.Batch{{Revision: 2, Events: make([]coordinator.Event, 1)}, {Revision: 4, Events: make([]coordinator.Event, 1)}, {Revision: 5}} {
		b, ok, err := cursor.Next()
		if !ok || err != nil || b.Revision != want.Revision || len(b.Events) != len(want.Events) {
			t.Errorf("Next = %+v, %t, %v; want revision %d with %d events", b, ok, err, want.Revision, len(want.Events))
		}
	}
	if b, ok, err := cursor.Next(); ok || err != nil {
		t.Errorf("Next at the end = %+v, %t, %v", b, ok, err)
	}
	for i := range 20 {
		write(fmt.Sprint("b", i))
	}
	if _, _, err := behind.Next(); !errors.Is(err, coordinator.ErrCompacted) {
		t.Errorf("Next behind a history of 10 revisions: %v, want ErrCompacted", err)
	}
}

// The same calls give the same revisions, lease ids and events.
func TestDeterminism(t *testing.T) {
	run := func() string {
		s := mem.New(mem.Config{})
		ctx := t.Context()
		var trace string
		for i := range 20 {
			lease, _ := s.Grant(ctx, int64(2+i%3))
			result, _ := s.Txn(ctx, nil, []coordinator.Op{{Key: fmt.Sprint("k", i%7), Lease: lease}, {Key: fmt.Sprint("l", i), Lease: lease}})
			trace += fmt.Sprintln(lease, result.Revision)
		}
		s.Advance(time.Time{}.Add(time.Minute))
		for cursor := s.NewCursor("", 0); ; {
			b, ok, _ := cursor.Next()
			if !ok {
				return trace
			}
			trace += fmt.Sprintln(b)
		}
	}
	if first, second := run(), run(); first != second {
		t.Errorf("two runs differ:\n%s\n%s", first, second)
	}
}
