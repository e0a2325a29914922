package diskcache

import (
	"log/slog"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/dir"
)

// BenchmarkGet compares a piece from disk with one from a bucket in a folder of the same disk, which is kept. The bucket of a cluster is farther away, of course.
func BenchmarkGet(b *testing.B) {
	store, err := dir.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	o := cache.Object{Name: "a", Size: 16 * pieceBytes}
	body := make([]byte, o.Size)
	content(o.Name, 0, body)
	if err := store.Put(b.Context(), o.Name, objectstore.Bytes(body)); err != nil {
		b.Fatal(err)
	}
	bucket := cache.NewBucket(store)
	disk, err := Open(Config{Folder: b.TempDir(), BytesMax: o.Size, Log: slog.New(slog.DiscardHandler)}, bucket)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = disk.Close() })
	f := fixture{Source: disk}
	parts := make([][]byte, blocksMax)
	for i := range parts {
		parts[i] = make([]byte, slotBytes)
	}
	read := func(b *testing.B, source cache.Source, off int64) {
		if err := source.Get(b.Context(), o, off, parts); err != nil {
			b.Fatal(err)
		}
	}
	for off := int64(0); off < o.Size; off += pieceBytes {
		read(b, disk, off)
		f.settle()
	}
	run := func(name string, get func(b *testing.B, off int64)) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(pieceBytes)
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				get(b, off)
				off = (off + pieceBytes) % o.Size
			}
		})
	}
	run("hit", func(b *testing.B, off int64) {
		before := f.Stats().Hits
		read(b, disk, off)
		if f.Stats().Hits == before {
			b.Fatal("a miss")
		}
	})
	run("bucket", func(b *testing.B, off int64) { read(b, bucket, off) })
	run("miss", func(b *testing.B, off int64) {
		disk.forget(keysOf(o.Name, off, parts))
		read(b, disk, off)
	})
}
