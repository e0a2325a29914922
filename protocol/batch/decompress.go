package batch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/varve-io/varve/protocol"
)

// Decompressor turns the records of a batch back into plain bytes. It keeps
// its buffers and codecs between calls; what it returns is valid until the
// next. It is for one goroutine at a time and starts none.
type Decompressor struct {
	bytesMax int
	src      bytes.Reader
	dst      []byte
	gzip     *gzip.Reader
	lz4      *lz4.Reader
	zstd     *zstd.Decoder
}

// errTooLarge is what decompression fails with beyond its limit.
var errTooLarge = errors.New("larger than the limit")

// NewDecompressor returns a Decompressor that fails rather than produce more
// than bytesMax bytes of a batch. bytesMax must be positive.
func NewDecompressor(bytesMax int) *Decompressor {
	return &Decompressor{bytesMax: bytesMax}
}

// plain returns the encoded records of the batch b with header h: a part of b
// if they are not compressed, otherwise bytes that the Decompressor owns.
// Errors are [*protocol.Error]: InvalidRecord, or MessageTooLarge beyond the limit.
func (d *Decompressor) plain(h *Header, b []byte) ([]byte, error) {
	records := b[HeaderBytes:h.Size()]
	codec := h.Attributes.Codec()
	var err error
	switch codec {
	case None:
		return records, nil
	case Gzip:
		d.dst, err = d.readGzip(records)
	case Snappy:
		d.dst, err = d.readSnappy(records)
	case LZ4:
		d.dst, err = d.readLZ4(records)
	case Zstd:
		d.dst, err = d.readZstd(records)
	default:
		return nil, protocol.UnsupportedCompressionType.Errorf("unknown compression codec %d", codec)
	}
	if errors.Is(err, errTooLarge) {
		return nil, protocol.MessageTooLarge.Errorf("batch at offset %d, %v: more than %d bytes decompressed", h.BaseOffset, codec, d.bytesMax)
	}
	if err != nil {
		return nil, protocol.InvalidRecord.Errorf("batch at offset %d, %v: %v", h.BaseOffset, codec, err)
	}
	return d.dst, nil
}

func (d *Decompressor) readGzip(records []byte) ([]byte, error) {
	d.src.Reset(records)
	if d.gzip == nil {
		d.gzip = new(gzip.Reader)
	}
	if err := d.gzip.Reset(&d.src); err != nil {
		return d.dst[:0], err
	}
	return d.readAll(d.gzip)
}

// readLZ4 reads the LZ4 frame format (KIP-57).
func (d *Decompressor) readLZ4(records []byte) ([]byte, error) {
	d.src.Reset(records)
	if d.lz4 == nil {
		d.lz4 = lz4.NewReader(&d.src)
	} else {
		d.lz4.Reset(&d.src)
	}
	return d.readAll(d.lz4)
}

func (d *Decompressor) readZstd(records []byte) ([]byte, error) {
	if d.zstd == nil {
		var err error
		d.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(uint64(max(d.bytesMax, zstdWindowMax))), zstd.WithDecoderMaxWindow(zstdWindowMax))
		if err != nil {
			return d.dst[:0], err
		}
	}
	// The library takes memory for the size that the frame claims.
	var frame zstd.Header
	if err := frame.Decode(records); err != nil {
		return d.dst[:0], err
	}
	if frame.HasFCS && frame.FrameContentSize > uint64(d.bytesMax) {
		return d.dst[:0], errTooLarge
	}
	dst, err := d.zstd.DecodeAll(records, d.dst[:0])
	if len(dst) > d.bytesMax || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		err = errTooLarge
	}
	return dst, err
}

// zstdWindowMax is the largest window that a producer's library uses, at zstd's
// highest level. It costs no memory here, but the decoder's own limit of memory
// must not be less, so that a small frame may claim a large window.
const zstdWindowMax = 128 << 20

// xerialMagic starts the framing that Java's snappy library writes; two int32
// of versions follow, then blocks with an int32 size each.
var xerialMagic = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

const xerialHeaderBytes = 16

// readSnappy reads one raw block, as librdkafka and franz-go write it, or a
// sequence of them in Java's framing.
func (d *Decompressor) readSnappy(records []byte) ([]byte, error) {
	if !bytes.HasPrefix(records, xerialMagic) {
		return d.snappyBlock(d.dst[:0], records)
	}
	if len(records) < xerialHeaderBytes {
		return d.dst[:0], io.ErrUnexpectedEOF
	}
	dst := d.dst[:0]
	for blocks := records[xerialHeaderBytes:]; len(blocks) > 0; {
		if len(blocks) < 4 {
			return dst, io.ErrUnexpectedEOF
		}
		size := int(binary.BigEndian.Uint32(blocks))
		if size > len(blocks)-4 {
			return dst, io.ErrUnexpectedEOF
		}
		var err error
		if dst, err = d.snappyBlock(dst, blocks[4:4+size]); err != nil {
			return dst, err
		}
		blocks = blocks[4+size:]
	}
	return dst, nil
}

// snappyBlock appends one block to dst.
func (d *Decompressor) snappyBlock(dst, block []byte) ([]byte, error) {
	size, err := s2.DecodedLen(block)
	if err != nil {
		return dst, err
	}
	if size > d.bytesMax-len(dst) {
		return dst, errTooLarge
	}
	// No snappy block decodes to more than this multiple of its size; a
	// header that claims more is not worth the memory.
	if size > len(block)*snappyRatioMax {
		return dst, s2.ErrCorrupt
	}
	dst = d.grow(dst, size)
	if _, err := s2.Decode(dst[len(dst):len(dst)+size], block); err != nil {
		return dst, err
	}
	return dst[:len(dst)+size], nil
}

// snappyRatioMax: a copy element of 3 bytes yields at most 64.
const snappyRatioMax = 64

// readAll reads r to its end, into d.dst.
func (d *Decompressor) readAll(r io.Reader) ([]byte, error) {
	dst := d.dst[:0]
	for {
		if len(dst) == cap(dst) {
			dst = d.grow(dst, min(max(len(dst), 4096), d.bytesMax+1-len(dst)))
		}
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if len(dst) > d.bytesMax {
			return dst, errTooLarge
		}
		if errors.Is(err, io.EOF) {
			return dst, nil
		}
		if err != nil {
			return dst, err
		}
	}
}

// grow makes room for n more bytes, and for no more than one byte beyond the limit, which tells that it is passed.
func (d *Decompressor) grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	grown := make([]byte, len(b), min(max(2*cap(b), len(b)+n), d.bytesMax+1))
	copy(grown, b)
	return grown
}

// grow makes room for n more bytes.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	grown := make([]byte, len(b), max(2*cap(b), len(b)+n))
	copy(grown, b)
	return grown
}
