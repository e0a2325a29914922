package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/cost"
	"github.com/varve-io/varve/agent/fsck"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/etcd"
)

// TestOperators makes a cluster with something of every kind, prints all of it, checks it, and damages it in each way that fsck claims to find.
func TestOperators(t *testing.T) {
	var l lake
	l.fill(t, func(wal string) {
		l.inspectWAL(t, wal)
		l.cost(t)
	})
	if status, r := l.fsck(t, l.objects, "--deep"); status != 0 || !r.Clean || len(r.Problems) > 0 || objectsOf(r, "segments of commits") < 2 {
		t.Fatalf("exit status %d, report %+v, want all to be well, and two commits", status, r)
	}
	t.Run("inspect", l.inspect)
	t.Run("fsck", func(t *testing.T) {
		for _, c := range l.damages(t) {
			t.Run(c.name, func(t *testing.T) { l.damage(t, &c) })
		}
		l.orphans(t)
		l.keys(t) // changes etcd
	})
}

// inspectWAL prints the files of a WAL that is written to.
func (l *lake) inspectWAL(t *testing.T, folder string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatalf("WAL files %v, %v", files, err)
	}
	entries := 0
	for _, f := range files {
		status, stdout, stderr := varve(t, "inspect", f, "--batches", "--json")
		if status != 0 {
			t.Errorf("inspect %s: exit status %d, %s", f, status, stderr)
		}
		entries += strings.Count(stdout, `{"entry":`)
	}
	if entries == 0 {
		t.Error("no entry in any file of the WAL")
	}
}

// cost waits until the agent has told what it asked of the bucket, and compares that with what is there.
func (l *lake) cost(t *testing.T) {
	t.Helper()
	var r cost.Report
	until(t, "the agent has told its figures", func() bool {
		status, stdout, stderr := varve(t, l.with("cost", "--json")...)
		if err := json.Unmarshal([]byte(stdout), &r); err != nil || status != 0 {
			t.Fatalf("cost: exit status %d, printed %q, said %q: %v", status, stdout, stderr, err)
		}
		return len(r.Agents) == 1 && r.Agents[0].Told && r.Total.Requests.Put > 0 && r.Total.Produced > 0
	})
	stored := slices.IndexFunc(r.Topics, func(of cost.Topic) bool { return of.Name == "lake" })
	if total := r.Total; stored < 0 || r.Topics[stored].Stored == 0 || r.Topics[stored].Requests.Put == 0 || total.PutBytes == 0 || total.Requests.Get == 0 || total.Stored == 0 || total.Month != nil {
		t.Errorf("cost %+v", r)
	}
	prices := filepath.Join(t.TempDir(), "prices.yaml")
	text := "{currency: EUR, source: a test, stored-gib-month: 1, put-1000: 1, get-1000: 1, head-1000: 1, list-1000: 1, delete-1000: 1, put-gib: 1, get-gib: 1}"
	if err := os.WriteFile(prices, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, stdout, stderr := varve(t, l.with("cost", "--prices", prices)...); status != 0 || !strings.Contains(stdout, "EUR/MONTH") || !strings.Contains(stdout, "lake") {
		t.Errorf("cost with prices: exit status %d, printed\n%s%s", status, stdout, stderr)
	}
}

// inspect prints everything.
func (l *lake) inspect(t *testing.T) {
	for prefix, want := range map[string][]string{
		"segments/": {`{"segment":`, `"level":0`, `"topic":"lake"`, `{"batch":`}, "merged/": {`{"segment":`, `"level":1`, `{"batch":`}, "manifests/": {`{"manifest":`, `{"extent":`},
	} {
		names := named(t, l.objects, prefix)
		if len(names) == 0 {
			t.Errorf("no object below %s", prefix)
		}
		all := ""
		for _, name := range names {
			status, stdout, stderr := varve(t, "inspect", "--bucket", "file://"+l.objects, name, "--batches", "--verify", "--json")
			if status != 0 || stderr != "" {
				t.Errorf("inspect %s: exit status %d, %s", name, status, stderr)
			}
			asFile, file, _ := varve(t, "inspect", filepath.Join(l.objects, name), "--batches", "--verify", "--json")
			if asFile != status || file != stdout {
				t.Errorf("inspect of the file %s: exit status %d, and not what it prints of the object", name, asFile)
			}
			all += stdout
		}
		checkLines(t, all)
		for _, w := range want {
			if !strings.Contains(all, w) {
				t.Errorf("nothing below %s has %s", prefix, w)
			}
		}
	}
	name := l.of(t, "lake", "segments/")
	if status, stdout, _ := varve(t, "inspect", "--bucket", "file://"+l.objects, name, "--records", "lake/0"); status != 0 || !strings.Contains(stdout, line(3000)) && !strings.Contains(stdout, line(3500)) {
		t.Errorf("records of %s: exit status %d, printed %.2000s", name, status, stdout)
	}
	status, stdout, stderr := varve(t, "inspect", "--etcd", l.etcd, "--cluster", l.name, "--json")
	if status != 0 || stderr != "" {
		t.Errorf("inspect of all keys: exit status %d, %s", status, stderr)
	}
	checkLines(t, stdout)
	for _, key := range []string{"meta/cluster", "meta/topics/lake", "meta/shards/", "meta/commits/", "logs/", "writes/", "groups/readers", "offsets/readers/lake/", "txns/", "stores/", "next/log"} {
		if !strings.Contains(stdout, `"key":"`+key) {
			t.Errorf("no key %s", key)
		}
	}
	if status, stdout, _ := varve(t, "inspect", "--etcd", l.etcd, "--cluster", l.name, "meta/commits/"); status != 0 || !strings.Contains(stdout, "segments/") {
		t.Errorf("inspect of commits: exit status %d, printed\n%s", status, stdout)
	}
	for _, args := range [][]string{{"--bucket", "file://" + l.objects, "segments/00/none"}, {"--etcd", l.etcd, "--cluster", l.name, "meta/none"}} {
		if status, stdout, stderr := varve(t, append([]string{"inspect"}, args...)...); status != 1 || stdout != "" || !strings.HasPrefix(stderr, "varve: inspect: ") {
			t.Errorf("inspect %v, which is not there: exit status %d, printed %q, said %q", args, status, stdout, stderr)
		}
	}
}

func checkLines(t *testing.T, text string) {
	t.Helper()
	for l := range strings.Lines(text) {
		if !json.Valid([]byte(l)) {
			t.Fatalf("no JSON: %s", l)
		}
	}
}

// of returns an object below a prefix that has batches of a topic.
func (l *lake) of(t *testing.T, topic, prefix string) string {
	t.Helper()
	for _, name := range named(t, l.objects, prefix) {
		if b, err := os.ReadFile(filepath.Join(l.objects, name)); err == nil && bytes.Contains(b, []byte(topic)) {
			return name
		}
	}
	t.Fatalf("nothing below %s is of %s", prefix, topic)
	return ""
}

// damaged is one thing that is done to a copy of the bucket, and what fsck and inspect say of it.
type damaged struct {
	name     string
	object   string
	edit     func(b []byte) []byte // nil removes the object
	args     []string              // of fsck
	kind     fsck.Kind             // of what it reports of the object; empty for nothing
	inspects bool                  // inspect --verify finds it
}

// flip damages a byte, from the end if at is negative.
func flip(at int) func(b []byte) []byte {
	return func(b []byte) []byte {
		i := at
		if i < 0 {
			i += len(b)
		}
		b[i] ^= 1
		return b
	}
}

func (l *lake) damages(t *testing.T) (all []damaged) {
	t.Helper()
	deep := []string{"--deep"}
	for _, prefix := range []string{"segments/", "merged/"} {
		name := l.of(t, "lake", prefix)
		all = append(all,
			damaged{prefix + " removed", name, nil, nil, fsck.Missing, false},
			damaged{prefix + " cut", name, func(b []byte) []byte { return b[:len(b)-1] }, nil, fsck.Damaged, true},
			damaged{prefix + " trailer", name, flip(-1), nil, fsck.Damaged, true},
			damaged{prefix + " footer", name, flip(-60), nil, fsck.Damaged, true},
			damaged{prefix + " section", name, flip(150), nil, "", true}, // which takes --deep
			damaged{prefix + " section, deep", name, flip(150), deep, fsck.Damaged, true},
		)
	}
	name := l.of(t, "lake", "manifests/")
	return append(all, damaged{"manifest removed", name, nil, nil, fsck.Missing, false}, damaged{"manifest changed", name, flip(60), nil, fsck.Damaged, true})
}

// damage damages a copy of the bucket and wants what there is to say of it, and that repairing deletes nothing.
func (l *lake) damage(t *testing.T, d *damaged) {
	objects := l.copied(t)
	file := filepath.Join(objects, d.object)
	if d.edit == nil {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	} else {
		rewrite(t, file, d.edit)
	}
	before := named(t, objects, "")
	for _, args := range [][]string{d.args, append(slices.Clone(d.args), "--repair")} {
		status, r := l.fsck(t, objects, args...)
		if d.kind == "" {
			if status != 0 || !r.Clean {
				t.Errorf("fsck %v: exit status %d, problems %+v, want none", args, status, r.Problems)
			}
			continue
		}
		if status != 1 || r.Clean || !slices.ContainsFunc(r.Problems, func(p fsck.Problem) bool { return p.Kind == d.kind && p.Subject == d.object && !p.Repaired }) {
			t.Errorf("fsck %v: exit status %d, problems %+v, want 1 and %s of %s", args, status, r.Problems, d.kind, d.object)
		}
	}
	if after := named(t, objects, ""); !slices.Equal(after, before) {
		t.Errorf("fsck left %v of %v", after, before)
	}
	wanted := 0
	if d.inspects || d.edit == nil {
		wanted = 1
	}
	if status, _, stderr := varve(t, "inspect", "--bucket", "file://"+objects, d.object, "--verify"); status != wanted {
		t.Errorf("inspect --verify: exit status %d, want %d: %s", status, wanted, stderr)
	}
}

func rewrite(t *testing.T, file string, edit func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = errors.Join(os.Remove(file), os.WriteFile(file, edit(b), 0o600)) // perhaps it may not be written to
	}
	if err != nil {
		t.Fatal(err)
	}
}

// orphans leaves behind what nothing refers to, and wants it to be told once it is old, and deleted if that is asked for and nothing else is wrong.
func (l *lake) orphans(t *testing.T) {
	t.Helper()
	objects := l.copied(t)
	merged := l.of(t, "lake", "merged/")
	orphan := filepath.Join(filepath.Dir(merged), "00000000-0000000000000001") // of a leader before the first
	stranger := "notes.txt"
	file := filepath.Join(objects, orphan)
	if err := os.WriteFile(file, []byte("left behind"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, r := l.fsck(t, objects); status != 0 || objectsOf(r, "garbage") != 1 {
		t.Errorf("fresh garbage: exit status %d, %+v, want 0, and one that is garbage", status, r)
	}
	day := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(file, day, day); err != nil {
		t.Fatal(err)
	}
	if status, r := l.fsck(t, objects, "--repair", "--grace", "48h"); status != 0 || objectsOf(r, "garbage") != 1 {
		t.Errorf("garbage within the grace: exit status %d, %+v", status, r)
	}
	one := func(r fsck.Report, repaired bool) bool {
		return len(r.Problems) == 1 && r.Problems[0].Kind == fsck.Orphan && r.Problems[0].Subject == orphan && r.Problems[0].Repaired == repaired
	}
	if status, r := l.fsck(t, objects); status != 1 || !one(r, false) {
		t.Errorf("an orphan: exit status %d, problems %+v", status, r.Problems)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("an orphan that nobody wished to be deleted: %v", err)
	}
	if status, r := l.fsck(t, objects, "--repair"); status != 0 || !one(r, true) {
		t.Errorf("an orphan to be deleted: exit status %d, problems %+v", status, r.Problems)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an orphan that was to be deleted: %v", err)
	}
	if status, r := l.fsck(t, objects); status != 0 {
		t.Errorf("after the repair: exit status %d, problems %+v", status, r.Problems)
	}
	if err := os.WriteFile(filepath.Join(objects, stranger), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, r := l.fsck(t, objects, "--repair"); status != 1 || len(r.Problems) != 1 || r.Problems[0].Kind != fsck.Unknown || r.Problems[0].Subject != stranger {
		t.Errorf("a stranger: exit status %d, problems %+v", status, r.Problems)
	}
	if _, err := os.Stat(filepath.Join(objects, stranger)); err != nil {
		t.Errorf("a stranger was not left alone: %v", err)
	}
}

// keys damages etcd: a key that cannot be read, and then a commit that is gone.
func (l *lake) keys(t *testing.T) {
	t.Helper()
	kv, err := etcd.New(etcd.Config{Endpoints: []string{l.etcd}, Prefix: "/varve/" + l.name + "/"})
	if err != nil {
		t.Fatal(err)
	}
	defer kv.Close()
	do := func(op coordinator.Op) {
		t.Helper()
		if _, err := kv.Txn(within(t), nil, []coordinator.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
	bad := coordinator.KeyTopic("bad")
	do(coordinator.Op{Key: bad, Value: []byte("{")})
	if status, r := l.fsck(t, l.objects, "--repair"); status != 1 || len(r.Problems) != 1 || r.Problems[0].Kind != fsck.BadKey || r.Problems[0].Subject != bad {
		t.Errorf("a key that is no JSON: exit status %d, problems %+v", status, r.Problems)
	}
	if status, _, _ := varve(t, "inspect", "--etcd", l.etcd, "--cluster", l.name, bad); status != 1 {
		t.Errorf("inspect of a key that is no JSON: exit status %d, want 1", status)
	}
	do(coordinator.Op{Key: bad, Delete: true})

	commits, _, err := kv.List(within(t), coordinator.PrefixCommits, 0)
	if err != nil || len(commits) < 2 {
		t.Fatalf("%d commits, %v, want two", len(commits), err)
	}
	do(coordinator.Op{Key: commits[0].Key, Delete: true})
	status, r := l.fsck(t, l.objects, "--repair")
	if status != 1 || !slices.ContainsFunc(r.Problems, func(p fsck.Problem) bool { return p.Kind == fsck.Gap && p.Subject == "lake/0" }) {
		t.Errorf("a commit that is gone: exit status %d, problems %+v, want a gap of lake/0", status, r.Problems)
	}
	for _, args := range [][]string{
		{"fsck", "--etcd", l.etcd, "--cluster", "other", "--bucket", "file://" + l.objects}, {"cost", "--etcd", l.etcd, "--cluster", "other", "--bucket", "file://" + l.objects},
	} {
		want := map[string]int{"fsck": 2, "cost": 1}[args[0]]
		if status, stdout, stderr := varve(t, args...); status != want || stdout != "" || !strings.Contains(stderr, "no agent has ever created this cluster") {
			t.Errorf("%s of no cluster: exit status %d, want %d; printed %q, said %q", args[0], status, want, stdout, stderr)
		}
	}
}
