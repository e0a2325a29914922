package peer_test

import (
	"fmt"
	"testing"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/peer"
)

// BenchmarkAppend appends frames of one size over loopback, one after the other, to a real disk: with a sync each, and without, which
// leaves the way there.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		for _, sync := range []bool{false, true} {
			b.Run(fmt.Sprintf("bytes=%d/sync=%t", size, sync), func(b *testing.B) {
				r := serve(b, nil, func(dc *disk.Config, _ *peer.ServerConfig) {
					*dc = disk.Config{Dir: b.TempDir(), SyncNone: !sync}
				})
				a := create(b, r.dial(b, nil), segment)
				f := framed(segment, 1, size-frame.HeaderBytes-frame.EntryHeaderBytes-8)
				h, err := frame.Unstamped(f)
				must(b, err)
				append1 := func() {
					frame.Finish(f, &h)
					must(b, a.Append([][]byte{f}))
					if h.First++; h.First%64 == 0 {
						must(b, a.Trim(h.First-1))
					}
				}
				for range 128 << 20 / max(size, 64<<10) { // files are prepared, memory is touched
					append1()
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					append1()
				}
				must(b, a.Close())
			})
		}
	}
}
