package peer

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/varve-io/varve/protocol/peering"
)

const (
	inBytes = 32 << 10 // shorter reads are gathered
	// pieceBytesMax is how much must be taken within the time for progress.
	pieceBytesMax = 1 << 20
)

// conn is a connection on which both sides proved themselves. One goroutine uses it at a time; another one may close it.
type conn struct {
	raw net.Conn
	in  *bufio.Reader
	// wait is the longest time without progress, in either direction; 0 for any.
	wait          time.Duration
	frameBytesMax int64 // of the store, whichever side it is on

	payload  []byte
	out      []byte
	bufs     [][]byte
	piece    net.Buffers // to be written
	writing  net.Buffers // the part of piece that is not written yet
	received bool        // something of the answer has arrived
	ended    bool        // the answer has ended, and with it the exchange
	idle     time.Time   // since when
}

func newConn(raw net.Conn, wait time.Duration, frameBytesMax int64) *conn {
	c := &conn{raw: raw, wait: wait, frameBytesMax: frameBytesMax}
	c.in = bufio.NewReaderSize(c, inBytes)
	return c
}

// Read implements io.Reader, for in: each piece must come within the time.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.raw.SetReadDeadline(deadline(c.wait)); err != nil {
		return 0, err
	}
	return c.raw.Read(p)
}

func deadline(wait time.Duration) time.Time {
	if wait == 0 {
		return time.Time{}
	}
	return time.Now().Add(wait)
}

// send writes bufs, one behind the other, from where they lie. bufs itself is used up.
func (c *conn) send(bufs [][]byte) error {
	for len(bufs) > 0 {
		c.piece = c.piece[:0]
		for n := 0; len(bufs) > 0 && n < pieceBytesMax; {
			b := bufs[0][:min(len(bufs[0]), pieceBytesMax-n)]
			c.piece = append(c.piece, b)
			n += len(b)
			if bufs[0] = bufs[0][len(b):]; len(bufs[0]) == 0 {
				bufs = bufs[1:]
			}
		}
		if err := c.raw.SetWriteDeadline(deadline(c.wait)); err != nil {
			return unreachable(err)
		}
		c.writing = c.piece
		// One writev for a TCP connection. TLS gets the buffers one by one, and so makes a record of each at least.
		if _, err := c.writing.WriteTo(c.raw); err != nil {
			return unreachable(err)
		}
	}
	return nil
}

// sendMessage completes the message in b and writes it.
func (c *conn) sendMessage(o op, b []byte) error {
	putMessageHeader(b, o, nil)
	c.bufs = append(c.bufs[:0], b)
	return c.send(c.bufs)
}

// message begins a message in the connection's own memory.
func (c *conn) message() []byte {
	if cap(c.out) < messageHeaderBytes {
		c.out = make([]byte, 512)
	}
	return c.out[:messageHeaderBytes]
}

// ask sends a request.
func (c *conn) ask(r request) error {
	c.received, c.ended = false, false
	c.out = r.appendTo(c.out[:0])
	c.bufs = append(c.bufs[:0], c.out)
	return c.send(c.bufs)
}

// answer reads the next message of an answer. It is one of want, or opDone, or becomes an error. The payload is valid until the next one.
func (c *conn) answer(want op) (op, []byte, error) {
	if _, err := c.in.Peek(1); err != nil {
		return 0, nil, unreachable(err)
	}
	c.received = true
	if cap(c.payload) > keptBytesMax {
		c.payload = nil
	}
	o, payload, err := readMessage(c.in, c.payload, c.frameBytesMax)
	c.payload = payload[:0]
	switch {
	case err != nil:
		return 0, nil, unreachable(err)
	case o == opFailed:
		c.ended = true
		return 0, nil, parseError(payload)
	case o == opDone || o == want:
		c.ended = o != opEntries && o != opListed
		return o, payload, nil
	}
	return 0, nil, fmt.Errorf("%w: answer of type %d, want %d", peering.ErrProtocol, o, want)
}

// done reads an answer that says nothing else.
func (c *conn) done() error {
	_, _, err := c.answer(opDone)
	return err
}

func (c *conn) close() { _ = c.raw.Close() } // what was written is answered, or does not matter any more

// unreachable makes an error of the connection one, unless it is the protocol's.
func unreachable(err error) error {
	if errors.Is(err, peering.ErrProtocol) {
		return err
	}
	return fmt.Errorf("%w: %w", peering.ErrUnreachable, err)
}
