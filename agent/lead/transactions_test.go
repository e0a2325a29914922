package lead_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/upkeep"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/protocol/wire"
	"github.com/varve-io/varve/wal"
)

// disk is a store of a WAL that takes everything at once.
type disk struct{}

func (disk) Append([][]byte) error  { return nil }
func (disk) Trim(wal.EntryID) error { return nil }
func (disk) Close() error           { return nil }
func (disk) Drop() error            { return nil }
func (disk) FrameBytesMax() int64   { return 1 << 20 }

// transaction is one of the model.
type transaction struct {
	first, end protocol.Offset // end is after its marker, 0 while it is open
	aborted    bool
}

// logged is a batch of the model's log.
type logged struct {
	base, next  protocol.Offset
	marker      bool
	transaction *transaction // of records; nil for none
}

// producer is a transactional producer.
type producer struct {
	id       protocol.ProducerID
	epoch    protocol.ProducerEpoch
	sequence int32
	raised   bool // each transaction raises its epoch
	open     *transaction
}

// model is a partition with a leader, its segments, and what a reader must see of it.
type model struct {
	t *testing.T
	r *rand.Rand

	bucket  *mem.Store
	index   *index.Index
	footers *fetch.Footers
	fetcher *fetch.Fetcher
	wal     *wal.Log
	ingest  *ingest.Ingest

	leader      *ingest.Partition
	epoch       protocol.LeaderEpoch
	coordinator int32
	commits     uint64
	start       protocol.Offset
	log         []logged
	producers   []*producer
	tails       *index.Tails
	manifests   *upkeep.Manifests
	merger      *upkeep.Merger

	mu      sync.Mutex
	durable []ingest.Entry // and not committed
}

var id = partition.ID{Topic: protocol.TopicID{1}}

// ledger takes every write at once.
type ledger struct{}

func (ledger) Write(_ coordinator.ShardID, _ []coordinator.Op, done func(error)) { done(nil) }

const (
	shard = 3
	nowMs = 1_000_000_000
)

func newModel(t *testing.T, seed uint64) *model {
	m := &model{t: t, r: rand.New(rand.NewPCG(seed, 0)), bucket: mem.New(), index: index.New(), tails: index.NewTails(), epoch: 1}
	m.footers = fetch.NewFooters(m.bucket, 1<<20)
	blocks, err := cache.New(cache.Config{BytesMax: 1 << 16, BlockBytes: 512, GetBytesMax: 2048}, cache.NewBucket(m.bucket))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(blocks.Close)
	m.fetcher = fetch.New(fetch.NewReader(m.index, m.footers, blocks))
	m.wal, err = wal.New(wal.Config{Segment: wal.SegmentID{Log: 1, Number: 1}, Fence: 1, First: 1}, wal.Copy{Name: "own", Store: disk{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.wal.Close(context.Background()) }) //nolint:usetesting // it runs when the test, and its context, have ended
	m.ingest = ingest.New(m.wal, m, func() time.Time { return time.UnixMilli(nowMs) })
	m.leader = ingest.NewPartition(id, "t", shard, partition.New(m.epoch))
	m.adopt()
	for n := range protocol.ProducerID(4) {
		m.producers = append(m.producers, &producer{id: 10 + n, raised: n%2 == 0})
	}
	return m
}

// adopt has a leader begin, whose manifests are those of the one before.
func (m *model) adopt() {
	record := coordinator.Shard{Epoch: int32(m.epoch)}
	if m.manifests != nil {
		before, _ := m.manifests.Record(shard)
		record.Manifest, record.Merged = before.Manifest, before.Merged
	}
	now := func() time.Time { return time.UnixMilli(nowMs) }
	m.manifests = upkeep.NewManifests(upkeep.Deps{
		Store: m.bucket, Ledger: ledger{}, Index: m.index, Known: func([16]byte) bool { return true }, ProducerIdle: time.Hour * 1_000_000, Now: now,
	})
	if err := m.manifests.Adopt(m.t.Context(), shard, record); err != nil {
		m.t.Fatal(err)
	}
	m.merger = upkeep.NewMerger(upkeep.MergeConfig{DataBytes: 2000}, upkeep.MergerDeps{
		Manifests: m.manifests, Index: m.index, Tails: m.tails, Footers: m.footers, Store: m.bucket,
		Partition: func(partition.ID) *ingest.Partition {
			if m.r.IntN(2) == 0 {
				return nil
			}
			return m.leader
		},
		Leads: func(coordinator.ShardID) bool { return true }, Answers: func(context.Context) bool { return true },
		Topic: func([16]byte) (string, bool) { return "t", true }, Compacted: func([16]byte) bool { return m.r.IntN(2) == 0 }, ProducersMax: 100, Now: now, Log: slog.New(slog.DiscardHandler),
	})
}

// merge merges, and has what is merged leave, all of it or some.
func (m *model) merge() {
	m.t.Helper()
	if err := m.merger.Step(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	record, _ := m.manifests.Record(shard)
	for _, c := range m.tails.Merged(func(uint32) int64 { return record.Merged }) {
		if m.r.IntN(3) == 0 {
			continue
		}
		object, partitions := m.tails.Remove(c.Log, c.Number)
		for _, id := range partitions[shard] {
			m.index.Remove(id, object)
		}
		if err := m.bucket.Delete(m.t.Context(), object); err != nil {
			m.t.Fatal(err)
		}
	}
}

// Durable implements [ingest.Flusher].
func (m *model) Durable(e ingest.Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = append(m.durable, e)
}

// produce appends a batch and waits until it is durable. It returns false if it was in the log already.
func (m *model) produce(b ingest.Batch, l logged) bool {
	m.t.Helper()
	before, _ := m.leader.State()
	r := ingest.NewRequest(1, ingest.AcksAll)
	r.Batches[0] = b
	m.ingest.Produce(m.t.Context(), r)
	<-r.Done()
	if err := r.Batches[0].Result.Err; err != nil {
		m.t.Fatalf("produce at %d: %v", before.End, err)
	}
	after, _ := m.leader.State()
	if after.End == before.End {
		return false
	}
	l.base, l.next = before.End, after.End
	m.log = append(m.log, l)
	return true
}

// records returns a batch of one to three records.
func (m *model) records(p *producer, transactional bool) ingest.Batch {
	b := batch.NewBuilder(batch.None)
	n := 1 + m.r.IntN(3)
	if p != nil {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = p.id, p.epoch, p.sequence, transactional
		p.sequence += int32(n)
	}
	for range n {
		b.Append(1, nil, make([]byte, m.r.IntN(200)))
	}
	raw, err := b.AppendTo(nil)
	if err != nil {
		m.t.Fatal(err)
	}
	h, err := batch.Parse(raw)
	if err != nil {
		m.t.Fatal(err)
	}
	return ingest.Batch{Partition: m.leader, Header: h, Bytes: raw}
}

func (m *model) write(p *producer) {
	if p.open == nil && m.r.IntN(8) == 0 { // idempotent, between transactions
		m.produce(m.records(p, false), logged{})
		return
	}
	b := m.records(p, true)
	t, needed := m.leader.Verify(&b.Header, p.raised)
	if b.Ticket = t; needed != (p.open == nil) {
		m.t.Fatalf("producer %d: verification needed is %v, its transaction %+v", p.id, needed, p.open)
	}
	if p.open == nil {
		st, _ := m.leader.State()
		p.open = &transaction{first: st.End}
	}
	m.produce(b, logged{transaction: p.open})
}

// end writes a marker, sometimes twice, sometimes one for a transaction without records.
func (m *model) end(p *producer) {
	if m.r.IntN(4) == 0 {
		m.coordinator++
	}
	if p.raised {
		p.epoch, p.sequence = p.epoch+1, 0
	}
	end := batch.EndMarker{Marker: batch.Marker(m.r.IntN(2)), ProducerID: p.id, ProducerEpoch: p.epoch, CoordinatorEpoch: m.coordinator, Timestamp: 1}
	for range 1 + m.r.IntN(2) {
		var b ingest.Batch
		if err := b.Mark(m.leader, end, p.raised); err != nil {
			m.t.Fatal(err)
		}
		appended := m.produce(b, logged{marker: true})
		if p.open != nil {
			if !appended {
				m.t.Fatalf("the marker of an open transaction was not appended")
			}
			p.open.end, p.open.aborted = m.log[len(m.log)-1].next, end.Marker == batch.Abort
			p.open = nil
		}
	}
}

// commit puts some of what is durable into a segment, or all of it. Some segments are young enough for producers, others are not.
func (m *model) commit(all bool) {
	m.mu.Lock()
	n := len(m.durable)
	if !all && n > 0 {
		n = 1 + m.r.IntN(n)
	}
	entries := m.durable[:n]
	m.durable = m.durable[n:]
	m.mu.Unlock()
	if n == 0 {
		return
	}
	var builder segment.Builder
	for _, e := range entries {
		key := segment.Key{Shard: shard, Topic: e.Partition.ID.Topic, Partition: e.Partition.ID.Partition}
		if err := cmp.Or(builder.Add(key, "t", e.Ref.Payload), builder.SetLastStable(key, e.LastStable)); err != nil {
			m.t.Fatal(err)
		}
	}
	m.commits++
	createdMs := nowMs * int64(m.r.IntN(2))
	parts, footer, err := builder.Finish(segment.Header{
		ID: segment.ID{Log: 1, Fence: 1, Commit: m.commits}, FirstEntry: 1, LastEntry: 2, CreatedMs: createdMs,
	})
	if err != nil {
		m.t.Fatal(err)
	}
	c := coordinator.Commit{
		Object: footer.Header.ID.Name(), ObjectSize: footer.ObjectSize, FooterPos: footer.Pos, FooterSize: footer.ObjectSize - footer.Pos,
		Log: 1, Number: m.commits, CreatedMs: footer.Header.CreatedMs, Partitions: flush.CommitPartitions(footer),
	}
	err = m.bucket.Put(m.t.Context(), c.Object, objectstore.Body{Parts: parts, Size: footer.ObjectSize})
	if err = cmp.Or(err, flush.Extents(c, int64(m.commits), func(id partition.ID, e index.Extent) error { return m.index.Add(id, e, 0) })); err != nil {
		m.t.Fatal(err)
	}
	m.tails.Add(&index.Commit{Log: 1, Number: m.commits, Name: c.Object, Revision: int64(m.commits)}, map[uint32]index.Part{
		shard: {Partitions: []partition.ID{id}, Bytes: footer.Sections[0].Size},
	})
}

// restored rebuilds the logs from their segments; those that are older than idle tell nothing of producers.
func (m *model) restored(idle time.Duration) map[partition.ID]*partition.Log {
	once := func(ctx context.Context, read func(context.Context) error) error { return read(ctx) }
	r := lead.Restorer{Index: m.index, Footers: m.footers, Retry: once, Known: func([16]byte) bool { return true }, Now: func() time.Time { return time.UnixMilli(nowMs) }, ProducerIdle: idle, ProducersMax: 100}
	logs, failed, err := r.Run(m.t.Context(), map[coordinator.ShardID]lead.Settled{shard: {Epoch: m.epoch, Manifest: m.manifests.Of(shard)}})
	if err = cmp.Or(err, failed[shard]); err != nil {
		m.t.Fatal(err)
	}
	return logs
}

func (m *model) restore(idle time.Duration) *ingest.Partition {
	return ingest.NewPartition(id, "t", shard, m.restored(idle)[id])
}

// fail moves the partition to another leader, which must know what the one before it knew.
func (m *model) fail() {
	m.commit(true)
	if m.commits == 0 {
		return
	}
	m.epoch++
	m.adopt()
	all, young := m.restore(time.Hour*1_000_000), m.restore(time.Hour)
	old, _ := m.leader.State()
	for name, p := range map[string]*ingest.Partition{"all segments": all, "young segments": young} {
		st, err := p.State()
		if err != nil || st.LastStable != old.LastStable || st.HighWatermark != old.HighWatermark || st.Start != old.Start {
			m.t.Fatalf("restored from %s: %+v, %v, was %+v", name, st, err, old)
		}
	}
	whole := func(p partition.Producer) string {
		return fmt.Sprint(p.ID, p.Epoch, p.CoordinatorEpoch, p.TxnFirst, p.TimestampMs, p.Batches)
	}
	m.compare("all segments", m.leader.Producers(), all.Producers(), whole)
	open := func(p partition.Producer) string {
		if p.TxnFirst == protocol.NoOffset {
			return ""
		}
		return fmt.Sprint(p.ID, p.Epoch, p.TxnFirst)
	}
	m.compare("young segments", m.leader.Producers(), young.Producers(), open)
	m.leader.Close(protocol.NotLeaderOrFollower.Err())
	m.leader = all
}

func (m *model) compare(name string, was, restored []partition.Producer, tell func(partition.Producer) string) {
	m.t.Helper()
	list := func(all []partition.Producer) (told []string) {
		for _, p := range all {
			if s := tell(p); s != "" {
				told = append(told, s)
			}
		}
		return told
	}
	if got, want := list(restored), list(was); !slices.Equal(got, want) {
		m.t.Fatalf("producers restored from %s:\n%v\nwant\n%v", name, got, want)
	}
}

// stable returns the last stable offset as of the log's end at that offset.
func (m *model) stable(end protocol.Offset) protocol.Offset {
	for _, l := range m.log {
		if t := l.transaction; l.base < end && t != nil && (t.end == 0 || t.end > end) {
			return t.first
		}
	}
	return end
}

// read lets a consumer of committed transactions read from anywhere, at the leader and at an agent that follows.
func (m *model) read() {
	m.t.Helper()
	st, _ := m.leader.State()
	if want := max(m.start, m.stable(st.End)); st.LastStable != want {
		m.t.Fatalf("last stable offset %d of [%d,%d), want %d", st.LastStable, st.Start, st.End, want)
	}
	from := st.Start + protocol.Offset(m.r.Int64N(int64(st.LastStable-st.Start)+1))
	want := fetch.Want{
		Partition: m.leader, Offset: from, BytesMax: 1 + m.r.IntN(3000), CurrentEpoch: protocol.NoLeaderEpoch, LastEpoch: protocol.NoLeaderEpoch,
	}
	m.check(want, st.LastStable)
	want.Partition = nil
	want.Followed = &fetch.Followed{ID: id, Leader: 7}
	m.check(want, m.stable(m.index.End(id)))
}

// check fetches, and compares what a consumer makes of the answer with what the model knows.
func (m *model) check(want fetch.Want, stable protocol.Offset) {
	m.t.Helper()
	result := m.fetcher.Fetch(m.t.Context(), []fetch.Want{want}, fetch.Limits{BytesMax: 1 << 20, ReadCommitted: true})
	defer result.Release()
	part := &result.Parts[0]
	if part.Err != nil || part.Next > stable && want.Offset < stable || part.Bytes == 0 && want.Offset < stable || part.Bytes > 0 && want.Offset >= stable {
		m.t.Fatalf("read of %d bytes from %d up to the last stable offset %d: %d bytes up to %d, %v",
			want.BytesMax, want.Offset, stable, part.Bytes, part.Next, part.Err)
	}
	var expected []protocol.Offset
	for _, l := range m.log {
		if part.Bytes > 0 && l.next > want.Offset && l.base < part.Next && !l.marker && (l.transaction == nil || l.transaction.end > 0 && !l.transaction.aborted) {
			expected = append(expected, l.base)
		}
	}
	if got := consume(m.t, bytes.Join(part.Records, nil), part.Aborted); !slices.Equal(got, expected) {
		m.t.Fatalf("read of [%d,%d) brings batches at %v with aborted %+v, want %v", want.Offset, part.Next, got, part.Aborted, expected)
	}
}

// consume does what a consumer of committed transactions does with an answer, after Kafka's CompletedFetch: it returns the batches that the application gets.
func consume(t *testing.T, records []byte, aborted []wire.AbortedTransaction) (got []protocol.Offset) {
	slices.SortStableFunc(aborted, func(a, b wire.AbortedTransaction) int { return cmp.Compare(a.FirstOffset, b.FirstOffset) })
	skipped := make(map[protocol.ProducerID]bool)
	for len(records) > 0 {
		h, err := batch.Parse(records)
		if err != nil {
			t.Fatal(err)
		}
		b := records[:h.Size()]
		records = records[h.Size():]
		for len(aborted) > 0 && aborted[0].FirstOffset <= h.LastOffset() {
			skipped[aborted[0].ProducerID] = true
			aborted = aborted[1:]
		}
		switch {
		case h.Attributes.Control():
			end, err := batch.ParseControl(&h, b)
			if err != nil {
				t.Fatal(err)
			}
			if end.Marker == batch.Abort {
				delete(skipped, h.ProducerID)
			}
		case h.Attributes.Transactional() && skipped[h.ProducerID]:
		default:
			got = append(got, h.BaseOffset)
		}
	}
	return got
}

// TestTransactions plays random transactions that overlap, are cut into segments anywhere, and outlive leaders, and reads them from anywhere.
func TestTransactions(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, seed)
			markers := 2 + m.r.IntN(20) // the fewer, the longer are transactions
			for range 150 {
				p := m.producers[m.r.IntN(len(m.producers))]
				switch n := m.r.IntN(100); {
				case n < 10:
					m.produce(m.records(nil, false), logged{})
				case n < 10+markers:
					m.end(p)
				case n < 70:
					m.write(p)
				case n < 80:
					m.commit(false)
				case n < 82:
					m.fail()
				case n < 85:
					m.merge()
				case n < 86:
					m.start += protocol.Offset(m.r.Int64N(max(0, int64(m.index.End(id)-m.start))/4 + 1))
					if err := m.manifests.DeleteBefore(t.Context(), map[*ingest.Partition]protocol.Offset{m.leader: m.start}); err != nil {
						t.Fatal(err)
					}
				default:
					m.read()
				}
			}
		})
	}
}
