package agent

import (
	"context"
	"sync"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// producerIDsPerBlock is how many producer ids are taken from the coordinator at once. What is left of a block when the agent ends is never used.
const producerIDsPerBlock = 1000

// producerIDs hands out producer ids, each once in the life of the cluster.
type producerIDs struct {
	kv coordinator.KV

	mu   sync.Mutex
	next int64
	end  int64
}

// Next returns an id that nobody had before. It waits at most for one call to the coordinator, its own or another's.
func (p *producerIDs) Next(ctx context.Context) (protocol.ProducerID, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == p.end {
		ctx, cancel := context.WithTimeout(ctx, retry.CallTimeout)
		defer cancel()
		first, err := take(ctx, p.kv, coordinator.KeyNextPID, producerIDsPerBlock)
		if err != nil {
			return protocol.NoProducerID, err
		}
		p.next, p.end = first, first+producerIDsPerBlock
	}
	p.next++
	return protocol.ProducerID(p.next - 1), nil
}
