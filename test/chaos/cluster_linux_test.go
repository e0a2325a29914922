package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/network"
	"github.com/varve-io/varve/test/servers"
)

var (
	agentsFlag = flag.Int("agents", 3, "agents of TestCluster; one alone has no faults that take others")
	outageFlag = flag.Duration("outage", 4*time.Second, "how long TestCluster leaves etcd or the bucket away")
	keepFlag   = flag.String("keep", "", "a folder for all data and logs of TestCluster, which stay there; empty takes one that goes with the test")
	onlyFlag   = flag.String("faults", "", "a regular expression that the names of TestCluster's faults match; empty takes all")
)

// Bounds and figures of a cluster under test.
const (
	// lease is the time after which etcd takes an agent that does not report for gone.
	lease = 3 * time.Second
	// drainWithin bounds the end of an agent after SIGTERM.
	drainWithin = 60 * time.Second
	// clusterPace is the time from one record of a writer to its next: a load under which two cores can still run everything else.
	clusterPace = 4 * time.Millisecond
	// tablePace is the same of a writer to the compacted topic.
	tablePace = 20 * time.Millisecond
	// diskMiB is the size of the disk of the agent whose disk gets full.
	diskMiB = 3 << 10
)

// Ports, which every host has for itself.
const (
	kafkaPort = ":9092"
	peerPort  = ":9094"
	httpPort  = ":9080"
	etcdPort  = ":2379"
	storePort = ":9000"
)

// clusterName is what the cluster is called in etcd.
const clusterName = "chaos"

// compacted is what makes a topic be compacted while the test runs: often, and with deletions that go, too.
var compacted = map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1", "delete.retention.ms": "3000"}

// cluster is a few agents, an etcd and a bucket, each on a host of its own, and a load.
type cluster struct {
	t      *testing.T // of the fault that is going on
	folder string
	net    *network.Network
	nodes  []*node
	etcd   *outside
	store  *outside
	seeds  []string // addresses of agents for clients
	load   traffic
	// transactions says that the load needs agents to reach each other.
	transactions bool
	rng          *rand.Rand
	deleted      time.Time // when an agent last lost its folder
}

// traffic is a load as the faults see it.
type traffic interface {
	client(...kgo.Opt) (*kgo.Client, error)
	names() []string
	// through waits until what is begun after the call has got through to all clients, or to those alone that need nothing but the WAL. It
	// tells what came last.
	through(ctx context.Context, all bool) (last string, err error)
	// healthy is nil as long as no client has met an error that it could not get over.
	healthy() error
	// mark names what happens from now on.
	mark(name string)
	// quiet tells of each partition that the load watches how long nothing came at most since the last mark, and the longest of all.
	quiet() (each string, longest time.Duration)
}

// outside is what agents rely on.
type outside struct {
	name   string
	host   *network.Host
	server *servers.Server
}

// kill ends the process with SIGKILL.
func (o *outside) kill() { o.server.Kill() }

// start starts the process again, on the same data.
func (o *outside) start(ctx context.Context) error {
	server, err := o.server.Restart(ctx)
	if err == nil {
		o.server = server
	}
	return err
}

// newCluster starts everything but the load.
func newCluster(t *testing.T, seed uint64) *cluster {
	t.Helper()
	c := &cluster{t: t, folder: *keepFlag, rng: rand.New(rand.NewPCG(seed, 1))}
	if c.folder == "" {
		c.folder = t.TempDir()
	}
	if *binaryFlag == "" {
		binary, err := servers.BuildVarve()
		if err != nil {
			t.Fatal(err)
		}
		*binaryFlag = binary
	}
	var err error
	if c.net, err = network.New(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.net.Close(); err != nil {
			t.Error(err)
		}
	})
	c.startOutside(t)
	ctx, cancel := context.WithCancel(t.Context())
	var supervisors sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		for _, n := range c.nodes {
			if s := n.current(); s != nil {
				s.Kill()
			}
		}
		supervisors.Wait()
	})
	for i := range *agentsFlag {
		n := c.addNode(t, i)
		supervisors.Go(func() { n.supervise(ctx) })
		c.seeds = append(c.seeds, n.options.Listen)
		n.up()
	}
	for _, n := range c.nodes {
		if err := n.ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *cluster) addHost(t *testing.T, name string) *network.Host {
	t.Helper()
	h, err := c.net.Host(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (c *cluster) startOutside(t *testing.T) {
	t.Helper()
	c.etcd, c.store = &outside{name: "etcd", host: c.addHost(t, "etcd")}, &outside{name: "bucket", host: c.addHost(t, "bucket")}
	var err error
	c.etcd.server, err = servers.StartEtcd(t.Context(), servers.EtcdOptions{
		Data: c.folder + "/etcd", Under: c.etcd.host.Under(), Listen: c.etcd.host.Address + etcdPort,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.etcd.server.Kill() })
	c.store.server, err = servers.StartMinIO(t.Context(), servers.StoreOptions{
		Data: c.folder + "/minio", Under: c.store.host.Under(), Listen: c.store.host.Address + storePort, Buckets: []string{"lake"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.store.server.Kill() })
}

// addNode makes an agent that is down. The last one has a small disk of its own.
func (c *cluster) addNode(t *testing.T, i int) *node {
	t.Helper()
	name := string(rune('a' + i))
	host := c.addHost(t, name)
	data := filepath.Join(c.folder, name, "data")
	if i == *agentsFlag-1 {
		c.mountDisk(t, host, filepath.Dir(data))
	}
	n := newNode(name, host, servers.VarveOptions{
		Binary: *binaryFlag, Under: host.Under(), Command: "agent", Data: data,
		Listen: host.Address + kafkaPort, HTTP: host.Address + httpPort,
		Args: append([]string{
			"--etcd", "http://" + c.etcd.host.Address + etcdPort,
			"--bucket", "minio://" + c.store.host.Address + storePort + "/lake/chaos?secure=false",
			"--cluster", clusterName, "--zone", name, "--peer-listen", host.Address + peerPort,
			"--merge-after", "2s", "--garbage-grace", "3s",
		}, copies()...),
		Env: []string{"AWS_ACCESS_KEY_ID=" + servers.AccessKey, "AWS_SECRET_ACCESS_KEY=" + servers.SecretKey},
	}, t.Logf)
	c.nodes = append(c.nodes, n)
	return n
}

// copies are the flags that say how often the WAL is kept.
func copies() []string {
	if *agentsFlag < 3 {
		return nil
	}
	return []string{"--wal-copies", strconv.Itoa(min(*agentsFlag, 3))}
}

// mountDisk gives a host a disk, at a folder.
func (c *cluster) mountDisk(t *testing.T, host *network.Host, at string) {
	t.Helper()
	image := filepath.Join(c.folder, "disk")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{
		{"truncate", "-s", strconv.Itoa(diskMiB) + "M", image},
		{"mkfs.ext4", "-q", "-m", "0", image},
		{"mount", "-o", "loop", image, at},
	} {
		if err := host.Run(t.Context(), argv...); err != nil {
			t.Fatal(err)
		}
	}
}

// healthy waits until all agents serve and every client gets through, and reports agents that ended though they may not.
func (c *cluster) healthy(ctx context.Context) error {
	for _, n := range c.nodes {
		if err := n.ready(ctx); err != nil {
			return err
		}
	}
	_, err := c.load.through(ctx, true)
	for _, n := range c.nodes {
		err = errors.Join(err, n.misbehaved())
	}
	return errors.Join(err, c.load.healthy())
}

// leads tells how many partitions of the load each agent leads.
func (c *cluster) leads(ctx context.Context) (string, error) {
	client, err := c.load.client()
	if err != nil {
		return "", err
	}
	defer client.Close()
	metadata, err := kadm.NewClient(client).Metadata(ctx, c.load.names()...)
	if err != nil {
		return "", err
	}
	led := make(map[int32]int)
	metadata.Topics.EachPartition(func(p kadm.PartitionDetail) { led[p.Leader]++ })
	var b strings.Builder
	for _, broker := range metadata.Brokers {
		for _, n := range c.nodes {
			if n.host.Address == broker.Host {
				fmt.Fprintf(&b, ", %s leads %d", n.name, led[broker.NodeID])
			}
		}
	}
	return strings.TrimPrefix(b.String(), ", "), nil
}

// scaleToZero drains all agents at the same time, deletes what they have, and starts them again.
func (c *cluster) scaleToZero(ctx context.Context) error {
	drained := make(chan error, len(c.nodes))
	for _, n := range c.nodes {
		go func() { drained <- n.drain(ctx) }()
	}
	var errs []error
	for range c.nodes {
		errs = append(errs, <-drained)
	}
	if err := errors.Join(errs...); err != nil {
		return err // somebody's folder may have something left
	}
	for _, n := range c.nodes {
		errs = append(errs, n.deleteFolder(ctx))
		n.up()
	}
	for _, n := range c.nodes {
		errs = append(errs, n.ready(ctx))
	}
	return errors.Join(errs...)
}

// deleteFolder deletes an agent's data.
func (n *node) deleteFolder(ctx context.Context) error {
	return n.host.Run(ctx, "rm", "-rf", n.options.Data)
}

// TestCluster has a few agents, an external etcd and a MinIO, each on a host of its own, under load from producers, a reader and
// groups, and a compacted topic. It makes one fault after the other: each of them once, or, with -rounds, as many as that, chosen by the seed. After each
// fault all clients must get through again; with many faults, they must get through while it lasts. In the end everything must be there, once, in order, at
// its offset: as it is then, and when all agents have drained and others, with empty disks, serve it from the bucket.
func TestCluster(t *testing.T) {
	seed := chooseSeed()
	t.Logf("-seed %d -rounds %d -outage %v", seed, *roundsFlag, *outageFlag)
	c := newCluster(t, seed)
	load := newLoad(c.seeds, "chaos-1", "chaos-2")
	load.pace = clusterPace
	for _, name := range []string{"group-1", "group-2", "group-3"} {
		load.addGroup(name)
	}
	c.load = load
	createTopics(t, load.target, nil)
	table := newTable(c.seeds, "chaos-table")
	table.pace = tablePace
	createTopics(t, table.target, compacted)
	clients, tableClients := load.start(t.Context(), seed), table.start(t.Context(), seed)
	if err := c.healthy(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.campaign(t, brief)
	if err := clients.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tableClients.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, g := range load.groups {
		t.Logf("members of %s were given partitions %d times", g.name, g.joined.Load())
	}
	load.judge(t.Context(), t)
	table.judge(t.Context(), t)
	if err := c.scaleToZero(t.Context()); err != nil {
		t.Fatalf("scale to zero and back: %v", err)
	}
	if err := table.awaitCompacted(t.Context()); err != nil {
		t.Fatal(err)
	}
	load.judge(t.Context(), t)
	table.judge(t.Context(), t)
}

// campaign makes one fault after the other: those that were asked for, or else the named ones.
func (c *cluster) campaign(t *testing.T, names []string) {
	t.Helper()
	for i, f := range c.plan(t, names) {
		if !t.Run(fmt.Sprintf("%d %s", i+1, f.name), func(t *testing.T) { c.make(t, f) }) {
			break // what comes after it would only show the same
		}
	}
	c.t = t
}
