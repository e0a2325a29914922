package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
	"github.com/varve-io/varve/test/servers"
)

// catchupPlan is how long and how large the phases are.
type catchupPlan struct {
	warmup  load.Config
	history load.Config // what is written, and how it is read
	latency load.Config
	// readers are how many consumers read side by side, each all of it, one after the other.
	readers []int
	// beside is how many read while producers and consumers of the end are looked at, and besideRate how fast together in the first of two turns.
	beside     int
	besideRate float64
}

func newCatchupPlan(smoke bool) catchupPlan {
	defaults := load.Defaults()
	p := catchupPlan{warmup: defaults, history: defaults, latency: defaults, readers: []int{1, 4, 16}, beside: 4, besideRate: 50e6}
	p.warmup.Phases = load.Phases{Produce: true, Consume: true}
	p.history.Phases = load.Phases{Produce: true}
	p.latency.Phases = load.Phases{Latency: true}
	p.warmup.Duration, p.warmup.BytesMax = 30*time.Second, 4<<30
	p.history.Duration, p.history.BytesMax = 60*time.Second, 3<<30
	p.latency.Duration = 20 * time.Second
	if smoke {
		p.readers = []int{1, 4}
		p.warmup.Duration, p.warmup.BytesMax = time.Second, 16<<20
		p.history.Duration, p.history.BytesMax = 2*time.Second, 64<<20
		p.latency.Duration = time.Second
	}
	return p
}

// subject is who is measured: a broker with what it keeps its records in.
type subject struct {
	name string
	// start runs it on an empty folder.
	start func(ctx context.Context, folder string) (*running, error)
}

// running is a subject that runs. One goroutine uses it.
type running struct {
	folder string
	broker *servers.Server
	others []*servers.Server // that it needs
	bucket string            // URL; empty for a broker without one
}

// target is what load is put on.
func (r *running) target() load.Target {
	t := load.Target{Bootstrap: r.broker.Address, PIDs: []int{r.broker.PID()}}
	if r.bucket != "" {
		t.MetricsURL = "http://" + r.broker.HTTP + "/metrics"
	}
	return t
}

func (r *running) kill() {
	r.broker.Kill()
	for _, s := range r.others {
		s.Kill()
	}
}

// mergeAfter is after how long Varve merges what is too little to be merged at once, so that nothing is left to merge when it is read.
const mergeAfter = "5s"

// credentials open the stores of test/servers.
var credentials = map[string]string{"AWS_ACCESS_KEY_ID": servers.AccessKey, "AWS_SECRET_ACCESS_KEY": servers.SecretKey}

// startAgent starts Varve over a bucket.
func startAgent(ctx context.Context, folder, url string, others []*servers.Server) (_ *running, err error) {
	r := &running{folder: folder, bucket: url, others: others}
	defer func() {
		if err != nil {
			for _, s := range r.others {
				s.Kill()
			}
		}
	}()
	etcd, err := servers.StartEtcd(ctx, servers.EtcdOptions{Data: filepath.Join(folder, "etcd")})
	if err != nil {
		return nil, err
	}
	r.others = append(r.others, etcd)
	o := servers.VarveOptions{
		Command: "agent", Data: filepath.Join(folder, "data"),
		Args: []string{"--etcd", "http://" + etcd.Address, "--bucket", url, "--wal-copies", "1", "--wal-sync", "always", "--merge-after", mergeAfter},
	}
	for name, value := range credentials {
		o.Env = append(o.Env, name+"="+value)
	}
	if r.broker, err = servers.StartVarve(ctx, o); err != nil {
		return nil, err
	}
	return r, nil
}

// subjects are those of the page. Kafka comes last.
func subjects(kafka contender) []subject {
	return []subject{
		{"Varve, folder", func(ctx context.Context, folder string) (*running, error) {
			path := filepath.Join(folder, "bucket")
			if err := os.Mkdir(path, 0o755); err != nil {
				return nil, fmt.Errorf("make the bucket: %w", err)
			}
			return startAgent(ctx, folder, "file://"+path, nil)
		}},
		{"Varve, MinIO", func(ctx context.Context, folder string) (*running, error) {
			store, err := servers.StartMinIO(ctx, servers.StoreOptions{Data: filepath.Join(folder, "minio"), Buckets: []string{"lake"}})
			if err != nil {
				return nil, err
			}
			return startAgent(ctx, folder, "minio://"+store.Address+"/lake/bench?secure=false", []*servers.Server{store})
		}},
		{kafka.name, func(ctx context.Context, folder string) (*running, error) {
			broker, err := kafka.start(ctx, filepath.Join(folder, "data"))
			if err != nil {
				return nil, err
			}
			return &running{folder: folder, broker: broker}, nil
		}},
	}
}

// catchupRun is what one subject showed in one round.
type catchupRun struct {
	cold    []catchupRead // by index of the plan's readers
	warm    []catchupRead // the same, from the page cache; of a broker that reads through it
	store   float64       // bytes per second that the object store gave without a broker; 0 without one
	alone   load.Latency
	paced   load.Latency // beside readers at the plan's rate
	full    load.Latency // beside readers as fast as they could
	besides float64      // bytes per second that these read
}

// catchupRead is a phase of reading.
type catchupRead struct {
	load.Throughput
	history  int64    // bytes of the topic
	gets     *float64 // requests for blocks; nil for a broker without
	getBytes float64
}

// catchupPage measures how fast old data is read, and what that does to others.
func catchupPage(ctx context.Context, c contest) (string, error) {
	p := newCatchupPlan(c.smoke)
	began := time.Now()
	all := subjects(c.contenders[1])
	runs := make([][]catchupRun, len(all))
	for round := range c.rounds {
		for i, s := range all {
			progress("round %d of %d: %s", round+1, c.rounds, s.name)
			r, err := p.round(ctx, s)
			if err != nil {
				return "", fmt.Errorf("round %d: %s: %w", round+1, s.name, err)
			}
			runs[i] = append(runs[i], r)
		}
	}
	return catchupResults{plan: p, setting: setting{contest: c, machine: report.Machine(), began: began, took: time.Since(began)}, subjects: all, runs: runs}.markdown(), nil
}

// round takes a subject through all phases, on a folder of its own.
func (p catchupPlan) round(ctx context.Context, s subject) (result catchupRun, err error) {
	folder, err := os.MkdirTemp("", "varve-bench-")
	if err != nil {
		return result, fmt.Errorf("make data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	r, err := s.start(ctx, folder)
	if err != nil {
		return result, err
	}
	defer func() {
		r.kill()
		if err != nil {
			err = fmt.Errorf("%w; the broker's output ends with:\n%s", err, r.broker.Output())
		}
	}()
	return p.measure(ctx, r)
}

func (p catchupPlan) measure(ctx context.Context, r *running) (result catchupRun, err error) {
	if _, err := phase(ctx, "warm-up", p.warmup, r.target()); err != nil {
		return result, err
	}
	progress("  writing")
	history := p.history
	history.Target = r.target()
	h, err := load.WriteHistory(ctx, history)
	if err != nil {
		return result, err
	}
	if err := r.awaitMerged(ctx); err != nil {
		return result, err
	}
	for _, n := range p.readers {
		read, err := p.read(ctx, r, h, n, true)
		if err != nil {
			return result, err
		}
		result.cold = append(result.cold, read)
		if r.bucket != "" {
			continue
		}
		if read, err = p.read(ctx, r, h, n, false); err != nil {
			return result, err
		}
		result.warm = append(result.warm, read)
	}
	if result.store, err = r.readStore(ctx); err != nil {
		return result, err
	}
	return result, p.latencies(ctx, r, h, &result)
}

// read has n consumers read everything, from the disk or the object store, or, if not cold, after others just have.
func (p catchupPlan) read(ctx context.Context, r *running, h *load.History, n int, cold bool) (read catchupRead, err error) {
	progress("  %d reading, cold: %v", n, cold)
	if cold {
		if err := r.forget(ctx); err != nil {
			return read, err
		}
	}
	cfg := p.history
	cfg.Target = r.target()
	before, beforeBytes, counted := r.gets(ctx)
	if read.Throughput, err = h.Read(ctx, cfg, n); err != nil {
		return read, fmt.Errorf("%d readers: %w", n, err)
	}
	if after, afterBytes, ok := r.gets(ctx); counted && ok {
		gets := after - before
		read.gets, read.getBytes = &gets, afterBytes-beforeBytes
	}
	read.history = h.Written.Bytes
	return read, nil
}

// latencies measures producers and consumers of the end, alone and beside readers of the history.
func (p catchupPlan) latencies(ctx context.Context, r *running, h *load.History, result *catchupRun) error {
	latency := func(name string, into *load.Latency) error {
		measured, err := phase(ctx, name, p.latency, r.target())
		if err == nil {
			*into = *measured.Latency
		}
		return err
	}
	if err := r.forget(ctx); err != nil {
		return err
	}
	if err := latency("latency alone", &result.alone); err != nil {
		return err
	}
	for _, turn := range []struct {
		name string
		rate float64
		into *load.Latency
	}{{"latency beside readers at a rate", p.besideRate, &result.paced}, {"latency beside readers", 0, &result.full}} {
		if err := r.forget(ctx); err != nil {
			return err
		}
		read, err := h.Beside(ctx, p.history, p.beside, turn.rate, func() error { return latency(turn.name, turn.into) })
		if err != nil {
			return fmt.Errorf("%s: %w", turn.name, err)
		}
		result.besides = read
	}
	return nil
}

// gets are the requests for blocks since the broker's start, and the bytes that they brought.
func (r *running) gets(ctx context.Context) (gets, bytes float64, ok bool) {
	url := r.target().MetricsURL
	if url == "" {
		return 0, 0, false
	}
	gets, err := load.ReadMetric(ctx, url, "varve_cache_gets_total")
	if err == nil {
		bytes, err = load.ReadMetric(ctx, url, "varve_cache_get_bytes_total")
	}
	return gets, bytes, err == nil
}

// awaitMerged waits until Varve has merged all that was flushed.
func (r *running) awaitMerged(ctx context.Context) error {
	if r.bucket == "" {
		return nil
	}
	progress("  merging")
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		commits, err := load.ReadMetric(ctx, r.target().MetricsURL, "varve_commits")
		if err == nil && commits == 0 {
			return nil
		}
		if err := pause(ctx, time.Second); err != nil {
			return fmt.Errorf("wait for merges, with %.0f flushes left: %w", commits, err)
		}
	}
}

// forget empties what the broker has of the history in memory: Varve starts anew, and the kernel drops what it has of the files.
func (r *running) forget(ctx context.Context) (err error) {
	if r.bucket != "" {
		stopCtx, cancel := context.WithTimeout(ctx, stopWithin)
		defer cancel()
		if err := r.broker.Stop(stopCtx); err != nil {
			return err
		}
		if r.broker, err = r.broker.Restart(ctx); err != nil {
			return err
		}
	}
	unix.Sync()
	return filepath.WalkDir(r.folder, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !entry.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		return dropCache(path)
	})
}

// dropCache drops the pages of a file that are written back and that no process has mapped: an index of Kafka's stays.
func dropCache(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	return errors.Join(os.NewSyscallError("fadvise", err), f.Close())
}

// storeReaders is how many GETs readStore has under way: as many as an agent.
const storeReaders = 8

// readStore reads all merged segments from the object store as an agent would, and returns the bytes per second.
func (r *running) readStore(ctx context.Context) (float64, error) {
	if r.bucket == "" {
		return 0, nil
	}
	progress("  reading the store")
	if err := r.forget(ctx); err != nil {
		return 0, err
	}
	for name, value := range credentials {
		if err := os.Setenv(name, value); err != nil {
			return 0, err
		}
	}
	store, err := bucket.Open(ctx, r.bucket)
	if err != nil {
		return 0, err
	}
	var objects []objectstore.Info
	for info, err := range store.List(ctx, "merged/", "") {
		if err != nil {
			return 0, err
		}
		objects = append(objects, info)
	}
	buffers := make(chan []byte, storeReaders)
	for range storeReaders {
		buffers <- make([]byte, cache.GetBytesDefault)
	}
	began := time.Now()
	var bytes int64
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(storeReaders)
	for _, o := range objects {
		bytes += o.Size
		for off := int64(0); off < o.Size; off += cache.GetBytesDefault {
			group.Go(func() error {
				buffer := <-buffers
				defer func() { buffers <- buffer }()
				return store.Get(ctx, o.Name, off, buffer[:min(o.Size-off, cache.GetBytesDefault)])
			})
		}
	}
	if err := group.Wait(); err != nil {
		return 0, fmt.Errorf("read the store: %w", err)
	}
	return float64(bytes) / time.Since(began).Seconds(), nil
}
