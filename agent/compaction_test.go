package agent_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
)

// compacted is a topic of one partition that is compacted, and what it should show.
type compacted struct {
	rng     *rand.Rand
	ms      int64                 // timestamp of the last record, ahead of those of markers
	written map[int64]*kgo.Record // committed, by offset
	newest  map[string]int64      // offset of each key's
}

const (
	compactedKeys = 40
	// compactedSlack is how many records more than there are keys may stay: what is not merged, and tombstones.
	compactedSlack = 100
)

// records makes n records of random keys, of which some have no value.
func (c *compacted) records(n int) []*kgo.Record {
	all := make([]*kgo.Record, n)
	for i := range all {
		c.ms++
		all[i] = &kgo.Record{Topic: "t", Key: fmt.Append(nil, "key ", c.rng.IntN(compactedKeys)), Timestamp: time.UnixMilli(c.ms)}
		if c.rng.IntN(8) > 0 {
			all[i].Value = fmt.Append(nil, "value ", c.rng.Int64())
		}
	}
	return all
}

// committed takes in what readers of committed transactions may see.
func (c *compacted) committed(records []*kgo.Record) {
	for _, r := range records {
		c.written[r.Offset] = r
		c.newest[string(r.Key)] = r.Offset
	}
}

// write writes batches, some of them in transactions, of which some are aborted.
func (c *compacted) write(t *testing.T, r *running, batches int) {
	t.Helper()
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(), kgo.GzipCompression(), kgo.SnappyCompression()}
	plain := client(t, r, kgo.ProducerBatchCompression(codecs[c.rng.IntN(len(codecs))]))
	txn := client(t, r, kgo.TransactionalID("writer"), kgo.ProducerBatchCompression(codecs[c.rng.IntN(len(codecs))]))
	defer plain.Close()
	defer txn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range batches {
		records := c.records(1 + c.rng.IntN(20))
		if c.rng.IntN(2) == 0 {
			if err := plain.ProduceSync(ctx, records...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			c.committed(records)
			continue
		}
		commit := c.rng.IntN(3) > 0
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := txn.ProduceSync(ctx, records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := txn.EndTransaction(ctx, kgo.TransactionEndTry(commit)); err != nil {
			t.Fatal(err)
		}
		if commit {
			c.committed(records)
		}
	}
}

// finish writes a record that ends the log, with the largest timestamp, and returns its offset.
func (c *compacted) finish(t *testing.T, r *running) int64 {
	t.Helper()
	c.ms++
	last := &kgo.Record{Topic: "t", Key: []byte("last"), Value: fmt.Append(nil, c.ms), Timestamp: time.UnixMilli(c.ms)}
	if err := client(t, r).ProduceSync(t.Context(), last).FirstErr(); err != nil {
		t.Fatal(err)
	}
	c.committed([]*kgo.Record{last})
	return last.Offset
}

// read reads the whole log, checks what it shows, and returns how many records it has.
func (c *compacted) read(t *testing.T, r *running, last int64) int {
	t.Helper()
	reader := client(t, r, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: kgo.NewOffset().At(0)}}))
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n, at, shown := 0, int64(-1), make(map[string]int64)
	for at < last {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after offset %d of %d: %v", at, last, err)
		}
		fetches.EachRecord(func(got *kgo.Record) {
			want := c.written[got.Offset]
			if got.Offset <= at || want == nil || string(want.Key) != string(got.Key) || string(want.Value) != string(got.Value) || (want.Value == nil) != (got.Value == nil) ||
				!want.Timestamp.Equal(got.Timestamp) {
				t.Fatalf("offset %d after %d has %q: %q of %v, want %+v", got.Offset, at, got.Key, got.Value, got.Timestamp, want)
			}
			n, at = n+1, got.Offset
			shown[string(got.Key)] = got.Offset
		})
	}
	want := maps.Clone(c.newest)
	maps.DeleteFunc(want, func(key string, at int64) bool { // a tombstone may have gone
		_, is := shown[key]
		return !is && c.written[at].Value == nil
	})
	if !maps.Equal(shown, want) {
		t.Fatalf("the newest records of keys are at %v, want %v", shown, want)
	}
	return n
}

// bounds checks that log start, end and largest timestamp are where they should be.
func (c *compacted) bounds(t *testing.T, r *running, last int64) {
	t.Helper()
	adm := kadm.NewClient(client(t, r))
	for what, test := range map[string]struct {
		list func(context.Context, ...string) (kadm.ListedOffsets, error)
		want int64
		late int64 // by how much more it may be: the marker of the last transaction may come after the last record
	}{
		"start": {adm.ListStartOffsets, 0, 0}, "end": {adm.ListEndOffsets, last + 1, 1}, "largest timestamp": {adm.ListMaxTimestampOffsets, last, 0},
	} {
		offsets, err := test.list(t.Context(), "t")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := offsets.Lookup("t", 0); got.Err != nil || got.Offset < test.want || got.Offset > test.want+test.late {
			t.Errorf("%s is at %d (%v), want %d", what, got.Offset, got.Err, test.want)
		}
	}
}

// manifests returns those that are there.
func (w *world) manifests(t *testing.T) (all []*manifest.Manifest) {
	t.Helper()
	for info, err := range w.store.List(t.Context(), manifest.NamePrefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, info.Size)
		if err := w.store.Get(t.Context(), info.Name, 0, b); errors.Is(err, objectstore.ErrNotFound) {
			continue // a newer one is there
		}
		m, err := manifest.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

// apart checks that no segment has something of a topic that is compacted and of one that is not.
func (w *world) apart(t *testing.T) {
	t.Helper()
	for _, m := range w.manifests(t) {
		topics := make(map[int32]string)
		for _, p := range m.Partitions {
			for _, e := range p.Extents {
				if other, ok := topics[e.Segment]; ok && other != p.TopicName {
					t.Errorf("%s has %s and %s in one segment", m.Name(), other, p.TopicName)
				}
				topics[e.Segment] = p.TopicName
			}
		}
	}
}

// merged returns up to where a topic's partition 0 is merged.
func (w *world) merged(t *testing.T, topic string) (end int64) {
	t.Helper()
	for _, m := range w.manifests(t) {
		for _, p := range m.Partitions {
			if p.TopicName == topic {
				end = max(end, int64(p.End))
			}
		}
	}
	return end
}

// TestCompaction writes keys many times over, in transactions and without, through changes of the leader, and reads the log while it is compacted, with a map of keys that is too small for all of them.
func TestCompaction(t *testing.T) {
	w := newWorld(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	c := &compacted{rng: rand.New(rand.NewPCG(seed, 0)), ms: time.Now().Add(30 * time.Minute).UnixMilli(), written: make(map[int64]*kgo.Record), newest: make(map[string]int64)}
	soon, all := "1", "0"
	compact := "compact"
	var last int64
	for round := range 4 {
		r := w.start(t, func(c *agent.Config) {
			eager(c)
			c.Shards = 1 // with what is not compacted
			c.Clean.Pause, c.Clean.MemoryBytes, c.Clean.DataBytes = 20*time.Millisecond, 600, 4<<10
		})
		if round == 0 {
			configs := map[string]*string{"cleanup.policy": &compact, "delete.retention.ms": &soon, "min.cleanable.dirty.ratio": &all}
			if resp, err := kadm.NewClient(client(t, r)).CreateTopic(t.Context(), 1, 1, configs, "t"); err != nil || resp.Err != nil {
				t.Fatal(err, resp.Err)
			}
			keyless := &kgo.Record{Topic: "t", Value: []byte("no key")}
			if err := client(t, r).ProduceSync(t.Context(), keyless).FirstErr(); !errors.Is(err, kerr.InvalidRecord) {
				t.Errorf("a record without a key: %v", err)
			}
		} else {
			c.read(t, r, last)
		}
		if round%2 == 1 { // else it goes on in the middle of it
			n := 0
			eventually(t, "few records are left", func() bool {
				produce(t, r, "u", 0, 1) // has what was flushed before merged
				n = c.read(t, r, last)   // nothing of it is in memory, as this leader has not written it
				return n <= compactedKeys+1+compactedSlack
			})
			t.Logf("%d records are left of %d", n, len(c.written))
			c.bounds(t, r, last)
			eventually(t, "what was cleaned is gone", func() bool { return w.objects(t)["merged"] <= 10 })
			w.apart(t)
		}
		c.write(t, r, 60)
		last = c.finish(t, r)
		c.read(t, r, last)
		c.bounds(t, r, last)
		r.stop()
	}
	if len(c.written) < 5*(compactedKeys+1+compactedSlack) {
		t.Errorf("%d records are too few to tell", len(c.written))
	}
}

// altered is a topic of one partition whose configurations change.
type altered struct {
	t      *testing.T
	w      *world
	r      *running
	client *kgo.Client
	admin  *kadm.Client
	last   int64 // offset that was written last
}

func (a *altered) start() {
	a.r = a.w.start(a.t, func(c *agent.Config) {
		eager(c)
		c.Shards, c.Clean.Pause = 1, 20*time.Millisecond
	})
	a.client = client(a.t, a.r)
	a.admin = kadm.NewClient(a.client)
}

// set changes configurations of the topic.
func (a *altered) set(configs map[string]string) {
	a.t.Helper()
	var all []kadm.AlterConfig
	for name, value := range configs {
		all = append(all, kadm.AlterConfig{Op: kadm.SetConfig, Name: name, Value: &value})
	}
	if resp, err := a.admin.AlterTopicConfigs(a.t.Context(), all, "t"); err != nil || resp[0].Err != nil {
		a.t.Fatal(err, resp)
	}
}

const (
	alteredKeys   = 12
	alteredRounds = 5
)

// write writes alteredKeys records, with keys of their own each, alteredRounds times over. One is a tombstone.
func (a *altered) write(tombstone string) {
	a.t.Helper()
	for round := range alteredRounds {
		for key := range alteredKeys - 2 {
			a.produce(fmt.Append(nil, "key ", key), fmt.Append(nil, "of round ", round))
		}
		a.produce([]byte(tombstone), nil)
		a.produce([]byte("end"), []byte{})
	}
}

// produce writes a record that is a minute old.
func (a *altered) produce(key, value []byte) {
	a.t.Helper()
	r := &kgo.Record{Topic: "t", Key: key, Value: value, Timestamp: time.Now().Add(-time.Minute)}
	if err := a.client.ProduceSync(a.t.Context(), r).FirstErr(); err != nil {
		a.t.Fatal(err)
	}
	a.last = r.Offset
}

// restart has all that was written so far be read from the bucket.
func (a *altered) restart() {
	a.r.stop()
	a.start()
}

// read returns how many records there are, after another merge, and how many of them are tombstones of that key.
func (a *altered) read(tombstone string) (n, tombstones int) {
	a.t.Helper()
	produce(a.t, a.r, "u", 0, 1)
	reader := client(a.t, a.r, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: kgo.NewOffset().AtStart()}}))
	defer reader.Close()
	for at := int64(-1); at < a.last; {
		fetches := reader.PollFetches(a.t.Context())
		if err := fetches.Err(); err != nil {
			a.t.Fatal(err)
		}
		fetches.EachRecord(func(got *kgo.Record) {
			n, at = n+1, got.Offset
			if string(got.Key) == tombstone {
				tombstones++
			}
		})
	}
	return n, tombstones
}

// TestCompactionPolicy changes how a topic is compacted while merges run: by its age alone; not at all; by its age, with a retention too.
func TestCompactionPolicy(t *testing.T) {
	a := &altered{t: t, w: newWorld(t)}
	a.start()
	if resp, err := a.admin.CreateTopic(t.Context(), 1, 1, nil, "t"); err != nil || resp.Err != nil {
		t.Fatal(err, resp.Err)
	}
	a.set(map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "1", "max.compaction.lag.ms": "1000"})
	a.write("first")
	a.restart()
	eventually(t, "what is old is compacted, and a tombstone stays for a day", func() bool {
		n, tombstones := a.read("first")
		return n == alteredKeys && tombstones == 1
	})

	a.set(map[string]string{"cleanup.policy": "delete", "delete.retention.ms": "1"})
	a.write("second")
	a.restart()
	eventually(t, "it is merged", func() bool {
		produce(t, a.r, "u", 0, 1)
		return a.w.merged(t, "t") > a.last
	})
	const all = alteredKeys + alteredRounds*alteredKeys
	for range 5 {
		if n, _ := a.read("second"); n != all {
			t.Errorf("%d records are left, want %d: it is not compacted any more", n, all)
		}
	}

	a.set(map[string]string{"cleanup.policy": "compact,delete"})
	a.restart()
	eventually(t, "what came meanwhile is compacted, and a tombstone goes after a millisecond", func() bool {
		a.produce([]byte("end"), []byte{}) // there must be something to clean
		_, tombstones := a.read("second")
		return tombstones == 0
	})
	a.set(map[string]string{"retention.ms": "1000"})
	eventually(t, "what is old is deleted", func() bool {
		produce(t, a.r, "u", 0, 1)
		starts, err := a.admin.ListStartOffsets(t.Context(), "t")
		if err != nil {
			t.Fatal(err)
		}
		start, _ := starts.Lookup("t", 0)
		return start.Offset >= all
	})
	a.r.stop()
}
