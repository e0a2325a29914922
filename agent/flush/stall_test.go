package flush_test

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// record returns a batch as the log holds it.
func record(t *testing.T) []byte {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	b.LeaderEpoch = 1
	b.Append(1, nil, []byte("v"))
	data, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestUploadOutlivesAStalledPut: a put that neither succeeds nor fails, as over a connection whose other end is gone, is given up and made again.
func TestUploadOutlivesAStalledPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := fault.New(mem.New(), fault.Rule{Op: fault.Put, Gate: fault.NewGate()}) // the first put, for ever
		w := flush.NewWriter(flush.WriterConfig{
			Store: store, Record: coordinator.Log{ID: 1, Fence: 1}, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		})
		var builder segment.Builder
		staged, err := w.Upload(t.Context(), &builder, 1, []flush.Record{{
			Entry: 1, Key: segment.Key{Topic: protocol.TopicID{1}}, Name: "t", Batch: record(t),
		}})
		if err != nil {
			t.Fatal(err)
		}
		if info, err := store.Stat(t.Context(), staged.Footer.Header.ID.Name()); err != nil || info.Size != staged.Footer.ObjectSize {
			t.Errorf("stat of the segment: %+v, %v; want %d bytes", info, err, staged.Footer.ObjectSize)
		}
	})
}
