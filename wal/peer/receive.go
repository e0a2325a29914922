package peer

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/frame"
)

// receiver decodes what a peer asks for, on the server's side.
type receiver struct {
	in            *bufio.Reader
	frameBytesMax int64
	memory        *memory
	wait          time.Duration // for memory

	payload []byte
	headers []frame.Header
	block   *block // has the frames; nil for none
}

// round is what an append brings.
type round struct {
	// frames are whole but for their places, one behind the other, in the receiver's block: until release.
	frames []byte
	// next is the number after the last entry; 0 without frames.
	next frame.EntryID
}

// next reads a request. The error is peering.ErrProtocol, or that of the connection.
func (r *receiver) next(ctx context.Context) (request, round, error) {
	o, payload, err := readMessage(r.in, r.payload, r.frameBytesMax)
	r.payload = payload[:0]
	if err != nil {
		return request{}, round{}, err
	}
	if o != opAppend {
		q, err := parseRequest(o, payload)
		return q, round{}, err
	}
	frames, err := r.frames(ctx, payload)
	return request{op: opAppend}, frames, err
}

// frames reads the bodies that follow an append's headers.
func (r *receiver) frames(ctx context.Context, payload []byte) (round, error) {
	total, err := r.parseHeaders(payload)
	if err != nil || total == 0 {
		return round{}, err
	}
	if r.block, err = r.memory.take(ctx, total, r.wait); err != nil {
		return round{}, err
	}
	got := round{frames: r.block.b[:total]}
	at, damaged := int64(0), error(nil)
	for i := range r.headers {
		h := &r.headers[i]
		b := got.frames[at : at+h.Bytes()]
		body := b[frame.HeaderBytes:][:h.BodyBytes]
		if _, err := io.ReadFull(r.in, body); err != nil {
			return round{}, cutShort(err)
		}
		// What follows a damaged body is read all the same, so that the answer finds a sender that listens.
		if err := frame.CheckBody(h, body); err != nil && damaged == nil {
			damaged = fmt.Errorf("%w: frame of entry %d of segment %s: %w", peering.ErrProtocol, h.First, h.Segment, err)
		}
		frame.Finish(b, h)
		at, got.next = at+h.Bytes(), h.Next()
	}
	return got, damaged
}

// parseHeaders fills r.headers, and gives the length of their frames.
func (r *receiver) parseHeaders(payload []byte) (int64, error) {
	if len(payload)%frame.UnplacedBytes != 0 {
		return 0, fmt.Errorf("%w: headers of %d bytes", peering.ErrProtocol, len(payload))
	}
	r.headers = r.headers[:0]
	total := int64(0)
	for ; len(payload) > 0; payload = payload[frame.UnplacedBytes:] {
		h, err := frame.ParseUnplaced(payload)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", peering.ErrProtocol, err)
		}
		if h.Bytes() > r.frameBytesMax || total > roundBytesMax {
			return 0, fmt.Errorf("%w: frame of %d bytes after %d, want at most %d after %d", peering.ErrProtocol, h.Bytes(), total, r.frameBytesMax, roundBytesMax)
		}
		total += h.Bytes()
		r.headers = append(r.headers, h)
	}
	return total, nil
}

// release gives back what the frames lie in.
func (r *receiver) release() {
	r.memory.give(r.block)
	r.block = nil
}
