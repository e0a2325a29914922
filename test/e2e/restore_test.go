package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
	"github.com/varve-io/varve/test/servers"
)

// begin starts three agents on data folders, which may be new, and waits until they are ready.
func (c *trio) begin(t *testing.T, folders []string) {
	t.Helper()
	c.agents = nil
	for i, zone := range []string{"a", "b", "c"} {
		c.agents = append(c.agents, c.agent(t, i, zone, folders[i]))
	}
	for _, p := range c.agents {
		p.ready(t)
	}
}

func (c *trio) agent(t *testing.T, i int, zone, data string) *process {
	t.Helper()
	return start(t, nil, "agent", "--etcd", c.etcd, "--bucket", c.bucket, "--cluster", c.name, "--zone", zone,
		"--listen", c.kafka[i], "--peer-listen", c.peers[i], "--http", c.http[i], "--data", data)
}

// kill ends all agents at once, as a crash would.
func (c *trio) kill(t *testing.T) {
	t.Helper()
	for _, p := range c.agents {
		p.signal(t, syscall.SIGKILL)
	}
	for _, p := range c.agents {
		p.status(t)
	}
}

// copied begins the agents anew, and so a controller, who copies etcd to the bucket, and waits for a copy that has the WAL logs of them all.
func (c *trio) copied(t *testing.T, folders []string) {
	t.Helper()
	store, err := bucket.Open(t.Context(), c.bucket)
	if err != nil {
		t.Fatal(err)
	}
	newest := func() (last rebuild.Copy) {
		all, err := rebuild.Copies(t.Context(), store)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(all); n > 0 {
			last = all[n-1]
		}
		return last
	}
	c.drain(t)
	before := newest().ID.Number
	c.begin(t, folders)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if last := newest(); last.ID.Number > before && openLogs(t, store, last) == len(c.agents) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no copy of etcd in the bucket that has the logs of all agents after %v", patience)
		}
	}
}

// openLogs counts the WAL logs that are open as a copy has them.
func openLogs(t *testing.T, store objectstore.Store, last rebuild.Copy) (n int) {
	t.Helper()
	for _, page := range last.Pages {
		b := make([]byte, page.Size)
		if err := store.Get(t.Context(), page.Name, 0, b); err != nil {
			t.Fatal(err)
		}
		parsed, err := backup.Parse(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range parsed.Items {
			if !strings.HasPrefix(it.Key, coordinator.PrefixLogs) || it.Key == coordinator.KeyPastLog {
				continue
			}
			log, err := coordinator.Decode[coordinator.Log](coordinator.Item{Key: it.Key, Value: it.Value})
			if err != nil {
				t.Fatal(err)
			}
			if !log.Closed {
				n++
			}
		}
	}
	return n
}

// refused wants an agent to end because of etcd.
func (c *trio) refused(t *testing.T, data, why string) {
	t.Helper()
	p := c.agent(t, 0, "a", data)
	if status := p.status(t); status != 1 || !strings.Contains(p.stderr.String(), why) {
		t.Fatalf("an agent ended with status %d and %q, want 1 and %q", status, p.stderr, why)
	}
}

// run runs a command on the cluster, and wants it to end with that status.
func (c *trio) run(t *testing.T, want int, args ...string) {
	t.Helper()
	p := start(t, nil, append(args, "--etcd", c.etcd, "--bucket", c.bucket, "--cluster", c.name)...)
	if status := p.status(t); status != want {
		t.Fatalf("varve %v: exit status %d, want %d:\n%s%s", args, status, want, p.stdout, p.stderr)
	}
}

// folders are new data folders.
func folders(t *testing.T) (all []string) {
	t.Helper()
	for range 3 {
		all = append(all, filepath.Join(t.TempDir(), "data"))
	}
	return all
}

// copyFolder copies the files of a server that has ended.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// TestRestore loses etcd and every disk, and then has etcd set back while the disks are there.
func TestRestore(t *testing.T) {
	data := t.TempDir()
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	c := trio{cluster: cluster{etcd: "http://" + etcd.Address, bucket: "file://" + t.TempDir(), name: "lost"}}
	for range 3 {
		c.kafka, c.peers, c.http = append(c.kafka, freeAddress(t)), append(c.peers, freeAddress(t)), append(c.http, freeAddress(t))
	}
	disks := folders(t)
	c.begin(t, disks)
	createTopic(t, c.kafka[0], "lake", spread)
	createTopic(t, c.kafka[0], "raw", 1)
	w := newSpreader(t, c.kafka)
	w.produce(t, 600)
	w.flush(t)
	readers := c.reader(t)
	take(t, readers, 600)
	if err := readers.CommitUncommittedOffsets(within(t)); err != nil {
		t.Fatal(err)
	}
	readers.Close()
	raw := newRawProducer(t, c.kafka[0])
	raw.want(t, 0, 0)
	c.copied(t, disks)
	raw.client = connect(t, c.kafka[0]) // its connections have ended
	w.produce(t, 600)                   // after the copy
	w.flush(t)
	raw.want(t, 3, 3)
	c.drain(t)

	etcd.Kill()
	etcd = servers.Etcd(t, servers.EtcdOptions{Data: data})
	c.etcd = "http://" + etcd.Address
	disks = folders(t)
	c.refused(t, disks[0], "etcd has lost the cluster")
	c.run(t, 0, "restore", "--disks-lost")
	c.run(t, 0, "fsck", "--deep")
	c.run(t, 1, "restore", "--disks-lost") // there is nothing to restore
	c.begin(t, disks)
	raw.client = connect(t, c.kafka[0])
	w.produce(t, 600)
	w.flush(t)
	raw.want(t, 3, 3) // it is there
	raw.want(t, 6, 6)
	c.complete(t, 1800)
	for partition, n := range take(t, c.reader(t), 1200) {
		if n != 1200/spread {
			t.Errorf("a member of the group reads %d records of partition %d after what was committed, want %d", n, partition, 1200/spread)
		}
	}

	// Yesterday's etcd.
	c.drain(t)
	etcd.Kill()
	yesterday := filepath.Join(t.TempDir(), "yesterday")
	copyFolder(t, data, yesterday)
	var err error
	if etcd, err = etcd.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.begin(t, disks)
	c.copied(t, disks)
	raw.client = connect(t, c.kafka[0]) // its connections have ended
	w.produce(t, 600)
	w.flush(t)
	raw.want(t, 9, 9)
	c.kill(t) // with records that are on the agents' disks alone
	etcd.Kill()
	copyFolder(t, yesterday, data)
	if etcd, err = etcd.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Kill)
	c.refused(t, disks[0], "etcd was set back to an earlier state")
	c.run(t, 1, "restore")
	c.run(t, 0, "restore", "--repair")
	c.run(t, 0, "fsck")
	c.begin(t, disks)
	raw.client = connect(t, c.kafka[0])
	w.produce(t, 600)
	w.flush(t)
	raw.want(t, 9, 9)
	raw.want(t, 12, 12)
	c.complete(t, 3000)
	c.run(t, 0, "fsck", "--deep")
	c.drain(t)
}

// TestRestoreFromMinIO loses etcd alone, at the same moment as all agents end: what was flushed comes back from a bucket in MinIO, and what was not from the agents' disks.
func TestRestoreFromMinIO(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", servers.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", servers.SecretKey)
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	minio := servers.MinIO(t, servers.StoreOptions{Buckets: []string{"lake"}})
	c := trio{cluster: cluster{etcd: "http://" + etcd.Address, bucket: "minio://" + minio.Address + "/lake/varve?secure=false", name: "minio"}}
	for range 3 {
		c.kafka, c.peers, c.http = append(c.kafka, freeAddress(t)), append(c.peers, freeAddress(t)), append(c.http, freeAddress(t))
	}
	disks := folders(t)
	c.begin(t, disks)
	createTopic(t, c.kafka[0], "lake", spread)
	w := newSpreader(t, c.kafka)
	w.produce(t, 600)
	w.flush(t)
	c.copied(t, disks)
	w.produce(t, 600) // after the copy
	w.flush(t)
	c.kill(t)
	etcd.Kill()

	c.etcd = "http://" + servers.Etcd(t, servers.EtcdOptions{}).Address
	c.refused(t, disks[0], "etcd has lost the cluster")
	c.run(t, 0, "restore")
	c.run(t, 0, "fsck", "--deep")
	c.begin(t, disks)
	w.produce(t, 600)
	w.flush(t)
	c.complete(t, 1800)
	c.run(t, 0, "fsck", "--deep")
	c.drain(t)
}

// complete wants all n records of the lake, each once and in order.
func (c *trio) complete(t *testing.T, n int) {
	t.Helper()
	all := connect(t, c.kafka[1], kgo.ConsumeTopics("lake"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for partition, got := range take(t, all, n) {
		if got != n/spread {
			t.Errorf("partition %d has %d records, want %d", partition, got, n/spread)
		}
	}
	ends, err := kadm.NewClient(all).ListEndOffsets(within(t), "lake")
	if err != nil {
		t.Fatal(err)
	}
	for partition, end := range ends["lake"] {
		if end.Offset != int64(n/spread) {
			t.Errorf("partition %d ends at %d, want %d", partition, end.Offset, n/spread)
		}
	}
}
