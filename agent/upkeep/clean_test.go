package upkeep

import (
	"fmt"
	"log/slog"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	memstore "github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

const (
	cleanShard = coordinator.ShardID(3)
	cleanKeys  = 10
)

// bench is a shard whose partition 0 has offsets 0 to 100 in two segments, and partition 1 offsets 0 to 20 in the second: batches of 5 records, of keys by turns. The timestamps are the offsets.
type bench struct {
	t         *testing.T
	store     *fault.Store
	ledger    *ledger
	manifests *Manifests
	index     *index.Index
	footers   *fetch.Footers
	rules     CleanRules
	now       time.Time
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, store: fault.New(memstore.New()), ledger: &ledger{}, now: time.UnixMilli(1 << 30)}
	b.rules = CleanRules{Policy: compact.Policy{LagMsMax: math.MaxInt64}}
	b.manifests, b.index = manifests(b.store, b.ledger)
	b.footers = fetch.NewFooters(b.store, 1<<20)
	m := &manifest.Manifest{Shard: uint32(cleanShard), Epoch: 4, Generation: 1}
	m.Partitions = []manifest.Partition{
		{Topic: topic, TopicName: "t", End: 100, LastStable: 100, Epochs: []manifest.EpochStart{{Epoch: 4}}},
		{Topic: topic, TopicName: "t", Partition: 1, End: 20, LastStable: 20, Epochs: []manifest.EpochStart{{Epoch: 4}}},
	}
	b.segment(m, 1, 0, 50, 0)
	b.segment(m, 2, 50, 100, 20)
	object, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.store.Put(t.Context(), m.Name(), objectstore.Bytes(object)); err != nil {
		t.Fatal(err)
	}
	if err := b.manifests.Adopt(t.Context(), cleanShard, coordinator.Shard{Epoch: 4, Manifest: m.Name(), Merged: 7}); err != nil {
		t.Fatal(err)
	}
	return b
}

// segment puts a segment with those offsets of partition 0, and partition 1 up to an offset.
func (b *bench) segment(m *manifest.Manifest, number uint64, from, to, other protocol.Offset) {
	b.t.Helper()
	builder := segment.Builder{Level: segment.Merged}
	for n, list := range [][2]protocol.Offset{{from, to}, {0, other}} {
		for at := list[0]; at < list[1]; at += 5 {
			one := batch.NewBuilder(batch.None)
			one.BaseOffset, one.LeaderEpoch = at, 4
			for o := at; o < at+5; o++ {
				one.Append(int64(o), fmt.Append(nil, o%cleanKeys), fmt.Append(nil, "of ", o))
			}
			data, err := one.AppendTo(nil)
			if err != nil {
				b.t.Fatal(err)
			}
			if err := builder.Add(segment.Key{Shard: uint32(cleanShard), Topic: topic, Partition: int32(n)}, "t", data); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	sid := segment.ID{Level: segment.Merged, Log: uint64(cleanShard), Fence: 4, Commit: number}
	parts, footer, err := builder.Finish(segment.Header{ID: sid, CreatedMs: int64(number)})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.store.Put(b.t.Context(), sid.Name(), objectstore.Body{Parts: parts, Size: footer.ObjectSize}); err != nil {
		b.t.Fatal(err)
	}
	for i := range footer.Sections {
		s := &footer.Sections[i]
		m.Partitions[i].Extents = append(m.Partitions[i].Extents, manifest.Extent{
			Segment: int32(len(m.Segments)), First: s.FirstOffset, Next: s.NextOffset, Pos: s.Pos, Size: s.Size, MaxTimestamp: s.MaxTimestamp, Epoch: 4,
		})
	}
	m.Segments = append(m.Segments, manifest.Segment{Epoch: 4, Number: number, Size: footer.ObjectSize, FooterPos: footer.Pos, CreatedMs: int64(number)})
}

func (b *bench) cleaner(cfg CleanConfig) *Cleaner {
	return NewCleaner(cfg, CleanerDeps{
		Manifests: b.manifests, Footers: b.footers, Store: b.store, PlainBytesMax: 1 << 20,
		Leads: func(coordinator.ShardID) bool { return true },
		Rules: func([16]byte) (CleanRules, bool) { return b.rules, true },
		Now:   func() time.Time { return b.now }, Log: slog.New(slog.DiscardHandler),
	})
}

var roomy = CleanConfig{MemoryBytes: 1 << 20, DataBytes: 1 << 20}

// left returns the offsets of the records that the newest manifest has of a partition, and checks that its extents are what their segments say.
func (b *bench) left(n int32) []protocol.Offset {
	b.t.Helper()
	m := b.manifests.Of(cleanShard)
	p, _ := m.Find(topic, n)
	var offsets []protocol.Offset
	d := batch.NewDecompressor(1 << 20)
	for i := range p.Extents {
		e := &p.Extents[i]
		g := &m.Segments[e.Segment]
		f, err := b.footers.Get(b.t.Context(), &index.Object{Name: g.Name(m.Shard), Size: g.Size, FooterPos: g.FooterPos})
		if err != nil {
			b.t.Fatal(err)
		}
		s := f.Find(segment.Key{Shard: m.Shard, Topic: topic, Partition: n})
		if s == nil || s.FirstOffset != e.First || s.NextOffset != e.Next || s.Pos != e.Pos || s.Size != e.Size || s.MaxTimestamp != e.MaxTimestamp || s.LeaderEpoch != e.Epoch {
			b.t.Fatalf("extent %+v of %s: %+v", e, g.Name(m.Shard), s)
		}
		data := make([]byte, s.Size)
		if err := b.store.Get(b.t.Context(), g.Name(m.Shard), s.Pos, data); err != nil {
			b.t.Fatal(err)
		}
		err = batch.Each(data, func(h batch.Header, one []byte) error {
			records, err := d.Records(&h, one)
			if err != nil {
				return err
			}
			for r := (batch.Record{}); records.Next(&r); {
				o := h.Offset(&r)
				if want := fmt.Sprint("of ", o); string(r.Value) != want || h.Timestamp(&r) != int64(o) {
					b.t.Errorf("offset %d has %q of %d", o, r.Value, h.Timestamp(&r))
				}
				offsets = append(offsets, o)
			}
			return records.Err()
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	if extents := b.index.Extents(partition.ID{Topic: topic, Partition: n}); len(extents) != len(p.Extents) {
		b.t.Errorf("the index has %d extents of partition %d, the manifest %d", len(extents), n, len(p.Extents))
	}
	return offsets
}

func span(from, to protocol.Offset) (all []protocol.Offset) {
	for ; from < to; from++ {
		all = append(all, from)
	}
	return all
}

// TestClean cleans two partitions of a shard together, into one segment that covers what it replaces, and then finds nothing more to do.
func TestClean(t *testing.T) {
	b := newBench(t)
	old := b.manifests.Of(cleanShard)
	c := b.cleaner(roomy)
	if !c.Step(t.Context()) || c.Step(t.Context()) {
		t.Fatal("want one cleaning")
	}
	m := b.manifests.Of(cleanShard)
	if got, want := b.left(0), span(90, 100); !slices.Equal(got, want) {
		t.Errorf("of partition 0 are left %d, want %d", got, want)
	}
	if got, want := b.left(1), span(10, 20); !slices.Equal(got, want) {
		t.Errorf("of partition 1 are left %d, want %d", got, want)
	}
	p := &m.Partitions[0]
	if len(m.Segments) != 1 || m.Segments[0].CreatedMs != 2 || len(p.Extents) != 1 || p.Extents[0].First != 0 || p.Extents[0].Next != 100 || p.Cleaned != 100 || p.End != 100 || m.Partitions[1].Cleaned != 20 {
		t.Errorf("the manifest is %+v", m)
	}
	if e, ok := b.index.Find(partition.ID{Topic: topic}, 3); !ok || e.Next != 100 {
		t.Errorf("offset 3 is in %+v", e)
	}
	if b.ledger.records[0].Merged != 7 {
		t.Errorf("the record is %+v", b.ledger.records[0])
	}
	if names := b.manifests.garbage.due(time.Now()); !slices.Equal(names, []string{old.Name(), old.Segments[0].Name(3), old.Segments[1].Name(3)}) {
		t.Errorf("garbage is %v", names)
	}
	if st := c.Stats(); st.Cleanings != 2 || st.Bytes <= st.BytesKept || st.DirtyRatioMax != 0 {
		t.Errorf("stats %+v", st)
	}
	if len(b.manifests.led(cleanShard).claims) != 0 {
		t.Error("something is claimed still")
	}
}

// TestCleanInGoes has a map of keys that is too small, and segments that are.
func TestCleanInGoes(t *testing.T) {
	b := newBench(t)
	c := b.cleaner(CleanConfig{MemoryBytes: 24 * 6, DataBytes: 200})
	goes := 0
	for c.Step(t.Context()) {
		p := &b.manifests.Of(cleanShard).Partitions[0]
		if got := b.left(0); !slices.Equal(got[len(got)-cleanKeys:], span(90, 100)) {
			t.Fatalf("after %d goes, cleaned up to %d, are left %d", goes, p.Cleaned, got)
		}
		if goes++; goes > 1000 {
			t.Fatal("it goes on for ever")
		}
	}
	p := &b.manifests.Of(cleanShard).Partitions[0]
	if goes < 10 || p.Cleaned != 100 {
		t.Errorf("%d goes cleaned up to %d", goes, p.Cleaned)
	}
	if got := b.left(0); !slices.Equal(got, span(90, 100)) {
		t.Errorf("are left %d", got)
	}
	for i, e := range p.Extents { // nothing of the end may be a gap
		if i == len(p.Extents)-1 && e.Next != 100 || i > 0 && e.First < p.Extents[i-1].Next {
			t.Errorf("extents %+v", p.Extents)
		}
	}
}

// TestCleanRules holds that what is too young stays, and what is too old goes.
func TestCleanRules(t *testing.T) {
	for name, test := range map[string]struct {
		policy  compact.Policy
		cleaned protocol.Offset
	}{
		"dirty enough":       {compact.Policy{DirtyRatioMin: 0.9, LagMsMax: math.MaxInt64}, 100},
		"never dirty enough": {compact.Policy{DirtyRatioMin: 1, LagMsMax: math.MaxInt64}, 0},
		"late":               {compact.Policy{DirtyRatioMin: 1, LagMsMax: 1000}, 100},
		"not late yet":       {compact.Policy{DirtyRatioMin: 1, LagMsMax: 1 << 40}, 0},
		"too young in part":  {compact.Policy{LagMsMin: 1<<30 - 60, LagMsMax: math.MaxInt64}, 50},
	} {
		b := newBench(t)
		b.rules.Policy = test.policy
		b.cleaner(roomy).Step(t.Context())
		if got := b.manifests.Of(cleanShard).Partitions[0].Cleaned; got != test.cleaned {
			t.Errorf("%s: cleaned up to %d, want %d", name, got, test.cleaned)
		}
	}
}

// TestCleanFails has everything fail that can: nothing has changed then, and what was made is garbage.
func TestCleanFails(t *testing.T) {
	for name, fail := range map[string]func(b *bench){
		"no reads": func(b *bench) {
			b.store.Add(fault.Rule{Op: fault.Get, Prefix: segment.MergedNamePrefix, Effect: fault.Unavailable, Times: 1000})
		},
		"wrong bytes": func(b *bench) {
			b.store.Add(fault.Rule{Op: fault.Get, Prefix: segment.MergedNamePrefix, Nth: 5, Effect: fault.WrongBytes, Times: 1000})
		},
		"no writes": func(b *bench) {
			b.store.Add(fault.Rule{Op: fault.Put, Prefix: segment.MergedNamePrefix, Effect: fault.Unavailable, Times: 1000})
		},
		"no space in etcd":   func(b *bench) { b.ledger.err = coordinator.ErrNoSpace },
		"led by another one": func(b *bench) { b.ledger.err = coordinator.ErrFenced },
	} {
		b := newBench(t)
		before := b.manifests.Of(cleanShard)
		fail(b)
		c := b.cleaner(roomy)
		for c.Step(t.Context()) {
		}
		b.store.Clear()
		if b.manifests.Of(cleanShard) != before || len(b.manifests.led(cleanShard).claims) != 0 {
			t.Errorf("%s: the manifest is %+v", name, b.manifests.Of(cleanShard))
		}
		if got := b.left(0); !slices.Equal(got, span(0, 100)) {
			t.Errorf("%s: are left %d", name, got)
		}
		b.ledger.err = nil
		b.now = b.now.Add(cleanRest)
		if !c.Step(t.Context()) {
			t.Errorf("%s: not tried again", name)
		}
		if got := b.left(0); !slices.Equal(got, span(90, 100)) {
			t.Errorf("%s: at the second try are left %d", name, got)
		}
	}
}

// TestCleanMeanwhile has records deleted, and the shard lost, while a cleaning reads, and a merge that wants its segments.
func TestCleanMeanwhile(t *testing.T) {
	b := newBench(t)
	gate := fault.NewGate()
	b.store.Add(fault.Rule{Op: fault.Put, Prefix: segment.MergedNamePrefix, Gate: gate})
	done := make(chan bool, 1)
	c := b.cleaner(roomy)
	go func() { done <- c.Step(t.Context()) }()
	<-gate.Entered()
	sh, m := b.manifests.led(cleanShard), b.manifests.Of(cleanShard)
	if got := joinable(m, sh.claimed()); len(got) != 0 || sh.claim(m.Segments[1:]) {
		t.Errorf("may be merged meanwhile: %+v", got)
	}
	log := partition.New(4)
	log.RestoreSnapshot(SnapshotOf(&m.Partitions[0]))
	p := ingest.NewPartition(partition.ID{Topic: topic}, "t", cleanShard, log)
	if err := b.manifests.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{p: 96}); err != nil {
		t.Fatal(err)
	}
	gate.Open()
	if !<-done {
		t.Error("the cleaning came to nothing")
	}
	if now := b.manifests.Of(cleanShard).Partitions[0]; now.LogStartOffset != 96 || now.Cleaned != 100 || len(now.Extents) != 1 {
		t.Errorf("the manifest has %+v", now)
	}

	b = newBench(t)
	gate = fault.NewGate()
	b.store.Add(fault.Rule{Op: fault.Get, Prefix: segment.MergedNamePrefix, Nth: 4, Gate: gate})
	c = b.cleaner(roomy)
	go func() { done <- c.Step(t.Context()) }()
	<-gate.Entered()
	b.manifests.Resign(cleanShard)
	gate.Open()
	if <-done || len(b.ledger.records) != 0 {
		t.Errorf("of a shard that was lost %d manifests were installed", len(b.ledger.records))
	}
}

// TestCleanNumbers holds that a merge and a cleaning which are under way at once take different numbers, and may be installed in any order.
func TestCleanNumbers(t *testing.T) {
	b := newBench(t)
	if n := b.manifests.number(cleanShard, 4); n != 1 { // a merge that is not done yet
		t.Fatal(n)
	}
	if !b.cleaner(roomy).Step(t.Context()) {
		t.Fatal("no cleaning")
	}
	m := *b.manifests.Of(cleanShard)
	if len(m.Segments) != 1 || m.Segments[0].Number != 3 { // 2 is taken
		t.Fatalf("segments %+v", m.Segments)
	}
	late := m.Segments[0]
	late.Number = 1
	m.Segments = append(slices.Clone(m.Segments), late)
	m.Partitions = slices.Clone(m.Partitions)
	p := &m.Partitions[0]
	next := p.Extents[0]
	next.Segment, next.First, next.Next, p.End = 1, 100, 110, 110
	p.Extents = append(slices.Clone(p.Extents), next)
	b.manifests.prune(&m)
	if m.Segments[0].Number != 1 || p.Extents[0].Segment != 1 || p.Extents[1].Segment != 0 {
		t.Errorf("segments %+v, extents %+v", m.Segments, p.Extents)
	}
	if _, err := m.Encode(); err != nil {
		t.Error(err)
	}
}
