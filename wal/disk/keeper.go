package disk

import (
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"github.com/varve-io/varve/wal/frame"
)

const (
	walNameFormat   = "%d.wal"
	preparingSuffix = ".preparing"
	zerosBytes      = 256 << 10
	zerosAtOnce     = 4 // buffers per write: 1 MiB
)

// keep is the keeper: it writes the state when it changed, frees what was trimmed, and prepares files, in this order of
// urgency, until the store closes.
func (s *Store) keep() {
	defer close(s.kept)
	zeros := Aligned(zerosBytes)
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case max(s.stateSaved, s.stateLost) < s.stateWant:
			s.keepState()
		case s.closing:
			return
		case len(s.retired) > 0:
			f := s.retired[0]
			s.retired = slices.Clone(s.retired[1:])
			s.keepRetired(f)
		case len(s.ready) < filesReady && s.prepareErr == nil:
			s.keepReady(zeros)
		default:
			s.cond.Wait()
			continue
		}
		s.cond.Broadcast()
	}
}

// keepState writes the state. After a failure the one before is on disk, or the new one: each is whole, and whoever wanted the new one is told that it may not be there. The next
// one is written to a file of its own.
func (s *Store) keepState() {
	want, st := s.stateWant, s.state
	st.Marks, st.Losses = s.sortedMarks(), slices.Clone(st.Losses)
	s.mu.Unlock()
	err := writeState(s.fs, &st)
	s.mu.Lock()
	if err == nil {
		s.stateSaved = want
	} else {
		s.stateLost, s.stateErr = want, err
	}
}

// keepRetired frees a file: first the header says so, durably, and only then may the file be used again or removed.
// The next file of its segment is freed after that, so that a crash never leaves a gap.
func (s *Store) keepRetired(f *walFile) {
	spare := len(s.ready) < filesReadyMax
	s.mu.Unlock()
	err := s.free(f)
	spare = spare && err == nil
	if !spare {
		err = errors.Join(err, f.close(), s.fs.Remove(f.name))
	}
	s.mu.Lock()
	if err != nil {
		s.log.Warn("WAL file not freed", "file", f.name, "error", err)
	}
	if spare {
		s.ready = append(s.ready, f)
	}
	s.prepareErr = nil
}

var errFileSize = errors.New("file of another size")

func (s *Store) free(f *walFile) error {
	if f.file == nil {
		file, err := s.fs.Open(f.name, false, s.durable)
		if err != nil {
			return err
		}
		f.file = file
	}
	f.header = frame.FileHeader{Store: s.state.Identity, File: f.header.File}
	block := Aligned(frame.BlockBytes)
	frame.PutFileHeader(block, &f.header)
	if err := f.file.WriteBuffers([][]byte{block}, 0, true); err != nil {
		return err
	}
	size, err := f.file.Bytes()
	if err == nil && size != s.fileBytes {
		err = errFileSize // another FileBytes in an earlier run
	}
	return err
}

// keepReady prepares a file: filled with zeros under a name that a crash leaves to be removed, then renamed.
func (s *Store) keepReady(zeros []byte) {
	name := fmt.Sprintf(walNameFormat, s.nextName)
	s.nextName++
	s.mu.Unlock()
	f, err := s.prepare(name, zeros)
	s.mu.Lock()
	if err != nil {
		// Files that are ready or get trimmed still serve; an append that finds none tries once more, and fails.
		s.prepareErr = err
		s.log.Warn("WAL file not prepared", "file", name, "ready", len(s.ready), "error", err)
		return
	}
	s.ready = append(s.ready, f)
}

func (s *Store) prepare(name string, zeros []byte) (*walFile, error) {
	preparing := name + preparingSuffix
	file, err := s.fs.Open(preparing, true, s.durable)
	if err != nil {
		return nil, fmt.Errorf("prepare WAL file: %w", err)
	}
	f := &walFile{name: name, file: file, header: frame.FileHeader{Store: s.state.Identity}}
	err = s.fill(f, zeros)
	if err == nil {
		err = s.fs.Rename(preparing, name)
	}
	if err == nil {
		err = s.fs.SyncFolder()
	}
	if err != nil {
		// Of both names one exists. Leaving it would keep a full disk full.
		err = errors.Join(err, f.close())
		if s.fs.Remove(preparing) != nil {
			_ = s.fs.Remove(name)
		}
		return nil, fmt.Errorf("prepare WAL file: %w", err)
	}
	return f, nil
}

// fill writes the whole file, so that later writes change no metadata, and makes it durable.
func (s *Store) fill(f *walFile, zeros []byte) error {
	header := Aligned(frame.BlockBytes)
	frame.PutFileHeader(header, &f.header)
	if err := f.file.WriteBuffers([][]byte{header}, 0, false); err != nil {
		return err
	}
	bufs := make([][]byte, 0, zerosAtOnce)
	for off := int64(frame.BlockBytes); off < s.fileBytes; {
		bufs = bufs[:0]
		start := off
		for len(bufs) < zerosAtOnce && off < s.fileBytes {
			n := min(int64(len(zeros)), s.fileBytes-off)
			bufs = append(bufs, zeros[:n])
			off += n
		}
		if err := f.file.WriteBuffers(bufs, start, false); err != nil {
			return err
		}
	}
	return f.file.Sync()
}

// roomPause is how often a full disk is tried again for an append that waits. Other files may shrink at any time, and none tells.
const roomPause = 3 * time.Second

// take gives a free file to an appender, waiting for one that is being prepared. On a full disk an append waits until trims free a file, or
// somebody makes room; a segment is not begun.
func (s *Store) take(a *Appender) (*walFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepareErr = nil
	s.cond.Broadcast()
	for len(s.ready) == 0 {
		fenced := s.fenced(a.seg.id.Log, a.fence)
		switch {
		case s.closing:
			return nil, ErrClosed
		case fenced != nil:
			return nil, fenced
		case s.prepareErr == nil || len(s.retired) > 0 || s.retrying:
		case a.file == nil || !errors.Is(s.prepareErr, ErrFull):
			return nil, s.prepareErr
		default:
			s.log.Error("WAL waits for room on its disk", "segment", a.seg.id, "error", s.prepareErr)
			s.retrying = true
			time.AfterFunc(roomPause, s.retry)
		}
		s.cond.Wait()
	}
	f := s.ready[0]
	s.ready = slices.Delete(s.ready, 0, 1)
	s.uses++
	f.header = frame.FileHeader{Store: s.state.Identity, File: uint64(s.state.Opened)<<32 | uint64(s.uses)}
	f.written = false
	s.cond.Broadcast()
	return f, nil
}

// retry has the keeper prepare a file again.
func (s *Store) retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prepareErr, s.retrying = nil, false
	s.cond.Broadcast()
}

// Aligned gives n zero bytes at an address that direct I/O accepts.
func Aligned(n int) []byte {
	b := make([]byte, n+frame.BlockBytes)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (frame.BlockBytes - 1)
	return b[skip : skip+n : skip+n]
}
