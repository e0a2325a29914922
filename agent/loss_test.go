package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator/mem"
	objects "github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/wal/disk"
)

// TestLostDisk loses the disk of a log that is open: no agent starts until an operator accepts the loss; then what was flushed is served, and what
// was not is gone.
func TestLostDisk(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, nil)
	a.await(t)
	produce(t, a.running, "t", 0, 100)
	a.kill()
	b := w.launch(t, w.dir, -1, nil) // its start flushes what the first left; what it takes itself stays in its WAL
	b.await(t)
	produce(t, b.running, "t", 100, 150)
	b.kill()

	empty := t.TempDir()
	waiting := w.launch(t, empty, -1, nil)
	select {
	case <-waiting.ready:
		t.Fatal("an agent serves although a log is open whose disk nobody has")
	case err := <-waiting.ended:
		t.Fatalf("the agent ended instead of waiting: %v", err)
	case <-time.After(300 * time.Millisecond): // it would have been ready by now; nothing else tells that it never will be
	}
	waiting.kill()

	c := w.launch(t, empty, -1, func(c *agent.Config) { c.AcceptLoss = 2 })
	c.await(t)
	consume(t, c.running, "t", 100)
	produce(t, c.running, "t", 100, 120)
	consume(t, c.running, "t", 120)
}

// TestLostDiskAfterDelete deletes records that are in the WAL alone, which is lost then: what is produced behind them continues what is committed, for this agent and for the next.
func TestLostDiskAfterDelete(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, func(c *agent.Config) { c.Flush.AgeMax = time.Hour })
	a.await(t)
	produce(t, a.running, "t", 0, 100)
	var at kadm.Offsets
	at.Add(kadm.Offset{Topic: "t", At: 100})
	if answers, err := kadm.NewClient(client(t, a.running)).DeleteRecords(t.Context(), at); err != nil || answers.Error() != nil {
		t.Fatal(err, answers.Error())
	}
	a.kill()

	dir := t.TempDir()
	b := w.launch(t, dir, -1, func(c *agent.Config) { eager(c); c.AcceptLoss = 1 })
	b.await(t)
	p := client(t, b.running, kgo.DefaultProduceTopic("t"))
	n := int64(100)
	eventually(t, "something is merged", func() bool {
		select {
		case err := <-b.ended:
			b.ended <- err
			t.Fatalf("the agent ended: %v", err)
		default:
		}
		p.Produce(t.Context(), kgo.StringRecord("x"), nil)
		n++
		return w.merged(t, "t") > 100
	})
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.kill()
	c := w.launch(t, dir, -1, eager)
	c.await(t)
	ends, err := kadm.NewClient(client(t, c.running)).ListEndOffsets(t.Context(), "t")
	if end, _ := ends.Lookup("t", 0); err != nil || end.Offset != n {
		t.Errorf("the log ends at %d (%v), want %d", end.Offset, err, n)
	}
}

// TestDeletedAfterDelete has a topic deleted whose records were deleted beyond what is merged, and the leader killed before it writes another manifest: the next one leads the shard all the same.
func TestDeletedAfterDelete(t *testing.T) {
	w := newWorld(t)
	one := func(c *agent.Config) { c.Flush.AgeMax, c.Shards = time.Hour, 1 }
	a := w.launch(t, w.dir, -1, one)
	a.await(t)
	produce(t, a.running, "t", 0, 100)
	var at kadm.Offsets
	at.Add(kadm.Offset{Topic: "t", At: 100})
	cl := kadm.NewClient(client(t, a.running))
	if answers, err := cl.DeleteRecords(t.Context(), at); err != nil || answers.Error() != nil {
		t.Fatal(err, answers.Error())
	}
	if _, err := cl.DeleteTopics(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	a.kill()
	b := w.launch(t, w.dir, -1, one)
	b.await(t)
	produce(t, b.running, "u", 0, 10)
}

// TestDamagedLog damages entries that were durable: recovery says so and refuses; with the operator's word the log ends before the damage.
func TestDamagedLog(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, nil)
	a.await(t)
	for from := 0; from < 60; from += 10 {
		produce(t, a.running, "t", from, from+10)
	}
	a.kill()
	damage(t, w.dir)
	refused := w.launch(t, w.dir, -1, nil)
	err := <-refused.ended
	refused.ended <- err
	if err == nil {
		t.Fatal("an agent started on a damaged log")
	}
	c := w.launch(t, w.dir, -1, func(c *agent.Config) { c.AcceptLoss = 1 })
	c.await(t)
	consume(t, c.running, "t", 20)
}

// damage flips a bit in the third frame of the only WAL file that has any, which later frames prove to have been durable.
func damage(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		const block = 4 << 10
		frames := 0
		for at := block; at+block <= len(b); at += block {
			if b[at] == 0 {
				break
			}
			if frames++; frames == 3 {
				b[at+200] ^= 1
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
	}
	t.Fatal("no WAL file with three frames")
}

// TestForeignDisk holds that a disk stays with its cluster: another one numbers its logs alike.
func TestForeignDisk(t *testing.T) {
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, nil)
	a.await(t)
	produce(t, a.running, "t", 0, 10)
	a.kill()
	other := &world{kv: mem.New(mem.Config{ClusterID: 2, Start: time.Now()}), store: objects.New(), dir: w.dir}
	b := other.launch(t, w.dir, -1, nil)
	err := <-b.ended
	b.ended <- err
	if !errors.Is(err, disk.ErrForeign) {
		t.Fatalf("on the disk of another cluster the agent ended with %v", err)
	}
	c := w.launch(t, w.dir, -1, nil)
	c.await(t)
	consume(t, c.running, "t", 10)
}

func TestBind(t *testing.T) {
	dir := t.TempDir()
	one, two := uuid.UUID{1}, uuid.UUID{2}
	for _, step := range []struct {
		cluster uuid.UUID
		want    error
	}{{one, nil}, {one, nil}, {two, disk.ErrForeign}, {one, nil}} {
		d, err := disk.Open(disk.Config{Dir: dir, FileBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Bind(step.cluster); !errors.Is(err, step.want) {
			t.Errorf("bind to %s: %v, want %v", step.cluster, err, step.want)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
