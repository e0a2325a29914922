// Package chaos kills real processes under load, cuts their links and fills their disks, or sends them what no client would, and
// looks at what becomes of everybody else's records.
//
//	go test ./test/chaos -timeout 30m                      # everything, about twelve minutes; TestCluster and TestTransactions need root
//	go test ./test/chaos -run TestCrash/dev -seed 7        # the same moments and records again, as far as a machine repeats itself
//	go test ./test/chaos -run TestCrash/dev -rounds 500    # for longer
//	go test ./test/chaos -run TestCluster -faults 'etcd'   # each fault with a name like that, once
//	go test ./test/chaos -run TestCluster -rounds 300 -outage 1m -timeout 0   # as many as that, drawn by the seed: for hours
//	go test ./test/chaos -run TestTransactions -rounds 100 -timeout 0   # the same faults, under transactions; and likewise
//	go test ./test/chaos -run TestTransactionLoad -kafka -rounds 6      # a minute of these, without faults, against Apache Kafka
//
// A failure of TestCluster or TestTransactions names the seed; -keep leaves all logs and data in a folder. A seed gives the same faults to the same
// agents after the same pauses; how far the load and the agents are by then is the machine's.
package chaos

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/varve-io/varve/test/servers"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "seed of the moments of crashes and of the load; 0 takes one from the clock")
	roundsFlag = flag.Int("rounds", 0, "crashes of each test; 0 takes the test's own number")
	binaryFlag = flag.String("binary", "", "the varve program to test; built from the working tree if empty")
)

// TestCrash kills Varve with SIGKILL at random moments and starts it again, while producers and a consumer live on: under
// load, just when an acknowledgement has arrived or a segment has been put into the bucket, and while it recovers from the crash before. In the end every
// acknowledged record must be there, at its offset, once.
func TestCrash(t *testing.T) {
	t.Run("dev", func(t *testing.T) {
		campaign{rounds: 55}.run(t, servers.VarveOptions{Binary: *binaryFlag}, nil)
	})
	t.Run("agent", func(t *testing.T) {
		store := must(servers.StartMinIO(t.Context(), servers.StoreOptions{Data: t.TempDir() + "/minio", Buckets: []string{"lake"}}))(t)
		etcd := must(servers.StartEtcd(t.Context(), servers.EtcdOptions{Data: t.TempDir() + "/etcd"}))(t)
		neighbours := []*servers.Server{store, etcd}
		t.Cleanup(func() {
			for _, s := range neighbours {
				s.Kill()
			}
		})
		campaign{rounds: 15}.run(t, servers.VarveOptions{
			Binary: *binaryFlag, Command: "agent",
			Args: []string{"--etcd", "http://" + etcd.Address, "--bucket", "minio://" + store.Address + "/lake/crash?secure=false", "--wal-copies", "1"},
			Env:  []string{"AWS_ACCESS_KEY_ID=" + servers.AccessKey, "AWS_SECRET_ACCESS_KEY=" + servers.SecretKey},
		}, neighbours)
	})
}

// chooseSeed returns the seed that was asked for, or else a new one.
func chooseSeed() uint64 {
	if *seedFlag != 0 {
		return *seedFlag
	}
	return uint64(time.Now().UnixNano())
}

// moment is a kind of moment at which a process is killed.
type moment int

const (
	underLoad moment = iota
	atAck            // an acknowledgement has just arrived, so that the disk must have it already
	atPut            // a segment has just been put, so it is not committed yet, or just so
	starting         // while it comes up and recovers
)

var moments = []moment{underLoad, atAck, atPut, starting}

func (m moment) String() string {
	return [...]string{"under load", "at an acknowledgement", "at a put", "starting"}[m]
}

// Bounds on waiting. What exceeds them is a failure.
const (
	startWithin    = 60 * time.Second
	progressWithin = 60 * time.Second
)

// campaign is a series of crashes under load.
type campaign struct {
	rounds int
	rng    *rand.Rand
	load   *load
	varve  *servers.Server
	took   time.Duration // of the latest start
}

// run runs a campaign against Varve. The neighbours, if any, are killed now and then too; Varve has to live on without them.
func (c campaign) run(t *testing.T, o servers.VarveOptions, neighbours []*servers.Server) {
	if *roundsFlag > 0 {
		c.rounds = *roundsFlag
	}
	seed := chooseSeed()
	t.Logf("-seed %d -rounds %d", seed, c.rounds)
	c.rng = rand.New(rand.NewPCG(seed, 0))
	o.Data = t.TempDir() + "/varve"
	c.varve = must(servers.StartVarve(t.Context(), o))(t)
	t.Cleanup(func() {
		c.varve.Kill()
		if t.Failed() {
			t.Logf("varve's output ends with:\n%s", c.varve.Output())
		}
	})
	c.load = newLoad([]string{c.varve.Address}, topic)
	c.took = time.Second
	createTopics(t, c.load.target, nil)

	clients := c.load.start(t.Context(), seed)
	began, killed := time.Now(), make(map[moment]int)
	for round := range c.rounds {
		m := moments[c.rng.IntN(len(moments))]
		if len(neighbours) > 0 && c.rng.IntN(3) == 0 {
			i := c.rng.IntN(len(neighbours))
			neighbours[i] = c.restart(t, neighbours[i])
		}
		if err := c.crash(t.Context(), m); err != nil {
			t.Fatalf("round %d, %v: %v", round, m, err)
		}
		killed[m]++
	}
	if err := c.progress(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	t.Logf("killed %v in %v", killed, time.Since(began).Round(time.Second))
	if err := clients.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.judge(t)
}

// judge reads everything, once as it is after the crashes and once from the bucket alone.
func (c *campaign) judge(t *testing.T) {
	t.Helper()
	c.load.judge(t.Context(), t)
	ctx, cancel := context.WithTimeout(t.Context(), startWithin)
	defer cancel()
	if err := c.varve.Stop(ctx); err != nil {
		t.Errorf("SIGTERM after the crashes: %v", err)
	}
	c.varve = c.restart(t, c.varve)
	c.load.judge(t.Context(), t)
}

// crash kills Varve at a moment of the kind, and starts it again.
func (c *campaign) crash(ctx context.Context, m moment) error {
	switch m {
	case underLoad:
		if err := c.progress(ctx, 1+c.rng.Int64N(2000)); err != nil {
			return err
		}
		pause(c.rng, 300*time.Millisecond)
	case atAck:
		if err := c.ack(ctx); err != nil {
			return err
		}
	case atPut:
		if err := c.put(ctx); err != nil {
			return err
		}
		pause(c.rng, 20*time.Millisecond)
	case starting:
		c.varve.Kill()
		brief, cancel := context.WithTimeout(ctx, time.Duration(c.rng.Int64N(int64(c.took))))
		varve, err := c.varve.Restart(brief) // which kills it if brief ends before it is ready
		early := brief.Err() != nil
		cancel()
		switch {
		case err == nil:
			c.varve = varve // it was quicker than expected
		case !early:
			return err
		}
	}
	select {
	case <-c.varve.Exited():
		if m != starting && m != atAck {
			return fmt.Errorf("varve ended by itself:\n%s", c.varve.Output())
		}
	default:
	}
	return c.start(ctx)
}

// start kills Varve if it runs, and starts it.
func (c *campaign) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	c.varve.Kill()
	began := time.Now()
	varve, err := c.varve.Restart(ctx)
	if err != nil {
		return err
	}
	c.varve, c.took = varve, time.Since(began)
	return nil
}

// progress waits until n more records are acknowledged.
func (c *campaign) progress(ctx context.Context, n int64) error {
	goal := c.load.acked.Load() + n
	return c.await(ctx, fmt.Sprintf("%d more records acknowledged", n), func() (bool, error) { return c.load.acked.Load() >= goal, nil })
}

// ack kills Varve in the callback of an acknowledgement, without a moment's delay.
func (c *campaign) ack(ctx context.Context) error {
	if err := c.progress(ctx, 1+c.rng.Int64N(2000)); err != nil {
		return err
	}
	killed := make(chan error, 1)
	kill := func() { killed <- c.varve.Signal(syscall.SIGKILL) }
	c.load.onAck.Store(&kill)
	select {
	case err := <-killed:
		return err
	case <-time.After(progressWithin):
		return fmt.Errorf("no acknowledgement within %v", progressWithin)
	}
}

// put waits until one more object is put into the bucket.
func (c *campaign) put(ctx context.Context) error {
	const puts = `varve_objectstore_request_seconds_count{op="put"}`
	before, err := metric(ctx, c.varve.HTTP, puts)
	if err != nil {
		return err
	}
	return c.await(ctx, "one more put", func() (bool, error) {
		now, err := metric(ctx, c.varve.HTTP, puts)
		return now > before, err
	})
}

// await awaits something while Varve runs.
func (c *campaign) await(ctx context.Context, what string, done func() (bool, error)) error {
	err := await(ctx, func() string { return what }, func() (bool, error) {
		select {
		case <-c.varve.Exited():
			return false, fmt.Errorf("varve ended by itself, %s awaited", what)
		default:
			return done()
		}
	})
	if err != nil {
		return fmt.Errorf("%w; its output ends with:\n%s", err, c.varve.Output())
	}
	return nil
}

// restart kills a server, if it runs, and starts it on the same data and addresses.
func (c *campaign) restart(t *testing.T, s *servers.Server) *servers.Server {
	t.Helper()
	again, err := s.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// must returns a server that has started, or ends the test.
func must(s *servers.Server, err error) func(testing.TB) *servers.Server {
	return func(t testing.TB) *servers.Server {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// pause makes a moment random: there is no event to wait for.
func pause(rng *rand.Rand, most time.Duration) { time.Sleep(upTo(rng, most)) }

// upTo draws a time.
func upTo(rng *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(most)))
}

// metric returns a value that the operations endpoint tells, and 0 for one that it does not tell yet.
func metric(ctx context.Context, address, name string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", http.NoBody)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, lines.Err()
}
