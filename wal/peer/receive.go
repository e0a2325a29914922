package peer

import (
	"bufio"
	"fmt"
	"io"
	"unsafe"

	"github.com/varve-io/varve/wal/frame"
)

// receiver decodes what a peer asks for, on the server's side.
type receiver struct {
	in            *bufio.Reader
	frameBytesMax int64

	payload []byte
	headers []frame.Header
	memory  []byte // for frames; on a block boundary
}

// round is what an append brings.
type round struct {
	// frames are whole but for their places, one behind the other, in the receiver's memory: until the next request.
	frames []byte
	// next is the number after the last entry; 0 without frames.
	next frame.EntryID
}

// next reads a request. The error is ErrProtocol, or that of the connection.
func (r *receiver) next() (request, round, error) {
	if cap(r.memory) > keptBytesMax {
		r.memory = nil
	}
	o, payload, err := readMessage(r.in, r.payload, r.frameBytesMax)
	r.payload = payload[:0]
	if err != nil {
		return request{}, round{}, err
	}
	if o != opAppend {
		q, err := parseRequest(o, payload)
		return q, round{}, err
	}
	frames, err := r.frames(payload)
	return request{op: opAppend}, frames, err
}

// frames reads the bodies that follow an append's headers.
func (r *receiver) frames(payload []byte) (round, error) {
	total, err := r.parseHeaders(payload)
	if err != nil {
		return round{}, err
	}
	r.reserve(total)
	got := round{frames: r.memory[:total]}
	at, damaged := int64(0), error(nil)
	for i := range r.headers {
		h := &r.headers[i]
		b := r.memory[at : at+h.Bytes()]
		body := b[frame.HeaderBytes:][:h.BodyBytes]
		if _, err := io.ReadFull(r.in, body); err != nil {
			return round{}, cutShort(err)
		}
		// What follows a damaged body is read all the same, so that the answer finds a sender that listens.
		if err := frame.CheckBody(h, body); err != nil && damaged == nil {
			damaged = fmt.Errorf("%w: frame of entry %d of segment %s: %w", ErrProtocol, h.First, h.Segment, err)
		}
		frame.Finish(b, h)
		at, got.next = at+h.Bytes(), h.Next()
	}
	return got, damaged
}

// parseHeaders fills r.headers, and gives the length of their frames.
func (r *receiver) parseHeaders(payload []byte) (int64, error) {
	if len(payload)%frame.UnplacedBytes != 0 {
		return 0, fmt.Errorf("%w: headers of %d bytes", ErrProtocol, len(payload))
	}
	r.headers = r.headers[:0]
	total := int64(0)
	for ; len(payload) > 0; payload = payload[frame.UnplacedBytes:] {
		h, err := frame.ParseUnplaced(payload)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if h.Bytes() > r.frameBytesMax || total > roundBytesMax {
			return 0, fmt.Errorf("%w: frame of %d bytes after %d, want at most %d after %d", ErrProtocol, h.Bytes(), total, r.frameBytesMax, roundBytesMax)
		}
		total += h.Bytes()
		r.headers = append(r.headers, h)
	}
	return total, nil
}

// reserve makes room for n bytes in r.memory. It grows by doubling, so that a writer of small rounds costs little.
func (r *receiver) reserve(n int64) {
	if n > int64(cap(r.memory)) {
		size := max(n, min(2*int64(cap(r.memory)), roundBytesMax))
		b := make([]byte, size+frame.BlockBytes)
		skip := -int64(uintptr(unsafe.Pointer(&b[0]))) & (frame.BlockBytes - 1)
		r.memory = b[skip : skip+size : skip+size]
	}
	r.memory = r.memory[:cap(r.memory)]
}
