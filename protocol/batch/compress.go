package batch

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// DefaultLevel asks for a codec's own default compression level.
const DefaultLevel = 0

// Compressor compresses the records of batches. It keeps its codecs between
// calls. The zero value is ready. It is for one goroutine at a time and starts none.
type Compressor struct {
	buf       bytes.Buffer
	gzip      *gzip.Writer
	gzipLevel int
	lz4       *lz4.Writer
	zstd      *zstd.Encoder
	zstdLevel int
}

// append compresses src and appends it to dst. Levels are those of Kafka's
// topic configs: gzip.level -1 and 1 to 9, lz4.level 1 to 17, zstd.level up to
// 22; what a codec's library cannot do becomes the nearest that it can.
func (c *Compressor) append(dst []byte, codec Codec, level int, src []byte) ([]byte, error) {
	switch codec {
	case None:
		return append(dst, src...), nil
	case Gzip:
		return c.appendGzip(dst, level, src)
	case Snappy:
		dst = grow(dst, s2.MaxEncodedLen(len(src)))
		block := s2.EncodeSnappy(dst[len(dst):cap(dst)], src)
		return dst[:len(dst)+len(block)], nil
	case LZ4:
		return c.appendLZ4(dst, level, src)
	case Zstd:
		return c.appendZstd(dst, level, src)
	default:
		return dst, fmt.Errorf("compress records: unknown codec %d", codec)
	}
}

func (c *Compressor) appendGzip(dst []byte, level int, src []byte) ([]byte, error) {
	if level == DefaultLevel || level < 0 {
		level = gzip.DefaultCompression
	}
	level = min(level, gzip.BestCompression)
	if c.gzip == nil || c.gzipLevel != level {
		w, err := gzip.NewWriterLevel(nil, level)
		if err != nil {
			return dst, fmt.Errorf("compress records with gzip level %d: %w", level, err)
		}
		c.gzip, c.gzipLevel = w, level
	}
	c.buf.Reset()
	c.gzip.Reset(&c.buf)
	if _, err := c.gzip.Write(src); err != nil {
		return dst, fmt.Errorf("compress records with gzip: %w", err)
	}
	if err := c.gzip.Close(); err != nil {
		return dst, fmt.Errorf("compress records with gzip: %w", err)
	}
	return append(dst, c.buf.Bytes()...), nil
}

// appendLZ4 writes one frame of independent 64 KiB blocks, as Kafka's own
// clients do.
func (c *Compressor) appendLZ4(dst []byte, level int, src []byte) ([]byte, error) {
	compression := lz4.Fast
	if level > 1 {
		// The library has levels 1 to 9, as bits from 9 on.
		compression = lz4.CompressionLevel(1 << (8 + min(level, 9)))
	}
	c.buf.Reset()
	if c.lz4 == nil {
		c.lz4 = lz4.NewWriter(&c.buf)
	} else {
		c.lz4.Reset(&c.buf)
	}
	if err := c.lz4.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.CompressionLevelOption(compression)); err != nil {
		return dst, fmt.Errorf("compress records with lz4 level %d: %w", level, err)
	}
	if _, err := c.lz4.Write(src); err != nil {
		return dst, fmt.Errorf("compress records with lz4: %w", err)
	}
	if err := c.lz4.Close(); err != nil {
		return dst, fmt.Errorf("compress records with lz4: %w", err)
	}
	return append(dst, c.buf.Bytes()...), nil
}

func (c *Compressor) appendZstd(dst []byte, level int, src []byte) ([]byte, error) {
	if level == DefaultLevel {
		level = 3 // ZSTD_CLEVEL_DEFAULT
	}
	if c.zstd == nil || c.zstdLevel != level {
		w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true),
			zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(level)))
		if err != nil {
			return dst, fmt.Errorf("compress records with zstd level %d: %w", level, err)
		}
		c.zstd, c.zstdLevel = w, level
	}
	return c.zstd.EncodeAll(src, dst), nil
}
