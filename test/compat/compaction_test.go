package compat

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// stateful is an application that has its state in compacted topics, which it makes itself, each with one partition.
type stateful interface {
	// fill starts the application, lets it replace its state many times, and kills it.
	fill(ctx context.Context, t *testing.T) error
	// topics are those that the state is in.
	topics() []string
	// resume starts the application again, with nothing but its topics, and looks whether it goes on where it was.
	resume(ctx context.Context, t *testing.T) error
}

// testCompaction lets applications fill topics that are compacted meanwhile, kills them and the broker, and has them go on
// from what compaction leaves. The broker is one of its own. It has to start anew, since what it was just sent it serves from
// memory, as it came.
func (s *suite) testCompaction(t *testing.T) {
	// Merges are what compaction waits for in Varve, and a look of the cleaner in Kafka.
	broker := startBroker(t, []string{"--merge-after", "1s"}, map[string]string{"log.cleaner.backoff.ms": "200"})
	own := s.beside(t, broker)
	applications := []struct {
		name, fills, resumes string
		stateful
	}{
		{
			"Kafka Connect", "keeps connectors, their offsets and their states in compacted topics",
			"goes on from what compaction left, and repeats nothing that it had committed", newConnect(t, own),
		},
		{
			"Kafka Streams' stores", "keep a table, and counts in windows, in changelogs", "are restored from what compaction left of the changelogs", &table{suite: own},
		},
	}
	filled := t.Run("fill", func(t *testing.T) {
		for _, a := range applications {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				own.runToolWithin(t, compactionWithin, a.name, a.fills, a.fill)
			})
		}
	})
	if !filled {
		return
	}
	broker, err := broker.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own.connect(t, broker)
	t.Run("resume", func(t *testing.T) {
		for _, a := range applications {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				own.runToolWithin(t, compactionWithin, a.name, a.resumes, func(ctx context.Context, t *testing.T) error {
					if err := own.compacted(ctx, a.topics()); err != nil {
						return err
					}
					return a.resume(ctx, t)
				})
			})
		}
	})
}

// compacted waits until compaction has taken away of each topic what it may. Kafka leaves alone what was written last, until
// more comes; there it is enough if most is gone.
func (s *suite) compacted(ctx context.Context, topics []string) error {
	look := time.NewTicker(200 * time.Millisecond)
	defer look.Stop()
	for _, topic := range topics {
		for {
			all, err := s.kept(ctx, topic)
			if err != nil {
				return err
			}
			left, end := superseded(all), all[len(all)-1].offset+1
			if left == 0 || *target == "kafka" && left <= end/2 {
				break
			}
			select {
			case <-look.C:
			case <-ctx.Done():
				return fmt.Errorf("await compaction of %s: %d of %d records before offset %d have a later one: %w", topic, left, len(all), end, ctx.Err())
			}
		}
	}
	return nil
}

// superseded is how many records have another one of their key behind them.
func superseded(records []record) int64 {
	keys := map[string]bool{}
	for _, r := range records {
		keys[r.key] = true
	}
	return int64(len(records) - len(keys))
}

// kept returns the records in partition 0 of a topic, in any state of their transactions, but for markers. None of the
// applications compresses them.
func (s *suite) kept(ctx context.Context, topic string) ([]record, error) {
	batches, err := s.stored(ctx, topic)
	if err != nil {
		return nil, err
	}
	const control, codec = 1 << 5, 7
	var records []record
	for _, batch := range batches {
		if batch.Attributes&codec != 0 {
			return nil, fmt.Errorf("%s: the batch at offset %d is compressed", topic, batch.FirstOffset)
		}
		if batch.Attributes&control != 0 {
			continue
		}
		for rest := batch.Records; len(rest) > 0; {
			var r kmsg.Record
			if err := r.ReadFrom(rest); err != nil {
				return nil, fmt.Errorf("%s: parse a record of the batch at offset %d: %w", topic, batch.FirstOffset, err)
			}
			records = append(records, record{offset: batch.FirstOffset + int64(r.OffsetDelta), key: string(r.Key), value: string(r.Value)})
			rest = rest[len(r.AppendTo(nil)):]
		}
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("%s has no records", topic)
	}
	return records, nil
}
