package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/cost"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/servers"
)

const (
	agents      = 3
	clusterName = "soak"
	saidMax     = 2 << 10 // bytes of an agent's output that an error quotes
)

// nodes is a running cluster. One goroutine uses it.
type nodes struct {
	folder string // all data lies below it
	etcd   *servers.Server
	agents []*servers.Server
	kv     *etcd.Store
	store  objectstore.Store
}

// start starts a cluster in a folder, with a bucket that is a folder.
func start(ctx context.Context, p plan, folder string) (_ *nodes, err error) {
	n := &nodes{folder: folder}
	defer func() {
		if err != nil {
			n.end()
		}
	}()
	url := bucket.URL{Scheme: bucket.File, Folder: filepath.Join(folder, "bucket")}
	if n.store, err = bucket.OpenURL(ctx, url); err != nil {
		return nil, err
	}
	if n.etcd, err = servers.StartEtcd(ctx, servers.EtcdOptions{Data: filepath.Join(folder, "etcd")}); err != nil {
		return nil, err
	}
	if n.kv, err = etcd.New(etcd.Config{Endpoints: []string{"http://" + n.etcd.Address}, Prefix: "/varve/" + clusterName + "/"}); err != nil {
		return nil, err
	}
	started := make([]*servers.Server, agents)
	group, groupCtx := errgroup.WithContext(ctx) // none of them is ready before two of them run
	for i := range started {
		group.Go(func() error {
			peer, err := servers.FreeAddress() //nolint:contextcheck // it listens for no time
			if err != nil {
				return err
			}
			started[i], err = servers.StartVarve(groupCtx, servers.VarveOptions{
				Command: "agent", Data: n.data(i),
				Args: []string{
					"--etcd", "http://" + n.etcd.Address, "--bucket", "file://" + url.Folder, "--cluster", clusterName, "--peer-listen", peer, "--zone", string("abc"[i]),
					"--merge-after", p.merge.String(), "--retention-check", p.look.String(), "--garbage-grace", p.grace.String(),
				},
			})
			return err
		})
	}
	err = group.Wait()
	for _, s := range started {
		if s != nil {
			n.agents = append(n.agents, s)
		}
	}
	return n, err
}

// data is an agent's folder.
func (n *nodes) data(i int) string { return filepath.Join(n.folder, "agent-"+strconv.Itoa(i+1)) }

// end ends all processes.
func (n *nodes) end() {
	for _, s := range n.agents {
		s.Kill()
	}
	if n.kv != nil {
		_ = n.kv.Close() // it was only read
	}
	if n.etcd != nil {
		n.etcd.Kill()
	}
}

func (n *nodes) seeds() (addresses []string) {
	for _, s := range n.agents {
		addresses = append(addresses, s.Address)
	}
	return addresses
}

// explain adds what the agents said last to an error.
func (n *nodes) explain(err error) error {
	for _, s := range n.agents {
		said := s.Output()
		err = fmt.Errorf("%w\n%s at %s said last:\n%s", err, s.Name, s.Address, said[max(0, len(said)-saidMax):])
	}
	return err
}

// sample is the state of a cluster at some moment.
type sample struct {
	at       time.Duration // since the run began
	memory   float64       // resident bytes of all agents
	etcdUsed float64       // bytes of its database, by what is in it
	etcdFile float64       // bytes of its database on the disk
	wal      float64       // bytes of the WALs' files
	cost     cost.Report
}

// measure takes a sample.
func (n *nodes) measure(ctx context.Context) (s sample, err error) {
	var pids []int
	for _, a := range n.agents {
		pids = append(pids, a.PID())
	}
	memory, ok := load.ReadMemory(pids...)
	if !ok {
		return s, errors.New("an agent is gone")
	}
	s.memory = float64(memory.Resident)
	page := "http://" + n.etcd.Address + "/metrics"
	if s.etcdUsed, err = load.ReadMetric(ctx, page, "etcd_mvcc_db_total_size_in_use_in_bytes"); err != nil {
		return s, err
	}
	if s.etcdFile, err = load.ReadMetric(ctx, page, "etcd_mvcc_db_total_size_in_bytes"); err != nil {
		return s, err
	}
	for i := range n.agents {
		bytes, err := load.FolderBytes(filepath.Join(n.data(i), "wal"))
		if err != nil {
			return s, err
		}
		s.wal += float64(bytes)
	}
	records, err := cost.Read(ctx, n.kv, n.store)
	if err != nil {
		return s, err
	}
	s.cost = cost.Make(clusterName, records, nil, time.Now())
	return s, nil
}
