package peer

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/varve-io/varve/wal/disk"
)

const (
	// memoryBytesMax limits the rounds of all connections together, unless the store's longest frame needs more for one. A round that finds no
	// room is not read from its connection: the disk is behind, and the writers' copies of it wait or drop out.
	memoryBytesMax = 128 << 20
	blockBytesMin  = 4 << 10
)

// memory is where a server's connections have their rounds of frames, from their arrival until they are durable. A connection that waits for a
// request has none. It is used again without being cleared, since fresh memory is dear. Its methods may be called concurrently.
type memory struct {
	room *semaphore.Weighted // bytes
	free [64]sync.Pool       // of *block, by the logarithm of their lengths
}

// block is memory for a round.
type block struct {
	b     []byte // begins on a block boundary of the disk
	class int
}

func newMemory(frameBytesMax int64) *memory {
	return &memory{room: semaphore.NewWeighted(max(memoryBytesMax, int64(1)<<classOf(roundBytesMax+frameBytesMax)))}
}

// classOf is the logarithm of the length of a block that has room for n bytes.
func classOf(n int64) int { return bits.Len64(uint64(max(n, blockBytesMin) - 1)) }

// take gives a block of at least n bytes, of any content. It waits for room, for a time.
func (m *memory) take(ctx context.Context, n int64, wait time.Duration) (*block, error) {
	class := classOf(n)
	if !m.room.TryAcquire(1 << class) {
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if err := m.room.Acquire(ctx, 1<<class); err != nil {
			return nil, fmt.Errorf("no memory for %d bytes of frames: %w", n, err)
		}
	}
	if b, ok := m.free[class].Get().(*block); ok {
		return b, nil
	}
	return &block{b: disk.Aligned(1 << class), class: class}, nil
}

// give takes a block back; nil is none.
func (m *memory) give(b *block) {
	if b != nil {
		m.free[b.class].Put(b)
		m.room.Release(1 << b.class)
	}
}
