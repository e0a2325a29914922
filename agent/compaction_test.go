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

// apart checks that no segment has something of a topic that is compacted and of one that is not.
func (w *world) apart(t *testing.T) {
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
		topics := make(map[int32]string)
		for _, p := range m.Partitions {
			for _, e := range p.Extents {
				if other, ok := topics[e.Segment]; ok && other != p.TopicName {
					t.Errorf("%s has %s and %s in one segment", info.Name, other, p.TopicName)
				}
				topics[e.Segment] = p.TopicName
			}
		}
	}
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
