package coordinator_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// scripted is a store of two keys whose transactions fail as the script says.
type scripted struct {
	coordinator.KV
	items    map[string]coordinator.Item
	revision int64
	script   []outcome
	sent     int
}

type outcome int

const (
	works                outcome = iota
	unavailable                  // not applied
	lost                         // not applied, and the caller cannot know
	appliedAndLost               // applied, and the caller cannot know
	takenOver                    // another writer takes the first guard; then as works
	appliedThenTakenOver         // applied, the caller cannot know, and then another writer takes the guard
	full                         // not applied for want of room, and the answer does not say whether it was
	appliedAndFull               // applied, and answered like full: etcd does that
)

func (s *scripted) Get(_ context.Context, key string) (coordinator.Item, int64, error) {
	return s.items[key], s.revision, nil
}

func (s *scripted) Txn(_ context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	var o outcome
	if s.sent < len(s.script) {
		o = s.script[s.sent]
	}
	s.sent++
	switch o {
	case unavailable:
		return coordinator.TxnResult{}, fmt.Errorf("down: %w", coordinator.ErrUnavailable)
	case lost:
		return coordinator.TxnResult{}, fmt.Errorf("timed out: %w", coordinator.ErrUnknownOutcome)
	case full:
		return coordinator.TxnResult{}, fmt.Errorf("%w: %w", coordinator.ErrUnknownOutcome, coordinator.ErrNoSpace)
	case takenOver:
		s.put(compares[0].Key, "somebody else")
	default:
	}
	res := coordinator.TxnResult{Succeeded: true}
	for _, c := range compares {
		if s.items[c.Key].ModRevision != c.Revision {
			res.Succeeded = false
		}
	}
	if !res.Succeeded {
		for _, c := range compares {
			res.Failed = append(res.Failed, s.items[c.Key])
		}
		return res, nil
	}
	s.revision++
	for _, op := range ops {
		s.items[op.Key] = coordinator.Item{Key: op.Key, Value: op.Value, ModRevision: s.revision}
	}
	res.Revision = s.revision
	if o == appliedThenTakenOver {
		s.put(compares[0].Key, "somebody else")
	}
	switch o {
	case appliedAndLost, appliedThenTakenOver:
		return coordinator.TxnResult{}, fmt.Errorf("timed out: %w", coordinator.ErrUnknownOutcome)
	case appliedAndFull:
		return coordinator.TxnResult{}, fmt.Errorf("%w: %w", coordinator.ErrUnknownOutcome, coordinator.ErrNoSpace)
	default:
		return res, nil
	}
}

func (s *scripted) put(key, value string) {
	s.revision++
	s.items[key] = coordinator.Item{Key: key, Value: []byte(value), ModRevision: s.revision}
}

// TestApply holds that a write ends applied exactly once, or fenced, whatever becomes of its answers.
func TestApply(t *testing.T) {
	for name, c := range map[string]struct {
		script  []outcome
		fenced  bool
		applied bool
	}{
		"at once":                          {nil, false, true},
		"after the store came back":        {[]outcome{unavailable, unavailable}, false, true},
		"lost and not applied":             {[]outcome{lost, lost, works}, false, true},
		"applied, and the answer lost":     {[]outcome{appliedAndLost}, false, true},
		"lost, then applied and lost":      {[]outcome{lost, appliedAndLost, unavailable, works}, false, true},
		"taken over before":                {[]outcome{takenOver}, true, false},
		"lost, then taken over":            {[]outcome{lost, takenOver}, true, false},
		"applied and lost, then unreached": {[]outcome{appliedAndLost, lost, works}, false, true},
		"applied, and said to be full":     {[]outcome{appliedAndFull, full, full, full}, false, true},
		"lost, then no room, then room":    {[]outcome{lost, full, works}, false, true},
		"applied, lost, then no room":      {[]outcome{appliedAndLost, full}, false, true},
		"applied, lost, taken over":        {[]outcome{appliedThenTakenOver}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			kv := &scripted{items: make(map[string]coordinator.Item), script: c.script}
			kv.put("a", "0")
			kv.put("b", "0")
			guards := []*coordinator.Guard{
				{Key: "a", Revision: 1, Next: []byte("1")},
				{Key: "b", Revision: 2, Next: []byte("1")},
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := coordinator.Apply(ctx, kv, guards, []coordinator.Op{{Key: "x", Value: []byte("v")}})
			if got := errors.Is(err, coordinator.ErrFenced); got != c.fenced || err != nil && !got {
				t.Fatalf("error %v, want fenced %v", err, c.fenced)
			}
			if got := kv.items["x"].ModRevision != 0; got != c.applied {
				t.Errorf("applied %v, want %v", got, c.applied)
			}
			if err != nil {
				return
			}
			for _, g := range guards {
				if g.Revision != kv.items[g.Key].ModRevision {
					t.Errorf("guard %s is known at revision %d, is at %d", g.Key, g.Revision, kv.items[g.Key].ModRevision)
				}
			}
		})
	}
}

// TestApplyWithoutRoom holds that a writer hears of an etcd without room, rather than wait for it in silence, and can go on with the same guard.
func TestApplyWithoutRoom(t *testing.T) {
	kv := &scripted{items: make(map[string]coordinator.Item), script: []outcome{full, full}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	guard := coordinator.Guard{Key: "a", Next: []byte("1")}
	for range 2 {
		err := coordinator.Apply(ctx, kv, []*coordinator.Guard{&guard}, nil)
		if !errors.Is(err, coordinator.ErrNoSpace) || errors.Is(err, coordinator.ErrUnknownOutcome) {
			t.Fatalf("error %v, want ErrNoSpace, whose outcome is known", err)
		}
	}
	if err := coordinator.Apply(ctx, kv, []*coordinator.Guard{&guard}, nil); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestInsist holds that what must be written waits for room, and says so.
func TestInsist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := &scripted{items: make(map[string]coordinator.Item), script: []outcome{full, full, appliedAndFull}}
		told := 0
		err := coordinator.Insist(t.Context(), kv, []*coordinator.Guard{{Key: "a", Next: []byte("1")}}, nil, func(err error) {
			if !errors.Is(err, coordinator.ErrNoSpace) {
				t.Errorf("told %v, want ErrNoSpace", err)
			}
			told++
		})
		if err != nil || told != 2 || string(kv.items["a"].Value) != "1" {
			t.Errorf("%v, told %d times, holds %q; want it written after two waits", err, told, kv.items["a"].Value)
		}
	})
}

func TestApplyEndsWithContext(t *testing.T) {
	kv := &scripted{items: make(map[string]coordinator.Item), script: []outcome{lost, lost, lost, lost, lost, lost, lost, lost}}
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Millisecond)
	defer cancel()
	err := coordinator.Apply(ctx, kv, []*coordinator.Guard{{Key: "a", Next: []byte("1")}}, nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the context's", err)
	}
}
