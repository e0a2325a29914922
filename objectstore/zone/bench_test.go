package zone

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/storetest"
)

// BenchmarkHome reads pieces that the home has in memory, over TCP on this machine; the CPU seconds are both sides'.
func BenchmarkHome(b *testing.B) {
	for _, n := range []int{1 << 20, cache.GetBytesDefault} {
		b.Run(map[int]string{1 << 20: "block", cache.GetBytesDefault: "piece"}[n], func(b *testing.B) {
			store := mem.New()
			o := cache.Object{Name: "a", Size: 16 << 20}
			if err := store.Put(b.Context(), o.Name, objectstore.Bytes(make([]byte, o.Size))); err != nil {
				b.Fatal(err)
			}
			blocks, err := cache.New(cache.Config{BytesMax: 64 << 20}, cache.NewBucket(store))
			if err != nil {
				b.Fatal(err)
			}
			defer blocks.Close()
			server := NewServer(blocks, 64<<20)
			l, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go server.Serve(context.WithoutCancel(b.Context()), conn)
				}
			}()
			source := New(Config{
				Self: 1, Homes: func() []int32 { return []int32{2} }, Log: slog.New(slog.DiscardHandler),
				Dial: func(ctx context.Context, _ int32) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
				},
			}, cache.NewBucket(mem.New()))
			defer source.Close()
			var parts [][]byte
			for range n / blockBytes {
				parts = append(parts, make([]byte, blockBytes))
			}
			b.SetBytes(int64(n))
			storetest.ReportCPU(b, int64(n), func() {
				for off := int64(0); b.Loop(); off = (off + int64(n)) % o.Size {
					if err := source.Get(b.Context(), o, off, parts); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
