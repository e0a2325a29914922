package upkeep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// CleanConfig says how partitions are compacted.
type CleanConfig struct {
	// Pause is between two looks for partitions that are due: Kafka's log.cleaner.backoff.ms.
	Pause time.Duration
	// MemoryBytes bounds the map from keys to offsets, of which each key takes 24 bytes and a ninth: Kafka's log.cleaner.dedupe.buffer.size. A partition that has more new keys is cleaned in several goes.
	MemoryBytes int
	// DataBytes is how large the segments become that are written, and how much small partitions together may have that are cleaned together.
	DataBytes int64
}

// DefaultCleanConfig returns what production uses.
func DefaultCleanConfig() CleanConfig {
	return CleanConfig{Pause: 15 * time.Second, MemoryBytes: 128 << 20, DataBytes: MergeDataBytesMax}
}

const (
	// cleanReadBytes is how much is read at once.
	cleanReadBytes = 8 << 20
	// cleanCopyBytes is how much memory is taken at once for what is left.
	cleanCopyBytes = 4 << 20
	// cleanRest is how long a partition is left alone that could not be cleaned because the bucket or the coordinator is away, and cleanRestBad the same if there is something wrong with it itself. Each
	// time more it is twice as long, up to cleanRestMax and cleanRestBadMax. In Kafka it is left alone until the broker starts anew.
	cleanRest, cleanRestMax       = 30 * time.Second, time.Hour
	cleanRestBad, cleanRestBadMax = time.Hour, 24 * time.Hour
)

// CleanRules are what a topic's configuration says of compaction.
type CleanRules struct {
	compact.Policy
	DeleteRetentionMs int64
}

// CleanerDeps is what a [Cleaner] works with.
type CleanerDeps struct {
	Manifests *Manifests
	Footers   Footers
	Store     objectstore.Store
	Cluster   [16]byte
	Leads     func(coordinator.ShardID) bool
	// Rules returns those of a topic; ok is false if it is not compacted, or does not exist (any more).
	Rules func(topic [16]byte) (r CleanRules, ok bool)
	// PlainBytesMax bounds the records of a batch when they are decompressed.
	PlainBytesMax int
	Now           func() time.Time
	Log           *slog.Logger
}

// Cleaner compacts the partitions that this agent leads, of topics with cleanup.policy=compact (LogCleaner). One cleaning is under way at a time.
//
// It reads merged segments and writes others in their place; what is not merged yet counts as what the active segment is in Kafka. All it needs to know is in the manifest and in the segments, so that
// a cleaning is the same whoever does it, and when. Beside the map, which stays, a cleaning holds what it reads at once, a segment that it writes, and one batch decompressed and anew.
type Cleaner struct {
	cfg     CleanConfig
	deps    CleanerDeps
	offsets *compact.OffsetMap
	builder segment.Builder
	looks   map[coordinator.ShardID]*look
	failed  map[partition.ID]failure // partitions whose last cleaning failed

	cleanings, bytes, bytesKept atomic.Uint64
	ratio                       atomic.Uint64 // bits of a float64
	resting                     atomic.Int64
}

// CleanStats are a cleaner's counters since it began, and what it saw when it last looked.
type CleanStats struct {
	Cleanings        uint64 // of partitions, that were installed
	Bytes, BytesKept uint64 // of batches that they read, and left
	DirtyRatioMax    float64
	Failed           int // partitions whose last cleaning failed, and that are left alone for a while
}

// Stats returns the cleaner's counters.
func (c *Cleaner) Stats() CleanStats {
	return CleanStats{
		Cleanings: c.cleanings.Load(), Bytes: c.bytes.Load(), BytesKept: c.bytesKept.Load(), DirtyRatioMax: math.Float64frombits(c.ratio.Load()), Failed: int(c.resting.Load()),
	}
}

// NewCleaner returns a cleaner; [Cleaner.Run] makes it work.
func NewCleaner(cfg CleanConfig, deps CleanerDeps) *Cleaner {
	return &Cleaner{
		cfg: cfg, deps: deps, offsets: compact.NewOffsetMap(cfg.MemoryBytes), failed: make(map[partition.ID]failure),
	}
}

// Run cleans until ctx ends.
func (c *Cleaner) Run(ctx context.Context) error {
	return retry.Every(ctx, c.cfg.Pause, func() error {
		for c.Step(ctx) {
		}
		return nil
	})
}

// Step cleans the partition that is due and has the most to clean, and with it others of its shard. It reports whether it is worth to go on: it has cleaned something, or what failed is no reason
// for others to fail.
func (c *Cleaner) Step(ctx context.Context) bool {
	w := c.begin(ctx)
	if w == nil {
		return false
	}
	defer w.shard.unclaim(w.claimed)
	defer c.builder.Reset()
	delete(c.looks, w.id)
	failed, err := w.clean(ctx)
	bad := err != nil && !away(err)
	if err == nil {
		failed, err = w.parts, w.install(ctx, change{edit: w.edit})
	} else {
		w.discard(nil)
	}
	switch {
	case err == nil:
		for i := range w.parts {
			c.count(w.parts[i].stats)
			delete(c.failed, w.parts[i].id)
		}
		return true
	case ctx.Err() != nil, errors.Is(err, coordinator.ErrFenced), protocol.CodeOf(err) == protocol.NotLeaderOrFollower:
		return false
	case errors.Is(err, errChanged):
		c.deps.Log.Debug("a cleaning is planned anew", "shard", w.id, "err", err)
		return true
	}
	c.fail(ctx, w.id, failed, bad, err)
	return bad
}

// failure is that of a partition's last cleaning.
type failure struct {
	shard coordinator.ShardID
	pause time.Duration // how long it is left alone
	until time.Time
}

// fail has partitions left alone for a while. That there is something bad in one is said once, as an error.
func (c *Cleaner) fail(ctx context.Context, shard coordinator.ShardID, parts []cleaned, bad bool, err error) {
	level, first, last := slog.LevelWarn, cleanRest, cleanRestMax
	if bad {
		level, first, last = slog.LevelError, cleanRestBad, cleanRestBadMax
	}
	var pause time.Duration
	for i := range parts {
		id := parts[i].id
		pause = c.failed[id].pause
		if bad && pause >= cleanRestBad {
			level = slog.LevelDebug
		}
		pause = min(max(2*pause, first), last)
		c.failed[id] = failure{shard: shard, pause: pause, until: c.deps.Now().Add(pause)}
	}
	c.deps.Log.Log(ctx, level, "partitions could not be compacted; trying again",
		"topic", parts[0].name, "partition", parts[0].id.Partition, "partitions", len(parts), "shard", shard, "in", pause, "err", err)
}

// away reports whether something failed because the bucket is away, and not because of what is in it.
func away(err error) bool {
	return errors.Is(err, objectstore.ErrUnavailable) || errors.Is(err, objectstore.ErrUnknownOutcome) || errors.Is(err, objectstore.ErrDenied) || errors.Is(err, context.DeadlineExceeded)
}

func (c *Cleaner) count(s compact.Stats) {
	c.cleanings.Add(1)
	c.bytes.Add(uint64(s.Bytes))
	c.bytesKept.Add(uint64(s.BytesKept))
}

// cleaned is a partition that is cleaned.
type cleaned struct {
	id    partition.ID
	name  string
	of    *manifest.Partition
	rules CleanRules
	compact.Range

	end, next protocol.Offset // where the cleaning ends; and the extent that it ends in
	stats     compact.Stats
}

// cleaning is one under way.
type cleaning struct {
	output
	c            *Cleaner
	parts        []cleaned
	claimed      []manifest.Segment
	nowMs        int64
	decompressor *batch.Decompressor
	filter       *batch.Filter
	buffer       []byte   // what is read
	copies       [][]byte // what is left, until it is written, each piece up to its length
	copying      int      // the piece that is filled
}

// clean writes what is left of the partitions. failed are those that an error is about.
func (w *cleaning) clean(ctx context.Context) (failed []cleaned, err error) {
	w.begin()
	w.decompressor = batch.NewDecompressor(w.c.deps.PlainBytesMax)
	w.filter = batch.NewFilter(w.decompressor)
	for i := range w.parts {
		if err := w.partition(ctx, &w.parts[i]); err != nil {
			return w.parts[i : i+1], fmt.Errorf("compact %s/%d: %w", w.parts[i].name, w.parts[i].id.Partition, err)
		}
	}
	if w.builder.Bytes() == 0 {
		return nil, nil
	}
	return w.parts, w.put(ctx)
}

// put puts a segment, and has what was copied for it written over.
func (w *cleaning) put(ctx context.Context) error {
	if err := w.output.put(ctx); err != nil {
		return err
	}
	w.copying = 0
	for i := range w.copies {
		w.copies[i] = w.copies[i][:0]
	}
	return nil
}

// partition cleans one: three passes, over the footers for transactions, over what is dirty for its keys, and over all of it.
func (w *cleaning) partition(ctx context.Context, p *cleaned) error {
	aborted, err := w.aborted(ctx, p)
	if err != nil {
		return err
	}
	keys := compact.NewKeys(w.c.offsets, w.decompressor, p.Cleaned, p.Bound, aborted)
	if err := w.batches(ctx, p, p.Cleaned, p.Bound, keys.Add); err != nil {
		return err
	}
	p.end = keys.End()
	newest := make(map[protocol.ProducerID]compact.Newest, len(p.of.Producers))
	for i := range p.of.Producers {
		s := &p.of.Producers[i]
		n := compact.Newest{Offset: protocol.NoOffset, Epoch: s.Epoch}
		if len(s.Batches) > 0 {
			b := &s.Batches[len(s.Batches)-1]
			n.Offset = b.BaseOffset + protocol.Offset(b.Records) - 1
		}
		newest[s.ID] = n
	}
	cleaner := compact.NewCleaner(w.c.offsets, w.filter, compact.Cleaning{
		End: p.end, Bound: p.Bound, Aborted: aborted, Newest: newest, NowMs: w.nowMs, DeleteRetentionMs: p.rules.DeleteRetentionMs,
	})
	if err := w.rewrite(ctx, p, cleaner); err != nil {
		return err
	}
	p.stats = cleaner.Stats()
	return nil
}

// rewrite is the last pass: it adds what is left to the segments that are written. What they say they cover has no gap but where all of a segment has gone.
func (w *cleaning) rewrite(ctx context.Context, p *cleaned, cleaner *compact.Cleaner) error {
	key := segment.Key{Shard: uint32(w.id), Topic: p.id.Topic, Partition: p.id.Partition}
	last := len(p.of.Extents) - 1
	for last > 0 && p.of.Extents[last].First >= p.end {
		last--
	}
	p.next = p.of.Extents[last].Next
	covered, read := p.of.Extents[0].First, p.of.Extents[0].First
	inside := false // the builder has something of the partition
	cover := func() error {
		if !inside {
			return nil
		}
		from := covered
		covered, inside = read, false
		return w.builder.Cover(key, from, read)
	}
	flush := func() error {
		if err := cover(); err != nil {
			return err
		}
		return w.put(ctx)
	}
	err := w.batches(ctx, p, p.of.LogStartOffset, p.next, func(h *batch.Header, b []byte) (bool, error) {
		out, err := cleaner.Clean(h, b)
		if err != nil || len(out) == 0 {
			read = h.NextOffset()
			return false, err
		}
		if w.builder.Bytes() > 0 && w.builder.Bytes()+int64(len(out)) > w.c.cfg.DataBytes {
			if err = flush(); err != nil {
				return false, err
			}
		}
		err = w.builder.Add(key, p.name, w.copied(out))
		if errors.Is(err, segment.ErrFull) && w.builder.Bytes() > 0 {
			if err = flush(); err == nil {
				err = w.builder.Add(key, p.name, w.copied(out))
			}
		}
		read, inside = h.NextOffset(), true
		return false, err
	})
	if err != nil {
		return err
	}
	read = p.next
	return cover()
}

// copied returns a copy that stays as it is until the segment is written.
func (w *cleaning) copied(b []byte) []byte {
	for w.copying < len(w.copies) && cap(w.copies[w.copying])-len(w.copies[w.copying]) < len(b) {
		w.copying++
	}
	if w.copying == len(w.copies) {
		w.copies = append(w.copies, make([]byte, 0, max(cleanCopyBytes, len(b))))
	}
	at := &w.copies[w.copying]
	from := len(*at)
	*at = append(*at, b...)
	return (*at)[from:len(*at):cap(*at)]
}

// aborted returns the aborted transactions of a partition that begin below the bound.
func (w *cleaning) aborted(ctx context.Context, p *cleaned) ([]compact.Aborted, error) {
	t, start := compact.NewTransactions(p.Bound), w.start(p) // once: of a transaction the beginning alone might be seen
	for i := range p.of.Extents {
		e := &p.of.Extents[i]
		if e.Next <= start {
			continue
		}
		s, _, err := w.c.section(ctx, w.shard, w.old, p.of, e)
		if err != nil {
			return nil, err
		}
		for b, err := range s.All() {
			switch {
			case err != nil:
				return nil, err
			case b.Next() <= p.of.LogStartOffset || b.Flags&segment.FlagTransactional == 0:
			case b.Flags&segment.FlagControl == 0:
				t.Data(b.ProducerID, b.Offset)
			case b.Flags&segment.FlagCommit != 0:
				t.Marker(b.ProducerID, batch.Commit, b.Offset)
			default:
				t.Marker(b.ProducerID, batch.Abort, b.Offset)
			}
		}
		if t.Complete(e.Next) {
			return t.Aborted(), nil
		}
	}
	return nil, fmt.Errorf("transactions that begin below %d have no end, and the last stable offset is %d", p.Bound, p.of.LastStable)
}

// start returns where a partition's log begins by now. What is before is of no use, and may not be there any more: a cleaning takes as long as it takes.
func (w *cleaning) start(p *cleaned) protocol.Offset {
	return max(p.of.LogStartOffset, w.shard.newest().LogStart(p.id.Topic, p.id.Partition))
}

// section returns the section of an extent of a shard's manifest, which need not be the newest any more.
func (c *Cleaner) section(ctx context.Context, sh *shard, m *manifest.Manifest, p *manifest.Partition, e *manifest.Extent) (*segment.Section, *index.Object, error) {
	g := &m.Segments[e.Segment]
	o := &index.Object{Name: g.Name(m.Shard), Size: g.Size, FooterPos: g.FooterPos, CreatedMs: g.CreatedMs}
	footer, err := c.deps.Footers.Get(ctx, o)
	if err != nil {
		return nil, nil, sh.changed(err, *g)
	}
	s := footer.Find(segment.Key{Shard: m.Shard, Topic: p.Topic, Partition: p.Partition})
	if s == nil {
		return nil, nil, fmt.Errorf("segment %s: %w: no section for %s/%d", o.Name, segment.ErrCorrupt, p.TopicName, p.Partition)
	}
	return s, o, nil
}

// batches reads the batches of a partition that end after offset from and begin before offset end, in order, until visit says that it is enough. They are good until visit returns. Extents that end
// before the log start offset by then are left out.
func (w *cleaning) batches(ctx context.Context, p *cleaned, from, end protocol.Offset, visit func(*batch.Header, []byte) (enough bool, err error)) error {
	for i := range p.of.Extents {
		e := &p.of.Extents[i]
		if e.Next <= max(from, w.start(p)) {
			continue
		}
		if e.First >= end {
			return nil
		}
		s, o, err := w.c.section(ctx, w.shard, w.old, p.of, e)
		if err != nil {
			return err
		}
		for at := max(from, e.First); at < min(e.Next, end); {
			select {
			case <-w.shard.gone:
				return protocol.NotLeaderOrFollower.Err()
			default:
			}
			pos, n, batches, err := s.Range(nil, at, cleanReadBytes)
			if err != nil {
				return err
			}
			if len(batches) == 0 {
				break
			}
			data, err := w.read(ctx, o.Name, pos, n)
			if err != nil {
				return w.shard.changed(err, w.old.Segments[e.Segment])
			}
			enough, err := visitAll(s, batches, data, func(h *batch.Header, one []byte) (bool, error) {
				enough, err := visit(h, one)
				if err != nil {
					err = fmt.Errorf("segment %s: %w", o.Name, err)
				}
				return enough, err
			})
			if enough || err != nil {
				return err
			}
			at = batches[len(batches)-1].Next()
		}
	}
	return nil
}

// visitAll visits batches of a section whose bytes are data, and verifies them.
func visitAll(s *segment.Section, batches []segment.Batch, data []byte, visit func(*batch.Header, []byte) (bool, error)) (enough bool, err error) {
	for _, b := range batches {
		one := data[:b.Size]
		data = data[b.Size:]
		if err := s.VerifyBatch(b, one); err != nil {
			return false, err
		}
		h, err := batch.Parse(one)
		if err != nil {
			return false, err
		}
		if enough, err := visit(&h, one); enough || err != nil {
			return enough, err
		}
	}
	return false, nil
}

// read reads bytes of an object, which are good until the next call.
func (w *cleaning) read(ctx context.Context, name string, pos, n int64) ([]byte, error) {
	if int64(cap(w.buffer)) < n {
		w.buffer = make([]byte, max(n, cleanReadBytes))
	}
	data := w.buffer[:n]
	err := w.patiently(ctx, func(ctx context.Context) error { return w.store.Get(ctx, name, pos, data) })
	if err != nil {
		return nil, fmt.Errorf("read segment %s: %w", name, err)
	}
	return data, nil
}

// edit puts what is left in place of what was, in the shard's next manifest. What was could not be merged meanwhile; it may be below log start offsets by now, which is seen to afterwards.
func (w *cleaning) edit(next *manifest.Manifest) {
	base := int32(len(next.Segments))
	next.Segments = append(slices.Clone(next.Segments), w.made...)
	for i := range w.parts {
		p := &w.parts[i]
		at, ok := next.Find(p.id.Topic, p.id.Partition)
		if !ok {
			continue // deleted
		}
		list := w.placed(p.id, base)
		for _, e := range at.Extents {
			if e.First >= p.next {
				list = append(list, e)
			}
		}
		at.Extents, at.Cleaned = list, p.end
	}
}
