package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/servers"
)

// dirtyRatio is the topic's min.cleanable.dirty.ratio: what is left uncompacted in the end.
const dirtyRatio = 0.02

// node is the agent and what it needs. One goroutine uses it.
type node struct {
	folder string
	etcd   *servers.Server
	agent  *servers.Server
}

func start(ctx context.Context, folder string) (_ *node, err error) {
	n := &node{folder: folder}
	defer func() {
		if err != nil {
			n.end()
		}
	}()
	if err := os.Mkdir(n.bucket(), 0o755); err != nil {
		return nil, fmt.Errorf("make the bucket: %w", err)
	}
	if n.etcd, err = servers.StartEtcd(ctx, servers.EtcdOptions{Data: filepath.Join(folder, "etcd")}); err != nil {
		return nil, err
	}
	n.agent, err = servers.StartVarve(ctx, servers.VarveOptions{
		Command: "agent", Data: filepath.Join(folder, "agent"),
		Args: []string{"--etcd", "http://" + n.etcd.Address, "--bucket", "file://" + n.bucket(), "--wal-copies", "1", "--merge-after", mergeAfter.String()},
	})
	return n, err
}

func (n *node) bucket() string { return filepath.Join(n.folder, "bucket") }

func (n *node) end() {
	for _, s := range []*servers.Server{n.agent, n.etcd} {
		if s != nil {
			s.Kill()
		}
	}
}

// restart ends the agent and starts it anew.
func (n *node) restart(ctx context.Context) (err error) {
	if err = n.agent.Stop(ctx); err == nil {
		n.agent, err = n.agent.Restart(ctx)
	}
	return err
}

// saidMax is how many bytes of the agent's output an error quotes.
const saidMax = 2 << 10

// explain adds what the agent said last to an error.
func (n *node) explain(err error) error {
	said := n.agent.Output()
	return fmt.Errorf("%w\nthe agent said last:\n%s", err, said[max(0, len(said)-saidMax):])
}

// awaitCompacted waits until everything is merged, and nothing is dirty but what may be.
func (n *node) awaitCompacted(ctx context.Context, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, cleanWithin)
	defer cancel()
	page := "http://" + n.agent.HTTP + "/metrics"
	began := time.Now()
	cpu, err := load.ReadMetric(ctx, page, "process_cpu_seconds_total")
	if err != nil {
		return err
	}
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		var read [5]float64
		for i, name := range []string{"varve_commits", "varve_compaction_dirty_ratio_max", "varve_compactions_total", "varve_compaction_read_bytes_total", "varve_compaction_kept_bytes_total"} {
			if read[i], err = load.ReadMetric(ctx, page, name); err != nil {
				return err
			}
		}
		if read[0] == 0 && read[1] <= dirtyRatio && read[2] >= partitions {
			r.clean = time.Since(began)
			r.compactions, r.judged, r.kept = read[2], read[3], read[4]
			r.peak, _ = load.ReadMemory(n.agent.PID())
			after, err := load.ReadMetric(ctx, page, "process_cpu_seconds_total")
			r.cpu = time.Duration((after - cpu) * float64(time.Second))
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until all is compacted: %.0f commits, %.3f is dirty, %.0f compactions: %w", read[0], read[1], read[2], ctx.Err())
		}
	}
}
