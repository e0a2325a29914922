package gaps

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var errValue = errors.New("a value that was not sent like this")

// stallMax is how long ReadBack waits for the next record.
const stallMax = 30 * time.Second

// Kept is what became of the records.
type Kept struct {
	// Acked is how many were acknowledged, Read how many the topic has: those that failed may be among them.
	Acked, Read int
	// Lost were acknowledged and are not there at the offset that the acknowledgement named.
	Lost int
	// Twice are there more than once, which an idempotent producer rules out.
	Twice int
}

// ReadBack reads the whole topic and compares it with the acknowledgements. It comes after Stop.
func (p *Probe) ReadBack(ctx context.Context) (Kept, error) {
	kept, err := p.readBack(ctx)
	if err != nil {
		return Kept{}, fmt.Errorf("read %s back: %w", p.cfg.Topic, err)
	}
	return kept, nil
}

func (p *Probe) readBack(ctx context.Context) (Kept, error) {
	starts := make(map[int32]kgo.Offset, p.cfg.Partitions)
	for i := range p.cfg.Partitions {
		starts[int32(i)] = kgo.NewOffset().AtStart()
	}
	client, err := kgo.NewClient(append(options(p.cfg), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{p.cfg.Topic: starts}))...)
	if err != nil {
		return Kept{}, err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, p.cfg.Topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return Kept{}, fmt.Errorf("list end offsets: %w", err)
	}
	left := int64(0)
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	tally := newTally(p.offsets())
	for left > 0 {
		waiting, cancel := context.WithTimeout(ctx, stallMax)
		fetches := client.PollFetches(waiting)
		cancel()
		if err := fetches.Err(); err != nil {
			return Kept{}, fmt.Errorf("%d records before the end: %w", left, err)
		}
		var failed error
		fetches.EachRecord(func(r *kgo.Record) {
			left--
			if err := tally.read(r); err != nil && failed == nil {
				failed = err
			}
		})
		if failed != nil {
			return Kept{}, failed
		}
	}
	return tally.result, nil
}

// offsets are the acknowledged offsets, by partition and number. Nothing adds to them after Stop.
func (p *Probe) offsets() [][]int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	offsets := make([][]int64, len(p.partitions))
	for i := range p.partitions {
		offsets[i] = p.partitions[i].offsets
	}
	return offsets
}

// tally compares what is read with what was acknowledged.
type tally struct {
	offsets [][]int64
	seen    [][]bool
	result  Kept
}

func newTally(offsets [][]int64) *tally {
	t := &tally{offsets: offsets, seen: make([][]bool, len(offsets))}
	for i, partition := range offsets {
		t.seen[i] = make([]bool, len(partition))
		for _, offset := range partition {
			if offset != notAcked {
				t.result.Acked++
			}
		}
	}
	t.result.Lost = t.result.Acked // until they are found
	return t
}

// read takes one record of the topic.
func (t *tally) read(r *kgo.Record) error {
	if len(r.Value) < headBytes {
		return fmt.Errorf("%w: %d bytes at offset %d of partition %d", errValue, len(r.Value), r.Offset, r.Partition)
	}
	partition, number := binary.BigEndian.Uint32(r.Value), binary.BigEndian.Uint64(r.Value[4:])
	if partition != uint32(r.Partition) || partition >= uint32(len(t.offsets)) || number >= uint64(len(t.offsets[partition])) {
		return fmt.Errorf("%w: record %d of partition %d at offset %d of partition %d", errValue, number, partition, r.Offset, r.Partition)
	}
	t.result.Read++
	if t.seen[partition][number] {
		t.result.Twice++
	}
	t.seen[partition][number] = true
	if t.offsets[partition][number] == r.Offset {
		t.result.Lost--
	}
	return nil
}
