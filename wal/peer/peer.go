// Package peer gives an agent access to another agent's WAL store, over TCP.
//
//	server := peer.NewServer(peer.ServerConfig{Store: diskStore})
//	peers.Handle(peer.ServiceName, 256, server.Serve)         // this agent's store, for the others
//
//	store := peer.NewStore(peer.Config{Address: "10.0.0.2:9095", Identity: id, Dialer: dialer})
//	appender, err := store.Create(ctx, segment, fence, 1)
//	err = appender.Append(frames)                   // durable over there when it returns
//	answer, err := store.Seal(segment, higherFence)
//	err = store.Read(segment, answer.First, visit)
//
// # Model
//
// A connection carries one request at a time. Requests to a [Store] take a connection from a small pool; an [Appender] has one of its own, so
// that a trim or a seal never waits for an append. The server has one goroutine per connection, and what a request costs it is bounded before
// anything is allocated: connections, bytes of a message, bytes of a round of frames, and the
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
// Who may connect at all is [peering]'s affair.
//
// The bytes are in wal/FORMAT.md, "Between agents".
package peer

import (
	"time"

	"github.com/google/uuid"

	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// ServiceName is what connections to a store ask a [peering.Server] for.
const ServiceName peering.Service = "wal"

// Errors of the store itself, [disk.ErrFenced], ErrExists, ErrUnknown, ErrLive, ErrTooLarge, ErrFull, ErrClosed and [*frame.CorruptError], are told apart at the
// other end as they are at this one. Those of the connection are [peering.ErrUnreachable], which a silence that is too long is as well, [peering.ErrDenied] and
// [peering.ErrProtocol].

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
