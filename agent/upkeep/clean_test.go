package upkeep

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
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

// bench is a shard whose partition 0 has offsets 0 to 100 in two segments, and partition 1 offsets 0 to 20, or as many as are wished, in the second: batches of 5 records, of keys by turns. The timestamps are the offsets.
type bench struct {
	other     protocol.Offset
	clean     protocol.Offset     // up to where partition 1 is said to be clean
	producers []manifest.Producer // of partition 0: each wrote its newest batch
	dead      protocol.Offset     // before it all records of partition 0 are tombstones

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
	return (&bench{other: 20}).begin(t)
}

func (b *bench) begin(t *testing.T) *bench {
	t.Helper()
	b.t, b.store, b.ledger, b.now = t, fault.New(memstore.New()), &ledger{}, time.UnixMilli(1<<30)
	b.rules = CleanRules{Policy: compact.Policy{LagMsMax: math.MaxInt64}}
	b.manifests, b.index = manifests(b.store, b.ledger)
	b.footers = fetch.NewFooters(b.store, 1<<20)
	m := &manifest.Manifest{Shard: uint32(cleanShard), Epoch: 4, Generation: 1}
	m.Partitions = []manifest.Partition{
		{Topic: topic, TopicName: "t", End: 100, LastStable: 100, Epochs: []manifest.EpochStart{{Epoch: 4}}, Producers: b.producers},
		{Topic: topic, TopicName: "t", Partition: 1, End: b.other, LastStable: b.other, Cleaned: b.clean, Epochs: []manifest.EpochStart{{Epoch: 4}}},
	}
	b.segment(m, 1, 0, 50, 0)
	b.segment(m, 2, 50, 100, b.other)
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
				value, key := b.value(n, o), fmt.Append(nil, o%cleanKeys)
				if value == nil {
					key = append(key, " is no key of others"...)
				}
				one.Append(int64(o), key, value)
			}
			for _, p := range b.producers {
				if n == 0 && p.Batches[0].BaseOffset == at {
					one.ProducerID, one.ProducerEpoch, one.BaseSequence = p.ID, p.Epoch, p.Batches[0].BaseSequence
				}
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

// value is that of the record at an offset.
func (b *bench) value(n int, o protocol.Offset) []byte {
	if n == 0 && o < b.dead {
		return nil
	}
	return fmt.Append(nil, "of ", o)
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
				if want := b.value(int(n), o); !slices.Equal(r.Value, want) || h.Timestamp(&r) != int64(o) {
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
		"too young in part":  {compact.Policy{LagMsMin: 1<<30 - 62, LagMsMax: math.MaxInt64}, 60},
	} {
		b := newBench(t)
		b.rules.Policy = test.policy
		b.cleaner(roomy).Step(t.Context())
		if got := b.manifests.Of(cleanShard).Partitions[0].Cleaned; got != test.cleaned {
			t.Errorf("%s: cleaned up to %d, want %d", name, got, test.cleaned)
		}
	}
}

// TestCleanFails has everything fail that can: nothing has changed then, what was made is garbage, and it is tried again, later each time.
func TestCleanFails(t *testing.T) {
	for name, test := range map[string]struct {
		fail func(b *bench)
		rest time.Duration
	}{
		"no reads": {func(b *bench) {
			b.store.Add(fault.Rule{Op: fault.Get, Prefix: segment.MergedNamePrefix, Effect: fault.Unavailable, Times: fault.Always})
		}, cleanRest},
		"wrong bytes": {func(b *bench) {
			b.store.Add(fault.Rule{Op: fault.Get, Prefix: segment.MergedNamePrefix, Nth: 5, Effect: fault.WrongBytes, Times: fault.Always})
		}, cleanRestBad},
		"no writes": {func(b *bench) {
			b.store.Add(fault.Rule{Op: fault.Put, Prefix: segment.MergedNamePrefix, Effect: fault.UnknownNotApplied, Times: fault.Always})
		}, cleanRest},
		"no space in etcd":   {func(b *bench) { b.ledger.err = coordinator.ErrNoSpace }, cleanRest},
		"led by another one": {func(b *bench) { b.ledger.err = coordinator.ErrFenced }, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			before := b.manifests.Of(cleanShard)
			test.fail(b)
			c := b.cleaner(roomy)
			for try := range 3 {
				for range 3 { // each time, something else may fail
					for c.Step(t.Context()) {
					}
				}
				calls := b.store.Calls(fault.Any)
				b.now = b.now.Add(max(0, test.rest<<try-time.Second))
				if test.rest > 0 && (c.Step(t.Context()) || b.store.Calls(fault.Any) != calls) {
					t.Errorf("%s: tried too early after try %d", name, try)
				}
				b.now = b.now.Add(time.Second)
			}
			b.store.Clear()
			if b.manifests.Of(cleanShard) != before || len(b.manifests.led(cleanShard).claims) != 0 {
				t.Errorf("%s: the manifest is %+v", name, b.manifests.Of(cleanShard))
			}
			if got := b.left(0); !slices.Equal(got, span(0, 100)) {
				t.Errorf("%s: are left %d", name, got)
			}
			if got := c.Stats().Failed; (got > 0) != (test.rest > 0) {
				t.Errorf("%s: %d partitions have failed", name, got)
			}
			b.ledger.err = nil
			for c.Step(t.Context()) {
			}
			if got := b.left(0); !slices.Equal(got, span(90, 100)) {
				t.Errorf("%s: in the end are left %d", name, got)
			}
			if got := c.Stats().Failed; got != 0 {
				t.Errorf("%s: %d partitions have failed in the end", name, got)
			}
		})
	}
}

// TestCleanSaysOnce holds that what cannot be cleaned is an error in the log once, which names the object, and does not keep others from being cleaned.
func TestCleanSaysOnce(t *testing.T) {
	b := newBench(t)
	damaged := b.manifests.Of(cleanShard).Segments[0].Name(uint32(cleanShard)) // of partition 0 alone
	b.store.Add(fault.Rule{Op: fault.Get, Prefix: damaged, Nth: 3, Effect: fault.WrongBytes, Times: fault.Always})
	c := b.cleaner(roomy)
	var log bytes.Buffer
	c.deps.Log = slog.New(slog.NewTextHandler(&log, nil))
	for range 3 {
		for c.Step(t.Context()) {
		}
		b.now = b.now.Add(cleanRestBadMax)
	}
	if got := log.String(); strings.Count(got, "level=ERROR") != 1 || strings.Count(got, "\n") != 1 || !strings.Contains(got, damaged) {
		t.Errorf("the log has %q", got)
	}
	if got := b.left(1); !slices.Equal(got, span(10, 20)) {
		t.Errorf("of the other partition are left %d", got)
	}
}

// TestCleanTriesAgain has one request of each kind fail: it is made again, and nothing else is.
func TestCleanTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var requests [2]int
		for failing := range requests {
			b := newBench(t)
			if failing > 0 {
				b.store.Add(
					fault.Rule{Op: fault.Get, Prefix: segment.MergedNamePrefix, Nth: 5, Effect: fault.Unavailable}, // the first that is not of a footer
					fault.Rule{Op: fault.Put, Prefix: segment.MergedNamePrefix, Effect: fault.UnknownNotApplied},
				)
			}
			before := b.store.Calls(fault.Any)
			if !b.cleaner(roomy).Step(t.Context()) {
				t.Error("the cleaning failed")
			}
			requests[failing] = b.store.Calls(fault.Any) - before
		}
		if requests[1] != requests[0]+2 {
			t.Errorf("%d requests, and %d if two of them fail", requests[0], requests[1])
		}
	})
}

// TestCleanClaimed has a merge at the last segment: what comes before it is cleaned meanwhile.
func TestCleanClaimed(t *testing.T) {
	b := newBench(t)
	sh, merging := b.manifests.led(cleanShard), b.manifests.Of(cleanShard).Segments[1:]
	if !sh.claim(merging) {
		t.Fatal("not claimed")
	}
	c := b.cleaner(roomy)
	for _, want := range [][2]protocol.Offset{{50, 0}, {100, 20}} {
		for c.Step(t.Context()) {
		}
		m := b.manifests.Of(cleanShard)
		if got := [2]protocol.Offset{m.Partitions[0].Cleaned, m.Partitions[1].Cleaned}; got != want {
			t.Errorf("cleaned up to %d, want %d", got, want)
		}
		sh.unclaim(merging)
	}
}

// TestCleanPassengers holds who is cleaned along with who is due: not those that are not dirty enough, unless most of the segment that they are in would be kept for their sake alone.
func TestCleanPassengers(t *testing.T) {
	for other, along := range map[protocol.Offset]bool{20: true, 200: false} {
		b := (&bench{other: other, clean: other - 5}).begin(t)
		b.rules.DirtyRatioMin = 0.5
		c := b.cleaner(roomy)
		if !c.Step(t.Context()) || c.Step(t.Context()) {
			t.Fatal("want one cleaning")
		}
		m := b.manifests.Of(cleanShard)
		if m.Partitions[0].Cleaned != 100 || (m.Partitions[1].Cleaned == other) != along {
			t.Errorf("with %d offsets in the other partition: cleaned up to %d and %d", other, m.Partitions[0].Cleaned, m.Partitions[1].Cleaned)
		}
	}
}

// TestCleanLooks holds that a shard is looked at again when something of it has changed, and only then.
func TestCleanLooks(t *testing.T) {
	b := newBench(t)
	b.rules.Policy = compact.Policy{DirtyRatioMin: 1, LagMsMax: 1 << 40, LagMsMin: 1 << 29}
	b.footers = fetch.NewFooters(b.store, 1) // keeps nothing
	c := b.cleaner(roomy)
	looked := func() bool {
		calls := b.store.Calls(fault.Get)
		if c.Step(t.Context()) {
			t.Fatal("cleaned something")
		}
		return b.store.Calls(fault.Get) > calls
	}
	check := func(what string, want bool) {
		t.Helper()
		if got := looked(); got != want || looked() {
			t.Errorf("%s: looked again is %t", what, got)
		}
	}
	check("at first", true)
	b.rules.DirtyRatioMin = 0.99
	b.rules.LagMsMin = 1<<30 - 2
	check("other rules", true)
	b.now = b.now.Add(time.Millisecond)
	check("nothing is old enough yet", false)
	log := partition.New(4)
	log.RestoreSnapshot(SnapshotOf(&b.manifests.Of(cleanShard).Partitions[0]))
	p := ingest.NewPartition(partition.ID{Topic: topic}, "t", cleanShard, log)
	if err := b.manifests.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{p: 1}); err != nil {
		t.Fatal(err)
	}
	check("another manifest", true)
	b.now = b.now.Add(time.Millisecond)
	if !c.Step(t.Context()) {
		t.Error("what is old enough is not cleaned")
	}
}

// TestCleanRetention has tombstones stay for delete.retention.ms from the first cleaning on, and go with the next one after that.
func TestCleanRetention(t *testing.T) {
	b := (&bench{other: 20, dead: 5}).begin(t)
	b.rules.DeleteRetentionMs = 1000
	c := b.cleaner(roomy)
	for _, step := range []struct {
		after   time.Duration
		young   int64 // the first timestamp that is too young
		is      int   // how many tombstones there are
		cleaned protocol.Offset
	}{{0, 5, 5, 5}, {999 * time.Millisecond, 10, 5, 10}, {time.Millisecond, 15, 0, 15}} {
		b.now = b.now.Add(step.after)
		b.rules.LagMsMin = b.now.UnixMilli() - step.young + 1
		if !c.Step(t.Context()) || c.Step(t.Context()) {
			t.Fatal("want one cleaning")
		}
		p := &b.manifests.Of(cleanShard).Partitions[0]
		tombstones := slices.IndexFunc(b.left(0), func(o protocol.Offset) bool { return o >= 5 })
		if p.Cleaned != step.cleaned || tombstones != step.is {
			t.Errorf("cleaned up to %d, with %d tombstones, want %+v", p.Cleaned, tombstones, step)
		}
	}
}

// TestCleanNewest holds that the newest batch of each producer stays, without records.
func TestCleanNewest(t *testing.T) {
	newest := manifest.Producer{ID: 77, CoordinatorEpoch: -1, TxnFirst: protocol.NoOffset, Batches: []manifest.ProducerBatch{{BaseSequence: 30, BaseOffset: 20, Records: 5}}}
	b := (&bench{other: 20, producers: []manifest.Producer{newest}}).begin(t)
	if !b.cleaner(roomy).Step(t.Context()) {
		t.Fatal("no cleaning")
	}
	m := b.manifests.Of(cleanShard)
	f, err := b.footers.Get(t.Context(), &index.Object{Name: m.Segments[0].Name(m.Shard), Size: m.Segments[0].Size, FooterPos: m.Segments[0].FooterPos})
	if err != nil {
		t.Fatal(err)
	}
	for one, err := range f.Find(segment.Key{Shard: m.Shard, Topic: topic}).All() {
		if err != nil || one.Offset != 20 || one.Next() != 25 || one.ProducerID != newest.ID {
			t.Errorf("the first batch is %+v (%v)", one, err)
		}
		break
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
