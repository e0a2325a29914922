// Package disk is a WAL store: one folder on one disk, in which segments of WAL logs are kept until their entries are
// flushed.
//
//	store, err := disk.Open(disk.Config{Dir: "data/wal"})
//	appender, err := store.Create(frame.SegmentID{Log: 7, Number: 1}, fence, 1)
//	err = appender.Append(frames)      // durable when it returns
//	store.Trim(id, 1000)               // entries up to 1000 are in the bucket: files are recycled
//
// and after a crash, or on behalf of somebody else's dead writer:
//
//	answer, err := store.Seal(id, higherFence)
//	err = store.Read(id, answer.First, visit)
//
// A store is identified by its disk ([Store.Identity]): an empty folder is a new store. A segment lies in files of a fixed
// size that were filled with zeros beforehand and are recycled, because a sync that need not change a file's metadata takes
// half the time. One goroutine per store, the keeper, prepares files ahead of need, frees those that were trimmed,
// and writes the store's state; appends run in the caller's goroutine. The bytes are in wal/FORMAT.md.
package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"github.com/varve-io/varve/wal/frame"
)

// Kinds of errors, by what the caller can do.
var (
	// ErrFenced: a higher fence is in force for the log. The caller is no longer its owner; final.
	ErrFenced = errors.New("fenced")
	// ErrExists: the segment is in the store already.
	ErrExists = errors.New("segment exists")
	// ErrUnknown: the store holds nothing of the segment.
	ErrUnknown = errors.New("segment unknown")
	// ErrLive: the segment has a writer, so that it cannot be read or dropped.
	ErrLive = errors.New("segment has a writer")
	// ErrTooLarge: a frame does not fit into a file.
	ErrTooLarge = errors.New("frame too large")
	// ErrForeign: the store belongs to another cluster.
	ErrForeign = errors.New("it belongs to another cluster")
	// ErrClosed: the store or the appender is closed.
	ErrClosed = errors.New("closed")
)

// Config says where a store is and how it writes.
type Config struct {
	// Dir is the folder, which must exist. Not used if FS is set.
	Dir string
	// FS replaces the real folder.
	FS FS
	// FileBytes is the size of a WAL file, a multiple of 4 KiB; 0 means 64 MiB. It bounds a frame.
	FileBytes int64
	// SyncNone leaves it to the kernel when to write: entries survive the death of the process, not of the
	// machine. A store that ran so and finds that its machine rebooted is a new store.
	SyncNone bool
	// Logger gets what an operator should know and no call reports; nil means nothing is logged.
	Logger *slog.Logger
}

const (
	fileBytesDefault = 64 << 20
	// filesReady is how many prepared files wait for use, and filesReadyMax how many trimmed ones are kept for it:
	// a flush frees several at a time.
	filesReady    = 2
	filesReadyMax = 6
)

// Store is an open store. Its methods may be called concurrently.
type Store struct {
	fs        FS
	lock      io.Closer
	log       *slog.Logger
	fileBytes int64
	durable   bool // writes are synced

	mu   sync.Mutex
	cond *sync.Cond // any change below

	state      state // Marks is made from marks when it is written
	marks      map[frame.LogID]frame.Fence
	stateWant  uint64 // changes of state
	stateSaved uint64 // of which so many are on disk
	stateLost  uint64 // and so many could not be saved
	stateErr   error  // why the last of those could not

	segments   map[frame.SegmentID]*segment
	ready      []*walFile // free, in first-in order
	retired    []*walFile // to be freed, in this order
	prepareErr error      // why no file could be prepared; cleared when somebody asks again or a file is freed
	retrying   bool       // a timer will clear it
	nextName   uint64
	uses       uint32 // of files since the store was opened
	closing    bool
	leaving    bool          // it takes no new segments
	kept       chan struct{} // closed when the keeper has ended
}

// walFile is a file of the store.
type walFile struct {
	name    string
	file    File // nil for a file of an earlier run, until it is freed
	header  frame.FileHeader
	written bool // the header is on disk
}

// segment is a stretch of a log in this store. The store's mutex guards it.
type segment struct {
	id        frame.SegmentID
	fence     frame.Fence
	files     []*walFile // by ordinal
	live      *Appender  // nil when nothing can be appended any more
	appending bool       // the live appender is writing
	last      frame.EntryID
	scanned   bool // last is known
	readers   int
	trimmed   frame.EntryID // trim as far as this when the last reader is done
	dropped   bool
}

// Open opens the store in a folder, or makes a new one in an empty folder. It fails if another process has it, or if
// what is there is damaged: the error then names the file.
func Open(cfg Config) (*Store, error) {
	s := &Store{
		fs: cfg.FS, log: cfg.Logger, fileBytes: cfg.FileBytes, durable: !cfg.SyncNone,
		segments: make(map[frame.SegmentID]*segment), marks: make(map[frame.LogID]frame.Fence), kept: make(chan struct{}),
	}
	s.cond = sync.NewCond(&s.mu)
	if s.fs == nil {
		s.fs = Folder(cfg.Dir)
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.fileBytes == 0 {
		s.fileBytes = fileBytesDefault
	}
	if s.fileBytes%frame.BlockBytes != 0 || s.fileBytes < 2*frame.BlockBytes || s.fileBytes > fileBytesLimit {
		return nil, fmt.Errorf("open WAL store: file size %d: want a multiple of %d, at most %d",
			s.fileBytes, frame.BlockBytes, int64(fileBytesLimit))
	}
	lock, err := s.fs.Lock("lock")
	if err != nil {
		return nil, fmt.Errorf("lock WAL store: %w", err)
	}
	s.lock = lock
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open WAL store: %w", errors.Join(err, lock.Close()))
	}
	go pprof.Do(context.Background(), pprof.Labels("varve", "wal-keeper"), func(context.Context) { s.keep() })
	return s, nil
}

// fileBytesLimit keeps a file's places within 32 bits of blocks, with room to spare, and a frame within an int32.
const fileBytesLimit = 1 << 30

// load reads the folder into s and begins a new run of the store.
func (s *Store) load() error {
	names, err := s.fs.Names()
	if err != nil {
		return err
	}
	files, err := s.loadFiles(names)
	if err != nil {
		return err
	}
	st, err := readState(s.fs, names)
	if err != nil {
		return err
	}
	boot := s.fs.Boot()
	unclean := st != nil && st.Unsynced && !st.Clean
	switch {
	case st == nil && len(files) > 0:
		return fmt.Errorf("%s exists, but no file %q that says whose it is: restore that file, or move the WAL files away to lose them",
			files[0].name, stateName)
	case st == nil:
		s.state = state{Identity: uuid.New()}
	case unclean && (boot == "" || boot != st.Boot):
		s.log.Warn("WAL store lost: it ran without sync and its machine rebooted", "was", st.Identity, "files", len(files))
		s.state = state{Identity: uuid.New(), Opened: st.Opened, Marks: st.Marks}
		for _, f := range files {
			// Whatever they say: what is in them counts for nothing now.
			f.header = frame.FileHeader{Store: s.state.Identity, File: f.header.File}
			s.retired = append(s.retired, f)
		}
		files = nil
	default:
		s.state = *st
		if unclean {
			if err := s.syncAll(files); err != nil {
				return err
			}
		}
	}
	for _, m := range s.state.Marks {
		s.marks[m.Log] = m.Fence
	}
	s.state.Opened++
	s.state.Boot, s.state.Unsynced, s.state.Clean = boot, !s.durable, false
	if err := writeState(s.fs, &s.state); err != nil {
		return err
	}
	return s.adopt(files)
}

// loadFiles reads the header of each WAL file, and removes files that were being prepared.
func (s *Store) loadFiles(names []string) ([]*walFile, error) {
	var files []*walFile
	for _, name := range names {
		if strings.HasSuffix(name, preparingSuffix) {
			if err := s.fs.Remove(name); err != nil {
				return nil, err
			}
			continue
		}
		var number uint64
		if n, err := fmt.Sscanf(name, walNameFormat, &number); n != 1 || err != nil {
			continue
		}
		s.nextName = max(s.nextName, number+1)
		header, err := s.loadHeader(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w; move the file away to accept the loss of what it held", name, err)
		}
		files = append(files, &walFile{name: name, header: header, written: true})
	}
	return files, nil
}

func (s *Store) loadHeader(name string) (frame.FileHeader, error) {
	f, err := s.fs.Open(name, false, false)
	if err != nil {
		return frame.FileHeader{}, err
	}
	block := make([]byte, frame.BlockBytes)
	if _, err := f.ReadAt(block, 0); err != nil {
		return frame.FileHeader{}, errors.Join(err, f.Close())
	}
	header, err := frame.ParseFileHeader(block)
	return header, errors.Join(err, f.Close())
}

// syncAll makes durable what an earlier run of this boot left to the kernel.
func (s *Store) syncAll(files []*walFile) error {
	for _, w := range files {
		f, err := s.fs.Open(w.name, false, false)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// adopt sorts the files of earlier runs into segments and free ones.
func (s *Store) adopt(files []*walFile) error {
	for _, f := range files {
		if f.header.Store != s.state.Identity {
			return fmt.Errorf("%s belongs to the store %s, this is %s", f.name, uuid.UUID(f.header.Store), s.state.Identity)
		}
		if f.header.Free() {
			s.retired = append(s.retired, f) // opens it, and checks its size
			continue
		}
		id := f.header.Segment
		seg := s.segments[id]
		if seg == nil {
			seg = &segment{id: id, fence: f.header.Fence}
			s.segments[id] = seg
		}
		seg.files = append(seg.files, f)
	}
	for _, seg := range s.segments {
		slices.SortFunc(seg.files, func(a, b *walFile) int { return cmp.Compare(a.header.Ordinal, b.header.Ordinal) })
	}
	return nil
}

// Identity names the disk: it is made when the store is, and lost with it.
func (s *Store) Identity() uuid.UUID { return s.state.Identity }

// Bind makes the store one of a cluster, for good: clusters number their logs alike, so that one could take another's for its own. It fails with
// [ErrForeign] if the store is bound to another cluster. It returns when the binding is durable.
func (s *Store) Bind(cluster uuid.UUID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.state.Cluster {
	case cluster:
		return nil
	case uuid.UUID{}:
		s.state.Cluster = cluster
		if err := s.saveState(); err != nil {
			s.state.Cluster = uuid.UUID{}
			return fmt.Errorf("bind WAL store %s: %w", s.state.Identity, err)
		}
		return nil
	default:
		return fmt.Errorf("bind WAL store %s to cluster %s: %w: %s", s.state.Identity, cluster, ErrForeign, s.state.Cluster)
	}
}

// FrameBytesMax is the length of the longest frame that can be appended.
func (s *Store) FrameBytesMax() int64 { return s.fileBytes - frame.BlockBytes }

// SegmentInfo describes a segment in the store.
type SegmentInfo struct {
	ID    frame.SegmentID
	Fence frame.Fence   // of its writer
	First frame.EntryID // the first entry that may still be there
	Live  bool          // it has a writer
	Bytes int64         // of disk
}

// Segments lists what the store holds, sorted by log and number.
func (s *Store) Segments() []SegmentInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	infos := make([]SegmentInfo, 0, len(s.segments))
	for _, seg := range s.segments {
		infos = append(infos, SegmentInfo{
			ID: seg.id, Fence: seg.fence, First: seg.files[0].header.First, Live: seg.live != nil,
			Bytes: int64(len(seg.files)) * s.fileBytes,
		})
	}
	slices.SortFunc(infos, func(a, b SegmentInfo) int {
		return cmp.Or(cmp.Compare(a.ID.Log, b.ID.Log), cmp.Compare(a.ID.Number, b.ID.Number))
	})
	return infos
}

// Trim says that nobody needs the segment's entries up to through any more. Files that hold nothing else are freed, in
// the background; the last one stays until Drop. Entries that shared a file with later ones are read again after a crash.
func (s *Store) Trim(id frame.SegmentID, through frame.EntryID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.segments[id]
	if seg == nil {
		return fmt.Errorf("trim WAL segment %s: %w", id, ErrUnknown)
	}
	seg.trimmed = max(seg.trimmed, through)
	s.retireTrimmed(seg)
	return nil
}

// Drop frees everything of a segment; its log's fence mark stays. A segment with a writer is ErrLive.
func (s *Store) Drop(id frame.SegmentID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.segments[id]
	if seg == nil {
		return nil
	}
	if seg.live != nil {
		return fmt.Errorf("drop WAL segment %s: %w", id, ErrLive)
	}
	seg.dropped = true
	s.retireTrimmed(seg)
	return nil
}

// retireTrimmed hands the files that nobody needs to the keeper, unless somebody reads them. The order is that of the
// entries, so that a crash in between leaves the later ones. Once the store closes, files stay where they are: the keeper, who would free them, ends, and
// Close goes through them without the mutex, while a reader may still come to its end. They are trimmed again after the next start.
func (s *Store) retireTrimmed(seg *segment) {
	if seg.readers > 0 || s.closing {
		return
	}
	n := 0
	for n+1 < len(seg.files) && seg.files[n+1].written && seg.files[n+1].header.First <= seg.trimmed+1 {
		n++
	}
	if seg.dropped {
		n = len(seg.files)
		delete(s.segments, seg.id)
	}
	if n > 0 {
		s.retired = append(s.retired, seg.files[:n]...)
		seg.files = slices.Clone(seg.files[n:])
		s.cond.Broadcast()
	}
}

// Fence gives the mark of a log: appends of older fences are refused. 0 if there is none.
func (s *Store) Fence(log frame.LogID) frame.Fence {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.marks[log]
}

func (s *Store) sortedMarks() []mark {
	marks := make([]mark, 0, len(s.marks))
	for log, fence := range s.marks {
		marks = append(marks, mark{Log: log, Fence: fence})
	}
	slices.SortFunc(marks, func(a, b mark) int { return cmp.Compare(a.Log, b.Log) })
	return marks
}

// saveState waits until the state, as it is now, is on disk. The mutex is held on entry and return.
func (s *Store) saveState() error {
	s.stateWant++
	want := s.stateWant
	s.cond.Broadcast()
	for max(s.stateSaved, s.stateLost) < want && !s.closing {
		s.cond.Wait()
	}
	switch {
	case s.stateSaved >= want:
		return nil
	case s.stateLost >= want:
		return s.stateErr
	}
	return ErrClosed
}

// Leave makes the store take no new segments. Those that it has go on.
func (s *Store) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
}

// Close ends the store: it waits for an append under way, and later calls fail with ErrClosed. Segments stay as they
// are.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return nil
	}
	s.closing = true
	s.cond.Broadcast()
	for _, seg := range s.segments {
		for seg.appending {
			s.cond.Wait()
		}
	}
	s.mu.Unlock()
	<-s.kept

	// Nobody else is here any more.
	var errs []error
	for _, seg := range s.segments {
		for _, f := range seg.files {
			if f.file != nil && !s.durable {
				errs = append(errs, f.file.Sync())
			}
			errs = append(errs, f.close())
		}
	}
	for _, f := range slices.Concat(s.ready, s.retired) {
		errs = append(errs, f.close())
	}
	if errors.Join(errs...) == nil {
		s.state.Clean, s.state.Marks = true, s.sortedMarks()
		errs = append(errs, writeState(s.fs, &s.state))
	}
	if err := errors.Join(append(errs, s.lock.Close())...); err != nil {
		return fmt.Errorf("close WAL store: %w", err)
	}
	return nil
}

func (f *walFile) close() error {
	if f.file == nil {
		return nil
	}
	file := f.file
	f.file = nil
	return file.Close()
}
