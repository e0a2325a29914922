package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal/disk"
)

// line is an agent's connection to etcd and to the bucket. It carries a number of calls, and then nothing: for both, that is how a crash looks.
type line struct {
	mu   sync.Mutex
	left int         // calls until it is cut; negative: for ever
	deaf atomic.Bool // what changes in etcd is not told any more
	slow atomic.Bool // an agent that is cut off does not end its lease, as one that crashed does not: that takes its time
	dead chan struct{}
}

func newLine(calls int) *line { return &line{left: calls, dead: make(chan struct{})} }

// take reports whether one more call gets through.
func (l *line) take() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.left {
	case 0:
		return false
	case 1:
		close(l.dead)
	}
	l.left--
	return true
}

// cut lets nothing through any more.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left != 0 {
		l.left = 0
		close(l.dead)
	}
}

// cutKV is etcd at the end of a line. The answer to the last call that gets through is lost.
type cutKV struct {
	coordinator.KV
	line *line
}

func (k *cutKV) Get(ctx context.Context, key string) (coordinator.Item, int64, error) {
	if !k.line.take() {
		return coordinator.Item{}, 0, coordinator.ErrUnavailable
	}
	return k.KV.Get(ctx, key)
}

func (k *cutKV) List(ctx context.Context, prefix string, rev int64) ([]coordinator.Item, int64, error) {
	if !k.line.take() {
		return nil, 0, coordinator.ErrUnavailable
	}
	return k.KV.List(ctx, prefix, rev)
}

func (k *cutKV) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	if !k.line.take() {
		return coordinator.TxnResult{}, coordinator.ErrUnavailable
	}
	res, err := k.KV.Txn(ctx, compares, ops)
	select {
	case <-k.line.dead:
		return coordinator.TxnResult{}, coordinator.ErrUnknownOutcome
	default:
		return res, err
	}
}

func (k *cutKV) Watch(ctx context.Context, prefix string, after int64, tell func(coordinator.Batch)) error {
	return k.KV.Watch(ctx, prefix, after, func(b coordinator.Batch) {
		if !k.line.deaf.Load() {
			tell(b)
		}
	})
}

func (k *cutKV) Revoke(ctx context.Context, lease int64) error {
	if k.line.slow.Load() && !k.line.take() {
		return coordinator.ErrUnavailable
	}
	return k.KV.Revoke(ctx, lease)
}

// cutStore is the bucket at the end of a line.
type cutStore struct {
	objectstore.Store
	line *line
}

func (s *cutStore) Put(ctx context.Context, name string, body objectstore.Body) error {
	if !s.line.take() {
		return objectstore.ErrUnavailable
	}
	return s.Store.Put(ctx, name, body)
}

func (s *cutStore) Get(ctx context.Context, name string, off int64, p []byte) error {
	if !s.line.take() {
		return objectstore.ErrUnavailable
	}
	return s.Store.Get(ctx, name, off, p)
}

func (s *cutStore) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return s.Store.List(ctx, prefix, after)
}

// crashing is an agent on a line, and on a copy of the world's disk if it has one.
type crashing struct {
	*running
	line  *line
	ready <-chan struct{}
	kill  func() // ends it without a drain that succeeds
	leave func() // has it drain; what came of it is in ended
}

// launch starts an agent whose line carries that many calls. It does not wait until the agent is ready, which it may never be.
func (w *world) launch(t *testing.T, dir string, calls int, change func(*agent.Config)) *crashing {
	t.Helper()
	d, err := disk.Open(disk.Config{Dir: dir, FileBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := alone()
	cfg.AdvertiseHost, cfg.AdvertisePort = "127.0.0.1", int32(l.Addr().(*net.TCPAddr).Port)
	cfg.Shards = 4
	cfg.Flush.AgeMax = time.Hour // what is not flushed by size stays in the WAL
	cfg.DrainMax = 50 * time.Millisecond
	if change != nil {
		change(&cfg)
	}
	var peers net.Listener
	if cfg.Copies > 1 {
		if peers, err = lc.Listen(t.Context(), "tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		cfg.PeerAdvertise = peers.Addr().String()
	}
	out := io.Discard
	if testing.Verbose() {
		out = t.Output()
	}
	ln := newLine(calls)
	a := agent.New(cfg, agent.Deps{
		KV: &cutKV{w.kv, ln}, Store: &cutStore{w.store, ln}, Disk: d, Listener: l, PeerListener: peers, Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(out, nil)), Now: time.Now,
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() {
		err := a.Run(ctx)
		_ = d.Close()
		_ = l.Close()
		ended <- err
	}()
	c := &crashing{running: &running{addr: l.Addr().String(), ended: ended}, line: ln, ready: a.Ready(), leave: cancel}
	var once sync.Once
	c.kill = func() {
		once.Do(func() {
			ln.cut()
			cancel()
			err := <-ended
			if ended <- err; err != nil {
				t.Logf("the killed agent ended with %v", err)
			}
		})
	}
	t.Cleanup(c.kill)
	return c
}

func (c *crashing) await(t *testing.T) {
	t.Helper()
	select {
	case <-c.ready:
	case err := <-c.ended:
		c.ended <- err
		t.Fatalf("agent did not start: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("agent is not ready after 30 s")
	}
}

// clone copies a disk as it is at this moment, which is what a machine finds when it comes back.
func clone(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // it was being prepared, and has another name now
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, e.Name()), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// TestCrash kills an agent that has flushed a part of what it acknowledged, and finds all of it again.
func TestCrash(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, func(c *agent.Config) { c.Flush.SegmentBytes = 4 << 10 })
	a.await(t)
	for from := 0; from < 500; from += 50 {
		produce(t, a.running, "t", from, from+50)
	}
	a.kill()
	for from := 500; from < 1000; from += 100 { // and again, without any flush
		b := w.launch(t, w.dir, -1, nil)
		b.await(t)
		consume(t, b.running, "t", from)
		produce(t, b.running, "t", from, from+100)
		consume(t, b.running, "t", from+100)
		b.kill()
	}
	c := w.launch(t, w.dir, -1, nil)
	c.await(t)
	consume(t, c.running, "t", 1000)
}

// TestZombie lets an agent go on while another has taken over what its disk held: what it acknowledged before stays, it can commit nothing more, and ends.
func TestZombie(t *testing.T) {
	w := newWorld(t)
	zombie := w.launch(t, w.dir, -1, nil)
	zombie.await(t)
	produce(t, zombie.running, "t", 0, 100)
	zombie.line.deaf.Store(true)
	heir := w.launch(t, clone(t, w.dir), -1, nil)
	heir.await(t)
	consume(t, heir.running, "t", 100)
	// The zombie still answers, since nobody has told it; what it takes now is not of the log that the heir has closed.
	if err := zombie.append(t, 10); err != nil {
		t.Errorf("the zombie refuses a batch: %v", err)
	}
	produce(t, heir.running, "t", 100, 200)
	zombie.mustEnd(t)
	consume(t, heir.running, "t", 200)
}

// append produces one batch of that many bytes to this very agent, whatever metadata says about who leads.
func (c *crashing) append(t *testing.T, bytes int) error {
	t.Helper()
	cl := client(t, c.running, kgo.MaxVersions(kversion.V3_0_0())) // topics by name
	defer cl.Close()
	b := batch.NewBuilder(batch.None)
	b.Append(time.Now().UnixMilli(), nil, make([]byte, bytes))
	records, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	req := kmsg.NewPtrProduceRequest()
	req.Version, req.Acks, req.TimeoutMillis = 9, -1, 1000
	rt, rp := kmsg.NewProduceRequestTopic(), kmsg.NewProduceRequestTopicPartition()
	rt.Topic, rp.Records = "t", records
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	resp, err := cl.SeedBrokers()[0].Request(ctx, req)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.(*kmsg.ProduceResponse).Topics[0].Partitions[0].ErrorCode)
}

// mustEnd fills a segment, whose commit must be refused and end the agent.
func (c *crashing) mustEnd(t *testing.T) {
	t.Helper()
	for range 40 {
		if c.append(t, 900<<10) != nil {
			break
		}
	}
	select {
	case err := <-c.ended:
		c.ended <- err
		if !errors.Is(err, coordinator.ErrFenced) {
			t.Errorf("the agent ended with %v, want that it was fenced", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the agent goes on")
	}
}

// TestRecovererDies kills the agent that recovers at its first call to etcd or the bucket, the next one at its second, and so on, until one comes through.
// Each finds what the one before left; the last finds every record once.
func TestRecovererDies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, func(c *agent.Config) { c.Flush.SegmentBytes = 2 << 10 })
	a.await(t)
	produce(t, a.running, "t", 0, 100)
	a.kill()
	b := w.launch(t, w.dir, -1, nil)
	b.await(t)
	for from := 100; from < 400; from += 20 {
		produce(t, b.running, "t", from, from+20)
	}
	b.kill()
	for calls := 1; ; calls++ {
		c := w.launch(t, w.dir, calls, nil)
		select {
		case <-c.ready:
			if calls < 10 {
				t.Fatalf("ready after %d calls", calls)
			}
			c.kill()
			last := w.launch(t, w.dir, -1, nil)
			last.await(t)
			consume(t, last.running, "t", 400)
			produce(t, last.running, "t", 400, 410)
			consume(t, last.running, "t", 410)
			return
		case <-c.line.dead:
		case err := <-c.ended:
			c.ended <- err
			t.Fatalf("after %d calls the agent ended: %v", calls, err)
		case <-time.After(30 * time.Second):
			t.Fatalf("after %d calls the agent neither serves nor asks", calls)
		}
		c.kill()
		if calls > 500 {
			t.Fatal("no agent comes through")
		}
	}
}

// TestSequencesAcrossCrashes holds that a producer's retry is told as a duplicate, whether its batch was in the bucket or in the WAL only.
func TestSequencesAcrossCrashes(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, nil)
	a.await(t)
	cl := client(t, a.running, kgo.AllowAutoTopicCreation(), kgo.DefaultProduceTopic("t"))
	for i := range 10 {
		if err := cl.ProduceSync(t.Context(), kgo.StringRecord(fmt.Sprint(i))).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	id, epoch, err := cl.ProducerID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 { // first the WAL has it, then the bucket
		a.kill()
		a = w.launch(t, w.dir, -1, nil)
		a.await(t)
		got := a.producers(t)
		if len(got) != 1 || got[0].id != id || got[0].epoch != epoch || got[0].sequence != 9 {
			t.Errorf("round %d: producers are %+v, want %d at sequence 9", round, got, id)
		}
	}
}

// TestDeletedTopicIsNotRecovered leaves batches of a topic in the WAL that is deleted before anybody recovers them.
func TestDeletedTopicIsNotRecovered(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, nil)
	a.await(t)
	produce(t, a.running, "gone", 0, 10)
	produce(t, a.running, "t", 0, 10)
	produce(t, a.running, "gone", 10, 20)
	a.kill()
	kv := w.kv.(*memkv.Store)
	if _, err := kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyTopic("gone"), Delete: true}}); err != nil {
		t.Fatal(err)
	}
	b := w.launch(t, w.dir, -1, nil)
	b.await(t)
	consume(t, b.running, "t", 10)
	produce(t, b.running, "gone", 0, 5) // made anew, from offset 0
	consume(t, b.running, "gone", 5)
}

// TestStopWhileWaiting holds that an agent that waits for etcd, at whatever step, ends when it is told to.
func TestStopWhileWaiting(t *testing.T) {
	w := newWorld(t)
	for calls := range 12 {
		a := w.launch(t, w.dir, calls, nil)
		if calls > 0 {
			<-a.line.dead
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.kill()
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("after %d calls the agent does not end", calls)
		}
	}
}

// producer is what DescribeProducers tells of one.
type producer struct {
	id       int64
	epoch    int16
	sequence int32
}

func (c *crashing) producers(t *testing.T) []producer {
	t.Helper()
	req := kmsg.NewPtrDescribeProducersRequest()
	req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: "t", Partitions: []int32{0}}}
	cl := client(t, c.running)
	defer cl.Close()
	resp, err := cl.Broker(1).Request(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	var all []producer
	for _, p := range resp.(*kmsg.DescribeProducersResponse).Topics[0].Partitions[0].ActiveProducers {
		all = append(all, producer{p.ProducerID, int16(p.ProducerEpoch), p.LastSequence})
	}
	return all
}
