package recovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// ErrLacking: of a log from before a restore, the stores in reach may not hold all that was acknowledged.
var ErrLacking = errors.New("stores that are away may hold more of the WAL log")

// ErrWaiting is an [ErrLacking] of another log from before the restore: this one waits for it.
var ErrWaiting = fmt.Errorf("it has to be read before: %w", ErrLacking)

// waitingError is an [ErrWaiting] for what comes before a batch in another log.
type waitingError struct {
	log coordinator.LogID
	why string
}

// Error implements error.
func (e *waitingError) Error() string { return fmt.Sprintf("log %s: %v: %s", e.log, ErrWaiting, e.why) }

// Unwrap makes errors.Is find ErrWaiting.
func (e *waitingError) Unwrap() error { return ErrWaiting }

// old is what stores hold of a log from before the coordinator's state was rebuilt. The record may be older than the log: segments may have followed the one that it has as open, on other ensembles, and the
// log may have been closed. So the stores are asked. Entries are numbered through all segments, and one writer wrote them, so that each copy of an entry is as good as another: what is recovered is the union.
type old struct {
	record  coordinator.Log
	writer  string                        // its store, which is in each of its ensembles
	held    map[string][]disk.SegmentInfo // by stores that have answered
	away    []string                      // stores of the cluster that have not, or that have damage
	errs    []error                       // why
	damaged map[wal.SegmentID]bool        // on some store
	copies  map[wal.SegmentID][]heldCopy  // that are sealed
}

// heldCopy is one store's copy of a segment.
type heldCopy struct {
	store  string
	answer quorum.Answer
}

// search asks all stores that ever joined what they hold of a log.
func (r *Recovery) search(ctx context.Context, record coordinator.Log) (*old, error) {
	o := &old{record: record, held: make(map[string][]disk.SegmentInfo), damaged: make(map[wal.SegmentID]bool), copies: make(map[wal.SegmentID][]heldCopy)}
	names := make(map[string]bool)
	err := retry.Coordinator(ctx, r.Log, "list WAL stores", func(ctx context.Context) error {
		items, _, err := r.KV.List(ctx, coordinator.PrefixStores, 0)
		for _, it := range items {
			node, err := coordinator.Decode[int32](it)
			if err != nil {
				return err
			}
			name := strings.TrimPrefix(it.Key, coordinator.PrefixStores)
			if names[name] = true; node == record.Node {
				o.writer = name
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		infos, err := r.Segments(name)
		if err != nil {
			o.lose(name, err)
			continue
		}
		o.held[name] = nil
		for _, info := range infos {
			if info.ID.Log == wal.LogID(record.ID) {
				o.held[name] = append(o.held[name], info)
			}
		}
	}
	return o, nil
}

// lose takes a store for one that is away.
func (o *old) lose(store string, err error) {
	delete(o.held, store)
	o.miss(store, err)
}

// miss takes what a store has for incomplete.
func (o *old) miss(store string, err error) {
	if slices.Contains(o.away, store) {
		return
	}
	o.away, o.errs = append(o.away, store), append(o.errs, fmt.Errorf("store %s: %w", store, err))
}

// listed is the segment that the record has as open; zero if it has none.
func (o *old) listed() (open coordinator.WALSegment) {
	if n := len(o.record.Segments); n > 0 {
		open = o.record.Segments[n-1]
	}
	return open
}

// closed reports whether the log came to its end after the copy was made: its writer's store holds what is not flushed, and the last segment until the log is closed.
func (o *old) closed() bool {
	segments, answered := o.held[o.writer]
	return answered && len(segments) == 0
}

// tellClosed tells what other stores still have of a log that is closed: nobody but an operator knows whether files were taken from the writer's.
func (o *old) tellClosed(r *Recovery) {
	if !o.closed() {
		return
	}
	for id, copies := range o.copies {
		for _, c := range copies {
			if c.answer.Last > wal.EntryID(o.record.Flushed) {
				r.Log.Warn("a WAL log from before the restore was closed, as its writer's store has nothing of it; what others have is left out, and lost if files were moved away from that store's disk",
					"log", o.record.ID, "writer", o.writer, "segment", id.Number, "store", c.store, "last", c.answer.Last, "flushed", o.record.Flushed)
			}
		}
	}
}

// whole says why the stores that have answered may not hold every entry that was acknowledged; nil if they do. The writer's store, which is in each ensemble, tells which segments there were, those on disks included that
// joined after the copy was made and that nobody knows of. An entry is on as many stores as the quorum says. So of the last segment that has entries a quorum answers, and fewer of the stores that are known are away
// than could hide an entry; or each of the last two that may have been open has as many answers as a seal needs: that the last one follows the other is not certain, since a roll that is broken off leaves a segment too.
func (o *old) whole() error {
	if o.closed() {
		return nil
	}
	listed := o.listed()
	segments, ok := o.held[o.writer]
	few, n := len(o.away) < max(listed.Quorum, 1), 2
	last := slices.DeleteFunc(slices.Clone(segments), func(s disk.SegmentInfo) bool {
		return s.ID.Number <= listed.Number || !o.used(s.ID) && !o.damaged[s.ID] && (few || len(o.copies[s.ID]) >= listed.Quorum || o.passed(s))
	})
	if few {
		n = 1
	}
	ok = ok && (few || listed.Quorum > 0)
	for _, s := range last[max(0, len(last)-n):] {
		ok = ok && len(o.copies[s.ID]) >= listed.Quorum // of at most 2 quorum - 1
	}
	if len(last) < 2 && !few {
		answers := 0
		for _, store := range listed.Stores {
			if _, answered := o.held[store]; answered && !slices.Contains(o.away, store) {
				answers++
			}
		}
		ok = ok && answers >= sizeOf(listed).SealAnswers()
	}
	if ok {
		return nil
	}
	why := o.errs
	if _, answered := o.held[o.writer]; !answered {
		why = append(slices.Clone(why), errWriter)
	}
	if len(why) == 0 {
		why = []error{errFewCopies}
	}
	return fmt.Errorf("recover WAL log %s: %w: %w", o.record.ID, ErrLacking, errors.Join(why...))
}

var errFewCopies = errors.New("the last segment of the log's writer has fewer copies than an entry needs to count: others are on disks that joined after the copy of etcd was made, or the log was closed and they have dropped it")

var errWriter = errors.New("the store of the log's writer, which alone tells on which disks the log is, is among them")

// used reports whether a segment has entries, as far as its copies tell. What is left of a roll that came to nothing has none; nor may the writer's copy of one of which others, that are away, have what they acknowledged.
func (o *old) used(id wal.SegmentID) bool {
	return slices.ContainsFunc(o.copies[id], func(c heldCopy) bool { return c.answer.Last >= c.answer.First })
}

// passed reports whether a later segment that has entries begins where this one does: nothing in this one was durable then.
func (o *old) passed(s disk.SegmentInfo) bool {
	for id, copies := range o.copies {
		if id.Number > s.ID.Number && o.used(id) && slices.ContainsFunc(copies, func(c heldCopy) bool { return c.answer.First <= s.First }) {
			return true
		}
	}
	return false
}

// prepare makes sure that a log can be recovered, and returns what other logs have.
func (r *Recovery) prepare(ctx context.Context, record coordinator.Log, word coordinator.LogID) (reigns, error) {
	o, err := r.gather(ctx, record)
	if err != nil {
		return nil, err
	}
	lacking := o.whole()
	if lacking == nil {
		_, lacking = o.union(r, false)
	}
	if lacking != nil && record.ID != word {
		return nil, lacking
	}
	return r.reigns(ctx, record.ID, lacking != nil, word)
}

// gather seals a log from before a restore on all stores that hold something of it.
func (r *Recovery) gather(ctx context.Context, record coordinator.Log) (*old, error) {
	o, err := r.search(ctx, record)
	if err != nil {
		return nil, err
	}
	return o, o.seal(r)
}

// sealOld fences a log from before a restore on all stores that hold something of it, and finds what they have beyond its flushed position.
func (r *Recovery) sealOld(ctx context.Context, record coordinator.Log, lossy bool) ([]part, error) {
	o, err := r.gather(ctx, record)
	if err != nil {
		return nil, err
	}
	o.tellClosed(r)
	if !lossy {
		if err := o.whole(); err != nil {
			return nil, err
		}
	}
	return o.union(r, lossy)
}

// seal seals all copies in favour of the record's fence.
func (o *old) seal(r *Recovery) error {
	for _, store := range slices.Sorted(maps.Keys(o.held)) {
		for _, info := range o.held[store] {
			var answer quorum.Answer
			err := errNowhere
			if s := r.WAL(store); s != nil {
				answer, err = s.Seal(info.ID, wal.Fence(o.record.Fence))
			}
			_, damaged := errors.AsType[*frame.CorruptError](err)
			switch {
			case err == nil:
				o.copies[info.ID] = append(o.copies[info.ID], heldCopy{store, answer})
				continue
			case damaged: // others may have whole copies
				o.damaged[info.ID] = true
				o.miss(store, err)
				continue
			case errors.Is(err, disk.ErrFenced):
				return fmt.Errorf("recover WAL log %s: %w", o.record.ID, err)
			}
			o.lose(store, err)
			break
		}
	}
	return nil
}

var errNowhere = errors.New("it is out of reach")

// start returns the first entry that may not be flushed. The record's flushed position may be older than what the writer's store, which holds all that is not flushed, has trimmed, or dropped since the log is closed.
func (o *old) start() wal.EntryID {
	next, lowest := wal.EntryID(o.record.Flushed+1), wal.EntryID(math.MaxUint64)
	segments, answered := o.held[o.writer]
	if !answered {
		return next
	}
	for _, s := range segments {
		lowest = min(lowest, s.First)
	}
	return max(next, lowest)
}

// union returns what is beyond the flushed position, to be read one after the other, each as far as it is new. It fails if entries are nowhere before one that is known to have been durable; by an operator's word it
// goes on behind them.
func (o *old) union(r *Recovery, lossy bool) ([]part, error) {
	durable := wal.EntryID(max(o.listed().First, 1)) - 1
	for _, copies := range o.copies {
		for _, c := range copies {
			durable = max(durable, c.answer.First-1) // a segment begins behind what is durable, and what is trimmed was
		}
	}
	var all []part
	next := o.start()
	for {
		from, best, behind := o.furthest(next)
		if best.store == "" && behind > 0 && lossy {
			r.Log.Error("loss accepted: entries of a WAL log are on no store in reach", "log", o.record.ID, "from", next, "to", behind-1)
			next = behind
			continue
		}
		if best.store == "" {
			break
		}
		sealed, err := wal.Past(from, wal.Fence(o.record.Fence), best.answer.Last, []wal.Sealer{r.WAL(best.store)})
		if err != nil {
			return nil, fmt.Errorf("recover WAL log %s: %w", o.record.ID, err)
		}
		all = append(all, part{sealed, next})
		next = best.answer.Last + 1
	}
	if next <= durable && !lossy {
		return nil, fmt.Errorf("recover WAL log %s: %w: entries %d to %d, which were durable, are on none in reach", o.record.ID, ErrLacking, next, durable)
	}
	return all, nil
}

// furthest returns the copy that has an entry and reaches furthest; none has it if the store is empty. behind is the next entry that there is then; 0 for none.
func (o *old) furthest(next wal.EntryID) (from wal.SegmentID, best heldCopy, behind wal.EntryID) {
	for id, copies := range o.copies {
		for _, c := range copies {
			switch first := c.answer.First; {
			case first <= next && c.answer.Last >= max(next, best.answer.Last+1):
				from, best = id, c
			case first > next && c.answer.Last >= first && (behind == 0 || first < behind):
				behind = first
			}
		}
	}
	return from, best, behind
}
