package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
)

// session serves the requests of one connection, one after the other.
type session struct {
	store    Local
	conn     *conn
	metrics  *metrics
	receiver receiver
	appender *disk.Appender // of the segment that the peer created: then nothing else is served
	runs     [1][]byte
}

func newSession(s *Server, c *conn) *session {
	return &session{
		store: s.cfg.Store, conn: c, metrics: s.metrics,
		receiver: receiver{in: c.in, frameBytesMax: c.frameBytesMax, memory: s.memory, wait: c.wait},
	}
}

// errFinal: the peer was told, and nothing can follow.
var errFinal = errors.New("connection ends")

// run serves until the connection ends, and then closes the peer's segment. The error says why it ended.
func (s *session) run(ctx context.Context) error {
	defer func() {
		s.receiver.release()
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
		q, frames, err := s.receiver.next(ctx)
		if errors.Is(err, peering.ErrProtocol) {
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
		err := fmt.Errorf("%w: request of type %d, in a connection with a writer: %t", peering.ErrProtocol, q.op, s.appender != nil)
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
		return fmt.Errorf("%w: request of type %d", peering.ErrProtocol, q.op)
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
	err := s.appender.Append(runs)
	s.receiver.release()
	if err != nil {
		return errors.Join(errFinal, err, s.fail(err))
	}
	s.metrics.appends.Inc()
	s.metrics.appendedBytes.Add(float64(len(frames.frames)))
	return s.conn.sendMessage(opAppended, binary.LittleEndian.AppendUint64(s.conn.message(), uint64(frames.next)))
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
