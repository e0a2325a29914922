package peer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// op is the type of a message.
type op uint8

// Requests.
const (
	opCreate op = 1 + iota
	opAppend
	opFinish
	opSeal
	opRead
	opTrim
	opDrop
	opSegments
)

// Answers. A request has one, but for a read and a list, which have any number of opEntries or opListed before.
const (
	opDone op = 64 + iota
	opAppended
	opSealed
	opEntries
	opListed
	opFailed
)

const (
	messageHeaderBytes = 12
	requestBytes       = 28
	appendedBytes      = 8
	sealedBytes        = 16
	listedBytes        = 37
	corruptBytes       = 38 // of an error of this kind, before the texts
)

// payloadMax is how long the payload of a message may be; negative for a type that does not exist. frameBytesMax is the store's.
func (o op) payloadMax(frameBytesMax int64) int64 {
	switch o {
	case opCreate, opFinish, opSeal, opRead, opTrim, opDrop, opSegments:
		return requestBytes
	case opAppend:
		return roundFramesMax * frame.UnplacedBytes
	case opDone:
		return 0
	case opAppended:
		return appendedBytes
	case opSealed:
		return sealedBytes
	case opEntries:
		return 8 + max(entriesBytesMax, frameBytesMax)
	case opListed:
		return listedMax * listedBytes
	case opFailed:
		return 1 + corruptBytes + 2*errorTextBytesMax
	}
	return -1
}

// request is a request as it is sent, and as it was received.
type request struct {
	op      op
	segment frame.SegmentID
	fence   frame.Fence   // create, seal
	entry   frame.EntryID // create: the first; read: from; trim: through
}

// appendTo appends the message.
func (r *request) appendTo(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, messageHeaderBytes)...)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.segment.Log))
	b = binary.LittleEndian.AppendUint32(b, r.segment.Number)
	b = binary.LittleEndian.AppendUint64(b, uint64(r.fence))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.entry))
	putMessageHeader(b[start:], r.op, nil)
	return b
}

// putMessageHeader fills in the header at the start of b, whose payload is the rest of b and then tail.
func putMessageHeader(b []byte, o op, tail []byte) {
	clear(b[:messageHeaderBytes])
	b[0] = byte(o)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)-messageHeaderBytes+len(tail)))
	crc := crc32c.Update(0, b[:8])
	crc = crc32c.Update(crc, b[messageHeaderBytes:])
	binary.LittleEndian.PutUint32(b[8:], crc32c.Update(crc, tail))
}

// readMessage reads a message. The payload lies in buf, or in new memory if it is longer. The error is peering.ErrProtocol, or in's own.
func readMessage(in *bufio.Reader, buf []byte, frameBytesMax int64) (op, []byte, error) {
	header, err := in.Peek(messageHeaderBytes)
	if err != nil {
		return 0, buf, cutShort(err)
	}
	o, n, crc := op(header[0]), binary.LittleEndian.Uint32(header[4:]), binary.LittleEndian.Uint32(header[8:])
	sum := crc32c.Update(0, header[:8])
	if limit := o.payloadMax(frameBytesMax); header[1]|header[2]|header[3] != 0 || int64(n) > limit {
		return 0, buf, fmt.Errorf("%w: message of type %d with %d bytes, want at most %d", peering.ErrProtocol, o, n, limit)
	}
	if _, err := in.Discard(messageHeaderBytes); err != nil {
		return 0, buf, err
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(in, buf); err != nil {
		return 0, buf, cutShort(err)
	}
	if crc32c.Update(sum, buf) != crc {
		return 0, buf, fmt.Errorf("%w: checksum of a message of type %d with %d bytes", peering.ErrProtocol, o, n)
	}
	return o, buf, nil
}

// cutShort tells an end within a message from one before it.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseRequest reads the payload of any request but an append.
func parseRequest(o op, b []byte) (request, error) {
	if o > opSegments || len(b) != requestBytes {
		return request{}, fmt.Errorf("%w: request of type %d with %d bytes", peering.ErrProtocol, o, len(b))
	}
	return request{
		op:      o,
		segment: frame.SegmentID{Log: frame.LogID(binary.LittleEndian.Uint64(b)), Number: binary.LittleEndian.Uint32(b[8:])},
		fence:   frame.Fence(binary.LittleEndian.Uint64(b[12:])),
		entry:   frame.EntryID(binary.LittleEndian.Uint64(b[20:])),
	}, nil
}

func parseSealed(b []byte) (quorum.Answer, error) {
	if len(b) != sealedBytes {
		return quorum.Answer{}, fmt.Errorf("%w: answer to a seal of %d bytes", peering.ErrProtocol, len(b))
	}
	return quorum.Answer{
		First: frame.EntryID(binary.LittleEndian.Uint64(b)), Last: frame.EntryID(binary.LittleEndian.Uint64(b[8:])),
	}, nil
}

// visitEntries calls visit with each entry of the payload of opEntries, the first of which must be number next. The number after the last visited
// one comes back. Whether an error is visit's own is up to visit to know.
func visitEntries(b []byte, next frame.EntryID, visit func(frame.EntryID, []byte) error) (frame.EntryID, error) {
	if len(b) < 8 || frame.EntryID(binary.LittleEndian.Uint64(b)) != next {
		return next, fmt.Errorf("%w: entries do not begin with %d", peering.ErrProtocol, next)
	}
	b = b[8:]
	for len(b) > 0 {
		if len(b) < frame.EntryHeaderBytes || uint64(binary.LittleEndian.Uint32(b)) > uint64(len(b)-frame.EntryHeaderBytes) {
			return next, fmt.Errorf("%w: entry %d ends behind its message", peering.ErrProtocol, next)
		}
		n := frame.EntryHeaderBytes + int(binary.LittleEndian.Uint32(b))
		if err := visit(next, b[frame.EntryHeaderBytes:n:n]); err != nil {
			return next, err
		}
		b = b[n:]
		next++
	}
	return next, nil
}

func appendListed(b []byte, info *disk.SegmentInfo) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(info.ID.Log))
	b = binary.LittleEndian.AppendUint32(b, info.ID.Number)
	b = binary.LittleEndian.AppendUint64(b, uint64(info.Fence))
	b = binary.LittleEndian.AppendUint64(b, uint64(info.First))
	b = binary.LittleEndian.AppendUint64(b, uint64(info.Bytes))
	if info.Live {
		return append(b, 1)
	}
	return append(b, 0)
}

func parseListed(infos []disk.SegmentInfo, b []byte) ([]disk.SegmentInfo, error) {
	if len(b)%listedBytes != 0 {
		return nil, fmt.Errorf("%w: list of segments of %d bytes", peering.ErrProtocol, len(b))
	}
	for ; len(b) > 0; b = b[listedBytes:] {
		infos = append(infos, disk.SegmentInfo{
			ID:    frame.SegmentID{Log: frame.LogID(binary.LittleEndian.Uint64(b)), Number: binary.LittleEndian.Uint32(b[8:])},
			Fence: frame.Fence(binary.LittleEndian.Uint64(b[12:])),
			First: frame.EntryID(binary.LittleEndian.Uint64(b[20:])),
			Bytes: int64(binary.LittleEndian.Uint64(b[28:])),
			Live:  b[36] != 0,
		})
	}
	return infos, nil
}

// The kinds of an error on the wire; kindOther has words only.
const (
	kindOther   = 0
	kindCorrupt = 8
)

// kindOf gives the sentinel of a kind, nil for those without.
func kindOf(kind byte) error {
	switch kind {
	case 1:
		return disk.ErrFenced
	case 2:
		return disk.ErrExists
	case 3:
		return disk.ErrUnknown
	case 4:
		return disk.ErrLive
	case 5:
		return disk.ErrTooLarge
	case 6:
		return disk.ErrFull
	case 7:
		return disk.ErrClosed
	case 9:
		return peering.ErrProtocol
	}
	return nil
}

const kindLast = 9

// appendError appends the payload of opFailed.
func appendError(b []byte, err error) []byte {
	if corrupt, ok := errors.AsType[*frame.CorruptError](err); ok {
		b = append(b, kindCorrupt)
		b = binary.LittleEndian.AppendUint64(b, uint64(corrupt.Segment.Log))
		b = binary.LittleEndian.AppendUint32(b, corrupt.Segment.Number)
		b = binary.LittleEndian.AppendUint64(b, uint64(corrupt.Offset))
		b = binary.LittleEndian.AppendUint64(b, uint64(corrupt.First))
		b = binary.LittleEndian.AppendUint64(b, uint64(corrupt.Last))
		file := corrupt.File[:min(len(corrupt.File), errorTextBytesMax)]
		b = binary.LittleEndian.AppendUint16(b, uint16(len(file)))
		b = append(b, file...)
		return append(b, corrupt.Reason[:min(len(corrupt.Reason), errorTextBytesMax)]...)
	}
	kind := byte(kindOther)
	for k := byte(1); k <= kindLast; k++ {
		if sentinel := kindOf(k); sentinel != nil && errors.Is(err, sentinel) {
			kind = k
			break
		}
	}
	text := err.Error()
	return append(append(b, kind), text[:min(len(text), errorTextBytesMax)]...)
}

// parseError reads the payload of opFailed. It is the peer's error, or peering.ErrProtocol.
func parseError(b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: an error without a kind", peering.ErrProtocol)
	}
	if b[0] != kindCorrupt {
		return &remoteError{kind: kindOf(b[0]), text: string(b[1:])}
	}
	b = b[1:]
	if len(b) < corruptBytes || int(binary.LittleEndian.Uint16(b[36:])) > len(b)-corruptBytes {
		return fmt.Errorf("%w: an error of %d bytes", peering.ErrProtocol, len(b))
	}
	texts, n := b[corruptBytes:], binary.LittleEndian.Uint16(b[36:])
	return &frame.CorruptError{
		Segment: frame.SegmentID{Log: frame.LogID(binary.LittleEndian.Uint64(b)), Number: binary.LittleEndian.Uint32(b[8:])},
		Offset:  int64(binary.LittleEndian.Uint64(b[12:])),
		First:   frame.EntryID(binary.LittleEndian.Uint64(b[20:])),
		Last:    frame.EntryID(binary.LittleEndian.Uint64(b[28:])),
		File:    string(texts[:n]),
		Reason:  string(texts[n:]),
	}
}

// remoteError is an error of the store at the other end, in its words.
type remoteError struct {
	kind error // nil for none that is known here
	text string
}

func (e *remoteError) Error() string { return e.text }

func (e *remoteError) Unwrap() error { return e.kind }
