package peer

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
)

// session serves the requests of one connection, one after the other.
type session struct {
	store    Local
	conn     *conn
	receiver receiver
	appender *disk.Appender // of the segment that the peer created: then nothing else is served
	runs     [1][]byte
}

func newSession(store Local, c *conn) *session {
	return &session{store: store, conn: c, receiver: receiver{in: c.in, frameBytesMax: c.frameBytesMax}}
}

// errFinal: the peer was told, and nothing can follow.
var errFinal = errors.New("connection ends")

// run serves until the connection ends, and then closes the peer's segment. The error says why it ended.
func (s *session) run() error {
	defer func() {
		if s.appender != nil {
			_ = s.appender.Close() // nobody is there who would want to know; a seal will tell
		}
	}()
	patience := s.conn.wait
	for {
		s.conn.wait = idleCut
		if s.appender != nil {
			s.conn.wait = 0
		}
		if _, err := s.conn.in.Peek(1); err != nil {
			return err
		}
		s.conn.wait = patience
		q, frames, err := s.receiver.next()
		if errors.Is(err, ErrProtocol) {
			return errors.Join(err, s.fail(err))
		}
		if err != nil {
			return err
		}
		if err := s.serve(&q, &frames); err != nil {
			return err
		}
	}
}

// serve does what is asked for and answers. An error ends the connection.
func (s *session) serve(q *request, frames *round) error {
	if writing := q.op == opAppend || q.op == opFinish; writing != (s.appender != nil) {
		err := fmt.Errorf("%w: request of type %d, in a connection with a writer: %t", ErrProtocol, q.op, s.appender != nil)
		return errors.Join(err, s.fail(err))
	}
	switch q.op {
	case opCreate:
		appender, err := s.store.Create(q.segment, q.fence, q.entry)
		if err != nil {
			return s.fail(err)
		}
		s.appender = appender
		return s.done(nil)
	case opAppend:
		return s.append(frames)
	case opFinish:
		err := s.appender.Close()
		s.appender = nil
		return s.done(err)
	case opSeal:
		answer, err := s.store.Seal(q.segment, q.fence)
		if err != nil {
			return s.fail(err)
		}
		b := binary.LittleEndian.AppendUint64(s.conn.message(), uint64(answer.First))
		return s.conn.sendMessage(opSealed, binary.LittleEndian.AppendUint64(b, uint64(answer.Last)))
	case opRead:
		return s.read(q)
	case opTrim:
		return s.done(s.store.Trim(q.segment, q.entry))
	case opDrop:
		return s.done(s.store.Drop(q.segment))
	case opSegments:
		return s.list()
	default:
		return fmt.Errorf("%w: request of type %d", ErrProtocol, q.op)
	}
}

// done answers a request that has no other answer than its error.
func (s *session) done(err error) error {
	if err != nil {
		return s.fail(err)
	}
	return s.conn.sendMessage(opDone, s.conn.message())
}

// fail tells the peer an error of the store.
func (s *session) fail(err error) error {
	return s.conn.sendMessage(opFailed, appendError(s.conn.message(), err))
}

func (s *session) append(frames *round) error {
	s.runs[0] = frames.frames
	runs := s.runs[:]
	if len(frames.frames) == 0 {
		runs = nil
	}
	if err := s.appender.Append(runs); err != nil {
		return errors.Join(errFinal, err, s.fail(err))
	}
	return s.conn.sendMessage(opAppended, binary.LittleEndian.AppendUint64(s.conn.message(), uint64(frames.next)))
}

// read streams entries: small ones together, one that is long from where the store has it.
func (s *session) read(q *request) error {
	c := s.conn
	var lost error // the connection is
	empty := messageHeaderBytes + 8
	b := c.message()
	flush := func() {
		if lost == nil && len(b) > empty {
			lost = c.sendMessage(opEntries, b)
		}
		c.out, b = b, b[:messageHeaderBytes]
	}
	err := s.store.Read(q.segment, q.entry, func(id frame.EntryID, entry []byte) error {
		if len(b)+frame.EntryHeaderBytes+len(entry) > entriesBytesMax {
			flush()
		}
		if len(b) == messageHeaderBytes {
			b = binary.LittleEndian.AppendUint64(b, uint64(id))
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(entry)))
		if len(b)+len(entry) <= entriesBytesMax {
			b = append(b, entry...)
			return lost
		}
		putMessageHeader(b, opEntries, entry)
		c.bufs = append(c.bufs[:0], b, entry)
		if lost == nil {
			lost = c.send(c.bufs)
		}
		b = b[:messageHeaderBytes]
		return lost
	})
	flush()
	if lost != nil {
		return lost
	}
	return s.done(err)
}

// list streams the list of segments.
func (s *session) list() error {
	infos := s.store.Segments()
	for len(infos) > 0 {
		n := min(len(infos), listedMax)
		b := s.conn.message()
		for i := range infos[:n] {
			b = appendListed(b, &infos[i])
		}
		s.conn.out = b
		if err := s.conn.sendMessage(opListed, b); err != nil {
			return err
		}
		infos = infos[n:]
	}
	return s.done(nil)
}
