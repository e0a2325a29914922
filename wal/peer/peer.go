// Package peer gives an agent access to another agent's WAL store, over TCP.
//
//	server, err := peer.NewServer(peer.ServerConfig{Store: diskStore, Credentials: credentials})
//	go server.Serve(listener)                       // this agent's store, for the others
//
//	store, err := peer.NewStore(peer.Config{Address: "10.0.0.2:9095", Identity: id, Credentials: credentials})
//	appender, err := store.Create(ctx, segment, fence, 1)
//	err = appender.Append(frames)                   // durable over there when it returns
//	answer, err := store.Seal(segment, higherFence)
//	err = store.Read(segment, answer.First, visit)
//
// # Model
//
// A connection carries one request at a time. Requests to a [Store] take a connection from a small pool; an [Appender] has one of its own, so
// that a trim or a seal never waits for an append. The server has one goroutine per connection, and what a request costs it is bounded before
// anything is allocated: connections, connections that did not prove themselves yet, bytes of a message, bytes of a round of frames, and the
// time that a peer may take. All rounds of frames lie in memory of one size, however many connections there are.
//
// There is no resume. When the connection of an appender ends, for whatever reason, the server closes the segment in its store: what is there is
// sealed and read, and never appended to. Nor is an append sent again. The writer does with such a store what it does with one
// whose disk failed: it goes on with the rest of the ensemble, and rolls to a new WAL segment. So the bytes of a segment have one writer, one
// connection and one order, and an acknowledgement that was lost needs no protocol of its own.
//
// # Frames on their way
//
// The writer's memory is shared with its own [disk.Appender], which stamps places and header checksums into it meanwhile. The sender takes
// of a header only what its writer filled in ([frame.AppendUnplaced]), and the bodies go to the socket from where they lie. The receiver
// builds the frames in memory of its own, checks the bodies against the checksums that the writer made, and has its disk.Appender stamp them:
// a bit that flipped on the way, or in either memory, does not become durable.
//
// # Who may
//
// Before anything else both sides prove that they know the cluster's secret: each by an HMAC-SHA256 over both sides' random numbers, the cluster, the store
// that the client expects, and its own role; the client first, so that a stranger learns nothing. This keeps strangers out. It does not keep
// those out who can change the packets between two agents: for that, give both sides a [tls.Config], inside of which everything happens then;
// the proofs cover the TLS session too, so that they cannot be passed on to another one.
//
// The bytes are in wal/FORMAT.md, "Between agents".
package peer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// Kinds of errors, beside those of the store itself: [disk.ErrFenced], ErrExists, ErrUnknown, ErrLive, ErrTooLarge, ErrFull, ErrClosed and
// [*frame.CorruptError] are told apart at the other end as they are at this one.
var (
	// ErrUnreachable: the peer cannot be connected to, has no room for another connection, hung up, or was silent for too long. What it was
	// asked to do may have happened.
	ErrUnreachable = errors.New("peer unreachable")
	// ErrDenied: one side could not prove that it is of the cluster, or another store is there than was expected. Asking
	// again is of no use.
	ErrDenied = errors.New("peer denied")
	// ErrProtocol: what arrived is not what the protocol says; it was damaged on its way, or the other side is no peer or of an unknown version.
	ErrProtocol = errors.New("peer protocol broken")
)

// Credentials are what makes an agent one of its cluster.
type Credentials struct {
	// Cluster is the cluster's id.
	Cluster uuid.UUID
	// Secret is known to the cluster's agents alone: at least 16 bytes, hard to guess, since whoever sees a handshake can try guesses.
	Secret []byte
	// TLS is this side's configuration of mutual TLS, of version 1.3 at least; nil for none. Both sides have it or none.
	TLS *tls.Config
}

const secretBytesMin = 16

func (c *Credentials) check() error {
	if c.Cluster == (uuid.UUID{}) {
		return errors.New("no cluster id")
	}
	if len(c.Secret) < secretBytesMin {
		return fmt.Errorf("cluster secret of %d bytes, want at least %d", len(c.Secret), secretBytesMin)
	}
	return nil
}

// withTLS gives credentials with a TLS configuration of their own, of version 1.3 at least.
func (c Credentials) withTLS(serverName string) Credentials {
	if c.TLS != nil {
		c.TLS = c.TLS.Clone()
		c.TLS.MinVersion = max(c.TLS.MinVersion, tls.VersionTLS13)
		if c.TLS.ServerName == "" {
			c.TLS.ServerName = serverName
		}
	}
	return c
}

// Limits that both sides know. A round of frames is at most roundBytesMax and one frame; the sender cuts at roundBytesMax unless a single
// frame is longer.
const (
	roundBytesMax  = 8 << 20
	roundFramesMax = roundBytesMax/frame.BlockBytes + 1
	// frameBytesLimit is what no store's longest frame exceeds.
	frameBytesLimit = 1 << 30
	// entriesBytesMax is how much of what is read is gathered to one message; an entry that is longer has one for itself.
	entriesBytesMax = 256 << 10
	// listedMax is how many segments are listed in one message.
	listedMax = 4096
	// errorTextBytesMax bounds the words of an error.
	errorTextBytesMax = 2048
	// keptBytesMax is how much memory a client's connection keeps between messages.
	keptBytesMax = 16 << 20
)

const (
	timeoutDefault = 10 * time.Second
	stallDefault   = 2 * time.Second
	// idleMax is how long a client keeps a connection that nobody uses, and idleCut when the server ends it; that of an appender may be idle for as
	// long as the writer's machine is there.
	idleMax = 30 * time.Second
	idleCut = time.Minute
	// progressPause is how often at least a reader gets what was gathered, be it nothing, while the store gets on.
	progressPause = time.Second
	// goneAfter is how long a client waits for a sign of the server's machine. A server waits for goneSlack longer than its Timeout: to the kernel a peer
	// that takes nothing is gone as well, and that a slow reader is cut off is up to the Timeout.
	goneAfter = 5 * time.Second
	goneSlack = time.Second
)

// Local is the store that a [Server] serves. *disk.Store is one.
type Local interface {
	Identity() uuid.UUID
	FrameBytesMax() int64
	Create(id frame.SegmentID, fence frame.Fence, first frame.EntryID) (*disk.Appender, error)
	Seal(id frame.SegmentID, fence frame.Fence) (quorum.Answer, error)
	Read(id frame.SegmentID, from frame.EntryID, visit func(frame.EntryID, []byte) error) error
	Trim(id frame.SegmentID, through frame.EntryID) error
	Drop(id frame.SegmentID) error
	Segments() []disk.SegmentInfo
}
