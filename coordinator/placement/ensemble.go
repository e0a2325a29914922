package placement

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
)

// ErrTooFewStores: no ensemble can hold a quorum of copies with the stores that there are.
var ErrTooFewStores = errors.New("too few stores for the ack quorum")

// Store is a place for copies of WAL logs: an agent and its disk.
type Store struct {
	ID       string // of the disk
	Node     int32  // of the agent
	Zone     string // empty is a zone like any other
	Draining bool   // is given nothing, and leaves the ensembles that it is in
	Load     int64  // what it carries: open ensembles, or bytes; only comparisons count
}

// Need is what an ensemble is for.
type Need struct {
	Log    LogID
	Own    Store // of the log's writer
	Copies int   // how many stores, from 1
	Quorum int   // how many of them acknowledge an entry, from 1 to Copies
}

// Ensemble returns the stores for a WAL log's next segment, by id, the writer's own first: as many as there should be copies, or fewer if there are
// not that many candidates, down to the quorum. Below that it returns an error that is [ErrTooFewStores].
//
// Candidates may come in any order, and the writer's own may be among them. Draining ones are left out, and so should the
// caller leave out those that it cannot reach. No two of an ensemble are of one node. Of the rest, what comes first counts most:
//
//  1. Zones: each store is in one that has the fewest so far.
//  2. Those of the present ensemble stay, since they need not be sent what they have.
//  3. Of two that the log's and the stores' hashes draw, the less loaded is taken. Always the least loaded would be worse: logs that look for
//     a store at the same moment, as all do that lost the same agent, see the same loads and would all choose the same store, and
//     stay there, as nobody rolls for load.
func Ensemble(need Need, candidates []Store, present []string) ([]string, error) {
	chosen, err := choose(need, candidates, present)
	if err != nil {
		return nil, err
	}
	return ids(chosen), nil
}

// Reason says why a log should roll to another ensemble.
type Reason uint8

// Reasons, the most urgent first but for Stay.
const (
	Stay       Reason = iota // there is none
	StoreGone                // a store is no candidate any more
	StoreDrain               // a store drains
	MoreCopies               // there are stores for copies that are missing
	MoreZones                // copies that share a zone can be in different ones
)

// String returns the reason for logs and metrics.
func (r Reason) String() string {
	switch r {
	case Stay:
		return "stay"
	case StoreGone:
		return "store gone"
	case StoreDrain:
		return "store drains"
	case MoreCopies:
		return "more copies"
	case MoreZones:
		return "more zones"
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// Roll tells whether a log should roll away from its present ensemble, why, and to which. With [Stay] there is no other ensemble. Differences of load
// are no reason. An ensemble to roll to may have fewer copies than the present one: a store that is gone counts among the copies
// when a recovery asks how many must answer, and holds a drain up, so it is better not listed.
//
// If a store is gone or drains and there is no ensemble without it, the error is [ErrTooFewStores], beside the reason. The log
// goes on with what it has then.
func Roll(need Need, candidates []Store, present []string) ([]string, Reason, error) {
	reason := Stay
	var remaining []Store
	for _, id := range present {
		i := slices.IndexFunc(candidates, func(s Store) bool { return s.ID == id })
		switch {
		case id == need.Own.ID:
			remaining = append(remaining, need.Own)
		case i < 0:
			reason = StoreGone
		case candidates[i].Draining:
			if reason == Stay {
				reason = StoreDrain
			}
		default:
			remaining = append(remaining, candidates[i])
		}
	}
	next, err := choose(need, candidates, present)
	if err != nil {
		if reason == Stay && errors.Is(err, ErrTooFewStores) {
			err = nil
		}
		return nil, reason, err
	}
	switch {
	case reason != Stay:
	case len(next) > len(remaining):
		reason = MoreCopies
	case len(next) == len(remaining) && crowding(next) < crowding(remaining):
		reason = MoreZones
	default:
		return nil, Stay, nil
	}
	return ids(next), reason, nil
}

func choose(need Need, candidates []Store, present []string) ([]Store, error) {
	if need.Quorum < 1 || need.Quorum > need.Copies {
		return nil, fmt.Errorf("choose ensemble of log %d: %d copies, ack quorum %d: want 1 <= quorum <= copies", need.Log, need.Copies, need.Quorum)
	}
	rest := drawn(need.Log, candidates)
	chosen := []Store{need.Own}
	for {
		last := chosen[len(chosen)-1]
		rest = slices.DeleteFunc(rest, func(s Store) bool { return s.Draining || s.ID == last.ID || s.Node == last.Node })
		if len(chosen) == need.Copies || len(rest) == 0 {
			break
		}
		chosen = append(chosen, next(chosen, rest, present))
	}
	if len(chosen) < need.Quorum {
		return nil, fmt.Errorf("choose ensemble of log %d: %w: %d of %d listed can be used, want %d", need.Log, ErrTooFewStores, len(chosen), len(candidates), need.Quorum)
	}
	return chosen, nil
}

// next returns the store that should join those chosen, out of rest, which is in the order of the draw and not empty.
func next(chosen, rest []Store, present []string) Store {
	zones := map[string]int{}
	for _, s := range chosen {
		zones[s.Zone]++
	}
	fewest := len(chosen)
	for _, s := range rest {
		fewest = min(fewest, zones[s.Zone])
	}
	var two []Store
	for _, s := range rest {
		switch {
		case zones[s.Zone] > fewest:
		case slices.Contains(present, s.ID):
			return s
		case len(two) < 2:
			two = append(two, s)
		}
	}
	return slices.MinFunc(two, func(a, b Store) int { return cmp.Compare(a.Load, b.Load) })
}

// crowding is lower the more evenly stores are spread over zones.
func crowding(stores []Store) int {
	zones, sum := map[string]int{}, 0
	for _, s := range stores {
		sum += 2*zones[s.Zone] + 1 // the next square
		zones[s.Zone]++
	}
	return sum
}

// drawn returns the stores in an order that is as good as random for each log, but always the same.
func drawn(log LogID, stores []Store) []Store {
	type ticket struct {
		number uint64
		store  Store
	}
	tickets := make([]ticket, len(stores))
	for i, s := range stores {
		tickets[i] = ticket{draw(log, s.ID), s}
	}
	slices.SortFunc(tickets, func(a, b ticket) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.store.ID, b.store.ID), cmp.Compare(a.store.Node, b.store.Node))
	})
	order := make([]Store, len(stores))
	for i, t := range tickets {
		order[i] = t.store
	}
	return order
}

// draw hashes a log and a store. FNV alone would keep stores in nearly the same order for all logs, since their ids often
// differ in their last letters only; so its bits are mixed, as the MurmurHash3 finalizer does.
func draw(log LogID, store string) uint64 {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%d/%s", log, store)
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

func ids(stores []Store) []string {
	out := make([]string, len(stores))
	for i, s := range stores {
		out[i] = s.ID
	}
	return out
}
