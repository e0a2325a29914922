package upkeep

import (
	"cmp"
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
	// cleanRest is how long a partition is left alone that could not be cleaned.
	cleanRest = 30 * time.Second
	// cleanRestBad is the same if there is something in it that cannot be read: in Kafka it is left alone until the broker starts anew.
	cleanRestBad = time.Hour
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
// a cleaning is the same whoever does it, and when. Beside the map it holds what it reads at once, a segment that it writes, and one batch decompressed.
type Cleaner struct {
	cfg          CleanConfig
	deps         CleanerDeps
	offsets      *compact.OffsetMap
	decompressor *batch.Decompressor
	builder      segment.Builder
	buffer       []byte
	rest         map[partition.ID]time.Time // until when a partition is left alone

	cleanings, bytes, bytesKept atomic.Uint64
	ratio                       atomic.Uint64 // bits of a float64
	resting                     atomic.Int64
}

// CleanStats are a cleaner's counters since it began, and what it saw when it last looked.
type CleanStats struct {
	Cleanings        uint64 // of partitions, that were installed
	Bytes, BytesKept uint64 // of batches that they read, and left
	DirtyRatioMax    float64
	Failed           int // partitions that could not be cleaned and are left alone for a while
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
		cfg: cfg, deps: deps, offsets: compact.NewOffsetMap(cfg.MemoryBytes), decompressor: batch.NewDecompressor(deps.PlainBytesMax), rest: make(map[partition.ID]time.Time),
	}
}

// Run cleans until ctx ends.
func (c *Cleaner) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		for c.Step(ctx) {
		}
	}
}

// Step cleans the partition that is due and has the most to clean, and with it others of its shard. It reports whether it has cleaned something.
func (c *Cleaner) Step(ctx context.Context) bool {
	w := c.begin(ctx)
	if w == nil {
		return false
	}
	defer w.shard.unclaim(w.claimed)
	defer c.builder.Reset()
	at, err := w.clean(ctx)
	if err == nil {
		err = w.install(ctx, change{edit: w.edit})
	} else {
		w.discard(nil)
	}
	switch {
	case err == nil:
		for i := range w.parts {
			c.count(w.parts[i].stats)
		}
		return true
	case ctx.Err() != nil, errors.Is(err, coordinator.ErrFenced), protocol.CodeOf(err) == protocol.NotLeaderOrFollower:
		return false
	}
	pause := cleanRest
	if protocol.CodeOf(err) == protocol.InvalidRecord || protocol.CodeOf(err) == protocol.MessageTooLarge {
		pause = cleanRestBad
	}
	c.rest[at.id] = c.deps.Now().Add(pause)
	c.deps.Log.Warn("a partition could not be compacted; trying again", "topic", at.name, "partition", at.id.Partition, "shard", w.id, "in", pause, "err", err)
	return true // others may be due
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
	c       *Cleaner
	parts   []cleaned
	claimed []manifest.Segment
	nowMs   int64
	copies  []byte // the last piece of memory for what is left
}

// begin finds what to clean, and claims it; nil if nothing is due, or it is being merged.
func (c *Cleaner) begin(ctx context.Context) *cleaning {
	now := c.deps.Now()
	for id, until := range c.rest {
		if !now.Before(until) {
			delete(c.rest, id)
		}
	}
	c.resting.Store(int64(len(c.rest)))
	var first *cleaned
	var group []cleaned // of the shard that has first
	var id coordinator.ShardID
	ratio := 0.0
	for shard := range c.deps.Manifests.records() {
		m := c.deps.Manifests.Of(shard)
		if m == nil || !c.deps.Leads(shard) {
			continue
		}
		parts := c.judge(ctx, m, now)
		for i := range parts {
			p := &parts[i]
			ratio = max(ratio, p.Ratio())
			if p.Due && (first == nil || p.Ratio() > first.Ratio()) {
				first, group, id = p, parts, shard
			}
		}
	}
	c.ratio.Store(math.Float64bits(ratio))
	if first == nil {
		return nil
	}
	return c.claim(id, *first, group, now)
}

// judge returns the partitions of a shard that have something to clean.
func (c *Cleaner) judge(ctx context.Context, m *manifest.Manifest, now time.Time) []cleaned {
	var all []cleaned
	for i := range m.Partitions {
		p := &m.Partitions[i]
		id := partition.ID{Topic: p.Topic, Partition: p.Partition}
		rules, ok := c.deps.Rules(p.Topic)
		if _, resting := c.rest[id]; !ok || resting || len(p.Extents) == 0 {
			continue
		}
		l := compact.Log{Start: p.LogStartOffset, Cleaned: p.Cleaned, LastStable: p.LastStable, Pieces: make([]compact.Piece, len(p.Extents))}
		dirty := false
		for j := range p.Extents {
			e := &p.Extents[j]
			l.Pieces[j] = compact.Piece{First: e.First, Next: e.Next, Bytes: e.Size, MaxTimestampMs: e.MaxTimestamp}
			if !dirty && e.Next > max(p.Cleaned, p.LogStartOffset) && rules.LagMsMax < math.MaxInt64 {
				l.Pieces[j].TimestampMs = c.firstTimestamp(ctx, m, p, e)
				dirty = true
			}
		}
		if r := rules.Range(l, now.UnixMilli()); r.DirtyBytes > 0 {
			all = append(all, cleaned{id: id, name: p.TopicName, of: p, rules: rules, Range: r})
		}
	}
	return all
}

// firstTimestamp returns that of the first batch in an extent that is dirty; 0 if it is not known.
func (c *Cleaner) firstTimestamp(ctx context.Context, m *manifest.Manifest, p *manifest.Partition, e *manifest.Extent) int64 {
	s, _, err := c.section(ctx, m, p, e)
	if err != nil {
		c.deps.Log.Warn("max.compaction.lag.ms is not looked at", "topic", p.TopicName, "partition", p.Partition, "err", err)
		return 0
	}
	for b, err := range s.All() {
		if err == nil && b.Next() > p.Cleaned {
			return b.MaxTimestamp
		}
	}
	return 0
}

// claim begins a cleaning of first, and of those of the group that together with it are small enough.
func (c *Cleaner) claim(id coordinator.ShardID, first cleaned, group []cleaned, now time.Time) *cleaning {
	sh := c.deps.Manifests.led(id)
	if sh == nil {
		return nil
	}
	parts, bytes := []cleaned{first}, first.DirtyBytes+first.CleanBytes
	slices.SortStableFunc(group, func(a, b cleaned) int { return cmp.Compare(b.Ratio(), a.Ratio()) })
	for i := range group {
		if size := group[i].DirtyBytes + group[i].CleanBytes; group[i].id != first.id && bytes+size <= c.cfg.DataBytes {
			parts = append(parts, group[i])
			bytes += size
		}
	}
	w := &cleaning{c: c, nowMs: now.UnixMilli(), output: output{
		manifests: c.deps.Manifests, store: c.deps.Store, footers: c.deps.Footers, cluster: c.deps.Cluster, builder: &c.builder,
		id: id, shard: sh, old: sh.newest(), epoch: protocol.LeaderEpoch(sh.newestRecord().Epoch),
	}}
	places := make(map[int32]bool)
	for i := range parts {
		p := &parts[i]
		of, ok := w.old.Find(p.id.Topic, p.id.Partition)
		if !ok || of.Cleaned != p.of.Cleaned || of.End != p.of.End || of.LogStartOffset != p.of.LogStartOffset {
			continue // it has changed since it was judged
		}
		p.of = of
		for _, e := range of.Extents {
			if e.First < p.Bound {
				places[e.Segment] = true
			}
		}
		w.parts = append(w.parts, *p)
	}
	for at := range places {
		g := w.old.Segments[at]
		w.claimed = append(w.claimed, g)
		w.created = max(w.created, g.CreatedMs)
	}
	if len(w.parts) == 0 || !sh.claim(w.claimed) {
		return nil
	}
	return w
}

// clean writes what is left of the partitions. at is the one that an error is about.
func (w *cleaning) clean(ctx context.Context) (at *cleaned, err error) {
	w.begin()
	for i := range w.parts {
		if err := w.partition(ctx, &w.parts[i]); err != nil {
			return &w.parts[i], fmt.Errorf("compact %s/%d: %w", w.parts[i].name, w.parts[i].id.Partition, err)
		}
	}
	last := &w.parts[len(w.parts)-1]
	if w.builder.Bytes() == 0 {
		return last, nil
	}
	return last, w.put(ctx)
}

// partition cleans one: three passes, over the footers for transactions, over what is dirty for its keys, and over all of it.
func (w *cleaning) partition(ctx context.Context, p *cleaned) error {
	aborted, err := w.aborted(ctx, p)
	if err != nil {
		return err
	}
	keys := compact.NewKeys(w.c.offsets, w.c.decompressor, p.Cleaned, p.Bound, aborted)
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
	cleaner := compact.NewCleaner(w.c.offsets, batch.NewFilter(w.c.decompressor), compact.Cleaning{
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
	if cap(w.copies)-len(w.copies) < len(b) {
		w.copies = make([]byte, 0, max(cleanCopyBytes, len(b)))
	}
	from := len(w.copies)
	w.copies = append(w.copies, b...)
	return w.copies[from:len(w.copies):cap(w.copies)]
}

// aborted returns the aborted transactions of a partition that begin below the bound.
func (w *cleaning) aborted(ctx context.Context, p *cleaned) ([]compact.Aborted, error) {
	t := compact.NewTransactions(p.Bound)
	for i := range p.of.Extents {
		e := &p.of.Extents[i]
		if e.Next <= p.of.LogStartOffset {
			continue
		}
		s, _, err := w.c.section(ctx, w.old, p.of, e)
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

// section returns the section of an extent.
func (c *Cleaner) section(ctx context.Context, m *manifest.Manifest, p *manifest.Partition, e *manifest.Extent) (*segment.Section, *index.Object, error) {
	g := &m.Segments[e.Segment]
	o := &index.Object{Name: g.Name(m.Shard), Size: g.Size, FooterPos: g.FooterPos, CreatedMs: g.CreatedMs}
	footer, err := c.deps.Footers.Get(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	s := footer.Find(segment.Key{Shard: m.Shard, Topic: p.Topic, Partition: p.Partition})
	if s == nil {
		return nil, nil, fmt.Errorf("segment %s: %w: no section for %s/%d", o.Name, segment.ErrCorrupt, p.TopicName, p.Partition)
	}
	return s, o, nil
}

// batches reads the batches of a partition that end after offset from and begin before offset end, in order, until visit says that it is enough. They are good until visit returns.
func (w *cleaning) batches(ctx context.Context, p *cleaned, from, end protocol.Offset, visit func(*batch.Header, []byte) (enough bool, err error)) error {
	for i := range p.of.Extents {
		e := &p.of.Extents[i]
		if e.Next <= from {
			continue
		}
		if e.First >= end {
			return nil
		}
		s, o, err := w.c.section(ctx, w.old, p.of, e)
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
			data, err := w.c.read(ctx, o.Name, pos, n)
			if err != nil {
				return err
			}
			enough, err := visitAll(s, batches, data, visit)
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
func (c *Cleaner) read(ctx context.Context, name string, pos, n int64) ([]byte, error) {
	if int64(cap(c.buffer)) < n {
		c.buffer = make([]byte, max(n, cleanReadBytes))
	}
	data := c.buffer[:n]
	ctx, cancel := context.WithTimeout(ctx, mergeRequestMax)
	defer cancel()
	if err := c.deps.Store.Get(ctx, name, pos, data); err != nil {
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
