package chaos

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/varve-io/varve/coordinator"
	etcdclient "github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/test/network"
)

// fault is something that goes wrong and is put right again.
type fault struct {
	name string
	// agents is how many agents it happens to.
	agents int
	// copies says that it makes sense only where the WAL has copies on other agents.
	copies bool
	// make makes it happen to the agents that were chosen, and returns how to put it right.
	make func(ctx context.Context, c *cluster, chosen []*node) (heal func(context.Context) error, err error)
	// lasts is how long it is left alone.
	lasts time.Duration
	// meanwhile is who must get through while it lasts.
	meanwhile meanwhile
	// apart says that two agents may go on to lead that do not reach each other. A transaction that needs both of them waits, as in Kafka.
	apart bool
	// mayEnd is how many of the chosen agents may end by themselves, since their logs may be claimed by others.
	mayEnd int
	// smallDisk says that it takes the agent whose disk is small.
	smallDisk bool
}

// meanwhile is who gets through during a fault.
type meanwhile int

const (
	nobodyMust  meanwhile = iota
	writersMust           // records are acknowledged in every partition
	allMust               // and are read, and groups commit
)

// faults are all that TestCluster makes.
func faults() []fault {
	longerThanLease := lease + 3*time.Second
	return []fault{
		{name: "kill -9 and start", agents: 1, make: killAndStart},
		{name: "kill -9 and stay away", agents: 1, make: killed, meanwhile: allMust},
		{name: "kill -9 of all", make: killAll},
		{name: "pause for less than a lease", agents: 1, make: paused, lasts: lease / 3},
		{name: "pause for longer than a lease", agents: 1, make: paused, lasts: longerThanLease, meanwhile: allMust, mayEnd: 1},
		{name: "cut between two agents", agents: 2, copies: true, make: cut(bothWays, others), lasts: lease, meanwhile: allMust, apart: true, mayEnd: 2},
		{name: "cut between two agents, one way", agents: 2, copies: true, make: cut(oneWay, others), lasts: lease, meanwhile: allMust, apart: true, mayEnd: 2},
		{name: "cut from all other agents", agents: 1, copies: true, make: cut(bothWays, allOthers), lasts: longerThanLease, meanwhile: allMust, mayEnd: 1},
		{name: "cut from all other agents, outwards", agents: 1, copies: true, make: cut(oneWay, allOthers), lasts: longerThanLease, meanwhile: allMust, mayEnd: 1},
		{name: "cut from all other agents, inwards", agents: 1, copies: true, make: cut(otherWay, allOthers), lasts: longerThanLease, meanwhile: allMust, mayEnd: 1},
		{name: "cut from etcd", agents: 1, make: cut(bothWays, etcd), lasts: longerThanLease, meanwhile: allMust, mayEnd: 1},
		{name: "cut from etcd, outwards", agents: 1, make: cut(oneWay, etcd), lasts: longerThanLease, meanwhile: allMust, mayEnd: 1},
		{name: "cut from etcd, inwards", agents: 1, make: cut(otherWay, etcd), lasts: longerThanLease, meanwhile: allMust, mayEnd: 1},
		{name: "cut from the bucket", agents: 1, make: cut(bothWays, bucket), lasts: lease, meanwhile: writersMust},
		{name: "cut from clients", agents: 1, make: cut(bothWays, clients), lasts: lease},
		{name: "cut from everything", agents: 1, copies: true, make: cut(bothWays, everything), lasts: longerThanLease, meanwhile: allMust, mayEnd: 1},
		{name: "etcd away", make: away(etcdAway), lasts: *outageFlag, meanwhile: writersMust},
		// Who reads a little behind may need what is in the bucket alone, as all is that a leader before the present one took.
		{name: "the bucket away", make: away(bucketAway), lasts: *outageFlag, meanwhile: writersMust},
		{name: "etcd and the bucket away", make: away(bothAway), lasts: *outageFlag, meanwhile: writersMust},
		{name: "kill -9 with the bucket away", agents: 1, make: killedWithout(bucketAway), lasts: *outageFlag},
		{name: "kill -9 with etcd away", agents: 1, make: killedWithout(etcdAway), lasts: *outageFlag},
		{name: "a full disk", agents: 1, copies: true, smallDisk: true, make: diskFull, lasts: longerThanLease, meanwhile: allMust},
		{name: "kill -9 with a full disk", agents: 1, smallDisk: true, make: killedDiskFull, lasts: longerThanLease, meanwhile: allMust},
		{name: "a rolling restart", make: rollingRestart},
		{name: "an agent whose folder is deleted", agents: 1, copies: true, make: folderDeleted, meanwhile: allMust},
	}
}

// brief are the faults that a run without -rounds makes: each kind, and of cuts those that differ most.
var brief = []string{
	"kill -9 and stay away", "kill -9 and start", "pause for longer than a lease", "cut between two agents, one way",
	"cut from all other agents", "cut from etcd, inwards", "cut from the bucket", "etcd away", "kill -9 with etcd away", "the bucket away", "a full disk", "kill -9 with a full disk",
	"a rolling restart", "kill -9 of all", "an agent whose folder is deleted",
}

// plan returns the faults to make, in order: those that flags ask for, or else the named ones.
func (c *cluster) plan(t *testing.T, names []string) []fault {
	t.Helper()
	only, err := regexp.Compile(*onlyFlag)
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]fault)
	var possible, planned []fault
	for _, f := range faults() {
		if only.MatchString(f.name) && (*agentsFlag >= 3 || !f.copies) {
			possible, byName[f.name] = append(possible, f), f
		}
	}
	if len(possible) == 0 {
		t.Fatalf("no fault is called %q", *onlyFlag)
	}
	for range *roundsFlag {
		planned = append(planned, possible[c.rng.IntN(len(possible))])
	}
	switch {
	case *roundsFlag > 0:
		return planned
	case *onlyFlag != "":
		return possible
	}
	for _, name := range names {
		if f, ok := byName[name]; ok {
			planned = append(planned, f)
		}
	}
	return planned
}

// make makes a fault, leaves it alone for its time, puts it right, and waits until all is well.
func (c *cluster) make(t *testing.T, f fault) {
	c.t = t
	ctx := t.Context()
	chosen := c.choose(f)
	names := make([]string, len(chosen))
	for i, n := range chosen {
		names[i] = n.name
	}
	what := strings.TrimSpace(f.name + " " + strings.Join(names, " "))
	c.settle(ctx)
	pause(c.rng, 500*time.Millisecond)
	for _, n := range c.nodes {
		n.allow(slices.Contains(chosen[:min(f.mayEnd, len(chosen))], n))
	}
	led, err := c.leads(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("of %d partitions %s", len(c.load.names())*partitions, led)
	c.load.mark(what)
	began := time.Now()
	heal, err := f.make(ctx, c, chosen)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.meanwhile(ctx, f, began); err != nil {
		t.Errorf("while it lasts: %v", err)
	}
	healed := time.Now()
	if err := heal(ctx); err != nil {
		t.Fatalf("put it right: %v", err)
	}
	if err := c.healthy(ctx); err != nil {
		t.Fatalf("after it: %v", err)
	}
	each, longest := c.load.quiet()
	t.Logf("%s for %v, and all was well after %v; at most %v with nothing new in a partition:\n%s", what,
		healed.Sub(began).Round(time.Millisecond), time.Since(healed).Round(time.Millisecond), longest.Round(time.Millisecond), each)
}

// meanwhile waits until those have got through who must, and until the fault has lasted its time.
func (c *cluster) meanwhile(ctx context.Context, f fault, began time.Time) error {
	rest := time.NewTimer(time.Until(began.Add(f.lasts)))
	defer rest.Stop()
	all := f.meanwhile == allMust && !(f.apart && c.transactions)
	if f.meanwhile != nobodyMust && *agentsFlag >= 3 {
		last, err := c.load.through(ctx, all)
		if err != nil {
			return err
		}
		c.t.Logf("got through %v after it began, last to be %s", time.Since(began).Round(time.Millisecond), last)
	}
	select {
	case <-rest.C:
	case <-ctx.Done():
	}
	if f.meanwhile != nobodyMust && *agentsFlag >= 3 { // still, at its end
		_, err := c.load.through(ctx, all)
		return err
	}
	return nil
}

// choose draws the agents that a fault happens to.
func (c *cluster) choose(f fault) []*node {
	chosen := make([]*node, 0, f.agents)
	for _, i := range c.rng.Perm(len(c.nodes))[:f.agents] {
		chosen = append(chosen, c.nodes[i])
	}
	if f.smallDisk {
		chosen[0] = c.nodes[len(c.nodes)-1]
	}
	return chosen
}

func nothing(context.Context) error { return nil }

// started puts an agent right that is down.
func started(n *node) func(context.Context) error {
	return func(ctx context.Context) error { n.up(); return n.ready(ctx) }
}

func killed(ctx context.Context, _ *cluster, chosen []*node) (func(context.Context) error, error) {
	return started(chosen[0]), chosen[0].kill(ctx)
}

func killAndStart(ctx context.Context, _ *cluster, chosen []*node) (func(context.Context) error, error) {
	err := chosen[0].kill(ctx)
	chosen[0].up()
	return chosen[0].ready, err
}

func killAll(ctx context.Context, c *cluster, _ []*node) (func(context.Context) error, error) {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.kill(ctx))
	}
	for _, n := range c.nodes {
		n.up()
	}
	return nothing, errors.Join(errs...)
}

// paused stops an agent's process; a virtual machine that is moved does the same to it.
func paused(ctx context.Context, _ *cluster, chosen []*node) (func(context.Context) error, error) {
	if err := chosen[0].ready(ctx); err != nil {
		return nil, err
	}
	s := chosen[0].current()
	return func(context.Context) error { return s.Signal(syscall.SIGCONT) }, s.Signal(syscall.SIGSTOP)
}

// way is a direction of a cut, seen from the agent that was chosen first.
type way int

const (
	bothWays way = iota
	oneWay       // what the agent sends is lost
	otherWay     // what is sent to the agent is lost
)

// cutFrom tells from which hosts an agent is cut off.
type cutFrom func(c *cluster, chosen []*node) []*network.Host

func others(_ *cluster, chosen []*node) []*network.Host { return []*network.Host{chosen[1].host} }

func allOthers(c *cluster, chosen []*node) (hosts []*network.Host) {
	for _, n := range c.nodes {
		if n != chosen[0] {
			hosts = append(hosts, n.host)
		}
	}
	return hosts
}

func etcd(c *cluster, _ []*node) []*network.Host    { return []*network.Host{c.etcd.host} }
func bucket(c *cluster, _ []*node) []*network.Host  { return []*network.Host{c.store.host} }
func clients(c *cluster, _ []*node) []*network.Host { return []*network.Host{c.net.Here()} }

func everything(c *cluster, chosen []*node) []*network.Host {
	return append(allOthers(c, chosen), c.etcd.host, c.store.host, c.net.Here())
}

func cut(w way, from cutFrom) func(context.Context, *cluster, []*node) (func(context.Context) error, error) {
	return func(ctx context.Context, c *cluster, chosen []*node) (func(context.Context) error, error) {
		agent := chosen[0].host
		each := func(ctx context.Context, do func(ctx context.Context, from, to *network.Host) error) error {
			var errs []error
			for _, host := range from(c, chosen) {
				if w != otherWay {
					errs = append(errs, do(ctx, agent, host))
				}
				if w != oneWay {
					errs = append(errs, do(ctx, host, agent))
				}
			}
			return errors.Join(errs...)
		}
		return func(ctx context.Context) error { return each(ctx, c.net.Mend) }, each(ctx, c.net.Cut)
	}
}

// outages tell what goes away.
type outages func(c *cluster) []*outside

func etcdAway(c *cluster) []*outside   { return []*outside{c.etcd} }
func bucketAway(c *cluster) []*outside { return []*outside{c.store} }
func bothAway(c *cluster) []*outside   { return []*outside{c.etcd, c.store} }

func away(which outages) func(context.Context, *cluster, []*node) (func(context.Context) error, error) {
	return func(ctx context.Context, c *cluster, _ []*node) (func(context.Context) error, error) {
		if err := c.unmoved(ctx); err != nil {
			return nil, err
		}
		for _, o := range which(c) {
			o.kill()
		}
		return func(ctx context.Context) error {
			var errs []error
			for _, o := range which(c) {
				errs = append(errs, o.start(ctx))
			}
			return errors.Join(errs...)
		}, nil
	}
}

// unmoved waits until no shard is on its way from one agent to another, and all are led: one that is not has no leader before etcd, or the bucket, is back.
func (c *cluster) unmoved(ctx context.Context) error {
	kv, err := etcdclient.New(etcdclient.Config{Endpoints: []string{"http://" + c.etcd.host.Address + etcdPort}, Prefix: "/varve/" + clusterName + "/"})
	if err != nil {
		return err
	}
	defer func() { _ = kv.Close() }()
	for led := int32(-1); ; {
		epochs, moves, err := changes(ctx, kv)
		switch {
		case err != nil:
			return err
		case moves == 0 && epochs == led:
			return nil
		case moves == 0:
			led = epochs // and whoever leads since then answers writers
			if _, err := c.load.through(ctx, false); err != nil {
				return err
			}
			continue
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d shards are on their way: %w", moves, ctx.Err())
		}
	}
}

// changes returns how often shards have changed their leaders, and how many are to.
func changes(ctx context.Context, kv coordinator.KV) (epochs int32, moves int, err error) {
	wished, _, err := kv.List(ctx, coordinator.PrefixMoves, 0)
	if err != nil {
		return 0, 0, err
	}
	shards, _, err := kv.List(ctx, coordinator.PrefixShards, 0)
	for _, item := range shards {
		s, err := coordinator.Decode[coordinator.Shard](item)
		if err != nil {
			return 0, 0, err
		}
		epochs += s.Epoch
	}
	return epochs, len(wished), err
}

// killedWithout kills an agent while what it needs to be recovered is away, and starts it before that is back.
func killedWithout(which outages) func(context.Context, *cluster, []*node) (func(context.Context) error, error) {
	return func(ctx context.Context, c *cluster, chosen []*node) (func(context.Context) error, error) {
		heal, err := away(which)(ctx, c, chosen)
		if err != nil {
			return nil, err
		}
		if err := chosen[0].kill(ctx); err != nil {
			return nil, err
		}
		chosen[0].up()
		return heal, nil
	}
}

// diskFull leaves no room on a disk, and lets another agent crash, whose next log wants files there.
func diskFull(ctx context.Context, c *cluster, chosen []*node) (func(context.Context) error, error) {
	heal, err := fillDisk(ctx, chosen[0])
	if err != nil {
		return nil, err
	}
	other := c.nodes[0]
	if err := other.kill(ctx); err != nil {
		return nil, err
	}
	other.up()
	return heal, nil
}

// killedDiskFull lets the agent itself crash whose disk is full.
func killedDiskFull(ctx context.Context, _ *cluster, chosen []*node) (func(context.Context) error, error) {
	heal, err := fillDisk(ctx, chosen[0])
	if err != nil {
		return nil, err
	}
	if err := chosen[0].kill(ctx); err != nil {
		return nil, err
	}
	chosen[0].up()
	return heal, nil
}

// fillDisk leaves no room on an agent's disk.
func fillDisk(ctx context.Context, n *node) (empty func(context.Context) error, err error) {
	ballast := n.options.Data + ".ballast"
	// The agent may take some of the room meanwhile, hence the attempts; what is left then is written full.
	script := `for i in 1 2 3 4 5; do fallocate -l $(df --output=avail -B1 "$0" | tail -n1) "$1" && break; done
		dd if=/dev/zero of="$1.rest" bs=64k; sync -f "$1.rest"`
	if err := n.host.Run(ctx, "sh", "-c", script, filepath.Dir(ballast), ballast); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return n.host.Run(ctx, "rm", "-f", ballast, ballast+".rest") }, nil
}

// rollingRestart drains one agent after the other and starts it again, as a new version is rolled out.
func rollingRestart(ctx context.Context, c *cluster, _ []*node) (func(context.Context) error, error) {
	for _, n := range c.nodes {
		if err := n.drain(ctx); err != nil {
			return nil, err
		}
		n.up()
		if err := n.ready(ctx); err != nil {
			return nil, err
		}
	}
	return nothing, nil
}

// folderDeleted kills an agent and deletes its folder.
func folderDeleted(ctx context.Context, c *cluster, chosen []*node) (func(context.Context) error, error) {
	if err := chosen[0].kill(ctx); err != nil {
		return nil, err
	}
	err := chosen[0].deleteFolder(ctx)
	c.deleted = time.Now()
	chosen[0].up()
	return chosen[0].ready, err
}

// settle waits after a folder was deleted until what was in it has as many copies again as all else: the bucket's. A fault that
// takes another agent's copies before that may take the last.
func (c *cluster) settle(ctx context.Context) {
	const settled = 15 * time.Second // a flush is due after 5 s
	if c.deleted.IsZero() {
		return
	}
	select {
	case <-time.After(time.Until(c.deleted.Add(settled))):
	case <-ctx.Done():
	}
}
