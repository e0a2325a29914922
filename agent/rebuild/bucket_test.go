package rebuild

import (
	"slices"
	"testing"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
)

// sound has keep change nothing.
const sound = -1

// keep puts an object into a bucket, after it has changed one of its bytes.
func keep(t *testing.T, store objectstore.Store, name string, object []byte, at int) {
	t.Helper()
	if at != sound {
		object[at] ^= 0x40
	}
	if err := store.Put(t.Context(), name, objectstore.Bytes(object)); err != nil {
		t.Fatal(err)
	}
}

// TestNewest: manifests that are damaged, be it in their versions, are told apart from those that are of no use.
func TestNewest(t *testing.T) {
	store := mem.New()
	write := func(shard uint32, generation uint64, at int, segments ...manifest.Segment) {
		t.Helper()
		m := manifest.Manifest{Shard: shard, Epoch: 1, Generation: generation, Segments: segments}
		for i := range segments {
			m.Set(manifest.Partition{
				Topic: orders.ID, TopicName: orders.Name, Partition: int32(i), End: 5,
				Epochs: []manifest.EpochStart{{Epoch: 1}}, Extents: []manifest.Extent{{Segment: int32(i), Next: 5, Pos: segment.HeaderSize, Size: 10, Epoch: 1}},
			})
		}
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		keep(t, store, m.Name(), b, at)
	}
	write(0, 1, sound)
	write(0, 2, 30)
	write(1, 1, sound)
	write(1, 2, sound, manifest.Segment{Epoch: 1, Number: 1, Size: 1000, FooterPos: 500})
	newest := func() (*Found, []string, error) {
		l, err := list(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		f := new(Found)
		notes, err := l.newest(t.Context(), store, f, [16]byte{})
		return f, notes, err
	}
	f, notes, err := newest()
	if err != nil {
		t.Fatal(err)
	}
	for shard := range coordinator.ShardID(2) {
		if m := f.Manifests[shard]; m == nil || m.Generation != 1 {
			t.Errorf("of shard %d: %+v, want the manifest of generation 1", shard, m)
		}
	}
	if len(f.Damaged) != 1 || len(notes) != 1 {
		t.Errorf("damaged: %q, notes: %q, want one each", f.Damaged, notes)
	}
	write(1, 3, 4) // its version
	if f, notes, err = newest(); err != nil || len(f.Damaged) != 2 || len(notes) != 1 || f.Manifests[1] == nil || f.Manifests[1].Generation != 1 {
		t.Errorf("with a manifest of an unknown version: damaged: %q, notes: %q, manifests: %+v, %v", f.Damaged, notes, f.Manifests, err)
	}
}

// TestFooters: segments that may be newer than the copy and are damaged, be it in their versions, are told; those of the copy are not there.
func TestFooters(t *testing.T) {
	store := mem.New()
	write := func(log, number uint64, back int) Commit {
		t.Helper()
		var b segment.Builder
		if err := b.Add(segment.Key{Topic: orders.ID}, orders.Name, stepBatch(t, "b0", 0)); err != nil {
			t.Fatal(err)
		}
		parts, footer, err := b.Finish(segment.Header{ID: segment.ID{Log: log, Fence: 1, Commit: number}})
		if err != nil {
			t.Fatal(err)
		}
		object := slices.Concat(parts...)
		if back != sound {
			back = len(object) - back
		}
		keep(t, store, footer.Header.ID.Name(), object, back)
		return Commit{Commit: commitOf(footer)}
	}
	const version, inside = 12, 40 // from the end
	footers := func(copied ...Commit) (*Found, []string, error) {
		l, err := list(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		f := &Found{Commits: copied, Logs: map[coordinator.LogID]coordinator.Log{1: {Commits: 1}, 2: {Closed: true}}}
		notes, err := l.footers(t.Context(), store, f, [16]byte{})
		return f, notes, err
	}
	copied := write(1, 1, inside)
	write(1, 2, sound)
	write(1, 3, inside)
	f, notes, err := footers(copied)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Segments) != 1 || f.Commits[0].Footer != nil || len(f.Damaged) != 1 || len(notes) != 0 {
		t.Errorf("%d newer segments, the copy's %+v, damaged: %q, notes: %q", len(f.Segments), f.Commits[0].Footer, f.Damaged, notes)
	}
	other := write(2, 1, version)
	if _, _, err := footers(copied); err != nil {
		t.Errorf("with one of an unknown version that nobody needs: %v", err)
	}
	if f, _, err := footers(copied, other); err != nil || f.Commits[1].Footer != nil {
		t.Errorf("with one of an unknown version in the copy: %+v, %v", f.Commits, err)
	}
	write(1, 4, version)
	if f, _, err := footers(copied); err != nil || len(f.Damaged) != 2 {
		t.Errorf("with one of an unknown version that may be newer: damaged: %q, %v", f.Damaged, err)
	}
}
