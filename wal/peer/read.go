package peer

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
)

// read streams entries. The store finds them by reading the segment from its first one. What comes before those that were asked for is read here
// and not by the store alone, so that a peer which waits can be told that there is progress, and a disk that hangs is not mistaken for it.
func (s *session) read(q *request) error {
	start := q.entry
	for _, info := range s.store.Segments() {
		if info.ID == q.segment {
			start = min(start, info.First)
		}
	}
	e := entries{conn: s.conn, metrics: s.metrics, from: q.entry, message: s.conn.message(), sent: time.Now()}
	err := s.store.Read(q.segment, start, e.visit)
	if start < q.entry && errors.Is(err, disk.ErrUnknown) { // trimmed a moment ago
		err = s.store.Read(q.segment, q.entry, e.visit)
	}
	e.flush()
	s.conn.out = e.message
	if e.lost != nil {
		return e.lost
	}
	return s.done(err)
}

// entries sends what a peer reads: small entries together, one that is long from where the store has it.
type entries struct {
	conn    *conn
	metrics *metrics
	from    frame.EntryID
	message []byte    // that is being put together
	sent    time.Time // the last one
	lost    error     // the connection is
}

// visit takes the next entry. Its error is that of the connection.
func (e *entries) visit(id frame.EntryID, entry []byte) error {
	if time.Since(e.sent) >= progressPause {
		e.begin(max(id, e.from)) // without entries, if there are none
		e.send(nil)
	}
	if id < e.from {
		return e.lost
	}
	if len(e.message)+frame.EntryHeaderBytes+len(entry) > entriesBytesMax {
		e.flush()
	}
	e.begin(id)
	e.message = binary.LittleEndian.AppendUint32(e.message, uint32(len(entry)))
	if len(e.message)+len(entry) > entriesBytesMax {
		e.send(entry)
		return e.lost
	}
	e.message = append(e.message, entry...)
	return e.lost
}

// begin starts a message of entries from number first on, unless one is begun.
func (e *entries) begin(first frame.EntryID) {
	if len(e.message) == messageHeaderBytes {
		e.message = binary.LittleEndian.AppendUint64(e.message, uint64(first))
	}
}

// flush sends what was put together, if anything was.
func (e *entries) flush() {
	if len(e.message) > messageHeaderBytes {
		e.send(nil)
	}
}

// send sends the message, and behind it its last entry if that was not put into it.
func (e *entries) send(entry []byte) {
	if e.lost == nil {
		putMessageHeader(e.message, opEntries, entry)
		e.conn.bufs = append(e.conn.bufs[:0], e.message)
		if entry != nil {
			e.conn.bufs = append(e.conn.bufs, entry)
		}
		e.lost = e.conn.send(e.conn.bufs)
		e.metrics.readBytes.Add(float64(len(e.message) + len(entry)))
	}
	e.message, e.sent = e.message[:messageHeaderBytes], time.Now()
}
