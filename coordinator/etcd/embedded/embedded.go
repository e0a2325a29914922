// Package embedded runs an etcd of one member inside this process, for `varve dev` and for tests.
//
// It listens for clients on loopback only, and for peers nowhere: it never has any. Its advertised peer URL is fixed
// and nobody dials it, so the membership that etcd stores in the data directory stays true whatever port the next
// start gets. The data survive kill -9.
//
// A single member elects itself, so the election timeout serves nothing and is short: a start takes 0.1 to 0.4 s.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

const (
	memberName = "varve"
	peerURL    = "http://127.0.0.1:2380" // never dialled; part of the stored membership, so it must not change

	tickMs     = 50 // of raft's clock; each tick costs CPU while idle
	electionMs = 250
	quotaBytes = 4 << 30
)

// Errors that tell whether another process uses the data directory.
var (
	ErrLocked     = errors.New("in use by another process")
	ErrNotRunning = errors.New("no process uses it")
)

// Config of a [Server].
type Config struct {
	Dir string // for the data; made if it does not exist
	// ClientURL is where to listen, on loopback. Empty means http://127.0.0.1:0, a free port.
	ClientURL string
	// UnsafeNoFsync skips syncing: for tests, where no machine crashes.
	UnsafeNoFsync bool
	// Logger receives etcd's errors; nil drops them.
	Logger *slog.Logger
}

// Server is a running etcd.
type Server struct {
	etcd       *embed.Etcd
	registered chan *grpc.Server // gets the server that answers clients, once it is about to
	lock       *os.File
	closing    atomic.Bool
	closeOnce  sync.Once
}

// Start runs an etcd and returns when it takes requests, or when ctx ends. The server outlives ctx. If another process
// has the directory, the error wraps [ErrLocked].
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{registered: make(chan *grpc.Server, 1)}
	etcdConfig, err := s.config(cfg)
	if err != nil {
		return nil, fmt.Errorf("etcd in %s: %w", cfg.Dir, err)
	}
	if s.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("etcd in %s: %w", cfg.Dir, err)
	}
	if s.etcd, err = embed.StartEtcd(etcdConfig); err != nil {
		return nil, errors.Join(fmt.Errorf("etcd in %s: %w", cfg.Dir, err), s.lock.Close())
	}
	select {
	case g := <-s.registered: // not before the member is ready
		s.registered <- g
		if err = errors.Join(syncDirs(cfg.Dir, etcdConfig.Dir), s.announce()); err == nil {
			return s, nil
		}
	case err = <-s.etcd.Err():
	case <-s.etcd.Server.StopNotify():
		err = errors.New("stopped while starting")
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(fmt.Errorf("etcd in %s: %w", cfg.Dir, err), s.Close())
}

func (s *Server) config(cfg Config) (*embed.Config, error) {
	if cfg.ClientURL == "" {
		cfg.ClientURL = "http://127.0.0.1:0"
	}
	client, err := url.Parse(cfg.ClientURL)
	if err != nil {
		return nil, fmt.Errorf("client URL %q: %w", cfg.ClientURL, err)
	}
	peer, err := url.Parse(peerURL)
	if err != nil {
		return nil, fmt.Errorf("peer URL %q: %w", peerURL, err)
	}
	logger := cfg.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	c := embed.NewConfig()
	c.Name = memberName
	c.Dir = filepath.Join(cfg.Dir, "etcd")
	c.ListenPeerUrls = nil
	c.AdvertisePeerUrls = []url.URL{*peer}
	c.InitialCluster = memberName + "=" + peerURL
	c.ListenClientUrls = []url.URL{*client}
	c.AdvertiseClientUrls = []url.URL{*client}
	c.TickMs = tickMs
	c.ElectionMs = electionMs
	c.QuotaBackendBytes = quotaBytes
	c.UnsafeNoFsync = cfg.UnsafeNoFsync
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(slogCore{logger: logger, closing: &s.closing}))
	c.WarningUnaryRequestDuration = embed.DefaultWarningUnaryRequestDuration // not set, every request is described for the log
	c.ServiceRegister = func(g *grpc.Server) { s.registered <- g }
	return c, nil
}

// Endpoint returns the URL for clients.
func (s *Server) Endpoint() string {
	addr := s.etcd.Clients[0].Addr()
	if addr.Network() == "unix" {
		return "unix://" + addr.String()
	}
	return "http://" + addr.String()
}

// Done is closed when the server has stopped, by Close or by a failure.
func (s *Server) Done() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Close stops the server and waits for it. Requests under way are cut off: their outcome is unknown to their clients,
// who should be closed first. A second call does nothing.
func (s *Server) Close() error {
	var err error
	s.closeOnce.Do(func() {
		s.closing.Store(true)
		select {
		case g := <-s.registered:
			// etcd would wait for open watches, which end only with their clients, for its request timeout of
			// more than five seconds.
			g.Stop()
		default: // did not come so far
		}
		s.etcd.Close()
		err = s.lock.Close()
	})
	if err != nil {
		return fmt.Errorf("close lock file: %w", err)
	}
	return nil
}

// announce writes down where clients find the server, for [Find]. It is true as long as the file is locked.
func (s *Server) announce() error {
	if err := s.lock.Truncate(0); err != nil {
		return err
	}
	_, err := s.lock.WriteAt([]byte(s.Endpoint()), 0)
	return err
}

// Find returns the URL for clients of the server that runs on a directory, in whatever process of this machine. If there is none, the error is [ErrNotRunning].
func Find(dir string) (string, error) {
	lock, err := os.Open(filepath.Join(dir, lockFile))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("etcd in %s: %w", dir, ErrNotRunning)
	}
	if err != nil {
		return "", fmt.Errorf("etcd in %s: %w", dir, err)
	}
	defer lock.Close() //nolint:errcheck // it was only read
	switch err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return "", fmt.Errorf("etcd in %s: %w", dir, ErrNotRunning)
	case !errors.Is(err, unix.EWOULDBLOCK):
		return "", fmt.Errorf("etcd in %s: %w", dir, err)
	}
	endpoint, err := io.ReadAll(io.LimitReader(lock, endpointBytesMax))
	if err != nil {
		return "", fmt.Errorf("etcd in %s: %w", dir, err)
	}
	if len(endpoint) == 0 {
		return "", fmt.Errorf("etcd in %s: it is starting", dir)
	}
	return string(endpoint), nil
}

// endpointBytesMax is more than a URL on loopback has.
const endpointBytesMax = 256

// syncDirs makes the directories' entries durable, which etcd does for its files and not for the directories that it made.
func syncDirs(dirs ...string) error {
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return fmt.Errorf("sync %s: %w", dir, err)
		}
	}
	return nil
}

// lockDir makes the directory and locks it until the file is closed or the process ends. Without it, etcd would wait
// for the other process's locks in silence.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		switch err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			// What an earlier process has left there is not true any more.
			return lock, lock.Truncate(0)
		case errors.Is(err, unix.EWOULDBLOCK) && try < lockTries:
			time.Sleep(lockPause) // Find holds it for a moment
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(ErrLocked, lock.Close())
		default:
			return nil, errors.Join(fmt.Errorf("lock %s: %w", lock.Name(), err), lock.Close())
		}
	}
}

// lockFile is locked while a server runs, and says where it is.
const lockFile = "etcd.lock"

// How often, and after which pause, the lock is asked for.
const (
	lockTries = 4
	lockPause = 20 * time.Millisecond
)
