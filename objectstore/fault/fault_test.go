package fault_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) objectstore.Store { return fault.New(mem.New()) })
}

func TestEffects(t *testing.T) {
	tests := []struct {
		name    string
		effect  fault.Effect
		put     error
		applied bool // at once
		late    bool // after ApplyLate
		get     error
	}{
		{"None", fault.None, nil, true, true, nil},
		{"Unavailable", fault.Unavailable, objectstore.ErrUnavailable, false, false, objectstore.ErrUnavailable},
		{"Denied", fault.Denied, objectstore.ErrDenied, false, false, objectstore.ErrDenied},
		{"UnknownNotApplied", fault.UnknownNotApplied, objectstore.ErrUnknownOutcome, false, false, objectstore.ErrUnavailable},
		{"UnknownApplied", fault.UnknownApplied, objectstore.ErrUnknownOutcome, true, true, objectstore.ErrUnavailable},
		{"UnknownLate", fault.UnknownLate, objectstore.ErrUnknownOutcome, false, true, objectstore.ErrUnavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inner := mem.New()
			s := fault.New(inner, fault.Rule{Effect: test.effect, Times: fault.Always})
			content := []byte("content")
			wantIs(t, "put", s.Put(t.Context(), "a", objectstore.Bytes(content)), test.put)
			clear(content) // it is the caller's again
			if got := exists(t, inner); got != test.applied {
				t.Errorf("put was applied: %v, want %v", got, test.applied)
			}
			for _, err := range s.ApplyLate(t.Context()) {
				wantIs(t, "late put", err, nil)
			}
			if got := exists(t, inner); got != test.late {
				t.Errorf("put was applied in the end: %v, want %v", got, test.late)
			}
			if !test.late {
				mustPut(t, inner, "a")
			}
			p := make([]byte, 7)
			wantIs(t, "get", s.Get(t.Context(), "a", 0, p), test.get)
			if test.get == nil && !bytes.Equal(p, []byte("content")) {
				t.Errorf("get reads %q", p)
			}
			_, err := s.Stat(t.Context(), "a")
			wantIs(t, "stat", err, test.get)
			for _, err := range s.List(t.Context(), "", "") {
				wantIs(t, "list", err, test.get)
			}
			wantIs(t, "delete", s.Delete(t.Context(), "a"), test.put)
		})
	}
}

func TestWrongBytes(t *testing.T) {
	s := fault.New(mem.New(), fault.Rule{Op: fault.Get, Nth: 2, Effect: fault.WrongBytes})
	mustPut(t, s, "a")
	for i, wrong := range []bool{false, true, false} {
		p := make([]byte, 7)
		wantIs(t, "get", s.Get(t.Context(), "a", 0, p), nil)
		if got := !bytes.Equal(p, []byte("content")); got != wrong {
			t.Errorf("get %d reads %q, wrong: want %v", i+1, p, wrong)
		}
	}
}

// TestRules checks which of ten Puts fail.
func TestRules(t *testing.T) {
	tests := []struct {
		name  string
		rules []fault.Rule
		want  string // one letter for each Put: u(navailable), d(enied) or ok
	}{
		{"first", []fault.Rule{{Op: fault.Put, Effect: fault.Unavailable}}, "u........."},
		{"third", []fault.Rule{{Op: fault.Put, Nth: 3, Effect: fault.Unavailable}}, "..u......."},
		{"some", []fault.Rule{{Op: fault.Put, Nth: 3, Times: 2, Effect: fault.Unavailable}}, "..uu......"},
		{"rest", []fault.Rule{{Nth: 8, Times: fault.Always, Effect: fault.Unavailable}}, ".......uuu"},
		{"other op", []fault.Rule{{Op: fault.Get, Times: fault.Always, Effect: fault.Unavailable}}, ".........."},
		{"prefix", []fault.Rule{{Prefix: "x/5", Effect: fault.Unavailable}}, ".....u...."},
		{"two rules", []fault.Rule{{Nth: 2, Effect: fault.Unavailable}, {Nth: 2, Times: 2, Effect: fault.Denied}}, ".ud......."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := fault.New(mem.New(), test.rules...)
			got := ""
			for i := range 10 {
				err := s.Put(t.Context(), "x/"+string(rune('0'+i)), objectstore.Body{})
				switch {
				case err == nil:
					got += "."
				case errors.Is(err, objectstore.ErrUnavailable):
					got += "u"
				default:
					got += "d"
				}
			}
			if got != test.want {
				t.Errorf("puts gave %s, want %s", got, test.want)
			}
			if s.Calls(fault.Put) != 10 || s.Calls(fault.Any) != 10 {
				t.Errorf("counted %d puts of %d calls, want 10 of 10", s.Calls(fault.Put), s.Calls(fault.Any))
			}
		})
	}
}

func TestGate(t *testing.T) {
	inner := mem.New()
	gate := fault.NewGate()
	s := fault.New(inner, fault.Rule{Op: fault.Put, Times: fault.Always, Gate: gate})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Put(ctx, "a", objectstore.Bytes([]byte("content"))) }()
	<-gate.Entered()
	cancel()
	wantIs(t, "put whose context ended at the gate", <-done, objectstore.ErrUnknownOutcome)

	go func() { done <- s.Put(t.Context(), "a", objectstore.Bytes([]byte("content"))) }()
	if exists(t, inner) {
		t.Error("a put passed the closed gate")
	}
	gate.Open()
	wantIs(t, "put", <-done, nil)
	s.Clear()
	wantIs(t, "put", s.Put(t.Context(), "b", objectstore.Body{}), nil)
}

func wantIs(t *testing.T, what string, err, want error) {
	t.Helper()
	if want == nil && err != nil || !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func mustPut(t *testing.T, s objectstore.Store, name string) {
	t.Helper()
	if err := s.Put(t.Context(), name, objectstore.Bytes([]byte("content"))); err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, s objectstore.Store) bool {
	t.Helper()
	_, err := s.Stat(t.Context(), "a")
	return err == nil
}
