package agent_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/status"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
)

// TestDamaged: an agent that cannot restore one of its shards leads the others, and says so; also if nobody can tell without a footer which partitions are in its commit, and if an object is not damaged, but not given by a
// bucket that answers otherwise.
func TestDamaged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		forget bool // commits do not name their partitions
		prefix string
		effect fault.Effect
	}{
		"a footer, of a commit that names its partitions": {false, segment.NamePrefix, fault.WrongBytes},
		"a footer, of one that does not":                  {true, segment.NamePrefix, fault.WrongBytes},
		"a footer is not given, of one that does not":     {true, segment.NamePrefix, fault.Unavailable},
		"a manifest is not given":                         {false, manifest.NamePrefix, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			damaged(t, c.forget, fault.Rule{Op: fault.Get, Prefix: c.prefix, Times: fault.Always, Effect: c.effect})
		})
	}
}

// forget has commits name no partitions, as if there were too many.
func (w *world) forget(t *testing.T) {
	t.Helper()
	items, _, err := w.kv.List(t.Context(), coordinator.PrefixCommits, 0)
	if err != nil || len(items) == 0 {
		t.Fatal(len(items), err)
	}
	for _, it := range items {
		c, err := coordinator.DecodeCommit(it.Value)
		if err != nil {
			t.Fatal(err)
		}
		c.Partitions, c.InFooter = nil, true
		if _, err := w.kv.Txn(t.Context(), nil, []coordinator.Op{{Key: it.Key, Value: c.Encode()}}); err != nil {
			t.Fatal(err)
		}
	}
}

func damaged(t *testing.T, forget bool, rule fault.Rule) {
	w := newWorld(t)
	r := w.start(t, nil)
	produce(t, r, "t", 0, 10)
	if _, err := kadm.NewClient(client(t, r)).DeleteRecords(t.Context(), kadm.Offsets{"t": {0: {Topic: "t", At: 0}}}); err != nil { // its shard has a manifest
		t.Fatal(err)
	}
	r.stop()
	if forget {
		w.forget(t)
	}
	whole := w.store
	w.store = fault.New(whole, rule)
	r = w.start(t, nil)
	c := client(t, r, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if resp, err := kadm.NewClient(c).CreateTopic(t.Context(), 2, 1, nil, "u"); err != nil || resp.Err != nil {
		t.Fatal(err, resp.Err)
	}
	// Of two partitions, which are of two shards, one at most is of the shard that is damaged.
	ctx, cancel := context.WithCancel(t.Context())
	taken := make(chan error, 2)
	for p := range int32(2) {
		c.Produce(ctx, &kgo.Record{Topic: "u", Partition: p}, func(_ *kgo.Record, err error) { taken <- err })
	}
	select {
	case err := <-taken:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the other shards have no leader either")
	}
	cancel()
	problems := func() []string {
		records, err := status.Read(t.Context(), w.kv)
		if err != nil {
			t.Fatal(err)
		}
		return status.Make("test", records).Problems
	}
	eventually(t, "the status tells of it", func() bool {
		return slices.ContainsFunc(problems(), func(p string) bool { return strings.HasPrefix(p, "node 1 cannot lead 1 shards") })
	})
	r.stop()

	w.store = whole // somebody mended it
	r = w.start(t, nil)
	produce(t, r, "t", 10, 20)
	consume(t, r, "t", 20)
}

// TestDamagedMoves: an agent that drains hands over what it could not lead, too; where the bucket can be read, it is led.
func TestDamagedMoves(t *testing.T) {
	s := newSeveral(t, true)
	begin := func(disk string) *crashing {
		s.agents[disk] = s.launch(t, s.folder(t, disk), -1, func(c *agent.Config) {
			c.Copies, c.Shards, c.DrainMax = 1, 8, 20*time.Second
		})
		s.agents[disk].line.slow.Store(true)
		s.agents[disk].await(t)
		return s.agents[disk]
	}
	produce(t, begin("a").running, "t", 0, 10)
	s.drain(t, "a")
	whole := s.store
	s.store = fault.New(whole, fault.Rule{Op: fault.Get, Prefix: segment.NamePrefix, Times: fault.Always, Effect: fault.WrongBytes})
	begin("a")
	s.store = whole
	b := begin("b")
	s.drain(t, "a")
	produce(t, b.running, "t", 10, 20)
	consume(t, b.running, "t", 20)
	s.drain(t, "b")
}
