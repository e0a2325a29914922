package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/test/servers"
)

// nodes is a running cluster and what it needs. One goroutine uses it.
type nodes struct {
	folder  string // all data lies below it
	brokers []*servers.Server
	etcd    *servers.Server // nil for Kafka
	store   *servers.Server // the object store; nil where the bucket is a folder
	bucket  string          // its URL
}

// starter starts a cluster in a folder that is empty.
type starter func(ctx context.Context, folder string) (*nodes, error)

// within starts a cluster in a folder of its own, does something with it, ends all its processes and removes the folder.
func within(ctx context.Context, start starter, work func(*nodes) error) (err error) {
	folder, err := os.MkdirTemp("", "varve-bench-")
	if err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	n, err := start(ctx, folder)
	if err != nil {
		return err
	}
	defer n.kill()
	if err := work(n); err != nil {
		return n.explain(err)
	}
	return nil
}

// startKafka starts Apache Kafka.
func startKafka(ctx context.Context, folder string) (*nodes, error) {
	// A default that has no part in speed: a busy machine must not make the controller fence a broker in the middle of a phase.
	o := servers.KafkaOptions{Data: folder, Config: map[string]string{"broker.session.timeout.ms": "60000"}}
	brokers, err := servers.StartKafkaCluster(ctx, agents, o)
	if err != nil {
		return nil, err
	}
	return &nodes{folder: folder, brokers: brokers}, nil
}

// startVarve starts Varve with a bucket that is a folder.
func startVarve(ctx context.Context, folder string) (*nodes, error) {
	n := &nodes{folder: folder, bucket: "file://" + filepath.Join(folder, "bucket")}
	if err := os.Mkdir(filepath.Join(folder, "bucket"), 0o755); err != nil {
		return nil, fmt.Errorf("make the bucket: %w", err)
	}
	return n.startAgents(ctx)
}

// startVarveOnMinIO starts Varve with a bucket of an object store, which can go away.
func startVarveOnMinIO(ctx context.Context, folder string) (*nodes, error) {
	store, err := servers.StartMinIO(ctx, servers.StoreOptions{Data: filepath.Join(folder, "minio"), Buckets: []string{"lake"}})
	if err != nil {
		return nil, err
	}
	n := &nodes{folder: folder, store: store, bucket: "minio://" + store.Address + "/lake/bench?secure=false"}
	return n.startAgents(ctx)
}

// startAgents starts etcd and the agents. When something does not start, it ends everything that n has.
func (n *nodes) startAgents(ctx context.Context) (_ *nodes, err error) {
	defer func() {
		if err != nil {
			n.kill()
		}
	}()
	if n.etcd, err = servers.StartEtcd(ctx, servers.EtcdOptions{Data: filepath.Join(n.folder, "etcd")}); err != nil {
		return nil, err
	}
	started := make([]*servers.Server, agents)
	group, groupCtx := errgroup.WithContext(ctx) // none of them is ready before two of them run
	for i := range started {
		group.Go(func() (err error) {
			started[i], err = n.startAgent(groupCtx, i)
			return err
		})
	}
	err = group.Wait()
	for _, s := range started {
		if s != nil {
			n.brokers = append(n.brokers, s)
		}
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

// startAgent starts one more agent. They take turns in the zones.
func (n *nodes) startAgent(ctx context.Context, i int) (*servers.Server, error) {
	peer, err := servers.FreeAddress() //nolint:contextcheck // it listens for no time
	if err != nil {
		return nil, err
	}
	return servers.StartVarve(ctx, servers.VarveOptions{
		Command: "agent", Data: filepath.Join(n.folder, "agent-"+strconv.Itoa(i+1)),
		Args: []string{
			"--etcd", "http://" + n.etcd.Address, "--bucket", n.bucket, "--peer-listen", peer, "--zone", string("abc"[i%3]),
			"--wal-copies", "3", "--wal-sync", "always",
		},
		Env: []string{"AWS_ACCESS_KEY_ID=" + servers.AccessKey, "AWS_SECRET_ACCESS_KEY=" + servers.SecretKey},
	})
}

// all are all processes of the cluster.
func (n *nodes) all() []*servers.Server {
	all := append([]*servers.Server(nil), n.brokers...)
	for _, s := range []*servers.Server{n.etcd, n.store} {
		if s != nil {
			all = append(all, s)
		}
	}
	return all
}

// kill ends all processes.
func (n *nodes) kill() {
	for _, s := range n.all() {
		s.Kill()
	}
}

// seeds are the brokers' addresses.
func (n *nodes) seeds() []string {
	addresses := make([]string, len(n.brokers))
	for i, s := range n.brokers {
		addresses[i] = s.Address
	}
	return addresses
}

func (n *nodes) pids() []int {
	var pids []int
	for _, s := range n.all() {
		pids = append(pids, s.PID())
	}
	return pids
}

// saidMax is how many bytes of a broker's output an error quotes.
const saidMax = 2 << 10

// explain adds what the brokers said last to an error.
func (n *nodes) explain(err error) error {
	for _, s := range n.brokers {
		said := s.Output()
		err = fmt.Errorf("%w\n%s at %s said last:\n%s", err, s.Name, s.Address, said[max(0, len(said)-saidMax):])
	}
	return err
}
