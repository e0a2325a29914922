package api_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/flush"
)

// frameOf encodes one Produce request of a batch with that many records of 100 bytes.
func frameOf(t testing.TB, records int) []byte {
	t.Helper()
	values := make([]string, records)
	for i := range values {
		values[i] = string(make([]byte, 100))
	}
	req := produceRequest(-1, part{topic: "t", records: plain(t, time.Now().UnixMilli(), values...)})
	req.SetVersion(9)
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("bench")).AppendRequest(nil, req, 1)
}

// exchange writes a frame and reads the response, without allocating.
func exchange(t testing.TB, p *peer, frame, resp []byte) {
	if _, err := p.conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.conn, resp[:4]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.conn, resp[4:4+binary.BigEndian.Uint32(resp)]); err != nil {
		t.Fatal(err)
	}
}

// quiet makes an agent that does not flush while a test counts.
func quiet(c *agent.Config) { c.Flush.AgeMax, c.Flush.SegmentBytes = time.Hour, flush.SegmentBytesMax }

// TestProduceAllocations holds that what a Produce request allocates does not depend on how many records it brings.
func TestProduceAllocations(t *testing.T) {
	w := start(t, quiet)
	p := w.dial(t)
	p.create("t", 1)
	resp := make([]byte, 1<<10)
	allocations := func(records int) float64 {
		frame := frameOf(t, records)
		return testing.AllocsPerRun(50, func() { exchange(t, p, frame, resp) })
	}
	one, many := allocations(1), allocations(5000)
	if many > one+20 { // the collector and other goroutines allocate now and then
		t.Errorf("a request allocates %.0f times with one record and %.0f times with 5,000", one, many)
	}
}

// BenchmarkProduce is one connection that produces a batch at a time, through TCP and the WAL's disk. The bytes that it allocates are the copies that
// the bucket in memory makes of segments.
func BenchmarkProduce(b *testing.B) {
	for _, records := range []int{1, 100, 5000} {
		b.Run(fmt.Sprintf("records=%d", records), func(b *testing.B) {
			w := start(b, nil)
			p := w.dial(b)
			p.create("t", 1)
			frame, resp := frameOf(b, records), make([]byte, 1<<10)
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				exchange(b, p, frame, resp)
			}
		})
	}
}

// BenchmarkFetch is one connection that fetches a batch of each of some partitions from the leader's memory, without a session.
func BenchmarkFetch(b *testing.B) {
	for _, partitions := range []int32{1, 100} {
		b.Run(fmt.Sprintf("partitions=%d", partitions), func(b *testing.B) {
			w := start(b, quiet)
			p := w.dial(b)
			p.create("t", partitions)
			var all []asked
			for n := range partitions {
				p.mustProduce("t", n, plain(b, time.Now().UnixMilli(), string(make([]byte, 1000))))
				all = append(all, asked{topic: "t", partition: n})
			}
			req := fetchRequest(0, all...)
			req.SetVersion(12)
			frame, resp := kmsg.NewRequestFormatter(kmsg.FormatterClientID("bench")).AppendRequest(nil, req, 1), make([]byte, 1<<20)
			b.ReportAllocs()
			for b.Loop() {
				exchange(b, p, frame, resp)
			}
		})
	}
}
