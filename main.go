// Command varve is a broker of Kafka's protocol whose log settles into object storage.
//
//	varve dev      everything in one process, for development
//	varve agent    one agent, with etcd and a bucket elsewhere
//	varve bench    measure a broker
//	varve version
//
// It exits with status 0 when it was asked to end and did so in order, 2 when something on the command line, in the
// environment or in the configuration file has to be changed, and 1 for everything else.
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
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/agent/admin"
	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/coordinator/etcd/embedded"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
	"github.com/varve-io/varve/objectstore/metered"
	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/wal/disk"
)

// Exit statuses.
const (
	statusFailed = 1
	statusUsage  = 2
)

// ballastBytes count as live memory for the garbage collector, which so lets as much garbage gather again before it runs. They are never touched and take no
// memory themselves. What an agent keeps on its heap is a dozen megabytes, and without ballast it collects three times a second at 5 MB/s of small
// requests, each time with a part of the processor time that requests wait for.
const ballastBytes = 64 << 20

func main() {
	ballast := make([]byte, ballastBytes)
	ctx := untilSignal()
	err := newRoot().ExecuteContext(ctx)
	runtime.KeepAlive(ballast)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "varve:", err)
	if _, usage := errors.AsType[*config.Error](err); usage {
		os.Exit(statusUsage)
	}
	os.Exit(statusFailed)
}

// untilSignal returns a context that the first SIGINT or SIGTERM ends. The second ends the process.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		fmt.Fprintln(os.Stderr, "varve: ended by a second signal; the next start recovers what was not flushed")
		os.Exit(statusFailed)
	}()
	return ctx
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "varve",
		Short: "A Kafka-protocol broker whose log settles into object storage",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &config.Error{Place: "varve", Seen: strconv.Quote(args[0]), Want: "a command: " + commandNames(cmd)}
			}
			return cmd.Help()
		},
		Args:              cobra.ArbitraryArgs, // RunE says what is wrong with them
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(flagError)
	bench := load.Command()
	bench.Args = noArgs
	root.AddCommand(newDev(), newAgent(), bench, newVersion())
	return root
}

func commandNames(cmd *cobra.Command) string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return strings.Join(names, ", ")
}

// noArgs refuses arguments that are no flags.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &config.Error{Place: cmd.CommandPath(), Seen: strconv.Quote(args[0]), Want: "flags only"}
	}
	return nil
}

// flagError says what is wrong with a flag that could not be parsed.
func flagError(cmd *cobra.Command, err error) error {
	wantFlag := "a flag that " + cmd.CommandPath() + " --help lists"
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		place := "--" + unknown.GetSpecifiedName()
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			place = "-" + short
		}
		return &config.Error{Place: place, Seen: "an unknown flag", Want: wantFlag}
	}
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		flag := missing.GetFlag()
		return &config.Error{Place: "--" + flag.Name, Seen: "no value", Want: plainUsage(flag)}
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		flag := invalid.GetFlag()
		return &config.Error{
			Place: "--" + flag.Name, Seen: strconv.Quote(invalid.GetValue()), Want: flag.Value.Type() + ": " + plainUsage(flag),
		}
	}
	return &config.Error{Place: cmd.CommandPath(), Err: err}
}

func plainUsage(flag *pflag.Flag) string { return strings.ReplaceAll(flag.Usage, "`", "") }

func newDev() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything in one process, for development",
		Long: `Run one agent with an etcd of its own, objects in a folder, and its write-ahead log
beside them. Data survives restarts and crashes. Each flag may also stand in the
environment: --data as VARVE_DATA, --wal-sync as VARVE_WAL_SYNC.`,
		Example: `  varve dev
  varve dev --listen 127.0.0.1:19092 --data /tmp/varve`,
		Args: noArgs,
	}
	reader := config.Bind(config.Dev, cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		return run(cmd.Context(), cfg, cmd.OutOrStdout(), true)
	}
	return cmd
}

func newAgent() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run one agent of a cluster",
		Long: `Run one agent, which finds its cluster in etcd and keeps its log in a bucket. It waits
for either that is not there yet, and prints "ready" when it serves clients.

Each flag may also stand in the environment, --wal-sync as VARVE_WAL_SYNC, and in the
YAML file of --config, as wal-sync. A flag wins over the environment, the environment
over the file. The bucket's credentials come from where its client library looks for
them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, shared files, the machine's role.`,
		Example: `  varve agent --etcd http://127.0.0.1:2379 --bucket 's3://lake/varve?region=eu-central-1'
  varve agent --config varve.yaml --listen 0.0.0.0:9092 --advertise broker-1.example.com:9092`,
		Args: noArgs,
	}
	reader := config.Bind(config.Agent, cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		return run(cmd.Context(), cfg, cmd.OutOrStdout(), false)
	}
	return cmd
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "varve %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// version returns what the build recorded of the source it was made from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}

// process is what an agent's process is made of, beside the agent.
type process struct {
	cfg     config.Config
	dev     bool   // with an etcd of its own
	data    string // absolute
	out     io.Writer
	log     *slog.Logger
	metrics *prometheus.Registry
	admin   *admin.Server
	peerTLS *tls.Config // nil for none
}

// run runs an agent and its HTTP server until ctx ends, and then until the agent is drained.
func run(ctx context.Context, cfg config.Config, out io.Writer, dev bool) (err error) {
	p := &process{
		cfg: cfg, dev: dev, out: out,
		log:     slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel})),
		metrics: prometheus.NewRegistry(),
	}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	p.admin = admin.New(admin.Deps{Metrics: p.metrics, Log: p.log})
	if err := p.makeFolders(); err != nil {
		return err
	}
	if p.peerTLS, err = p.readPeerTLS(); err != nil {
		return err
	}
	kafka, err := p.listen(ctx, "listen", cfg.Listen)
	if err != nil {
		return err
	}
	http, err := p.listen(ctx, "http", cfg.HTTP)
	if err != nil {
		return errors.Join(err, kafka.Close())
	}
	var peers net.Listener
	if cfg.PeerListen != (config.Address{}) {
		if peers, err = p.listen(ctx, "peer-listen", cfg.PeerListen); err != nil {
			return errors.Join(err, kafka.Close(), http.Close())
		}
	}
	if !dev {
		p.log.Info("starting", "version", version(), "kafka", kafka.Addr(), "http", http.Addr(), "data", p.data,
			"cluster", cfg.Cluster, "etcd", cfg.Etcd)
	}
	g, ctx := errgroup.WithContext(ctx)
	operable, over := context.WithCancel(context.WithoutCancel(ctx)) // the HTTP server outlives the agent's drain
	g.Go(func() error { return p.admin.Serve(operable, http) })
	g.Go(func() error {
		defer over()
		return p.serve(ctx, kafka, peers, http.Addr())
	})
	return g.Wait()
}

// Folders below that of the data.
const (
	walFolder    = "wal"
	objectFolder = "objects" // dev only
)

func (p *process) makeFolders() error {
	fail := func(err error) error {
		return &config.Error{Place: p.cfg.Place("data"), Seen: strconv.Quote(p.cfg.Data), Want: fmt.Sprintf("a folder to write to (%v)", err)}
	}
	data, err := filepath.Abs(p.cfg.Data)
	if err != nil {
		return fail(err)
	}
	p.data = data
	// What is acknowledged must not be lost with the folder that it lies in: where a folder is new, the one above is synced.
	changed := []string{data}
	for folder := data; ; folder = filepath.Dir(folder) {
		if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		changed = append(changed, filepath.Dir(folder))
	}
	if err := os.MkdirAll(filepath.Join(data, walFolder), 0o750); err != nil {
		return fail(err)
	}
	for _, folder := range changed {
		if err := disk.Folder(folder).SyncFolder(); err != nil {
			return fail(err)
		}
	}
	return nil
}

func (p *process) listen(ctx context.Context, name string, at config.Address) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	if err != nil {
		return nil, &config.Error{
			Place: p.cfg.Place(name), Seen: strconv.Quote(at.String()), Want: fmt.Sprintf("an address of this machine that is free (%v)", err),
		}
	}
	return l, nil
}

// serve runs the agent until ctx ends and it is drained.
func (p *process) serve(ctx context.Context, kafka, peers net.Listener, http net.Addr) (err error) {
	defer kafka.Close() //nolint:errcheck // the agent closes it too
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)

	wal, err := disk.Open(disk.Config{ //nolint:contextcheck // the store ends by Close, after the drain
		Dir: filepath.Join(p.data, walFolder), SyncNone: !p.cfg.WALSync, Logger: p.log,
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.cfg.Place("data"), err)
	}
	defer func() { err = errors.Join(err, wal.Close()) }()

	endpoints := p.cfg.Etcd
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
		endpoints = []string{server.Endpoint()}
	}
	kv, err := etcd.New(etcd.Config{Endpoints: endpoints, Prefix: "/varve/" + p.cfg.Cluster + "/", TLS: new(tls.Config)})
	if err != nil {
		return err
	}
	defer kv.Close() //nolint:errcheck // nothing is under way any more

	store, err := p.openBucket(ctx)
	if err != nil {
		return outcome(ctx, err)
	}
	a := agent.New(p.agentConfig(kafka.Addr(), peers), agent.Deps{
		KV: kv, Store: store, Disk: wal, Listener: kafka, PeerListener: peers, PeerTLS: p.peerTLS, Metrics: p.metrics, Log: p.log, Now: time.Now,
	})
	return outcome(ctx, p.runAgent(ctx, a, kafka.Addr(), http))
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
	probeTimeout      = 20 * time.Second
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
	opened, err := bucket.OpenURL(ctx, at)
	if err != nil {
		return nil, &config.Error{Place: p.cfg.Place("bucket"), Err: err}
	}
	store, err := metered.New(opened, p.metrics)
	if err != nil {
		return nil, err
	}
	for pause := probePause; ; pause = min(2*pause, probePauseLongest) {
		attempt, cancel := context.WithTimeout(ctx, probeTimeout)
		err := objectstore.Probe(attempt, store)
		cancel()
		if err == nil {
			p.log.Info("bucket found", "bucket", store)
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

// agentConfig makes the agent's configuration, given the addresses that it got; peers is nil if it has none.
func (p *process) agentConfig(kafka net.Addr, peers net.Listener) agent.Config {
	c := agent.Defaults()
	advertise := advertised(p.cfg.Advertise, p.cfg.Listen, kafka)
	if peers != nil {
		c.PeerAdvertise = advertised(p.cfg.PeerAdvertise, p.cfg.PeerListen, peers.Addr()).String()
	}
	if c.Copies = p.cfg.WALCopies; p.dev {
		c.Copies = 1
	}
	c.AdvertiseHost, c.AdvertisePort = advertise.Host, int32(advertise.Port)
	c.Zone, c.Shards, c.WALBytesMax = p.cfg.Zone, p.cfg.Shards, p.cfg.WALBytesMax
	c.AutoCreate, c.AcceptLoss = p.cfg.AutoCreateTopics, coordinator.LogID(p.cfg.AcceptLoss)
	c.Topics.Partitions = p.cfg.Partitions
	if p.dev {
		c.GroupDelay = 0 // as in the configuration that Kafka ships for a first try
	}
	return c
}

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

// runAgent runs the agent and says when it serves, and that it does no longer when ctx ends.
func (p *process) runAgent(ctx context.Context, a *agent.Agent, kafka, http net.Addr) error {
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-a.Ready():
	}
	p.admin.SetReady(true)
	defer context.AfterFunc(ctx, func() { p.admin.SetReady(false) })()
	if p.dev {
		p.greet(advertised(p.cfg.Advertise, p.cfg.Listen, kafka), http)
	}
	_, _ = fmt.Fprintln(p.out, "ready") // perhaps nobody reads it
	return <-ended
}

// greet says where everything is, and what to try.
func (p *process) greet(kafka config.Address, http net.Addr) {
	_, _ = fmt.Fprintf(p.out, `Varve for development: one agent, nothing is replicated.

  Kafka       %[1]s
  operations  http://%[2]s (health, metrics, profiles)
  data        %[3]s (wal: write-ahead log, objects: the log, etcd: everything else)

Write, read, and list what is there:

  echo hello | kcat -P -b %[1]s -t greetings
  kcat -C -b %[1]s -t greetings -e
  kcat -L -b %[1]s

`, kafka, http, p.data)
}
