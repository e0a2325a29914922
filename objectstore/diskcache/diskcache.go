// Package diskcache keeps blocks of objects in a file, so that old data that is read again comes from the agent's disk rather than from the bucket.
//
//	disk, err := diskcache.Open(diskcache.Config{Folder: folder, BytesMax: 100 << 30, FreeBytesMin: 2 << 30, Log: log}, cache.NewBucket(store))
//	source := zone.New(config, disk)             // a zone keeps each piece once: on the disk of its home
//	blocks, err := cache.New(config, source)
//
// # Model
//
// It stands right before the bucket, and keeps what the bucket is asked for. What another agent of the zone is the home of does not come here but when that one
// does not answer; so a zone's disks hold different pieces, and together as much as all of them. A [cache.Source.Get] whose blocks are all on disk is answered from there, any other by
// the bucket, by one request, after which those blocks are kept that are not there yet.
//
// It is a cache and nothing else. The file is empty at the start, and removed at the end; what it has is known in memory alone; nothing is synced. Each block's CRC32C is in memory
// too, and what does not match it is not given out. Objects never change, so that nothing grows stale: blocks of objects that were deleted stay until others take their place.
// What came from the bucket damaged would stay as well: who finds it so asks by [cache.Object.Direct], which forgets what is on disk, and is answered by the bucket.
//
// # File
//
// One file of slots, each as long as a block of the cache, [cache.BlockBytesDefault]; a shorter block, at an object's end, leaves the rest of its slot as it is. The file grows by a slot until it has as many as
// fit into [Config.BytesMax]; from then on the least recently used block goes for each new one. An index in memory says what is where: some 200 bytes for each block, and so 200 KiB for a
// GiB of disk (BenchmarkIndex).
//
// Reads and writes pass the page cache by, where the file system can: what is read lies in memory above already, and a write is on its way to the disk
// when it begins, rather than in a burst of the kernel's later, before which the WAL's writes would stand in line.
//
// # Cost
//
// The caller's parts are its own when Get returns. So a hit is a read of each block into memory of this room, its checksum, and a copy; a miss is the bucket's answer, then
// a copy into memory of this room, and what remains, checksum and one write for each block, is done by a goroutine that nobody waits for. There
// is memory for four reads and four writes, of one piece each, 32 MiB in all. A read waits in line for it. A write does not: a disk that does not keep up keeps less.
// BenchmarkGet has hits beside misses and a bucket in a folder.
//
// # When the disk fails
//
// Then there are misses, and nobody is told of anything but the log and [Stats]. A write that fails, by a full disk too, is followed by half a minute without writes; a read that fails, or takes half a
// second, in which the bucket would have answered, by half a minute without both, and by no reads for as long as one of those that took too long is under way. A block that is found damaged, or cut off, is dropped.
//
// # Room
//
// Once a second it looks at how much of the file system is free. It grows by no more than is above [Config.FreeBytesMin], and where less is free it gives back what is missing, by cutting the file's end off, with whatever
// blocks are there. So it makes room for whoever else has files there, down to nothing.
package diskcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varve-io/varve/objectstore/cache"
)

// Config says where blocks are kept, and how many.
type Config struct {
	// Folder is where the file is, made if it is not there. Nobody else may have a cache there: callers hold a lock.
	Folder string
	// BytesMax bounds the file, rounded down to whole blocks. At least one.
	BytesMax int64
	// FreeBytesMin is how much of the file system is left to others, where it can be told how much is free: on Linux.
	FreeBytesMin int64
	Log          *slog.Logger
}

const (
	fileName   = "blocks"
	folderMode = 0o750
	fileMode   = 0o640

	// slotBytes is the length of a slot.
	slotBytes = cache.BlockBytesDefault
	// blocksMax is how many blocks a Get may have to be answered from disk: a piece's.
	blocksMax = cache.GetBytesDefault / slotBytes
	// readsMax and writesMax are how many Gets are read from the disk, and written to it, at a time.
	readsMax  = 4
	writesMax = 4
	// readTime is how long a Get waits for its turn to read, and for the disk.
	readTime = 500 * time.Millisecond
	// restTime is how long a disk that failed is left alone.
	restTime = 30 * time.Second
	// lookPause is how often it is looked how much room there is.
	lookPause = time.Second
	// sectorBytes is the alignment of direct I/O, in memory and in the file: a multiple of what any disk asks for.
	sectorBytes = 4096
)

// file is what blocks are kept in. Its methods may be called concurrently, Close included.
type file interface {
	io.ReaderAt
	io.WriterAt
	Truncate(bytes int64) error
	// Free returns how many bytes the file system has left, for whoever is not root.
	Free() (int64, error)
	// Close closes the file and removes it.
	Close() error
}

// Source is a disk, and a source behind it. It may be used concurrently.
type Source struct {
	config Config
	next   cache.Source
	file   file
	// reads and writes lend aligned memory of a piece each; nil is memory that nobody has made yet.
	reads, writes chan []byte

	stop    chan struct{}
	stopped sync.WaitGroup

	hits, hitBytes, misses, writtenBytes, skips, damages, failures atomic.Uint64
	late                                                           atomic.Int64 // reads that nobody waits for any more

	mu        sync.Mutex
	closed    bool
	index     index
	readRest  time.Time // until when nothing is read
	writeRest time.Time // and nothing written, which is no earlier
}

var _ cache.Source = (*Source)(nil)

// Stats are a source's counters, since it was made, and gauges.
type Stats struct {
	Hits     uint64 // requests that were answered from disk
	HitBytes uint64 // bytes of them
	Misses   uint64 // requests that the source behind was asked

	WrittenBytes uint64 // bytes of blocks that were written
	Skips        uint64 // requests that brought blocks which were not kept, because the disk was busy, failing or full
	Evictions    uint64 // blocks that went for others, or for room
	Damages      uint64 // requests that found a block damaged on disk
	Failures     uint64 // reads and writes that failed, or took too long

	Bytes  int64 // gauge: length of the file
	Blocks int64 // gauge: blocks that are in it, or being written
}

// Open returns a source that is empty, in front of next. Its owner calls Close. An error says that the file could not be made.
func Open(config Config, next cache.Source) (*Source, error) {
	if config.BytesMax < slotBytes {
		return nil, fmt.Errorf("open disk cache: seen %d bytes, want at least one block of %d", config.BytesMax, slotBytes)
	}
	if err := os.MkdirAll(config.Folder, folderMode); err != nil {
		return nil, fmt.Errorf("open disk cache: %w", err)
	}
	f, err := openFile(filepath.Join(config.Folder, fileName))
	if err != nil {
		return nil, fmt.Errorf("open disk cache: %w", err)
	}
	free, err := f.Free()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open disk cache: %w", err), f.Close())
	}
	if free-config.FreeBytesMin < config.BytesMax {
		config.Log.Warn("the disk has less room than the disk cache may take", "folder", config.Folder, "bytes", config.BytesMax, "free", free, "left to others", config.FreeBytesMin)
	}
	s := newSource(config, next, f)
	s.look()
	s.stopped.Go(s.watch)
	return s, nil
}

// Remove removes what an earlier process, which had a cache there and was killed, has left in a folder.
func Remove(folder string) error {
	if err := os.Remove(filepath.Join(folder, fileName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove disk cache: %w", err)
	}
	return nil
}

func newSource(config Config, next cache.Source, f file) *Source {
	s := &Source{
		config: config, next: next, file: f, index: newIndex(int(config.BytesMax / slotBytes)), stop: make(chan struct{}),
		reads: make(chan []byte, readsMax), writes: make(chan []byte, writesMax),
	}
	for range readsMax {
		s.reads <- nil
	}
	for range writesMax {
		s.writes <- nil
	}
	return s
}

// Close removes the file. Later calls are answered by the source behind. Reads and writes that are under way end by themselves: those of a disk that hangs cannot be ended.
func (s *Source) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	close(s.stop)
	s.stopped.Wait()
	return s.file.Close()
}

// Stats returns the counters.
func (s *Source) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Hits: s.hits.Load(), HitBytes: s.hitBytes.Load(), Misses: s.misses.Load(), WrittenBytes: s.writtenBytes.Load(), Skips: s.skips.Load(),
		Evictions: s.index.evictions, Damages: s.damages.Load(), Failures: s.failures.Load(),
		Bytes: int64(len(s.index.slots)) * slotBytes, Blocks: int64(len(s.index.at)),
	}
}

// Get implements [cache.Source].
func (s *Source) Get(ctx context.Context, o cache.Object, off int64, parts [][]byte) error {
	keys := keysOf(o.Name, off, parts)
	switch {
	case keys == nil:
	case o.Direct:
		s.forget(keys)
	case s.read(ctx, keys, parts):
		return nil
	}
	s.misses.Add(1)
	err := s.next.Get(ctx, o, off, parts)
	if err == nil && keys != nil && !o.Direct {
		s.keep(ctx, keys, parts)
	}
	return err
}

// keysOf names the blocks of parts; nil if they are not as a cache with blocks of slotBytes has them.
func keysOf(name string, off int64, parts [][]byte) []key {
	if len(parts) > blocksMax {
		return nil
	}
	keys := make([]key, len(parts))
	for i, part := range parts {
		if len(part) > slotBytes {
			return nil
		}
		keys[i] = key{name: name, off: off, n: len(part)}
		off += int64(len(part))
	}
	return keys
}

// forget drops blocks, those that are being written too.
func (s *Source) forget(keys []key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		s.index.forget(k)
	}
}

// watch looks how much room there is, at intervals, until Close.
func (s *Source) watch() {
	tick := time.NewTicker(lookPause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.look()
		case <-s.stop:
			return
		}
	}
}

// look grants the file what room there is, or cuts off what is missing. Between the index's cut and the file's nothing grows, since room is granted by the next look.
func (s *Source) look() {
	free, err := s.file.Free()
	if err != nil {
		s.failed("look how much is free", err, true)
		free = s.config.FreeBytesMin // it does not grow
	}
	s.mu.Lock()
	cut := s.index.grant(floorDiv(free-s.config.FreeBytesMin, slotBytes))
	length := int64(len(s.index.slots)) * slotBytes
	s.mu.Unlock()
	if cut == 0 {
		return
	}
	if err := s.file.Truncate(length); err != nil {
		s.failed("give room back", err, true)
	}
}

// floorDiv is a/b rounded down.
func floorDiv(a, b int64) int64 {
	if a < 0 {
		return -((-a + b - 1) / b)
	}
	return a / b
}
