package api_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal/disk"
)

// world is a cluster of one agent, and what outlives the agent: etcd, bucket and disk.
type world struct {
	kv     *memkv.Store
	bucket *fault.Store
	dir    string
	config func(*agent.Config)
	ahead  atomic.Int64 // by how much the agent's clock is ahead, in nanoseconds

	addr string
	stop func() // drains the agent
}

// start makes a world and starts its agent. The tests' requests go through TCP and the whole agent.
func start(t testing.TB, config func(*agent.Config)) *world {
	t.Helper()
	w := &world{
		kv: memkv.New(memkv.Config{ClusterID: 1, Start: time.Now()}), bucket: fault.New(mem.New()), dir: t.TempDir(), config: config,
	}
	w.run(t)
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) run(t testing.TB) {
	t.Helper()
	d, err := disk.Open(disk.Config{Dir: w.dir, FileBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := agent.Defaults()
	cfg.Copies = 1
	cfg.AdvertiseHost, cfg.AdvertisePort = "127.0.0.1", int32(l.Addr().(*net.TCPAddr).Port)
	cfg.Shards = 8
	cfg.Zone = "z1"
	if w.config != nil {
		w.config(&cfg)
	}
	out := io.Discard
	if testing.Verbose() {
		out = t.Output()
	}
	a := agent.New(cfg, agent.Deps{
		KV: coordinator.KV(w.kv), Store: objectstore.Store(w.bucket), Disk: d, Listener: l, Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(out, nil)), Now: func() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) },
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() {
		err := a.Run(ctx)
		ended <- errors.Join(err, d.Close())
	}()
	w.addr = l.Addr().String()
	w.stop = func() {
		w.stop = func() {}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("agent ended with %v", err)
		}
	}
	select {
	case <-a.Ready():
	case err := <-ended:
		t.Fatalf("agent did not start: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("agent is not ready after 30 s")
	}
}

// restart drains the agent and starts another: everything is in the bucket then, and nothing in memory.
func (w *world) restart(t testing.TB) {
	t.Helper()
	w.stop()
	w.run(t)
}

// peer is a connection to the agent.
type peer struct {
	t    testing.TB
	conn net.Conn
	next int32
}

func (w *world) dial(t testing.TB) *peer {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &peer{t: t, conn: conn}
}

// send sends a request, whose version is set, and returns its correlation id.
func (p *peer) send(req kmsg.Request) int32 {
	p.t.Helper()
	p.next++
	b := kmsg.NewRequestFormatter(kmsg.FormatterClientID("test")).AppendRequest(nil, req, p.next)
	if _, err := p.conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
	return p.next
}

// receive reads the response to a request.
func (p *peer) receive(req kmsg.Request, correlation int32) kmsg.Response {
	p.t.Helper()
	resp, err := p.tryReceive(req, correlation)
	if err != nil {
		p.t.Fatalf("read response to %T version %d: %v", req, req.GetVersion(), err)
	}
	return resp
}

func (p *peer) tryReceive(req kmsg.Request, correlation int32) (kmsg.Response, error) {
	p.t.Helper()
	if err := p.conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(p.conn, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(p.conn, b); err != nil {
		return nil, err
	}
	if got := int32(binary.BigEndian.Uint32(b)); got != correlation {
		p.t.Fatalf("response to request %d came, want that to %d", got, correlation)
	}
	b = b[4:]
	resp := req.ResponseKind()
	resp.SetVersion(req.GetVersion())
	if resp.IsFlexible() && req.Key() != int16(protocol.KeyAPIVersions) {
		b = b[1:]
	}
	return resp, resp.ReadFrom(b)
}

// ask sends a request in a version and returns the response to it.
func ask[R kmsg.Response](p *peer, version int16, req kmsg.Request) R {
	p.t.Helper()
	req.SetVersion(version)
	return p.receive(req, p.send(req)).(R)
}

// versions yields the versions of an API that the agent serves.
func versions(t *testing.T, key protocol.Key) []int16 {
	t.Helper()
	api, ok := protocol.Lookup(key)
	if !ok {
		t.Fatalf("API %v is not served", key)
	}
	var all []int16
	for v := api.ServedMin; v <= api.Max; v++ {
		all = append(all, v)
	}
	return all
}

// create makes a topic and returns its id.
func (p *peer) create(topic string, partitions int32, configs ...string) protocol.TopicID {
	p.t.Helper()
	return p.createReplicated(topic, partitions, 1, configs...)
}

func (p *peer) createReplicated(topic string, partitions int32, replicas int16, configs ...string) protocol.TopicID {
	p.t.Helper()
	req := kmsg.NewPtrCreateTopicsRequest()
	req.TimeoutMillis = 10_000
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = topic, partitions, replicas
	for i := 0; i < len(configs); i += 2 {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = configs[i], &configs[i+1]
		rt.Configs = append(rt.Configs, c)
	}
	req.Topics = append(req.Topics, rt)
	resp := ask[*kmsg.CreateTopicsResponse](p, 7, req)
	if code := resp.Topics[0].ErrorCode; code != 0 {
		p.t.Fatalf("create topic %s: %v", topic, protocol.ErrorCode(code))
	}
	return resp.Topics[0].TopicID
}

// plain returns a batch of records with those values, all of timestamp ts.
func plain(t testing.TB, ts int64, values ...string) []byte {
	t.Helper()
	return built(t, batch.NewBuilder(batch.None), ts, values...)
}

func built(t testing.TB, b *batch.Builder, ts int64, values ...string) []byte {
	t.Helper()
	for _, v := range values {
		b.Append(ts, nil, []byte(v))
	}
	raw, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// part is one partition's part of a Produce request.
type part struct {
	topic     string
	id        protocol.TopicID
	partition int32
	records   []byte
}

func produceRequest(acks int16, parts ...part) *kmsg.ProduceRequest {
	req := kmsg.NewPtrProduceRequest()
	req.Acks, req.TimeoutMillis = acks, 10_000
	for _, p := range parts {
		n := len(req.Topics)
		if n == 0 || req.Topics[n-1].Topic != p.topic || req.Topics[n-1].TopicID != p.id {
			t := kmsg.NewProduceRequestTopic()
			t.Topic, t.TopicID = p.topic, p.id
			req.Topics = append(req.Topics, t)
			n++
		}
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition, rp.Records = p.partition, p.records
		req.Topics[n-1].Partitions = append(req.Topics[n-1].Partitions, rp)
	}
	return req
}

// produce appends one batch and returns the answer.
func (p *peer) produce(topic string, partition int32, records []byte) kmsg.ProduceResponseTopicPartition {
	p.t.Helper()
	resp := ask[*kmsg.ProduceResponse](p, 11, produceRequest(-1, part{topic: topic, partition: partition, records: records}))
	return resp.Topics[0].Partitions[0]
}

// mustProduce appends one batch and returns its base offset.
func (p *peer) mustProduce(topic string, partition int32, records []byte) int64 {
	p.t.Helper()
	got := p.produce(topic, partition, records)
	if got.ErrorCode != 0 {
		p.t.Fatalf("produce to %s/%d: %v", topic, partition, protocol.ErrorCode(got.ErrorCode))
	}
	return got.BaseOffset
}

// values returns the records' values in the batches of a fetch, with the offset of the first.
func values(t *testing.T, records []byte) (first int64, all []string) {
	t.Helper()
	first = -1
	d := batch.NewDecompressor(1 << 20)
	err := batch.Each(records, func(h batch.Header, b []byte) error {
		if err := batch.Verify(b, &h); err != nil {
			return err
		}
		rs, err := d.Records(&h, b)
		if err != nil {
			return err
		}
		if first < 0 {
			first = int64(h.BaseOffset)
		}
		var r batch.Record
		for rs.Next(&r) {
			all = append(all, string(r.Value))
		}
		return rs.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return first, all
}
