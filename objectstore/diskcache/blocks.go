package diskcache

import (
	"context"
	"errors"
	"io"
	"runtime/pprof"
	"time"
	"unsafe"

	"github.com/varve-io/varve/protocol/crc32c"
)

// errLate: the disk has not answered.
var errLate = errors.New("the disk takes too long")

// read fills parts with blocks, if all of them are on disk and whole.
func (s *Source) read(ctx context.Context, keys []key, parts [][]byte) bool {
	places := s.find(keys)
	if places == nil {
		return false
	}
	buffer, ok := s.takeTurn(ctx)
	if !ok {
		return false
	}
	done := make(chan error, 1)
	go func() { done <- s.readBlocks(buffer, keys, places) }()
	timer := time.NewTimer(readTime)
	defer timer.Stop()
	select {
	case err := <-done:
		defer func() { s.reads <- buffer }()
		return s.deliver(buffer, keys, places, parts, err)
	case <-timer.C:
		s.failed("read", errLate, false)
	case <-ctx.Done():
	}
	// The memory is the read's until it ends.
	s.late.Add(1)
	go func() {
		<-done //nolint:errcheck // nobody wants to know any more
		s.late.Add(-1)
		s.reads <- buffer
	}()
	return false
}

// find returns where blocks are, if all are there and the disk may be read.
func (s *Source) find(keys []key) []place {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.late.Load() > 0 || time.Now().Before(s.readRest) {
		return nil
	}
	return s.index.find(keys)
}

// takeTurn waits for memory to read into, but not for long.
func (s *Source) takeTurn(ctx context.Context) ([]byte, bool) {
	timer := time.NewTimer(readTime)
	defer timer.Stop()
	select {
	case buffer := <-s.reads:
		return made(buffer), true
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil, false
}

// readBlocks reads blocks, each to where its part of the buffer begins.
func (s *Source) readBlocks(buffer []byte, keys []key, places []place) error {
	for i, p := range places {
		if _, err := s.file.ReadAt(buffer[i*slotBytes:][:roundUp(keys[i].n)], p.off()); err != nil {
			return err
		}
	}
	return nil
}

// deliver copies what was read into parts, if it is what was written.
func (s *Source) deliver(buffer []byte, keys []key, places []place, parts [][]byte, err error) bool {
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed("read", err, false)
		s.forget(keys)
		return false
	}
	if !s.hold(places) {
		return false // and others may have been written over them, or nothing be there
	}
	bytes := 0
	for i, k := range keys {
		if err != nil || crc32c.Checksum(buffer[i*slotBytes:][:k.n]) != places[i].sum {
			s.damages.Add(1)
			s.forget(keys)
			return false
		}
		bytes += k.n
	}
	for i, part := range parts {
		copy(part, buffer[i*slotBytes:])
	}
	s.hits.Add(1)
	s.hitBytes.Add(uint64(bytes))
	return true
}

// hold reports whether blocks are still where they were.
func (s *Source) hold(places []place) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range places {
		if !s.index.holds(p) {
			return false
		}
	}
	return true
}

// writing is a block on its way to the disk, whose bytes are in the buffer.
type writing struct {
	place place
	at, n int
}

// keep has blocks written that are not on disk, unless the disk is busy. It copies parts.
func (s *Source) keep(ctx context.Context, keys []key, parts [][]byte) {
	var buffer []byte
	select {
	case buffer = <-s.writes:
		buffer = made(buffer)
	default:
		s.skips.Add(1)
		return
	}
	blocks := s.place(keys)
	if len(blocks) == 0 {
		s.writes <- buffer
		return
	}
	for i, part := range parts {
		copy(buffer[i*slotBytes:], part)
	}
	go pprof.Do(context.WithoutCancel(ctx), pprof.Labels("room", "objectstore/diskcache"), func(context.Context) {
		s.write(buffer, blocks)
		s.writes <- buffer
	})
}

// place finds slots for blocks that have none, as far as there are any.
func (s *Source) place(keys []key) []writing {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := s.closed || time.Now().Before(s.writeRest)
	var blocks []writing
	skipped := false
	for i, k := range keys {
		if s.index.has(k) {
			continue
		}
		var p place
		ok := !rest
		if ok {
			p, ok = s.index.take(k)
		}
		if !ok {
			skipped = true
			continue
		}
		blocks = append(blocks, writing{place: p, at: i * slotBytes, n: k.n})
	}
	if skipped {
		s.skips.Add(1)
	}
	return blocks
}

// write writes blocks, up to the first that fails. In whole sectors: what is behind a block's end is not read as bytes of it.
func (s *Source) write(buffer []byte, blocks []writing) {
	var failed error
	for _, b := range blocks {
		var sum uint32
		if failed == nil {
			sum = crc32c.Checksum(buffer[b.at:][:b.n])
			if _, failed = s.file.WriteAt(buffer[b.at:][:roundUp(b.n)], b.place.off()); failed != nil {
				s.failed("write", failed, true)
			} else {
				s.writtenBytes.Add(uint64(b.n))
			}
		}
		s.mu.Lock()
		s.index.settle(b.place, sum, failed == nil)
		s.mu.Unlock()
	}
}

// failed has nothing be written for a while, nor be read unless the disk is readable.
func (s *Source) failed(what string, err error, readable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.failures.Add(1)
	now := time.Now()
	news := !now.Before(s.writeRest)
	s.writeRest = now.Add(restTime)
	if !readable {
		s.readRest = s.writeRest
	}
	if news {
		s.config.Log.Warn("the disk cache fails, and rests", "operation", what, "folder", s.config.Folder, "for", restTime, "err", err)
	}
}

// made makes the memory of a buffer that is lent for the first time. Fresh memory costs more than what is done with it, so that it stays.
func made(buffer []byte) []byte {
	if buffer != nil {
		return buffer
	}
	return aligned(blocksMax * slotBytes)
}

// aligned returns n zero bytes at an address that direct I/O accepts. The garbage collector does not move them.
func aligned(n int) []byte {
	b := make([]byte, n+sectorBytes)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (sectorBytes - 1)
	return b[skip : skip+n : skip+n]
}

// roundUp returns the smallest number of whole sectors' bytes that is not less than n.
func roundUp(n int) int { return (n + sectorBytes - 1) &^ (sectorBytes - 1) }
