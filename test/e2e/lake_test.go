package e2e_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent/fsck"
	"github.com/varve-io/varve/test/servers"
)

// varve runs a command to its end.
func varve(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	binary, err := servers.BuildVarve()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(within(t), binary, args...)
	cmd.Dir = t.TempDir()
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() < 0 {
		t.Fatalf("varve %s: %v; it printed %q and said %q", strings.Join(args, " "), err, &out, &said)
	}
	return cmd.ProcessState.ExitCode(), out.String(), said.String()
}

// until repeats a look until it finds what it looks for.
func until(t *testing.T, what string, look func() bool) {
	t.Helper()
	ctx := within(t)
	for !look() {
		select {
		case <-ctx.Done():
			t.Fatalf("it does not come to this: %s", what)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// lake is a cluster with something of every kind in etcd and in its bucket, which is a folder.
type lake struct {
	cluster
	objects string
}

// with gives a command's arguments that say where the cluster is.
func (l *lake) with(command string, args ...string) []string {
	return append([]string{command, "--etcd", l.etcd, "--cluster", l.name, "--bucket", "file://" + l.objects}, args...)
}

// fsck runs fsck with a bucket that may be a copy.
func (l *lake) fsck(t *testing.T, objects string, args ...string) (status int, r fsck.Report) {
	t.Helper()
	of := lake{cluster: l.cluster, objects: objects}
	status, stdout, stderr := varve(t, of.with("fsck", append(args, "--json")...)...)
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatalf("fsck ended with status %d, printed %q and said %q: %v", status, stdout, stderr, err)
	}
	return status, r
}

// objectsOf counts the objects of a kind.
func objectsOf(r fsck.Report, kind string) int {
	for _, c := range r.Objects {
		if c.Kind == kind {
			return c.Count
		}
	}
	return -1
}

// agent starts an agent alone.
func (l *lake) agent(t *testing.T, data string, args ...string) (p *process, kafka string) {
	t.Helper()
	kafka = freeAddress(t)
	p = start(t, nil, append(l.with("agent", "--wal-copies", "1", "--listen", kafka, "--http", freeAddress(t), "--data", data), args...)...)
	p.ready(t)
	return p, kafka
}

// end drains an agent.
func (p *process) end(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != 0 {
		t.Fatalf("exit status %d after SIGTERM, want 0", status)
	}
}

// fill writes topics, has them merged, deletes by every way there is, and then writes what stays in two commits. running is called, with the WAL's folder, while the agent still runs.
func (l *lake) fill(t *testing.T, running func(wal string)) {
	t.Helper()
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	folder := t.TempDir()
	l.etcd, l.name, l.objects = "http://"+etcd.Address, "lake", filepath.Join(folder, "objects")
	data := filepath.Join(folder, "data")
	p, kafka := l.agent(t, data, "--merge-after", "1s", "--garbage-grace", "1s", "--retention-check", "1s")
	admin := kadm.NewClient(connect(t, kafka))
	if _, err := admin.CreateTopic(within(t), 1, 1, map[string]*string{"retention.ms": new("1000")}, "brief"); err != nil {
		t.Fatal(err)
	}
	for topic, n := range map[string]int64{"lake": 3000, "brief": 100, "gone": 100} {
		produce(t, kafka, topic, 0, n, line)
	}
	l.pay(t, kafka)
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "lake", Partition: 0, At: 42, LeaderEpoch: -1})
	if err := admin.CommitAllOffsets(within(t), "readers", offsets); err != nil {
		t.Fatal(err)
	}
	starts := func(topic string) int64 {
		all, err := admin.ListStartOffsets(within(t), topic)
		if err != nil {
			t.Fatal(err)
		}
		at, _ := all.Lookup(topic, 0)
		return at.Offset
	}
	until(t, "retention deletes what is older than a second", func() bool { return starts("brief") == 100 })
	up := kadm.Offsets{}
	up.Add(kadm.Offset{Topic: "lake", Partition: 0, At: 500})
	if answers, err := admin.DeleteRecords(within(t), up); err != nil || answers.Error() != nil || starts("lake") != 500 {
		t.Fatalf("delete records: %v, %v; the log starts at %d", err, answers.Error(), starts("lake"))
	}
	if answers, err := admin.DeleteTopics(within(t), "gone"); err != nil || answers.Error() != nil {
		t.Fatalf("delete a topic: %v, %v", err, answers.Error())
	}
	until(t, "all is merged, and garbage deleted", func() bool {
		status, r := l.fsck(t, l.objects)
		return status == 0 && objectsOf(r, "segments of commits") == 0 && objectsOf(r, "garbage") == 0 && objectsOf(r, "under way") == 0 && objectsOf(r, "merged segments") > 0
	})
	p.end(t)

	p, kafka = l.agent(t, data)
	produce(t, kafka, "lake", 3000, 500, line)
	until(t, "a commit", func() bool {
		_, r := l.fsck(t, l.objects)
		return objectsOf(r, "segments of commits") > 0
	})
	produce(t, kafka, "lake", 3500, 500, line)
	running(filepath.Join(data, "wal"))
	p.end(t)
}

// pay writes a transaction.
func (l *lake) pay(t *testing.T, kafka string) {
	t.Helper()
	client := connect(t, kafka, kgo.TransactionalID("payer"), kgo.DefaultProduceTopic("paid"), kgo.AllowAutoTopicCreation())
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(within(t), kgo.StringRecord("paid")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := client.EndTransaction(within(t), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
}

// named returns the objects whose names begin with a prefix, in order.
func named(t *testing.T, objects, prefix string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(objects, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(objects, path)
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// copied returns a copy of the bucket.
func (l *lake) copied(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "objects")
	if err := os.CopyFS(to, os.DirFS(l.objects)); err != nil {
		t.Fatal(err)
	}
	return to
}
