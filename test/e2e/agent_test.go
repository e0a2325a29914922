package e2e_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/test/servers"
)

// credentials open the object stores that package servers starts.
var credentials = []string{"AWS_ACCESS_KEY_ID=" + servers.AccessKey, "AWS_SECRET_ACCESS_KEY=" + servers.SecretKey}

// cluster is what the agents of a test share.
type cluster struct {
	etcd, bucket, name string
}

// start starts an agent on free ports, and does not wait.
func (c cluster) start(t *testing.T, data string) (p *process, kafka, http string) {
	t.Helper()
	kafka, http = freeAddress(t), freeAddress(t)
	return start(t, credentials, "agent", "--wal-copies", "1", "--etcd", c.etcd, "--bucket", c.bucket, "--cluster", c.name,
		"--listen", kafka, "--http", http, "--data", data), kafka, http
}

// TestBuckets runs an agent with an etcd of its own process and each kind of bucket: records survive a crash and then a
// restart, after which the bucket alone has them.
func TestBuckets(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	tests := []struct {
		name   string
		bucket func(t *testing.T) string
	}{
		{"file", func(t *testing.T) string { t.Helper(); return "file://" + filepath.Join(t.TempDir(), "objects") }},
		{"minio", func(t *testing.T) string {
			t.Helper()
			return "minio://" + servers.MinIO(t, servers.StoreOptions{Buckets: []string{"lake"}}).Address + "/lake/varve?secure=false"
		}},
		{"s3-minio", func(t *testing.T) string {
			t.Helper()
			return "s3://lake?region=us-east-1&endpoint=http://" + servers.MinIO(t, servers.StoreOptions{Buckets: []string{"lake"}}).Address
		}},
		{"s3-versitygw", func(t *testing.T) string {
			t.Helper()
			return "s3://lake/varve?region=us-east-1&endpoint=http://" + servers.Versitygw(t, servers.StoreOptions{Buckets: []string{"lake"}}).Address
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := cluster{etcd: "http://" + etcd.Address, bucket: test.bucket(t), name: test.name}
			data := t.TempDir()
			p, kafka, _ := c.start(t, data)
			p.ready(t)
			produce(t, kafka, "lake", 0, 3000, line)
			p.signal(t, syscall.SIGKILL)
			p.status(t)

			p, kafka, _ = c.start(t, data)
			p.ready(t)
			consume(t, kafka, "lake", 3000, line)
			produce(t, kafka, "lake", 3000, 3000, line)
			p.signal(t, syscall.SIGTERM)
			if status := p.status(t); status != 0 {
				t.Fatalf("exit status %d after SIGTERM, want 0", status)
			}

			// An agent that drained has nothing left but its bucket.
			p, kafka, _ = c.start(t, t.TempDir())
			p.ready(t)
			consume(t, kafka, "lake", 6000, line)
		})
	}
}

// TestSources sets the same agent up by its file, with one value from the environment and one from a flag.
func TestSources(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	kafka := freeAddress(t)
	file := filepath.Join(t.TempDir(), "varve.yaml")
	text := "etcd: [http://" + etcd.Address + "]\nbucket: file://" + t.TempDir() + "\nlisten: 127.0.0.1:0\nhttp: 127.0.0.1:0\n" +
		"zone: of-file\npartitions: 3\nwal-copies: 1\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, []string{"VARVE_CONFIG=" + file, "VARVE_ZONE=of-env", "VARVE_LISTEN=127.0.0.1:1"}, "agent", "--listen", kafka)
	p.ready(t)
	produce(t, kafka, "lake", 0, 1, line)
	metadata, err := kadm.NewClient(connect(t, kafka)).Metadata(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if rack := metadata.Brokers[0].Rack; rack == nil || *rack != "of-env" {
		t.Errorf("rack %v, want of-env", rack)
	}
	if n := len(metadata.Topics["lake"].Partitions); n != 3 {
		t.Errorf("a topic created on demand has %d partitions, want 3", n)
	}
}

// TestWaitsForEtcd starts an agent before its etcd: a client that connects meanwhile is answered once the agent is ready.
func TestWaitsForEtcd(t *testing.T) {
	address := freeAddress(t)
	c := cluster{etcd: "http://" + address, bucket: "file://" + t.TempDir(), name: "late"}
	p, kafka, http := c.start(t, t.TempDir())
	p.await(t, p.stderr, `level=WARN msg="waiting for etcd"`)
	if status, _ := get(t, "http://"+http+"/readyz"); status != 503 {
		t.Errorf("GET /readyz while waiting: status %d, want 503", status)
	}
	early, err := new(net.Dialer).DialContext(t.Context(), "tcp", kafka)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = early.Close() })
	request := kmsg.NewPtrApiVersionsRequest()
	if _, err := early.Write(kmsg.NewRequestFormatter().AppendRequest(nil, request, 7)); err != nil {
		t.Fatal(err)
	}
	servers.Etcd(t, servers.EtcdOptions{Listen: address})
	p.ready(t)
	if err := early.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 10) // size, correlation id, error code
	if _, err := io.ReadFull(early, answer); err != nil || [6]byte(answer[4:]) != [6]byte{3: 7} {
		t.Errorf("answer to ApiVersions % x, %v", answer, err)
	}
	produce(t, kafka, "lake", 0, 10, line)
}

// TestWaitsForBucket starts an agent before its object store, and before its bucket.
func TestWaitsForBucket(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	address := freeAddress(t)
	c := cluster{etcd: "http://" + etcd.Address, bucket: "s3://lake?region=us-east-1&endpoint=http://" + address, name: "late"}
	p, kafka, _ := c.start(t, t.TempDir())
	p.await(t, p.stderr, `level=WARN msg="waiting for the bucket".*connection refused`)
	data := filepath.Join(t.TempDir(), "versitygw")
	store := servers.Versitygw(t, servers.StoreOptions{Listen: address, Data: data})
	p.await(t, p.stderr, `level=WARN msg="waiting for the bucket".*NoSuchBucket`)
	store.Kill()
	servers.Versitygw(t, servers.StoreOptions{Listen: address, Data: data, Buckets: []string{"lake"}})
	p.ready(t)
	produce(t, kafka, "lake", 0, 10, line)
}

// TestEndsWhileWaiting: an agent that waits for its neighbours ends as well as any.
func TestEndsWhileWaiting(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	nowhere := "http://" + freeAddress(t)
	for what, c := range map[string]cluster{
		"etcd":       {etcd: nowhere, bucket: "file://" + t.TempDir(), name: "x"},
		"the bucket": {etcd: "http://" + etcd.Address, bucket: "s3://lake?region=us-east-1&endpoint=" + nowhere, name: "x"},
	} {
		p, _, _ := c.start(t, t.TempDir())
		p.await(t, p.stderr, `msg="waiting for `+what+`"`)
		p.signal(t, syscall.SIGTERM)
		if status := p.status(t); status != 0 {
			t.Errorf("waiting for %s: exit status %d after SIGTERM, want 0", what, status)
		}
	}
}

// TestSecondAgent: a second agent takes its part of the shards, and has everything once the first has left.
func TestSecondAgent(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	c := cluster{etcd: "http://" + etcd.Address, bucket: "file://" + t.TempDir(), name: "pair"}
	first, kafka, _ := c.start(t, t.TempDir())
	first.ready(t)
	produce(t, kafka, "lake", 0, 100, line)
	second, other, _ := c.start(t, t.TempDir())
	second.ready(t)
	produce(t, kafka, "lake", 100, 100, line)
	first.signal(t, syscall.SIGTERM)
	if status := first.status(t); status != 0 {
		t.Errorf("exit status %d of the first, want 0", status)
	}
	consume(t, other, "lake", 200, line)
	produce(t, other, "lake", 200, 100, line)
}

// TestClustersShareEtcd: clusters of different names in one etcd do not see each other.
func TestClustersShareEtcd(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	for _, name := range []string{"a", "b"} {
		c := cluster{etcd: "http://" + etcd.Address, bucket: "file://" + t.TempDir(), name: name}
		p, kafka, _ := c.start(t, t.TempDir())
		p.ready(t)
		produce(t, kafka, "lake", 0, 10, line)
		consume(t, kafka, "lake", 10, line)
	}
}

// TestOutages: with its bucket away, and then its etcd too, an agent goes on to take records; when they are back it drains as ever.
func TestOutages(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	store := servers.Versitygw(t, servers.StoreOptions{Buckets: []string{"lake"}})
	c := cluster{
		etcd: "http://" + etcd.Address, bucket: "s3://lake?region=us-east-1&endpoint=http://" + store.Address, name: "outage",
	}
	p, kafka, _ := c.start(t, t.TempDir())
	p.ready(t)
	produce(t, kafka, "lake", 0, 1000, line)
	store.Kill()
	produce(t, kafka, "lake", 1000, 1000, line)
	consume(t, kafka, "lake", 2000, line)
	etcd.Kill()
	// Ids of idempotent producers come from etcd.
	produce(t, kafka, "lake", 2000, 1000, line, kgo.DisableIdempotentWrite())
	consume(t, kafka, "lake", 3000, line)

	servers.Etcd(t, servers.EtcdOptions{Listen: etcd.Address, Data: etcd.Data})
	servers.Versitygw(t, servers.StoreOptions{Listen: store.Address, Data: store.Data})
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != 0 {
		t.Fatalf("exit status %d after SIGTERM, want 0", status)
	}
	p, kafka, _ = c.start(t, t.TempDir())
	p.ready(t)
	consume(t, kafka, "lake", 3000, line)
}
