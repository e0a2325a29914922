package peer

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
)

// Appender writes one segment in another agent's store, in a connection of its own. Append and Close come from one goroutine; Trim may be called at any
// time, and does not wait for an append.
//
// Any error of Append is final, a stall too ([Config.Stall]): what the store holds is unknown then. There is no resume: the server closes the segment when the
// connection ends, and the writer goes on without this store, in a new WAL segment.
type Appender struct {
	store *Store
	id    frame.SegmentID
	conn  *conn
	err   error // the first failure

	head   []byte   // of the message: its header, and those of the frames
	bufs   [][]byte // of the message: head, and the bodies
	frames int64    // bytes of memory that the frames take
	next   frame.EntryID
}

// Create is [disk.Store.Create] over there, and opens the connection for what is appended. When it fails with peering.ErrUnreachable, the segment may be there all the
// same, empty.
func (s *Store) Create(ctx context.Context, id frame.SegmentID, fence frame.Fence, first frame.EntryID) (*Appender, error) {
	a := &Appender{store: s, id: id}
	if err := a.create(ctx, request{op: opCreate, segment: id, fence: fence, entry: first}); err != nil {
		return nil, s.failed("create", id, err)
	}
	return a, nil
}

func (a *Appender) create(ctx context.Context, q request) error {
	c, err := a.store.connect(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, c.close)
	if err = c.ask(q); err == nil {
		err = c.done()
	}
	if !stop() {
		err = unreachable(ctx.Err())
	}
	if err != nil {
		a.store.drop(c)
		return err
	}
	c.wait = a.store.cfg.Stall
	a.conn = c
	return nil
}

// Append sends frames, as [disk.Appender.Append] wants them, and returns when they are durable over there. It reads of their headers only what
// [frame.Finish] filled in, so that another store may stamp them meanwhile; the rest of their memory must stay as it is until Append returns.
func (a *Appender) Append(bufs [][]byte) error {
	if a.err == nil {
		if a.err = a.append(bufs); a.err != nil {
			a.store.drop(a.conn)
		}
	}
	return a.store.failed("append to", a.id, a.err)
}

// append sends as many messages as bufs need, most often one, and waits for each.
func (a *Appender) append(bufs [][]byte) error {
	a.begin()
	for _, b := range bufs {
		for at := int64(0); at < int64(len(b)); {
			h, err := frame.Unstamped(b[at:])
			if err != nil {
				return err
			}
			n := h.Bytes()
			if n > a.conn.frameBytesMax {
				return fmt.Errorf("%d bytes, want at most %d: %w", n, a.conn.frameBytesMax, disk.ErrTooLarge)
			}
			if a.frames > 0 && a.frames+n > roundBytesMax {
				if err := a.send(); err != nil {
					return err
				}
				a.begin()
			}
			a.head = frame.AppendUnplaced(a.head, b[at:])
			if h.BodyBytes > 0 {
				a.bufs = append(a.bufs, b[at+frame.HeaderBytes:][:h.BodyBytes])
			}
			a.frames, a.next, at = a.frames+n, h.Next(), at+n
		}
	}
	return a.send()
}

// begin starts a message.
func (a *Appender) begin() {
	if a.head == nil {
		a.head = make([]byte, messageHeaderBytes, 512)
	}
	a.head, a.bufs = a.head[:messageHeaderBytes], append(a.bufs[:0], nil) // the first one becomes head
	a.frames, a.next = 0, 0
}

// send sends the message, and waits until the frames are durable.
func (a *Appender) send() error {
	putMessageHeader(a.head, opAppend, nil)
	a.bufs[0] = a.head
	if err := a.conn.send(a.bufs); err != nil {
		return err
	}
	o, payload, err := a.conn.answer(opAppended)
	if err != nil {
		return err
	}
	if o != opAppended || len(payload) != appendedBytes || frame.EntryID(binary.LittleEndian.Uint64(payload)) != a.next {
		return fmt.Errorf("%w: acknowledged %x, want entries before %d", peering.ErrProtocol, payload, a.next)
	}
	return nil
}

// Trim is [Store.Trim] of the appender's segment.
func (a *Appender) Trim(through frame.EntryID) error { return a.store.Trim(a.id, through) }

// Drop is [Store.Drop] of the appender's segment.
func (a *Appender) Drop() error { return a.store.Drop(a.id) }

// FrameBytesMax is the length of the longest frame that the store takes.
func (a *Appender) FrameBytesMax() int64 { return a.conn.frameBytesMax }

// Close ends the segment over there, as [disk.Appender.Close] does, and the connection. An appender that failed has been closed by that; Close reports
// nothing then.
func (a *Appender) Close() error {
	if a.err != nil {
		return nil //nolint:nilerr // reported before
	}
	a.err = disk.ErrClosed
	a.conn.wait = a.store.cfg.Timeout
	err := a.conn.ask(request{op: opFinish, segment: a.id})
	if err == nil {
		err = a.conn.done()
	}
	a.store.drop(a.conn)
	return a.store.failed("close", a.id, err)
}
