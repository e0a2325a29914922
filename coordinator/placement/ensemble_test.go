package placement

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// parse reads stores as "a1 a2! b3": zone, node, ! for one that drains, =N for its load. A store is named after its node, or what follows @.
func parse(t *testing.T, text string) []Store {
	t.Helper()
	var stores []Store
	for word := range strings.FieldsSeq(text) {
		var s Store
		word, load, _ := strings.Cut(word, "=")
		word, s.Draining = strings.CutSuffix(word, "!")
		word, id, named := strings.Cut(word, "@")
		if s.ID, s.Zone = word, word[:1]; named {
			s.ID = id
		}
		if _, err := fmt.Sscan(word[1:], &s.Node); err != nil {
			t.Fatalf("%s: %v", word, err)
		}
		if load != "" {
			if _, err := fmt.Sscan(load, &s.Load); err != nil {
				t.Fatalf("%s: %v", word, err)
			}
		}
		stores = append(stores, s)
	}
	return stores
}

func TestEnsemble(t *testing.T) {
	for name, c := range map[string]struct {
		own, candidates, present string
		copies, quorum           int
		want                     string // any of those separated by |; with - for an error
	}{
		"one alone":                      {own: "a1", copies: 1, quorum: 1, want: "a1"},
		"its own is a candidate":         {own: "a1", candidates: "a1", copies: 3, quorum: 1, want: "a1"},
		"too few":                        {own: "a1", candidates: "a1", copies: 3, quorum: 2, want: "-"},
		"fewer than copies":              {own: "a1", candidates: "a1 a2", copies: 3, quorum: 2, want: "a1 a2"},
		"three of three":                 {own: "b2", candidates: "a1 b2 c3", copies: 3, quorum: 2, want: "b2 a1 c3|b2 c3 a1"},
		"two of three":                   {own: "b2", candidates: "a1 b2 c3", copies: 2, quorum: 2, want: "b2 a1|b2 c3"},
		"zones":                          {own: "a1", candidates: "a2 a3 a4 a5 b6 b7 c8", copies: 3, quorum: 2, want: "a1 b6 c8|a1 b7 c8|a1 c8 b6|a1 c8 b7"},
		"zones before load":              {own: "a1", candidates: "a2=0 b3=9", copies: 2, quorum: 2, want: "a1 b3"},
		"zones before what is there":     {own: "a1", candidates: "a2 b3", present: "a1 a2", copies: 2, quorum: 2, want: "a1 b3"},
		"what is there before load":      {own: "a1", candidates: "b2=9 b3=0", present: "a1 b2", copies: 2, quorum: 2, want: "a1 b2"},
		"two zones for four copies":      {own: "a1", candidates: "a2 a3 a4 b5 b6", copies: 4, quorum: 3, want: "a1 b5 a2 b6|a1 b6 a2 b5|a1 b5 a3 b6|a1 b6 a3 b5|a1 b5 a4 b6|a1 b6 a4 b5|a1 b5 b6 a2|a1 b5 b6 a3|a1 b5 b6 a4|a1 b6 b5 a2|a1 b6 b5 a3|a1 b6 b5 a4"},
		"less loaded":                    {own: "a1", candidates: "b2=3 b3=2", copies: 2, quorum: 2, want: "a1 b3"},
		"one that drains":                {own: "a1", candidates: "a2 b3!", copies: 2, quorum: 2, want: "a1 a2"},
		"all drain":                      {own: "a1", candidates: "a2! b3!", copies: 2, quorum: 2, want: "-"},
		"the writer drains":              {own: "a1!", candidates: "a1! b3", copies: 2, quorum: 2, want: "a1 b3"},
		"its node has another disk":      {own: "a1", candidates: "b1 a2", copies: 2, quorum: 2, want: "a1 a2"},
		"a node with two disks":          {own: "a1", candidates: "b2 c2", copies: 3, quorum: 2, want: "a1 b2|a1 c2"},
		"named twice":                    {own: "a1", candidates: "b2 b2", copies: 3, quorum: 2, want: "a1 b2"},
		"a disk on two nodes":            {own: "a1", candidates: "b2 c3@b2", copies: 3, quorum: 2, want: "a1 b2"},
		"no copies":                      {own: "a1", copies: 0, quorum: 0, want: "-"},
		"more to acknowledge than there": {own: "a1", candidates: "a2 a3", copies: 2, quorum: 3, want: "-"},
	} {
		t.Run(name, func(t *testing.T) {
			want := strings.Split(c.want, "|")
			for log := range LogID(20) {
				need := Need{Log: log, Own: parse(t, c.own)[0], Copies: c.copies, Quorum: c.quorum}
				got, err := Ensemble(need, parse(t, c.candidates), strings.Fields(c.present))
				if err != nil {
					got = []string{"-"}
				}
				if !slices.Contains(want, strings.Join(got, " ")) {
					t.Errorf("log %d: got %s, %v, want %s", log, got, err, c.want)
				}
			}
		})
	}
}

func TestRoll(t *testing.T) {
	for name, c := range map[string]struct {
		candidates, present string
		copies, quorum      int // 3 and 2 if not set
		want                Reason
		next                string // - for ErrTooFewStores
	}{
		"all is well":                    {candidates: "a1 b2 c3", present: "a1 b2 c3"},
		"in another order":               {candidates: "c3 b2 a1", present: "b2 c3 a1"},
		"load is no reason":              {candidates: "a1 b2=90 c3=90 b4 c5", present: "a1 b2 c3"},
		"a store is gone":                {candidates: "a1 b2 c4", present: "a1 b2 c3", want: StoreGone, next: "a1 b2 c4"},
		"no other store":                 {candidates: "a1 b2", present: "a1 b2 c3", want: StoreGone, next: "a1 b2"},
		"no quorum":                      {candidates: "a1", present: "a1 b2 c3", want: StoreGone, next: "-"},
		"a store drains":                 {candidates: "a1 b2 c3! c4", present: "a1 b2 c3", want: StoreDrain, next: "a1 b2 c4"},
		"one drains, no other":           {candidates: "a1 b2 c3!", present: "a1 b2 c3", want: StoreDrain, next: "a1 b2"},
		"all others drain":               {candidates: "a1! b2! c3!", present: "a1 b2 c3", want: StoreDrain, next: "-"},
		"one drains, one is gone":        {candidates: "a1 b2! c4 b5", present: "a1 b2 c3", want: StoreGone, next: "a1 b5 c4|a1 c4 b5"},
		"one is gone, one drains":        {candidates: "a1 b2! c4 b5", present: "a1 c3 b2", want: StoreGone, next: "a1 b5 c4|a1 c4 b5"},
		"the writer drains":              {candidates: "a1! b2 c3", present: "a1 b2 c3"},
		"the writer is no candidate":     {candidates: "b2 c3", present: "a1 b2 c3"},
		"a copy more":                    {candidates: "a1 b2 b3", present: "a1 b2", want: MoreCopies, next: "a1 b2 b3"},
		"it drains too":                  {candidates: "a1 b2 b3!", present: "a1 b2"},
		"its disk is new":                {candidates: "a1 b2 d3", present: "a1 b2 c3", want: StoreGone, next: "a1 b2 d3|a1 d3 b2"},
		"a zone more":                    {candidates: "a1 b2 b3 c4", present: "a1 b2 b3", want: MoreZones, next: "a1 b2 c4|a1 b3 c4|a1 c4 b2|a1 c4 b3"},
		"no zone more":                   {candidates: "a1 a2 a3 a4", present: "a1 a2 a3"},
		"evenly over zones":              {candidates: "a1 a2 a3 b4 b5", present: "a1 a2 a3 b4", copies: 4, want: MoreZones, next: "a1 b4 a2 b5|a1 b4 b5 a2|a1 b4 a3 b5|a1 b4 b5 a3"},
		"fewer copies are asked for now": {candidates: "a1 b2 c3", present: "a1 b2 c3", copies: 2},
		"alone":                          {candidates: "a1", present: "a1", copies: 1, quorum: 1},
		"too few already, as configured": {candidates: "a1", present: "a1"},
	} {
		t.Run(name, func(t *testing.T) {
			need := Need{Log: 7, Own: parse(t, "a1")[0], Copies: c.copies, Quorum: c.quorum}
			if need.Copies == 0 {
				need.Copies = 3
			}
			if need.Quorum == 0 {
				need.Quorum = 2
			}
			candidates := parse(t, c.candidates)
			next, reason, err := Roll(need, candidates, strings.Fields(c.present))
			got := strings.Join(next, " ")
			if errors.Is(err, ErrTooFewStores) {
				got = "-"
			} else if err != nil {
				t.Fatal(err)
			}
			if reason != c.want || !slices.Contains(strings.Split(c.next, "|"), got) {
				t.Fatalf("got %s, %q, want %s, %q", reason, got, c.want, c.next)
			}
			if reason == Stay || err != nil {
				return
			}
			if again, reason, err := Roll(need, candidates, next); reason != Stay || err != nil {
				t.Errorf("rolled to %s, and then: %s, %s, %v", next, reason, again, err)
			}
		})
	}
	if _, _, err := Roll(Need{Copies: 1, Quorum: 2}, nil, nil); err == nil || errors.Is(err, ErrTooFewStores) {
		t.Errorf("a quorum of more than the copies: %v", err)
	}
}

// TestRandomEnsembles checks ensembles of random clusters against all that are possible.
func TestRandomEnsembles(t *testing.T) {
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		candidates := make([]Store, 1+rnd.IntN(8))
		for i := range candidates {
			candidates[i] = Store{
				ID: fmt.Sprintf("store-%d", i), Node: int32(i), Zone: string(rune('a' + rnd.IntN(4))),
				Draining: i > 0 && rnd.IntN(4) == 0, Load: rnd.Int64N(5),
			}
		}
		need := Need{Log: LogID(seed), Own: candidates[0], Copies: 1 + rnd.IntN(5), Quorum: 1}
		got, err := Ensemble(need, candidates, nil)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		copies, crowd := best(need, candidates)
		chosen := make([]Store, len(got))
		for i, id := range got {
			chosen[i] = candidates[slices.IndexFunc(candidates, func(s Store) bool { return s.ID == id })]
			if i > 0 && chosen[i].Draining || slices.Contains(got[:i], id) {
				t.Errorf("seed %d: %s of %s drains, or is there twice", seed, id, got)
			}
		}
		if got[0] != need.Own.ID || len(got) != copies || crowding(chosen) != crowd {
			t.Errorf("seed %d: %s with crowding %d, want %d stores, crowding %d, of %v", seed, got, crowding(chosen), copies, crowd, candidates)
		}

		rnd.Shuffle(len(candidates), func(i, j int) { candidates[i], candidates[j] = candidates[j], candidates[i] })
		if other, _ := Ensemble(need, candidates, nil); !slices.Equal(got, other) {
			t.Errorf("seed %d: %s, with candidates in another order %s", seed, got, other)
		}
		for i := range candidates {
			candidates[i].Load = rnd.Int64N(100)
		}
		if next, reason, err := Roll(need, candidates, got); reason != Stay || err != nil {
			t.Errorf("seed %d: from %s to %s, %s, %v", seed, got, next, reason, err)
		}
	}
}

// best tries all subsets: the most copies, and the least crowded zones with as many.
func best(need Need, candidates []Store) (copies, crowd int) {
	for set := range 1 << len(candidates) {
		var stores []Store
		ok := set&1 == 1 // the writer's own
		for i, s := range candidates {
			if set>>i&1 == 1 {
				stores = append(stores, s)
				ok = ok && (i == 0 || !s.Draining)
			}
		}
		zones, squares := map[string]int{}, 0
		for _, s := range stores {
			zones[s.Zone]++
		}
		for _, n := range zones {
			squares += n * n
		}
		if ok && len(stores) <= need.Copies && (len(stores) > copies || len(stores) == copies && squares < crowd) {
			copies, crowd = len(stores), squares
		}
	}
	return copies, crowd
}

// TestHerd lets the agents of a cluster choose at the same moment, each having seen the same loads, and one after the other.
func TestHerd(t *testing.T) {
	const agents, zones = 99, 3
	stores := make([]Store, agents)
	for i := range stores {
		// As random UUIDs would, but as much alike as can be.
		stores[i] = Store{ID: fmt.Sprintf("store-%02d", i), Node: int32(i), Zone: string(rune('a' + i%zones))}
	}
	choose := func(update bool) []int64 {
		carried := make([]int64, agents)
		for i, own := range stores {
			ensemble, err := Ensemble(Need{Log: LogID(i + 1), Own: own, Copies: 3, Quorum: 2}, stores, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range ensemble[1:] {
				at := slices.IndexFunc(stores, func(s Store) bool { return s.ID == id })
				carried[at]++
				if update {
					stores[at].Load++
				}
			}
		}
		return carried
	}
	if most := slices.Max(choose(false)); most > 8 {
		t.Errorf("at the same moment: one store in %d ensembles, of 2 on average", most)
	}
	for i := range stores {
		stores[i].Load = 3
	}
	stores[42].Load = 0
	if n := choose(false)[42]; n < 2 || n > 10 {
		t.Errorf("a store that is empty gets into %d ensembles, of 2 on average", n)
	}
	for i := range stores {
		stores[i].Load = 0
	}
	if most := slices.Max(choose(true)); most > 4 {
		t.Errorf("one after the other: one store in %d ensembles, of 2 on average", most)
	}
}
