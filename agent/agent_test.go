package agent_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/wal/disk"
)

// world is what outlives an agent: etcd, bucket and disk.
type world struct {
	kv    coordinator.KV
	store objectstore.Store
	dir   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{kv: memkv.New(memkv.Config{ClusterID: 1, Start: time.Now()}), store: mem.New(), dir: t.TempDir()}
}

// alone is the configuration of an agent that keeps its log by itself.
func alone() agent.Config {
	cfg := agent.Defaults()
	cfg.Copies = 1
	return cfg
}

// running is an agent and how to end it.
type running struct {
	addr  string
	stop  func() // drains
	ended chan error
}

func (w *world) start(t *testing.T, change func(*agent.Config)) *running {
	t.Helper()
	d, err := disk.Open(disk.Config{Dir: w.dir, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := alone()
	cfg.AdvertiseHost, cfg.AdvertisePort = "127.0.0.1", int32(l.Addr().(*net.TCPAddr).Port)
	cfg.Shards = 8
	if change != nil {
		change(&cfg)
	}
	out := io.Discard
	if testing.Verbose() {
		out = t.Output()
	}
	a := agent.New(cfg, agent.Deps{
		KV: w.kv, Store: w.store, Disk: d, Listener: l, Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(out, nil)), Now: time.Now,
	})
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{addr: l.Addr().String(), ended: make(chan error, 1)}
	go func() {
		err := a.Run(ctx)
		_ = d.Close()
		r.ended <- err
	}()
	r.stop = func() {
		cancel()
		if err := <-r.ended; err != nil {
			t.Errorf("agent ended with %v", err)
		}
		r.ended <- nil
	}
	t.Cleanup(r.stop)
	select {
	case <-a.Ready():
	case err := <-r.ended:
		r.ended <- err
		t.Fatalf("agent did not start: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("agent is not ready after 30 s")
	}
	return r
}

func client(t *testing.T, r *running, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(r.addr)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func produce(t *testing.T, r *running, topic string, from, to int) {
	t.Helper()
	c := client(t, r, kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic(topic))
	defer c.Close()
	var records []*kgo.Record
	for i := from; i < to; i++ {
		records = append(records, kgo.StringRecord(fmt.Sprint(i)))
	}
	if err := c.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func consume(t *testing.T, r *running, topic string, n int) {
	t.Helper()
	c := client(t, r, kgo.ConsumeTopics(topic))
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for next := 0; next < n; {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d records: %v", next, err)
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			if string(rec.Value) != fmt.Sprint(next) || rec.Offset != int64(next) {
				t.Fatalf("offset %d holds %q, want offset and record %d", rec.Offset, rec.Value, next)
			}
			next++
		})
	}
}

func TestProduceConsumeRestart(t *testing.T) {
	w := newWorld(t)
	r := w.start(t, nil)
	produce(t, r, "t", 0, 1000)
	consume(t, r, "t", 1000)
	r.stop()
	r = w.start(t, nil)
	consume(t, r, "t", 1000)
	produce(t, r, "t", 1000, 1500)
	consume(t, r, "t", 1500)
}

func TestReadsFromBucket(t *testing.T) {
	w := newWorld(t)
	r := w.start(t, func(c *agent.Config) { c.Flush.SegmentBytes = 4 << 10 })
	produce(t, r, "t", 0, 3000)
	r.stop()
	r = w.start(t, nil)
	consume(t, r, "t", 3000)
	adm := kadm.NewClient(client(t, r))
	offsets, err := adm.ListEndOffsets(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	if o, _ := offsets.Lookup("t", 0); o.Offset != 3000 || o.Err != nil {
		t.Errorf("end offset is %d, %v, want 3000", o.Offset, o.Err)
	}
}

// TestLoad: an agent tells how much is written to it and read from it.
func TestLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.start(t, nil)
	produce(t, r, "t", 0, 1000)
	consume(t, r, "t", 1000)
	eventually(t, "the load is told", func() bool {
		item, _, err := w.kv.Get(t.Context(), coordinator.KeyLoad(1))
		if err != nil || item.ModRevision == 0 {
			return false
		}
		l, err := coordinator.Decode[coordinator.Load](item)
		if err != nil {
			t.Fatal(err)
		}
		return l.Log == 1 && l.Produced > 0 && l.Consumed >= l.Produced
	})
}
