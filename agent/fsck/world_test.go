package fsck_test

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/fsck"
	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

const grace = time.Hour

var (
	cluster = protocol.TopicID{0xc1}
	orders  = coordinator.Topic{ID: protocol.TopicID{1}, Name: "orders", Partitions: 2}
)

// dated is a store whose objects were written when its clock says.
type dated struct {
	*mem.Store
	now *time.Time
	mu  sync.Mutex
	at  map[string]time.Time
}

func (d *dated) Put(ctx context.Context, name string, body objectstore.Body) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at[name] = *d.now
	return d.Store.Put(ctx, name, body)
}

func (d *dated) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	info, err := d.Store.Stat(ctx, name)
	return d.date(info), err
}

func (d *dated) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		for info, err := range d.Store.List(ctx, prefix, after) {
			if !yield(d.date(info), err) {
				return
			}
		}
	}
}

func (d *dated) date(info objectstore.Info) objectstore.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	info.Modified = d.at[info.Name]
	return info
}

// world is a cluster of two shards, each with one partition of a topic. Commit 1 is merged, and gone; commits 2 and 3 are not.
type world struct {
	t     *testing.T
	kv    *kvmem.Store
	store *fault.Store
	now   time.Time
	log   coordinator.Log

	commits   []coordinator.Commit                       // 2 and 3
	manifests map[coordinator.ShardID]*manifest.Manifest // the newest
	records   map[coordinator.ShardID]coordinator.Shard
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, kv: kvmem.New(kvmem.Config{}), now: time.Unix(1_700_000_000, 0),
		manifests: make(map[coordinator.ShardID]*manifest.Manifest), records: make(map[coordinator.ShardID]coordinator.Shard),
		log: coordinator.Log{ID: 5, Node: 1, Fence: 1, Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1}}},
	}
	w.store = fault.New(&dated{Store: mem.New(), now: &w.now, at: make(map[string]time.Time)})
	w.write(coordinator.KeyCluster, coordinator.Cluster{ID: cluster.String(), Shards: 2})
	w.write(coordinator.KeyTopic(orders.Name), orders)
	w.write(coordinator.KeyNextLog, 6)
	for p := range int32(2) {
		w.records[orders.ShardOf(p, 2)] = coordinator.Shard{Owner: 5, Node: 1, Epoch: 3}
	}
	w.commit(0, 10)
	for p := range int32(2) {
		w.merge(p, 10)
	}
	w.delete(coordinator.KeyCommit(5, 1))
	w.remove(w.commits[0].Object)
	w.commits = nil
	w.commit(10, 15)
	w.commit(15, 20)
	return w
}

func (w *world) write(key string, value any) {
	w.t.Helper()
	b, ok := value.([]byte)
	if !ok {
		b = coordinator.Encode(value)
	}
	if _, err := w.kv.Txn(w.t.Context(), nil, []coordinator.Op{{Key: key, Value: b}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delete(key string) {
	w.t.Helper()
	if _, err := w.kv.Txn(w.t.Context(), nil, []coordinator.Op{{Key: key, Delete: true}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(name string, parts ...[]byte) {
	w.t.Helper()
	if err := w.store.Put(w.t.Context(), name, objectstore.Parts(parts...)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(name string) {
	w.t.Helper()
	if err := w.store.Delete(w.t.Context(), name); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(name string) []byte {
	w.t.Helper()
	info, err := w.store.Stat(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, info.Size)
	if err := w.store.Get(w.t.Context(), name, 0, b); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// change changes an object's bytes.
func (w *world) change(name string, edit func([]byte) []byte) {
	b := edit(w.read(name))
	w.remove(name)
	w.put(name, b)
}

// flip damages a byte, from the end if at is negative.
func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		i := at
		if i < 0 {
			i += len(b)
		}
		b[i] ^= 1
		return b
	}
}

// batch returns a batch of offsets.
func (w *world) batch(first, next protocol.Offset) []byte {
	w.t.Helper()
	b := batch.NewBuilder(batch.None)
	b.BaseOffset, b.LeaderEpoch = first, 3
	for o := first; o < next; o++ {
		b.Append(w.now.UnixMilli(), nil, fmt.Append(nil, "record ", o))
	}
	data, err := b.AppendTo(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// segment returns a segment of these offsets of some partitions.
func (w *world) segment(id segment.ID, first, next protocol.Offset, partitions ...int32) ([][]byte, *segment.Footer) {
	w.t.Helper()
	b := segment.Builder{Level: id.Level}
	for _, p := range partitions {
		if err := b.Add(segment.Key{Shard: uint32(orders.ShardOf(p, 2)), Topic: orders.ID, Partition: p}, orders.Name, w.batch(first, next)); err != nil {
			w.t.Fatal(err)
		}
	}
	h := segment.Header{Cluster: cluster, ID: id, CreatedMs: w.now.UnixMilli()}
	if id.Level == segment.Flushed {
		h.FirstEntry, h.LastEntry = int64(id.Commit), int64(id.Commit)
	}
	parts, footer, err := b.Finish(h)
	if err != nil {
		w.t.Fatal(err)
	}
	return parts, footer
}

// commit writes a commit of these offsets of both partitions, of one WAL entry.
func (w *world) commit(first, next protocol.Offset) {
	w.log.Commits++
	w.log.Flushed = int64(w.log.Commits)
	parts, f := w.segment(segment.ID{Log: 5, Fence: 1, Commit: w.log.Commits}, first, next, 0, 1)
	c := coordinator.Commit{
		Object: f.Header.ID.Name(), ObjectSize: f.ObjectSize, FooterPos: f.Pos, FooterSize: f.ObjectSize - f.Pos, Log: 5, Fence: 1, Number: w.log.Commits,
		FirstEntry: w.log.Flushed, LastEntry: w.log.Flushed, CreatedMs: f.Header.CreatedMs,
	}
	for i := range f.Sections {
		s := &f.Sections[i]
		c.Partitions = append(c.Partitions, coordinator.CommitPartition{
			Topic: s.Topic, Partition: s.Partition, Shard: coordinator.ShardID(s.Shard), FirstOffset: s.FirstOffset, NextOffset: s.NextOffset, Pos: s.Pos, Size: s.Size,
			MaxTimestamp: s.MaxTimestamp, LeaderEpoch: s.LeaderEpoch, LastStable: s.LastStable,
		})
	}
	w.put(c.Object, parts...)
	w.write(coordinator.KeyCommit(5, c.Number), c.Encode())
	w.write(coordinator.KeyLog(5), w.log)
	w.commits = append(w.commits, c)
}

// merge has a partition's shard merge all up to an offset, from 0 on, into one segment, which takes the place of those before.
func (w *world) merge(partition int32, to protocol.Offset) {
	id := orders.ShardOf(partition, 2)
	old := w.manifests[id]
	m := &manifest.Manifest{Cluster: cluster, Shard: uint32(id), Epoch: protocol.LeaderEpoch(w.records[id].Epoch), Generation: 1, CreatedMs: w.now.UnixMilli()}
	number := uint64(1)
	if old != nil {
		m.Generation = old.Generation + 1
		number = old.Segments[len(old.Segments)-1].Number + 1
	}
	parts, f := w.segment(segment.ID{Level: segment.Merged, Log: uint64(id), Fence: uint64(m.Epoch), Commit: number}, 0, to, partition)
	w.put(f.Header.ID.Name(), parts...)
	s := &f.Sections[0]
	m.Segments = []manifest.Segment{{Epoch: m.Epoch, Number: number, Size: f.ObjectSize, FooterPos: f.Pos, CreatedMs: m.CreatedMs}}
	m.Set(manifest.Partition{
		Topic: orders.ID, TopicName: orders.Name, Partition: partition, End: to, LastStable: to, Epochs: []manifest.EpochStart{{Epoch: 3}},
		Extents: []manifest.Extent{{Next: to, Pos: s.Pos, Size: s.Size, MaxTimestamp: s.MaxTimestamp, Epoch: s.LeaderEpoch}},
	})
	w.install(id, m)
}

// install makes a manifest the newest of its shard, which has merged all commits up to now.
func (w *world) install(id coordinator.ShardID, m *manifest.Manifest) {
	w.t.Helper()
	b, err := m.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	w.put(m.Name(), b)
	_, revision, err := w.kv.Get(w.t.Context(), coordinator.KeyCluster)
	if err != nil {
		w.t.Fatal(err)
	}
	r := w.records[id]
	r.Manifest, r.Merged = m.Name(), revision
	w.manifests[id] = m
	w.shard(id, r)
}

func (w *world) shard(id coordinator.ShardID, r coordinator.Shard) {
	w.records[id] = r
	w.write(coordinator.KeyShard(id), r)
	w.write(coordinator.KeyWrite(id), coordinator.Write{Owner: r.Owner, Epoch: r.Epoch, Number: 9})
}

// reinstall replaces the newest manifest of shard 0 by a changed one, under the same name.
func (w *world) reinstall(edit func(m *manifest.Manifest)) {
	w.t.Helper()
	m := *w.manifests[0]
	m.Partitions, m.Segments = slices.Clone(m.Partitions), slices.Clone(m.Segments)
	m.Partitions[0].Extents = slices.Clone(m.Partitions[0].Extents)
	edit(&m)
	b, err := m.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	w.change(w.records[0].Manifest, func([]byte) []byte { return b })
}

// check checks the world some time later.
func (w *world) check(after time.Duration, o fsck.Options) *fsck.Report {
	w.t.Helper()
	o.Now = func() time.Time { return w.now.Add(after) }
	o.Grace = cmp.Or(o.Grace, grace)
	report, err := fsck.Check(w.t.Context(), w.kv, w.store, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return report
}

// problems prints problems, one a line.
func problems(r *fsck.Report) string {
	var b strings.Builder
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "%s: %s: %s\n", p.Kind, p.Subject, p.Text)
	}
	return b.String()
}

func (w *world) mergedName(id coordinator.ShardID) string {
	m := w.manifests[id]
	return m.Segments[0].Name(m.Shard)
}
