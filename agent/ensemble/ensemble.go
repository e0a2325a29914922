// Package ensemble keeps an agent's WAL log on as many stores as it should be on: when a store drops out, drains, or a better one comes, it has the log roll.
//
//	store lost, or candidates changed -> placement.Roll: to which? -> wal.Log.Roll
//	                                                                   open the segment on each store
//	                                                                   list it in the log's record, under its guard
//
// The order of a roll, and what counts as durable meanwhile, is wal's; what the next ensemble is, is coordinator/placement's. This room decides when to
// try: at once when something changed, and again after a pause while it does not succeed. A store that dropped out, or did not take a segment, is left out for
// a while: one that fails as soon as it is used must not make the log roll for ever. Where there is no quorum without them, those that failed longest ago are asked all the
// same.
package ensemble

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/placement"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/quorum"
)

const (
	// suspectTime is how long a store that failed is left out.
	suspectTime = 10 * time.Second
	// begTime is the time between two tries of stores that are left out, when there is no quorum without them.
	begTime = time.Second
	// pauseTime is the wait after a roll that came to nothing.
	pauseTime = 500 * time.Millisecond
)

// Config says what the log needs.
type Config struct {
	Log    coordinator.LogID
	Fence  uint64
	Own    placement.Store // the agent's own
	Copies int             // how many stores should hold an entry
	Quorum int             // how many of them acknowledge it
}

// Deps is what a [Keeper] works with.
type Deps struct {
	// Candidates lists the stores of agents that live; [Keeper.Changed] tells when it would give something else.
	Candidates func() []placement.Store
	// Create begins a segment, whose first entry will be first, on a store.
	Create func(ctx context.Context, store string, id wal.SegmentID, fence wal.Fence, first wal.EntryID) (wal.Store, error)
	// Rolled is called after each roll: what lost a copy should be flushed.
	Rolled func()
	Now    func() time.Time
	Logger *slog.Logger
}

// Keeper keeps one log's ensemble. Its other methods may be called concurrently to Run, and before it.
type Keeper struct {
	cfg  Config
	deps Deps
	kick chan struct{} // has capacity 1: something changed

	leaving sync.Once
	leave   chan struct{} // closed when no more rolls should begin

	mu      sync.Mutex
	suspect map[string]time.Time // stores that failed, and until when they are left out
	lost    map[uint32][]string  // by segment: stores that dropped out, and do not come back into it

	// Run's alone:
	tried  uint32    // number of the newest segment that was tried
	begged time.Time // when stores that are left out were last asked all the same
	lacks  string    // what was last said of stores that are lacking
}

// New returns a keeper, whose Lost is to be the log's OnLost.
func New(cfg Config, deps Deps) *Keeper {
	return &Keeper{cfg: cfg, deps: deps, kick: make(chan struct{}, 1), leave: make(chan struct{}), suspect: make(map[string]time.Time), lost: make(map[uint32][]string)}
}

// Lost says that a store dropped out of the segment of that number.
func (k *Keeper) Lost(segment uint32, store string, err error) {
	k.deps.Logger.Warn("store dropped out of the WAL's ensemble", "log", k.cfg.Log, "segment", segment, "store", store, "err", err)
	k.leaveOut(store)
	k.mu.Lock()
	k.lost[segment] = append(k.lost[segment], store)
	k.mu.Unlock()
	k.Changed()
}

// Changed says that there may be other candidates.
func (k *Keeper) Changed() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

func (k *Keeper) leaveOut(store string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.suspect[store] = k.deps.Now().Add(suspectTime)
}

// present are the stores that take appends of the open segment. Those of segments before it are forgotten.
func (k *Keeper) present(open coordinator.WALSegment) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.lost, func(segment uint32, _ []string) bool { return segment < open.Number })
	return slices.DeleteFunc(slices.Clone(open.Stores), func(s string) bool { return slices.Contains(k.lost[open.Number], s) })
}

// Leave ends Run once no roll is under way: one that is broken off has an outcome that nobody knows, which ends the log.
func (k *Keeper) Leave() { k.leaving.Do(func() { close(k.leave) }) }

// Candidates are the stores that may take copies, but for those that failed a short while ago.
func (k *Keeper) Candidates() []placement.Store {
	all, _ := k.candidates()
	return all
}

// candidates are those that are not left out, and when the next of these may be taken again; zero for none.
func (k *Keeper) candidates() (all []placement.Store, again time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.deps.Now()
	for store, until := range k.suspect {
		if !until.After(now) {
			delete(k.suspect, store)
		} else if again.IsZero() || until.Before(again) {
			again = until
		}
	}
	return slices.DeleteFunc(slices.Clone(k.deps.Candidates()), func(s placement.Store) bool {
		_, left := k.suspect[s.ID]
		return left
	}), again
}

// beg adds to candidates as many of those that are left out as a quorum needs, the ones first that failed longest ago: one more that does not take a segment would keep
// the others from it.
func (k *Keeper) beg(candidates []placement.Store) []placement.Store {
	usable := func(s placement.Store) bool { return s.ID != k.cfg.Own.ID && !s.Draining }
	lacking := k.cfg.Quorum - 1
	for _, s := range candidates {
		if usable(s) {
			lacking--
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(k.deps.Candidates()), func(s placement.Store) bool { return !usable(s) || k.suspect[s.ID].IsZero() })
	slices.SortStableFunc(left, func(a, b placement.Store) int { return k.suspect[a.ID].Compare(k.suspect[b.ID]) })
	return slices.Concat(candidates, left[:max(0, min(lacking, len(left)))])
}

// Run keeps the log's ensemble until ctx ends, [Keeper.Leave], or the log has failed. writer is the log's.
func (k *Keeper) Run(ctx context.Context, log *wal.Log, writer *flush.Writer) error {
	for {
		wait, err := k.step(ctx, log, writer)
		if err != nil {
			return err
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.leave:
			return nil
		case <-log.Failed():
			return log.Err()
		case <-k.kick:
		case <-timer:
		}
	}
}

// step rolls if there is a reason. It returns after how long to look again without being told; 0 for never.
func (k *Keeper) step(ctx context.Context, log *wal.Log, writer *flush.Writer) (time.Duration, error) {
	candidates, again := k.candidates()
	wait := time.Duration(0)
	if !again.IsZero() {
		wait = max(again.Sub(k.deps.Now()), time.Millisecond)
	}
	segments := writer.Record().Segments
	open := segments[len(segments)-1]
	next, why, err := k.choose(candidates, open)
	if errors.Is(err, placement.ErrTooFewStores) && len(k.present(open)) < k.cfg.Quorum {
		// Nothing is acknowledged: one that failed a moment ago may be back, and is better than none.
		now := k.deps.Now()
		if now.Sub(k.begged) >= begTime {
			k.begged = now
			next, why, err = k.choose(k.beg(candidates), open)
		}
		wait = k.begged.Add(begTime).Sub(now)
	}
	if err == nil {
		k.lacks = ""
	}
	switch {
	case errors.Is(err, placement.ErrTooFewStores):
		if lacks := fmt.Sprint(why, err); lacks != k.lacks {
			k.lacks = lacks
			k.deps.Logger.Warn("the WAL cannot leave its ensemble; with fewer stores than its ack quorum nothing is acknowledged",
				"log", k.cfg.Log, "stores", open.Stores, "why", why, "err", err)
		}
		return wait, nil
	case err != nil:
		return 0, fmt.Errorf("choose an ensemble: %w", err)
	case why == placement.Stay:
		return wait, nil
	}
	// A segment that came to nothing may be on some store: its number is not used again.
	k.tried = max(k.tried, open.Number) + 1
	r := &roll{keeper: k, ctx: ctx, writer: writer, segment: coordinator.WALSegment{Number: k.tried, Stores: next, Quorum: k.cfg.Quorum}}
	err = log.Roll(r.segment.Number, quorum.Size{Copies: len(next), Quorum: k.cfg.Quorum}, r) //nolint:contextcheck // what the roll starts is the log's
	switch {
	case err == nil:
		k.deps.Logger.Info("WAL rolled", "log", k.cfg.Log, "segment", r.segment.Number, "why", why, "stores", next)
		k.deps.Rolled()
		k.Changed() // a store may have gone meanwhile
		return wait, nil
	case errors.Is(err, wal.ErrNotRolled) && ctx.Err() == nil:
		k.deps.Logger.Warn("WAL not rolled; trying again", "log", k.cfg.Log, "why", why, "stores", next, "err", err)
		return pauseTime, nil
	default:
		return 0, err
	}
}

// choose returns what the next ensemble should be, out of these, and why.
func (k *Keeper) choose(candidates []placement.Store, open coordinator.WALSegment) ([]string, placement.Reason, error) {
	need := placement.Need{Log: placement.LogID(k.cfg.Log), Own: k.cfg.Own, Copies: k.cfg.Copies, Quorum: k.cfg.Quorum}
	next, why, err := placement.Roll(need, candidates, open.Stores)
	if why == placement.Stay && err == nil {
		// One that dropped out may be a candidate again: it can come back by another segment only.
		next, why, err = placement.Roll(need, candidates, k.present(open))
	}
	return next, why, err
}

// roll is one roll's work, as wal.Log has it done.
type roll struct {
	keeper  *Keeper
	ctx     context.Context //nolint:containedctx // lives as long as the call of step that made it
	writer  *flush.Writer
	segment coordinator.WALSegment
}

// Open implements wal.Roller.
func (r *roll) Open(_ wal.SegmentID, first wal.EntryID) ([]wal.Copy, error) {
	return r.keeper.Create(r.ctx, r.segment, first)
}

// Create begins a segment, whose first entry will be first, on all its stores at once. If one of them does not take it, none has it open afterwards, and that
// store is left out for a while.
func (k *Keeper) Create(ctx context.Context, segment coordinator.WALSegment, first wal.EntryID) ([]wal.Copy, error) {
	id := wal.SegmentID{Log: wal.LogID(k.cfg.Log), Number: segment.Number}
	copies := make([]wal.Copy, len(segment.Stores))
	errs := make([]error, len(copies))
	var asked sync.WaitGroup
	for i, name := range segment.Stores {
		asked.Go(func() {
			store, err := k.deps.Create(ctx, name, id, wal.Fence(k.cfg.Fence), first)
			copies[i] = wal.Copy{Name: name, Store: store}
			if err != nil {
				errs[i] = fmt.Errorf("store %s: %w", name, err)
				if name != k.cfg.Own.ID {
					k.leaveOut(name)
				}
			}
		})
	}
	asked.Wait()
	err := errors.Join(errs...)
	if err == nil {
		return copies, nil
	}
	for i, c := range copies {
		if errs[i] == nil {
			_ = c.Store.Close()
			_ = c.Store.Drop()
		}
	}
	return nil, err
}

// List implements wal.Roller.
func (r *roll) List(first wal.EntryID) error {
	r.segment.First = int64(first)
	return r.writer.Roll(r.ctx, r.segment)
}
