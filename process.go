package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/admin"
	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/coordinator/etcd/embedded"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
	"github.com/varve-io/varve/objectstore/diskcache"
	"github.com/varve-io/varve/wal/disk"
)

// process is what a process is made of, beside its agents: one, or several in dev.
type process struct {
	cfg     config.Config
	dev     bool   // with an etcd of its own
	data    string // absolute
	out     io.Writer
	log     *slog.Logger
	metrics *prometheus.Registry
	admin   *admin.Server
	http    net.Listener
	peerTLS *tls.Config // nil for none
	etcd    []string    // URLs
	seats   []*seat
}

// seat is what one agent has of its own.
type seat struct {
	number    int    // from 1
	zone      string // empty for none
	folder    string // of its WAL
	cache     string // folder of its disk cache, beside it
	listen    config.Address
	advertise config.Address
	kafka     net.Listener
	peers     net.Listener // nil for none
	disk      *disk.Store
	log       *slog.Logger
	metrics   prometheus.Registerer
}

// run runs agents and an HTTP server until ctx ends, and then until the agents are drained.
func run(ctx context.Context, cfg config.Config, out io.Writer, dev bool) error {
	p := &process{
		cfg: cfg, dev: dev, out: out,
		log:     slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel})),
		metrics: prometheus.NewRegistry(),
	}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.admin = admin.New(admin.Deps{Metrics: p.metrics, Log: p.log})
	data, err := filepath.Abs(cfg.Data)
	if err != nil {
		return p.badData(err)
	}
	p.data = data
	if p.peerTLS, err = p.readPeerTLS(); err != nil {
		return err
	}
	for i := range cfg.Agents {
		p.seats = append(p.seats, p.seat(i))
	}
	for _, s := range p.seats {
		if err := makeFolder(s.folder); err != nil {
			return p.badData(err)
		}
	}
	defer p.close()
	if err := p.listenAll(ctx); err != nil {
		return err
	}
	if !dev {
		p.log.Info("starting", "version", version(), "kafka", p.seats[0].kafka.Addr(), "http", p.http.Addr(), "data", p.data,
			"cluster", cfg.Cluster, "etcd", cfg.Etcd)
	}
	g, ctx := errgroup.WithContext(ctx)
	operable, over := context.WithCancel(context.WithoutCancel(ctx)) // the HTTP server outlives the agents' drain
	g.Go(func() error { return p.admin.Serve(operable, p.http) })
	g.Go(func() error {
		defer over()
		return p.serve(ctx)
	})
	return g.Wait()
}

// Folders below that of the data. A dev's first agent has its WAL where an only one has it, so that the number of agents can be another with each start.
const (
	walFolder    = "wal"
	cacheFolder  = "cache"   // of blocks of segments, with --disk-cache
	agentFolder  = "agent-"  // and a number from 2 in dev: further agents, each with its WAL below
	objectFolder = "objects" // dev only
)

// seat plans an agent's, from 0.
func (p *process) seat(i int) *seat {
	s := &seat{
		number: i + 1, zone: p.cfg.Zone, folder: filepath.Join(p.data, walFolder), log: p.log, metrics: p.metrics,
		listen: following(p.cfg.Listen, i), advertise: following(p.cfg.Advertise, i),
	}
	if n := len(p.cfg.Zones); n > 0 {
		s.zone = p.cfg.Zones[i%n]
	}
	if i > 0 {
		s.folder = filepath.Join(p.data, agentFolder+strconv.Itoa(s.number), walFolder)
	}
	s.cache = filepath.Join(filepath.Dir(s.folder), cacheFolder)
	if p.cfg.Agents > 1 {
		name := strconv.Itoa(s.number)
		s.log, s.metrics = p.log.With("agent", name), prometheus.WrapRegistererWith(prometheus.Labels{"agent": name}, p.metrics)
	}
	return s
}

// following is the address whose port comes n after that of a; port 0 is a free one each.
func following(a config.Address, n int) config.Address {
	if a.Port != 0 {
		a.Port += uint16(n) //nolint:gosec // config has checked that there is one
	}
	return a
}

func (p *process) badData(err error) error {
	return &config.Error{Place: p.cfg.Place("data"), Seen: strconv.Quote(p.cfg.Data), Want: fmt.Sprintf("a folder to write to (%v)", err)}
}

// makeFolder makes a folder, and those above it, durably: what is acknowledged must not be lost with the folder that it lies in.
func makeFolder(folder string) error {
	changed := []string{filepath.Dir(folder)}
	for above := filepath.Dir(folder); ; above = filepath.Dir(above) {
		if _, err := os.Stat(above); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		changed = append(changed, filepath.Dir(above))
	}
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	for _, f := range changed {
		if err := disk.Folder(f).SyncFolder(); err != nil {
			return err
		}
	}
	return nil
}

// listenAll takes all addresses.
func (p *process) listenAll(ctx context.Context) (err error) {
	for _, s := range p.seats {
		if s.kafka, err = p.listen(ctx, "listen", s.listen); err != nil {
			return err
		}
		switch {
		case p.cfg.PeerListen != config.Address{}:
			s.peers, err = p.listen(ctx, "peer-listen", p.cfg.PeerListen)
		case len(p.seats) > 1:
			s.peers, err = p.listen(ctx, "agents", config.Address{Host: loopback})
		}
		if err != nil {
			return err
		}
	}
	p.http, err = p.listen(ctx, "http", p.cfg.HTTP)
	return err
}

// loopback is where the agents of a dev reach each other.
const loopback = "127.0.0.1"

func (p *process) listen(ctx context.Context, name string, at config.Address) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	if err != nil {
		return nil, &config.Error{
			Place: p.cfg.Place(name), Seen: strconv.Quote(at.String()), Want: fmt.Sprintf("an address of this machine that is free (%v)", err),
		}
	}
	return l, nil
}

// close closes the listeners, those that others have not closed.
func (p *process) close() {
	for _, s := range p.seats {
		for _, l := range []net.Listener{s.kafka, s.peers} {
			if l != nil {
				_ = l.Close()
			}
		}
	}
	if p.http != nil {
		_ = p.http.Close()
	}
}

// serve runs the agents until ctx ends and they are drained.
func (p *process) serve(ctx context.Context) (err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)

	for _, s := range p.seats {
		// Before the WAL, which may need the room. A process that still has the file open keeps it, and the WAL refuses this one.
		if err := diskcache.Remove(s.cache); err != nil {
			p.log.Warn("what is left of a disk cache stays", "err", err)
		}
		s.disk, err = p.openDisk(ctx, s)
		if err != nil {
			return outcome(ctx, err)
		}
		defer func() { err = errors.Join(err, s.disk.Close()) }()
	}
	p.etcd = p.cfg.Etcd
	if p.dev {
		server, err := embedded.Start(ctx, embedded.Config{Dir: p.data, Logger: p.log})
		if err != nil {
			return outcome(ctx, err)
		}
		defer server.Close() //nolint:errcheck // only of its lock file, which ends with the process
		go func() {
			<-server.Done()
			fail(errors.New("the embedded etcd stopped"))
		}()
		p.etcd = []string{server.Endpoint()}
	}
	kv, err := openEtcd(p.cfg, p.etcd)
	if err != nil {
		return err
	}
	defer kv.Close() //nolint:errcheck // nothing is under way any more

	store, err := p.openBucket(ctx)
	if err != nil {
		return outcome(ctx, err)
	}
	var agents []*agent.Agent
	for _, s := range p.seats {
		agents = append(agents, agent.New(p.agentConfig(s), agent.Deps{
			KV: kv, Store: store, Disk: s.disk, Listener: s.kafka, PeerListener: s.peers, PeerTLS: p.peerTLS, Metrics: s.metrics, Log: s.log, Now: time.Now,
		}))
	}
	// An agent's error is one even if it wraps that something was cancelled: a drain that failed is no orderly end.
	return errors.Join(p.runAgents(ctx, agents), outcome(ctx, nil))
}

// roomPause is how often a full disk is tried again.
const roomPause = 3 * time.Second

// openDisk opens a seat's WAL store. One that needs room on a full disk waits for it: what it holds may be the only copy. When ctx ends first, so does the wait, with its error.
func (p *process) openDisk(ctx context.Context, s *seat) (*disk.Store, error) {
	for {
		store, err := disk.Open(disk.Config{Dir: s.folder, SyncNone: !p.cfg.WALSync, Logger: s.log}) //nolint:contextcheck // the store ends by Close, after the drain
		switch {
		case err == nil:
			return store, nil
		case !errors.Is(err, disk.ErrFull):
			return nil, fmt.Errorf("%s: %w", p.cfg.Place("data"), err)
		}
		s.log.Error("waiting for room on the WAL's disk", "to", "open the store", "folder", s.folder, "retry", roomPause, "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(roomPause):
		}
	}
}

// openEtcd opens the part of an etcd that is the cluster's. It does not connect yet.
func openEtcd(cfg config.Config, endpoints []string) (*etcd.Store, error) {
	return etcd.New(etcd.Config{Endpoints: endpoints, Prefix: "/varve/" + cfg.Cluster + "/", TLS: new(tls.Config)})
}

// outcome is err, unless that only says that ctx ended, or is nil: then it is why ctx ended, and nil if it did not, or because the
// process was told to end.
func outcome(ctx context.Context, err error) error {
	if err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
		return err
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// Pauses between attempts to reach the bucket, the first and the longest, and the time that an attempt may take.
const (
	probePause        = 500 * time.Millisecond
	probePauseLongest = 15 * time.Second
	probeTimeout      = 20 * time.Second // for multipart uploads once more
)

// openBucket waits until the bucket is there and does what the log relies on. When ctx ends first, so does the wait, with its error.
func (p *process) openBucket(ctx context.Context) (objectstore.Store, error) {
	at := p.cfg.Bucket
	if p.dev {
		at = bucket.URL{Scheme: bucket.File, Folder: filepath.Join(p.data, objectFolder)}
	}
	if at.Scheme == bucket.Mem {
		p.log.Warn("objects are in memory: the log ends with this process", "bucket", "mem://")
	}
	store, err := bucket.OpenURL(ctx, at)
	if err != nil {
		return nil, &config.Error{Place: p.cfg.Place("bucket"), Err: err}
	}
	for pause := probePause; ; pause = min(2*pause, probePauseLongest) {
		attempt, cancel := context.WithTimeout(ctx, probeTimeout)
		err := objectstore.Probe(attempt, store)
		cancel()
		if err == nil {
			p.log.Info("bucket found", "bucket", store)
			p.probeMultipart(ctx, store)
			return store, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		p.log.Warn("waiting for the bucket", "bucket", store, "retry", pause, "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// probeMultipart tries multipart uploads. A bucket that does not carry them out as it should, or not now, can be used all the same.
func (p *process) probeMultipart(ctx context.Context, store objectstore.Store) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if err := objectstore.ProbeMultipart(ctx, store); err != nil {
		p.log.Warn("large objects go in one request each until the next start", "bucket", store, "err", err)
	}
}

// readPeerTLS reads the certificates for traffic between agents.
func (p *process) readPeerTLS() (*tls.Config, error) {
	if p.cfg.PeerTLS == "" {
		return nil, nil //nolint:nilnil // no TLS
	}
	fail := func(err error) (*tls.Config, error) {
		return nil, &config.Error{Place: p.cfg.Place("peer-tls"), Seen: strconv.Quote(p.cfg.PeerTLS), Want: fmt.Sprintf("a folder with ca.pem, cert.pem and key.pem (%v)", err)}
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(p.cfg.PeerTLS, "cert.pem"), filepath.Join(p.cfg.PeerTLS, "key.pem"))
	if err != nil {
		return fail(err)
	}
	ca, err := os.ReadFile(filepath.Join(p.cfg.PeerTLS, "ca.pem"))
	if err != nil {
		return fail(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return fail(errors.New("ca.pem has no certificate"))
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	}, nil
}

// agentConfig makes an agent's configuration, given the addresses that it got.
func (p *process) agentConfig(s *seat) agent.Config {
	c := agent.Defaults()
	at := s.advertised()
	c.AdvertiseHost, c.AdvertisePort, c.Balancer = at.Host, int32(at.Port), p.cfg.Balancer
	switch {
	case p.dev && s.peers != nil:
		c.PeerAdvertise = s.peers.Addr().String()
	case s.peers != nil:
		c.PeerAdvertise = advertised(p.cfg.PeerAdvertise, p.cfg.PeerListen, s.peers.Addr()).String()
	}
	if p.dev {
		c.Copies = min(c.Copies, len(p.seats))
		c.GroupDelay = 0 // as in the configuration that Kafka ships for a first try
	} else {
		c.Copies = p.cfg.WALCopies
	}
	c.Zone, c.Shards, c.WALBytesMax = s.zone, p.cfg.Shards, p.cfg.WALBytesMax
	c.AutoCreate, c.AcceptLoss = p.cfg.AutoCreateTopics, coordinator.LogID(p.cfg.AcceptLoss)
	c.TxnTimeoutMax, c.ProducerIdleMax = p.cfg.TransactionTimeoutMax, p.cfg.ProducerIDExpiration
	c.RetentionPause, c.Merge.AgeMax, c.Garbage.Grace = p.cfg.RetentionCheck, p.cfg.MergeAfter, p.cfg.GarbageGrace
	c.Clean.MemoryBytes = int(p.cfg.CompactionMemory)
	c.DiskCache.Folder, c.DiskCache.BytesMax, c.DiskCache.FreeBytesMin = s.cache, p.cfg.DiskCacheBytes, p.walRoom(c.Copies)
	c.Garbage.Pause = min(c.Garbage.Pause, c.Garbage.Grace)
	c.Topics.Partitions = p.cfg.Partitions
	return c
}

// walSpare is what a WAL may take of the disk beyond its unflushed bytes, as --wal-bytes-max says.
const walSpare = 200 << 20

// walRoom is what WALs may want of the disk: the agents' own, and the copies that they keep of others', of as many as an even spread gives them.
func (p *process) walRoom(copies int) int64 {
	return int64(len(p.seats)) * int64(copies) * (p.cfg.WALBytesMax + walSpare)
}

// advertised is where clients find the agent.
func (s *seat) advertised() config.Address { return advertised(s.advertise, s.listen, s.kafka.Addr()) }

// advertised returns what others are told to connect to: what was set, or else what was listened on with the port that this became. The host is as it
// was written: clients compare names.
func advertised(set, listen config.Address, bound net.Addr) config.Address {
	a := set
	if a == (config.Address{}) {
		a = listen
		if tcp, ok := bound.(*net.TCPAddr); ok {
			a.Port = tcp.AddrPort().Port()
		}
	}
	return a
}

// runAgents runs the agents and says when all serve, and that they do no longer when ctx ends. If one of them ends with an error, all drain and that is the error.
func (p *process) runAgents(ctx context.Context, agents []*agent.Agent) error {
	g, ctx := errgroup.WithContext(ctx)
	// One begins after the other has joined, so that they have their node ids in turn.
	for _, a := range agents {
		g.Go(func() error { return a.Run(ctx) })
		select {
		case <-a.Joined():
		case <-ctx.Done():
			return g.Wait()
		}
	}
	for _, a := range agents {
		select {
		case <-a.Ready():
		case <-ctx.Done():
			return g.Wait()
		}
	}
	p.admin.SetReady(true)
	defer context.AfterFunc(ctx, func() { p.admin.SetReady(false) })()
	if p.dev {
		p.greet(agents)
	}
	_, _ = fmt.Fprintln(p.out, "ready") // perhaps nobody reads it
	return g.Wait()
}

// greet says where everything is, and what to try.
func (p *process) greet(agents []*agent.Agent) {
	what := "one agent, nothing is replicated"
	if n := len(agents); n > 1 {
		what = fmt.Sprintf("%d agents, each record on the WALs of %d", n, min(n, agent.Defaults().Copies))
	}
	places, label := "", "Kafka"
	for i, a := range agents {
		places += fmt.Sprintf("  %-10s  %s", label, p.seats[i].advertised())
		if len(agents) > 1 {
			places += fmt.Sprintf("  node %d", a.Node())
		}
		if zone := p.seats[i].zone; zone != "" {
			places += "  zone " + zone
		}
		places, label = places+"\n", ""
	}
	_, _ = fmt.Fprintf(p.out, `Varve for development: %s.

%s  operations  http://%s (health, metrics, profiles)
  etcd        %s
  data        %s (wal: write-ahead log, objects: the log, etcd: everything else)

Write, read, list what is there, and see how the cluster is:

  echo hello | kcat -P -b %[6]s -t greetings
  kcat -C -b %[6]s -t greetings -e
  kcat -L -b %[6]s
  varve status --data %[5]s

`, what, places, p.http.Addr(), p.etcd[0], p.data, p.seats[0].advertised())
}
