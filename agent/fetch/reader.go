package fetch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// Reader reads committed batches from segments in the bucket, through the cache of blocks, and verifies each against the footer and
// Kafka's checksum before it is served. It may be used concurrently.
type Reader struct {
	index   *index.Index
	footers *Footers
	cache   *cache.Cache
	turns   chan struct{} // one token for each goroutine that verifies batches
}

// roomShare is the part that one fetch may hold of what nobody else holds of the cache: one in so many. So consumers that take their answers slowly, however many, leave something for
// those that come after them.
const roomShare = 8

// NewReader returns a reader of what idx knows.
func NewReader(idx *index.Index, footers *Footers, blocks *cache.Cache) *Reader {
	return &Reader{index: idx, footers: footers, cache: blocks, turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

// bytesMax is how much of the cache a fetch may hold that begins now.
func (r *Reader) bytesMax() int { return int(r.cache.Room() / roomShare) }

// readRange is what to read of a partition: whole batches from the one that holds offset from on, up to limit, which no batch passes.
type readRange struct {
	from, limit protocol.Offset
	bytesMax    int
	oneMax      int  // a first batch up to this size, though larger than bytesMax
	wait        bool // for memory of the cache
}

// read appends batches to got. It may bring fewer than there are, and, unless it may wait for memory of the
// cache, none. The error wraps [segment.ErrCorrupt] if what the bucket has is damaged; then nothing of the damaged batch is in got.
func (r *Reader) read(ctx context.Context, id partition.ID, want readRange, got *Part) error {
	for {
		next := max(want.from, got.Next)
		if next >= want.limit {
			return nil
		}
		e, ok := r.index.Find(id, next)
		if !ok {
			if got.Bytes > 0 {
				return nil // the rest is in memory
			}
			return fmt.Errorf("partition %s/%d: offset %d is neither in memory nor in a segment", id.Topic, id.Partition, next)
		}
		part := readRange{next, want.limit, want.bytesMax - got.Bytes, want.oneMax, want.wait && got.Bytes == 0}
		if got.Bytes > 0 {
			part.oneMax = 0
		}
		if got.Bytes > 0 && e.Size > int64(part.bytesMax) && part.bytesMax < want.bytesMax/2 {
			return nil
		}
		more, err := r.readExtent(ctx, id, &e, part, got)
		if err != nil && got.Bytes == 0 && !errors.Is(err, cache.ErrBusy) {
			return err
		}
		if err != nil || !more {
			return nil //nolint:nilerr // what is there is good; the next read meets the error
		}
	}
}

// object names an extent's segment to the cache.
func object(e *index.Extent) cache.Object {
	return cache.Object{Name: e.Object.Name, Size: e.Object.Size}
}

// section returns the section of an extent.
func (r *Reader) section(ctx context.Context, id partition.ID, e *index.Extent) (*segment.Section, error) {
	footer, err := r.footers.Get(ctx, e.Object)
	if err != nil {
		return nil, err
	}
	s := footer.Find(segment.Key{Shard: e.Shard, Topic: id.Topic, Partition: id.Partition})
	if s == nil {
		return nil, fmt.Errorf("segment %s: %w: no section for %s/%d, which its commit lists",
			e.Object.Name, segment.ErrCorrupt, id.Topic, id.Partition)
	}
	return s, nil
}

// readExtent reads batches of one extent. more is false if the extent has further ones that do not fit.
func (r *Reader) readExtent(ctx context.Context, id partition.ID, e *index.Extent, want readRange, got *Part) (more bool, err error) {
	s, err := r.section(ctx, id, e)
	if err != nil {
		return false, err
	}
	pos, n, batches, err := s.Range(nil, max(want.from, e.First), int64(want.bytesMax)) // compaction leaves gaps
	if err != nil {
		return false, err
	}
	if len(batches) == 0 && e.Next <= want.limit { // all that follows in the section was compacted away
		got.Next = e.Next
		return true, nil
	}
	for len(batches) > 0 && batches[len(batches)-1].Next() > want.limit {
		n -= int64(batches[len(batches)-1].Size)
		batches = batches[:len(batches)-1]
	}
	if len(batches) == 0 || n > int64(max(want.bytesMax, want.oneMax)) {
		return false, nil
	}
	behind := s.Pos + s.Size - (pos + n)
	read, good, err := r.verified(ctx, object(e), s, batches, func(o cache.Object) (*cache.Span, error) {
		return r.cache.ReadOn(ctx, o, pos, n, behind, want.wait)
	})
	if err != nil {
		return false, err
	}
	batches = batches[:good]
	n = batches[good-1].Pos + int64(batches[good-1].Size) - pos
	r.ahead(ctx, id, e.Next, got.State.Tail, r.cache.AheadBytes()-behind, read.Ahead())
	got.Records = appendFirst(got.Records, read.Parts(), n)
	got.Bytes += int(n)
	got.Next = batches[len(batches)-1].Next()
	got.transacted = got.transacted || slices.ContainsFunc(batches, func(b segment.Batch) bool { return b.Flags&segment.FlagTransactional != 0 })
	got.held = append(got.held, read)
	return got.Next == e.Next, nil
}

// appendFirst appends the first n bytes of slices, none of which is empty.
func appendFirst(to, slices [][]byte, n int64) [][]byte {
	for _, part := range slices {
		if n <= 0 {
			break
		}
		size := min(n, int64(len(part)))
		to = append(to, part[:size:size])
		n -= size
	}
	return to
}

// extentsAhead is in how many of a partition's next segments something is fetched ahead at most.
const extentsAhead = 16

// ahead starts to fetch what begins at an offset in the partition's next segments, up to so many bytes, and their footers; but not what begins at tail or behind, where memory has it. own is how many blocks are
// there for this reader already.
func (r *Reader) ahead(ctx context.Context, id partition.ID, offset, tail protocol.Offset, bytes int64, own int) {
	if bytes <= 0 {
		return
	}
	for _, e := range r.index.Next(id, offset, extentsAhead) {
		if tail > 0 && e.First >= tail {
			return
		}
		r.footers.Prefetch(ctx, e.Object)
		own = r.cache.Prefetch(object(&e), e.Pos, e.Size, bytes, own)
		if bytes -= e.Size; bytes <= 0 {
			return
		}
	}
}

// verified reads these batches of a segment, by get, and verifies them, or as many of the first as there is patience for, but one at least: good of them. What does not pass is read once more, from the
// bucket itself: another agent may have it wrong. Not even then does what is damaged stay in the cache, as the bucket may yet give the right bytes.
func (r *Reader) verified(ctx context.Context, o cache.Object, s *segment.Section, batches []segment.Batch, get func(cache.Object) (*cache.Span, error)) (read *cache.Span, good int, err error) {
	var damage error
	for {
		read, err := get(o)
		if err != nil {
			return nil, 0, errors.Join(damage, fmt.Errorf("read segment %s: %w", o.Name, err))
		}
		good, damage = r.verify(ctx, s, batches, read.Parts())
		if damage == nil {
			return read, good, nil
		}
		read.Release()
		r.cache.Drop(o)
		if o.Direct {
			return nil, 0, damage
		}
		o.Direct = true
	}
}

// turnBytes is how much is verified in one turn: a tenth of a millisecond or less.
const turnBytes = 256 << 10

// verify checks each batch in slices, which stand one after the other and may cut a batch anywhere. Half of the processors do that at a time: were it as many goroutines as there are reads, producers and
// consumers of the end would stand in the scheduler's line behind all of them, at each step of what is done for them.
//
// The first turn is waited for however long the line is: who gave that up might never get one. The others not beyond the end of ctx, and then the first batches alone are good.
func (r *Reader) verify(ctx context.Context, s *segment.Section, batches []segment.Batch, slices [][]byte) (good int, err error) {
	r.turns <- struct{}{}
	defer func() { <-r.turns }()
	at, turn := 0, 0 // in slices[0]; bytes of this turn
	for i, b := range batches {
		size := int(b.Size)
		if turn += size; turn > turnBytes && i > 0 {
			if ctx.Err() != nil {
				return i, nil
			}
			<-r.turns
			r.turns <- struct{}{}
			turn = size
		}
		var data []byte
		if len(slices) > 0 && at+size <= len(slices[0]) {
			data = slices[0][at : at+size]
			at += size
		} else { // it spans blocks of the cache
			data = make([]byte, 0, size)
			for len(data) < size && len(slices) > 0 {
				n := min(size-len(data), len(slices[0])-at)
				data = append(data, slices[0][at:at+n]...)
				if at += n; at == len(slices[0]) {
					slices, at = slices[1:], 0
				}
			}
		}
		if len(slices) > 0 && at == len(slices[0]) {
			slices, at = slices[1:], 0
		}
		if err := s.VerifyBatch(b, data); err != nil {
			return 0, err
		}
	}
	return len(batches), nil
}

// batchAt reads one batch, copied out of the cache. One that two pieces share is read past it, by one GET instead of two.
func (r *Reader) batchAt(ctx context.Context, e *index.Extent, s *segment.Section, b segment.Batch) ([]byte, error) {
	end := b.Pos + int64(b.Size)
	if piece := r.cache.PieceBytes(); b.Pos/piece != (end-1)/piece {
		return r.footers.batch(ctx, e.Object, s, b)
	}
	read, _, err := r.verified(ctx, object(e), s, []segment.Batch{b}, func(o cache.Object) (*cache.Span, error) {
		return r.cache.Read(ctx, o, b.Pos, int64(b.Size))
	})
	if err != nil {
		return nil, err
	}
	defer read.Release()
	data := make([]byte, 0, b.Size)
	for _, part := range read.Parts() {
		data = append(data, part...)
	}
	return data, nil
}
