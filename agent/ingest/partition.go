package ingest

import (
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
)

// Partition is one partition that this agent leads: its state, the batches of it that are in memory, and who waits for it. Its
// methods may be called concurrently.
type Partition struct {
	ID    partition.ID
	Name  string // of the topic
	Shard coordinator.ShardID

	mu       sync.Mutex
	log      *partition.Log
	tail     []tailBatch // in offset order, without gaps; the front is dropped when the WAL evicts its chunk
	head     int         // index in tail of the first batch that is still there
	chunk    *wal.Chunk  // the newest chunk in which this partition noted its interest
	watchers []*Watcher
	repeats  []repeat
	gone     error // why the partition is not led any more

	produced, consumed atomic.Int64 // bytes since the last Traffic
}

// tailBatch is a batch in the WAL's memory.
type tailBatch struct {
	base, next protocol.Offset
	maxTs      int64
	kind       Kind
	producer   protocol.ProducerID // of a batch that is not Plain
	ref        wal.Ref
}

// repeat is a duplicate that waits until what it repeats is durable.
type repeat struct {
	next protocol.Offset
	wait *wait
}

// NewPartition wraps the state of a partition, which it owns from then on.
func NewPartition(id partition.ID, name string, shard coordinator.ShardID, log *partition.Log) *Partition {
	return &Partition{ID: id, Name: name, Shard: shard, log: log}
}

// Watcher is woken when a partition that it watches becomes readable further, or is lost. One watcher may watch
// many partitions.
type Watcher struct {
	C chan struct{} // has capacity 1; holds one signal however often it was woken
}

// NewWatcher returns a watcher of nothing.
func NewWatcher() *Watcher { return &Watcher{C: make(chan struct{}, 1)} }

func (w *Watcher) wake() {
	select {
	case w.C <- struct{}{}:
	default:
	}
}

// Consumed counts bytes of the partition that a consumer was given.
func (p *Partition) Consumed(bytes int) { p.consumed.Add(int64(bytes)) }

// Traffic returns how many bytes were produced and consumed since it was called last.
func (p *Partition) Traffic() (produced, consumed int64) {
	return p.produced.Swap(0), p.consumed.Swap(0)
}

// Watch lets w know of changes until Unwatch. A change that happened before the call is not told: watch first, look then.
func (p *Partition) Watch(w *Watcher) {
	p.mu.Lock()
	p.watchers = append(p.watchers, w)
	p.mu.Unlock()
}

// Unwatch ends what Watch began.
func (p *Partition) Unwatch(w *Watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, o := range p.watchers {
		if o == w {
			last := len(p.watchers) - 1
			p.watchers[i] = p.watchers[last]
			p.watchers[last] = nil
			p.watchers = p.watchers[:last]
			return
		}
	}
}

// State is a partition's state at one moment.
type State struct {
	Start         protocol.Offset // log start offset
	HighWatermark protocol.Offset
	LastStable    protocol.Offset
	End           protocol.Offset // offset of the next record, durable or not
	Epoch         protocol.LeaderEpoch
	Tail          protocol.Offset // first offset in memory; End if there is none
}

// State returns the partition's state, or the error for which it is not led any more.
func (p *Partition) State() (State, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := State{
		Start: p.log.Start(), HighWatermark: p.log.HighWatermark(), LastStable: p.log.LastStable(),
		End: p.log.End(), Epoch: p.log.Epoch(), Tail: p.log.End(),
	}
	if p.head < len(p.tail) {
		s.Tail = p.tail[p.head].base
	}
	return s, p.gone
}

// EpochEnd answers OffsetForLeaderEpoch; see [partition.Log.EpochEnd].
func (p *Partition) EpochEnd(asked protocol.LeaderEpoch) (protocol.LeaderEpoch, protocol.Offset, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.EpochEnd(asked)
}

// EpochOf returns the leader epoch of the batch that holds the offset.
func (p *Partition) EpochOf(offset protocol.Offset) protocol.LeaderEpoch {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.EpochOf(offset)
}

// Producers returns the idempotent producers, for DescribeProducers.
func (p *Partition) Producers() []partition.Producer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Producers().All()
}

// ExpireProducers forgets producers; see [partition.Producers.Expire].
func (p *Partition) ExpireProducers(beforeMs int64, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log.Producers().Expire(beforeMs, most)
}

// SetStart moves the log start offset; see [partition.Log.SetStart].
func (p *Partition) SetStart(start protocol.Offset) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.SetStart(start)
}

// Close ends the partition: appends and reads fail with err from now on, and watchers wake.
func (p *Partition) Close(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone != nil {
		return
	}
	p.gone = err
	for _, w := range p.watchers {
		w.wake()
	}
}

// Reopen takes a Close back: the partition goes on with all that it had taken.
func (p *Partition) Reopen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = nil
}

// Read takes from memory whole batches from the one that holds from on, up to the offset limit, which no batch may
// pass, as many as fit into bytesMax; with oneMin the first one whatever its size.
// It appends them to bufs, adds the chunks that they lie in to held, which the caller must release in the end, and returns the offset after
// the last one, which is from if there is nothing to read. ok is false if the batch at from is not in memory (any more).
func (p *Partition) Read(from, limit protocol.Offset, bytesMax int, bufs [][]byte, held []*wal.Chunk, oneMin bool) (
	_ [][]byte, _ []*wal.Chunk, next protocol.Offset, size int, ok bool,
) {
	p.mu.Lock()
	defer p.mu.Unlock()
	live := p.tail[p.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].next > from })
	if i == len(live) || live[i].base > from {
		return bufs, held, from, 0, false
	}
	next = from
	for ; i < len(live); i++ {
		b := &live[i]
		fits := size+len(b.ref.Payload) <= bytesMax || oneMin && size == 0
		if b.next > limit || !fits {
			break
		}
		if n := len(held); n == 0 || held[n-1] != b.ref.Chunk {
			if !b.ref.Chunk.Acquire() {
				return bufs, held, next, size, size > 0
			}
			held = append(held, b.ref.Chunk)
		}
		bufs = append(bufs, b.ref.Payload)
		size += len(b.ref.Payload)
		next = b.next
	}
	return bufs, held, next, size, true
}

// FindTime looks in memory for the first batch that ends after offset from and below or at limit and whose largest timestamp is at
// least ts. It returns a copy of the batch and the offset after it.
func (p *Partition) FindTime(ts int64, from, limit protocol.Offset) (batch []byte, next protocol.Offset, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := p.head; i < len(p.tail); i++ {
		b := &p.tail[i]
		if b.next > limit {
			break
		}
		if b.next <= from || b.maxTs < ts || !b.ref.Chunk.Acquire() {
			continue
		}
		batch = slices.Clone(b.ref.Payload)
		b.ref.Chunk.Release()
		return batch, b.next, true
	}
	return nil, 0, false
}

// MaxTimestamp returns the largest timestamp of the batches in memory that end after from and below or at limit; -1 for none.
func (p *Partition) MaxTimestamp(from, limit protocol.Offset) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := int64(-1)
	for i := range p.tail[p.head:] {
		if b := &p.tail[p.head+i]; b.next > from && b.next <= limit {
			most = max(most, b.maxTs)
		}
	}
	return most
}

// UnflushedBytes returns the bytes of the batches from offset end on, where the committed log ends.
func (p *Partition) UnflushedBytes(end protocol.Offset) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var bytes int64
	for i := len(p.tail) - 1; i >= p.head && p.tail[i].base >= end; i-- {
		bytes += int64(len(p.tail[i].ref.Payload))
	}
	return bytes
}

// push adds a batch that was just appended.
func (p *Partition) push(b tailBatch) {
	if p.head > 64 && p.head*2 > len(p.tail) {
		n := copy(p.tail, p.tail[p.head:])
		clear(p.tail[n:])
		p.tail, p.head = p.tail[:n], 0
	}
	p.tail = append(p.tail, b)
	if p.chunk != b.ref.Chunk {
		p.chunk = b.ref.Chunk
		b.ref.Chunk.Note(p) // cannot be evicted: the entry is not flushed
	}
}

// Evicted implements [wal.Owner]: what lies in that chunk is gone from memory. Chunks go nearly in order; one that a reader holds goes later than
// those behind it, so that more than one may go from the front at once.
func (p *Partition) Evicted(chunk *wal.Chunk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.head < len(p.tail) {
		c := p.tail[p.head].ref.Chunk
		if c != chunk {
			if c.Acquire() {
				c.Release()
				break
			}
			chunk = c
		}
		p.tail[p.head] = tailBatch{}
		p.head++
	}
	if p.head == len(p.tail) {
		p.tail, p.head = p.tail[:0], 0
	}
	if p.chunk == chunk {
		p.chunk = nil
	}
}
