package agent

import (
	"context"
	"fmt"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// producerIDsPerBlock is how many producer ids are taken from the coordinator at once. What is left of a block when the agent ends is never used.
const producerIDsPerBlock = 1000

// producerIDs hands out producer ids, each once in the life of the cluster.
type producerIDs struct {
	kv coordinator.KV

	turn chan struct{} // has capacity 1: who uses what is below
	next int64
	end  int64
}

func newProducerIDs(kv coordinator.KV) *producerIDs {
	return &producerIDs{kv: kv, turn: make(chan struct{}, 1)}
}

// Next returns an id that nobody had before. It waits for as long as one call to the coordinator may take, its own or another's.
func (p *producerIDs) Next(ctx context.Context) (protocol.ProducerID, error) {
	ctx, cancel := context.WithTimeout(ctx, retry.CallTimeout)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return protocol.NoProducerID, fmt.Errorf("take a producer id: %w", ctx.Err())
	}
	defer func() { <-p.turn }()
	if p.next == p.end {
		first, err := coordinator.Take(ctx, p.kv, coordinator.KeyNextPID, producerIDsPerBlock)
		if err != nil {
			return protocol.NoProducerID, err
		}
		p.next, p.end = first, first+producerIDsPerBlock
	}
	p.next++
	return protocol.ProducerID(p.next - 1), nil
}
