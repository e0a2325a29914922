package peer

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ServerConfig says what a server serves, and its limits. Memory for frames is limited to 128 MiB for all connections together, or what the
// store's longest frame needs.
type ServerConfig struct {
	Store Local
	// Timeout is for every step of a message on its way; 0 means 10 s.
	Timeout time.Duration
	// Logger gets why connections ended; nil means nothing is logged.
	Logger *slog.Logger
	// Metrics gets the server's metrics, in NewServer; nil means that nobody sees them.
	Metrics prometheus.Registerer
}

// Server serves a store to the cluster's other agents: [Server.Serve] is a [peering.Handler].
type Server struct {
	cfg     ServerConfig
	metrics *metrics
	memory  *memory
}

// NewServer makes a server.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Timeout == 0 {
		cfg.Timeout = timeoutDefault
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, metrics: newMetrics(cfg.Metrics), memory: newMemory(cfg.Store.FrameBytesMax())}
}

// Serve serves a connection to its end: the segment that was written through it has no writer when it returns. An append that waits for room on a full disk, or
// for a disk that hangs, ends only with the store or the disk.
func (s *Server) Serve(ctx context.Context, raw net.Conn) {
	c := newConn(raw, s.cfg.Timeout, s.cfg.Store.FrameBytesMax())
	err := c.send([][]byte{binary.LittleEndian.AppendUint64(nil, uint64(c.frameBytesMax))})
	if err == nil {
		err = newSession(s, c).run(ctx)
	}
	s.cfg.Logger.Debug("WAL peer gone", "address", raw.RemoteAddr(), "error", err)
}
