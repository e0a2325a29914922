// Package recovery brings WAL logs whose agent is gone to their end:
//
//	claim      raise the fence in etcd: the old writer can commit nothing any more
//	seal       the stores refuse the old writer's appends; their answer holds every entry that was acknowledged
//	flush      what is not committed, by ordinary commits under the claim
//	close      no entry of the log is missing in the bucket; its shards may get a new leader
//
// A recoverer that dies is followed by another, which claims the log anew and continues after the last commit.
//
// Of a log from before a restore the record is older than the log: what it holds is asked of all stores (old.go), and what of that counts is judged by what is committed, and by the other logs (judge.go); what it tells of transactions is settled (transactions.go).
package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// Recovery is a recoverer of logs.
type Recovery struct {
	KV    coordinator.KV
	Store objectstore.Store
	WAL   func(store string) wal.Sealer // a store of that name; nil if it is out of reach
	// Restored is the number below which logs are from before the coordinator's state was rebuilt ([coordinator.Cluster]); Segments lists what the store of that name holds, or says why it cannot be asked.
	Restored coordinator.LogID
	Segments func(store string) ([]disk.SegmentInfo, error)
	Cluster  [16]byte
	Claimer  coordinator.LogID // incarnation that recovers
	Now      func() time.Time
	Log      *slog.Logger

	mu    sync.Mutex
	known map[coordinator.LogID]reigns // of logs from before the restore that were read
}

// Recoverable reports whether stores in reach may suffice to seal the log's open segment, and to read those that were rolled away.
func Recoverable(l coordinator.Log, reach func(store string) bool) bool {
	for _, s := range l.Segments {
		n := 0
		for _, store := range s.Stores {
			if reach(store) {
				n++
			}
		}
		if want := sizeOf(s).SealAnswers(); n < want && s.Last < 0 || n == 0 {
			return false
		}
	}
	return true
}

func sizeOf(s coordinator.WALSegment) quorum.Size {
	return quorum.Size{Copies: len(s.Stores), Quorum: s.Quorum}
}

// Run recovers one log, unless it is closed by now. Of one from before a restore the error may be [ErrLacking], or [ErrWaiting] while another log from before it lacks stores. Several logs may be recovered at once.
func (r *Recovery) Run(ctx context.Context, id coordinator.LogID) error { return r.run(ctx, id, 0) }

// run recovers a log. An operator's word is that of one from before a restore, this one or another, what is on no store in reach may be given up; 0 for none.
func (r *Recovery) run(ctx context.Context, id, word coordinator.LogID) error {
	lossy := id == word
	var others reigns
	if id < r.Restored { // before it is claimed, which would be for nothing
		record, _, err := r.read(ctx, id)
		if err != nil || record.Closed {
			return err
		}
		if others, err = r.prepare(ctx, record, word); err != nil {
			return err
		}
	}
	record, revision, err := r.claim(ctx, id)
	if err != nil || record.Closed {
		return err
	}
	if err := r.recover(ctx, record, revision, others, lossy); err != nil {
		return &ClaimedError{err}
	}
	return nil
}

// ClaimedError is why a recovery ended after it had claimed its log.
type ClaimedError struct{ Err error }

func (e *ClaimedError) Error() string { return e.Err.Error() }

func (e *ClaimedError) Unwrap() error { return e.Err }

// Fenced reports whether a recovery ended because another agent has claimed its log.
func Fenced(err error) bool {
	return errors.Is(err, coordinator.ErrFenced) || errors.Is(err, disk.ErrFenced)
}

// recover recovers a log that was claimed.
func (r *Recovery) recover(ctx context.Context, record coordinator.Log, revision int64, others reigns, lossy bool) (err error) {
	id := record.ID
	var parts []part
	var s *sieve
	if id < r.Restored {
		if parts, err = r.sealOld(ctx, record, lossy); err == nil {
			s, err = r.sieve(ctx, others, lossy)
		}
	} else {
		parts, err = r.seal(record)
	}
	if err != nil {
		return err
	}
	last := wal.EntryID(record.Flushed)
	if n := len(parts); n > 0 {
		last = max(last, parts[n-1].Last)
	}
	r.Log.Info("recovering WAL log", "log", id, "flushed", record.Flushed, "last", last)
	w := flush.NewWriter(flush.WriterConfig{
		KV: r.KV, Store: r.Store, Cluster: r.Cluster, Record: record, Revision: revision, Now: r.Now, Log: r.Log,
	})
	topics, err := r.topics(ctx)
	if err != nil {
		return err
	}
	if err := r.flush(ctx, w, parts, topics, s); err != nil {
		return fmt.Errorf("recover WAL log %s: %w", id, err)
	}
	if s != nil {
		s.tell(id)
	}
	if w.NextCommit() == record.Commits+1 && record.Fence > firstClaim {
		if err := supersede(ctx, w); err != nil {
			return err
		}
	}
	if err := w.Close(ctx); err != nil {
		return err
	}
	r.Log.Info("recovered WAL log", "log", id, "commits", w.NextCommit()-1)
	return nil
}

// firstClaim is the fence of who claims a log first.
const firstClaim = 2

// supersede shows that a segment which somebody has put into the bucket for the log's next commit, and not committed, never will be: a recoverer before this one that had an entry which nobody counted, or the writer of a log
// that is given up. A restore would take it for committed (../rebuild/DESIGN.md), if nothing has its place.
func supersede(ctx context.Context, w *flush.Writer) error {
	_, err := w.Upload(ctx, new(segment.Builder), w.NextCommit(), nil)
	return err
}

// RunDamaged recovers a log of which an operator has said that what cannot be read may be given up: it ends before the first entry that is damaged, or, from before a restore, on no store in reach. Of one from before a restore it goes on
// though other agents claim the log, or one that comes before it: they do without the operator's word.
func (r *Recovery) RunDamaged(ctx context.Context, id coordinator.LogID, d *disk.Store) error {
	err := r.Run(ctx, id)
	for Fenced(err) && id < r.Restored { // who claims it does without the operator's word, and may wait for it
		if err := retry.Pause(ctx); err != nil {
			return err
		}
		err = r.Run(ctx, id)
	}
	_, damaged := errors.AsType[*frame.CorruptError](err) // here or elsewhere
	damage := (*frame.CorruptError)(nil)
	if damaged {
		damage = damageOf(d, id)
	}
	switch {
	case damage != nil:
		r.Log.Error("loss accepted: the WAL log ends before its damage", "log", id, "from", damage.First, "to", damage.Last, "damage", damage.Reason)
		if err := d.AcceptLoss(damage.Segment, damage.First); err != nil {
			return err
		}
	case errors.Is(err, ErrWaiting): // nothing of it is lost
		return err
	case errors.Is(err, ErrLacking):
		r.Log.Error("loss accepted: the WAL log ends with what is in reach", "log", id, "err", err)
	default:
		return err
	}
	return r.giveUp(ctx, id)
}

// giveUp recovers a log of which something is given up, and those before that it waits for: they may wait for it, and for what is lost.
func (r *Recovery) giveUp(ctx context.Context, id coordinator.LogID) error {
	at, vain := id, 0
	for {
		err := r.run(ctx, at, id)
		waiting, waits := errors.AsType[*waitingError](err)
		switch {
		case err == nil && at == id:
			return nil
		case err == nil:
			at = id
			continue
		case waits && at == id:
			at = waiting.log
			continue
		case !waits && !Fenced(err), id >= r.Restored: // one that is not from before a restore, another agent can do without the word, now that its end is known
			return err
		}
		vain++
		r.Log.Warn("a WAL log that is given up is not recovered yet; trying again", "log", id, "at", at, "tries", vain, "err", err)
		if err := retry.Pause(ctx); err != nil {
			return err
		}
		if at = id; waits {
			at = waiting.log
		}
	}
}

// damageOf reads what a disk has of a log, and returns what cannot be read, or nil.
func damageOf(d *disk.Store, id coordinator.LogID) *frame.CorruptError {
	for _, info := range d.Segments() {
		if info.ID.Log != wal.LogID(id) || info.Live {
			continue
		}
		err := d.Read(info.ID, info.First, func(frame.EntryID, []byte) error { return nil })
		if damage, ok := errors.AsType[*frame.CorruptError](err); ok {
			return damage
		}
	}
	return nil
}

// Abandon closes a log whose disk is gone, by an operator's word: whatever it held beyond its flushed position is lost.
func (r *Recovery) Abandon(ctx context.Context, id coordinator.LogID) error {
	record, revision, err := r.claim(ctx, id)
	if err != nil || record.Closed {
		return err
	}
	r.Log.Error("loss accepted: entries after the flushed one are given up", "log", id, "flushed", record.Flushed, "commits", record.Commits)
	w := flush.NewWriter(flush.WriterConfig{
		KV: r.KV, Store: r.Store, Cluster: r.Cluster, Record: record, Revision: revision, Now: r.Now, Log: r.Log,
	})
	if err := supersede(ctx, w); err != nil {
		return err
	}
	return w.Close(ctx)
}

// claim raises the log's fence in etcd. From then on only this recoverer can commit to it, until another claims it.
func (r *Recovery) claim(ctx context.Context, id coordinator.LogID) (coordinator.Log, int64, error) {
	record, revision, err := r.read(ctx, id)
	if err != nil || record.Closed {
		return record, 0, err
	}
	record.Fence++
	record.Claimer = r.Claimer
	guard := coordinator.Guard{Key: coordinator.KeyLog(id), Revision: revision, Next: coordinator.Encode(record)}
	err = coordinator.Insist(ctx, r.KV, []*coordinator.Guard{&guard}, nil, func(err error) {
		r.Log.Error("waiting for room in etcd", "to", "claim a WAL log", "log", id, "err", err)
	})
	if err != nil {
		return record, 0, fmt.Errorf("claim WAL log %s: %w", id, err)
	}
	return record, guard.Revision, nil
}

// read reads a log's record, and the revision that wrote it.
func (r *Recovery) read(ctx context.Context, id coordinator.LogID) (record coordinator.Log, revision int64, err error) {
	err = retry.Coordinator(ctx, r.Log, "read WAL log record", func(ctx context.Context) error {
		item, _, err := r.KV.Get(ctx, coordinator.KeyLog(id))
		if err != nil {
			return err
		}
		if item.ModRevision == 0 { // it was listed, so that it was closed since, and then forgotten
			record = coordinator.Log{ID: id, Closed: true}
			return nil
		}
		revision = item.ModRevision
		record, err = coordinator.Decode[coordinator.Log](item)
		return err
	})
	return record, revision, err
}

// part is what is to be recovered of a segment: the entries from number from on.
type part struct {
	*wal.Sealed
	from wal.EntryID
}

// read calls visit with the entries of parts, in order; their bytes are valid until visit returns.
func read(parts []part, visit func(wal.EntryID, []byte) error) error {
	for _, p := range parts {
		if p.from > p.Last {
			continue
		}
		if err := p.Read(p.from, visit); err != nil {
			return err
		}
	}
	return nil
}

// seal fences the log's open segment on its stores, and finds those that were rolled away and are not flushed. The open one comes last.
func (r *Recovery) seal(record coordinator.Log) ([]part, error) {
	var all []part
	next := wal.EntryID(record.Flushed + 1)
	for _, s := range record.Segments {
		stores := make([]wal.Sealer, len(s.Stores))
		for i, name := range s.Stores {
			stores[i] = r.WAL(name)
		}
		id := wal.SegmentID{Log: wal.LogID(record.ID), Number: s.Number}
		var sealed *wal.Sealed
		var err error
		switch {
		case s.Last < 0:
			sealed, err = wal.Seal(id, wal.Fence(record.Fence), sizeOf(s), stores)
		case s.Last > record.Flushed:
			sealed, err = wal.Past(id, wal.Fence(record.Fence), wal.EntryID(s.Last), stores)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("recover WAL log %s: %w", record.ID, err)
		}
		all = append(all, part{sealed, next})
		next = max(next, sealed.Last+1)
	}
	return all, nil
}

// topics reads the topics' names by id. A batch is only ever appended to a topic that is in etcd already, so that a topic that is not there now was deleted,
// and its batches with it.
func (r *Recovery) topics(ctx context.Context) (map[protocol.TopicID]string, error) {
	names := make(map[protocol.TopicID]string)
	err := retry.Coordinator(ctx, r.Log, "list topics", func(ctx context.Context) error {
		items, _, err := r.KV.List(ctx, coordinator.PrefixTopics, 0)
		for _, it := range items {
			t, err := coordinator.Decode[coordinator.Topic](it)
			if err != nil {
				return err
			}
			names[t.ID] = t.Name
		}
		return err
	})
	return names, err
}

// flush commits what is to be recovered, a segment at a time; through a sieve if the log is from before a restore.
func (r *Recovery) flush(ctx context.Context, w *flush.Writer, parts []part, topics map[protocol.TopicID]string, sieve *sieve) error {
	var records []flush.Record
	var builder segment.Builder
	size := 0
	producers := make(map[protocol.ProducerID]bool) // transactional ones, from before a restore
	cut := func() (err error) {
		if len(records) == 0 {
			return nil
		}
		if sieve != nil {
			err = sieve.commitAll(ctx, w, &builder, records)
		} else {
			var staged flush.Staged
			if staged, err = w.Upload(ctx, &builder, w.NextCommit(), records); err == nil {
				_, err = w.Commit(ctx, staged)
			}
		}
		records, size = nil, 0
		clear(producers)
		return err
	}
	add := func(n wal.EntryID, entry []byte) error {
		h, b, err := ingest.ParseEntry(entry)
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		name, ok := topics[h.Topic]
		switch {
		case sieve == nil:
		case ok:
			ok, err = sieve.takes(ctx, n, &h, b)
		default:
			sieve.unknown[h.Topic]++
		}
		if !ok || err != nil {
			return err
		}
		producer, settles := transactional(b)
		settles = settles && sieve != nil
		if len(records) == segment.SectionsMax || size > 0 && size+len(b) > flush.SegmentBytesDefault || settles && !producers[producer] && len(producers) == flush.BesideMax {
			if err := cut(); err != nil {
				return err
			}
		}
		if settles {
			producers[producer] = true
		}
		records = append(records, flush.Record{
			Entry: int64(n), Name: name, Batch: slices.Clone(b), LastStable: h.LastStable,
			Key: segment.Key{Shard: uint32(h.Shard), Topic: h.Topic, Partition: h.Partition},
		})
		size += len(b)
		return nil
	}
	err := read(parts, add)
	if err == nil || errors.Is(err, ErrWaiting) { // of logs that wait for each other one can go on
		err = errors.Join(err, cut())
	}
	return err
}

// errEntries says that a segment has entries.
var errEntries = errors.New("it holds entries")

// Sweep frees what a disk holds of logs that are over, and of segments that were rolled away and are flushed, or that came to nothing. held is what the disk
// had before logs were read. It returns the segments of logs that have no record and are not known to be over, which it leaves alone: they may be about to be opened,
// even when their agent is dead, since the transaction that does it may apply late; and a log that is open must be on its stores. So are those of logs that were opened after the copy was made from which etcd was rebuilt, for
// ever; lost is one of them of which an operator has said that it may be given up, or 0.
func Sweep(d *disk.Store, held []disk.SegmentInfo, logs coordinator.Logs, cluster coordinator.Cluster, lost coordinator.LogID) (unlisted []disk.SegmentInfo, err error) {
	for _, s := range held {
		id := coordinator.LogID(s.ID.Log)
		l := logs.Record(id)
		closed := logs.Closed(id)
		if l == nil && cluster.SinceCopy(id) {
			closed = id == lost
		}
		if l == nil && !closed || l != nil && slices.ContainsFunc(l.Segments, func(x coordinator.WALSegment) bool {
			return x.Number == s.ID.Number && !slices.Contains(x.Stores, d.Identity().String()) // another cluster has logs of the same numbers, but on other disks
		}) {
			unlisted = append(unlisted, s)
			continue
		}
		if l != nil && needed(l, s.ID.Number) {
			continue
		}
		if err := Drop(d, s.ID); err != nil {
			return unlisted, err
		}
	}
	return unlisted, nil
}

// Drop drops a segment from a disk, unless its writer still has it open; another may have dropped it before.
func Drop(d *disk.Store, id wal.SegmentID) error {
	if err := d.Drop(id); err != nil && !errors.Is(err, disk.ErrLive) && !errors.Is(err, disk.ErrUnknown) {
		return fmt.Errorf("drop WAL segment %s: %w", id, err)
	}
	return nil
}

// CheckUnlisted is for the start of a store, when nobody has appended to it yet: a log that has no record and is not over has never served, so that its segments are empty. If one holds
// entries all the same, this is another cluster's coordinator, or one that has lost its data, and they may be the only copy of what was acknowledged.
func CheckUnlisted(d *disk.Store, unlisted []disk.SegmentInfo) error {
	for _, s := range unlisted {
		err := d.Read(s.ID, s.First, func(wal.EntryID, []byte) error { return errEntries })
		switch {
		case errors.Is(err, errEntries):
			return fmt.Errorf("WAL log %s is on this disk and not in the coordinator, and %w: is this the right cluster? To lose them, move the WAL's folder away, or, if etcd was rebuilt from a copy that is older than the log, start this agent with --accept-loss and the log's number",
				coordinator.LogID(s.ID.Log), err)
		case err != nil && !errors.Is(err, disk.ErrLive) && !errors.Is(err, disk.ErrUnknown):
			return fmt.Errorf("read WAL segment %s, of a log that is not in the coordinator: %w", s.ID, err)
		}
	}
	return nil
}

// Needed reports whether a segment on a disk is of a log that has a record and is open, and may hold what is not flushed, or be listed yet.
func Needed(logs coordinator.Logs, s disk.SegmentInfo) bool {
	l := logs.Record(coordinator.LogID(s.ID.Log))
	return l != nil && needed(l, s.ID.Number)
}

// needed reports whether a segment of a log may hold what is not flushed. One above the newest that is listed is about to be.
func needed(l *coordinator.Log, number uint32) bool {
	if l.Closed {
		return false
	}
	if len(l.Segments) == 0 { // not a record that an agent wrote
		return true
	}
	newest := l.Segments[len(l.Segments)-1].Number
	return number >= newest || slices.ContainsFunc(l.Segments, func(s coordinator.WALSegment) bool { return s.Number == number })
}
