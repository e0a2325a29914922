package compat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// noteTransacted keeps what is in a topic for readers to be compared with.
func (s *suite) noteTransacted(topic *transacted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.transacted = append(s.transacted, topic)
}

// interleaved is a topic for readers that start within transactions, by time.
const interleaved = "interleaved"

// interleave writes a partition in which batches of two transactions, one of which is aborted, and of none alternate. Each
// record is a minute later than the one before.
func (s *suite) interleave(ctx context.Context) error {
	topic, err := s.topic(ctx, interleaved, 1)
	if err != nil {
		return err
	}
	writers := map[string]*kgo.Client{}
	for _, name := range []string{"committed", "aborted", "plain"} {
		options := []kgo.Opt{kgo.SeedBrokers(s.bootstrap), kgo.DefaultProduceTopic(topic)}
		if name != "plain" {
			options = append(options, kgo.TransactionalID(topic+"-"+name))
		}
		writer, err := kgo.NewClient(options...)
		if err != nil {
			return fmt.Errorf("interleave: %w", err)
		}
		defer writer.Close()
		if name != "plain" {
			if err := writer.BeginTransaction(); err != nil {
				return fmt.Errorf("interleave: %w", err)
			}
		}
		writers[name] = writer
	}
	const perBatch = 10
	for i, name := range []string{"plain", "committed", "aborted", "plain", "aborted", "committed", "plain"} {
		var batch []*kgo.Record
		for k := range perBatch {
			batch = append(batch, &kgo.Record{
				Key: []byte("key-" + name), Value: fmt.Appendf(nil, "%s/%d/%d", topic, i, k), Timestamp: s.minute(i*perBatch + k),
			})
		}
		if err := writers[name].ProduceSync(ctx, batch...).FirstErr(); err != nil {
			return fmt.Errorf("interleave: %w", err)
		}
	}
	return errors.Join(writers["aborted"].EndTransaction(ctx, kgo.TryAbort), writers["committed"].EndTransaction(ctx, kgo.TryCommit),
		writers["plain"].ProduceSync(ctx, &kgo.Record{Key: []byte("key-plain"), Value: []byte(topic + "/end"), Timestamp: s.minute(100)}).FirstErr())
}

// minute is the time of the i-th record of the interleaved topic.
func (s *suite) minute(i int) time.Time {
	return s.began.Add(time.Duration(i)*time.Minute - 24*time.Hour)
}

// readsIsolated lets a client read, by both isolation levels, what every client has written in transactions, and from
// within committed and aborted transactions.
func (s *suite) readsIsolated(ctx context.Context, of subject) error {
	s.mu.Lock()
	topics := slices.Clone(s.transacted)
	s.mu.Unlock()
	// Some clients read all partitions, and some are told how many records to read of all topics together.
	topics = slices.DeleteFunc(topics, func(each *transacted) bool { return !strings.HasSuffix(each.topic, "-fences") })
	if len(topics) == 0 {
		return errors.New("no client has written in transactions")
	}
	for _, sees := range []isolation{readCommitted, readUncommitted} {
		if err := s.readsAs(ctx, of, topics, sees); err != nil {
			return fmt.Errorf("%s: %w", sees, err)
		}
	}
	if err := s.startsWithin(ctx, of); err != nil {
		return fmt.Errorf("from within a transaction: %w", err)
	}
	return nil
}

func (s *suite) readsAs(ctx context.Context, of subject, topics []*transacted, sees isolation) error {
	var names []string
	want := map[string][]record{}
	total := 0
	for _, each := range topics {
		names = append(names, each.topic)
		want[each.topic] = each.all[0]
		if sees == readCommitted {
			want[each.topic] = each.committed[0]
		}
		total += len(want[each.topic])
	}
	records, err := of.client.consume(ctx, names, total, sees)
	if err != nil {
		return err
	}
	got := map[string][]record{}
	for _, r := range records {
		topic, _, _ := strings.Cut(strings.TrimPrefix(r.value, "value-"), "-fences")
		got[topic+"-fences"] = append(got[topic+"-fences"], r)
	}
	for _, topic := range names {
		if err := same(got[topic], want[topic]); err != nil {
			return fmt.Errorf("topic %s: %w", topic, err)
		}
	}
	return nil
}

// startsWithin lets a client start in the middle of a batch that is aborted.
func (s *suite) startsWithin(ctx context.Context, of subject) error {
	const start = 24
	committed, err := s.readAll(ctx, interleaved, readCommitted)
	if err != nil {
		return err
	}
	want := slices.DeleteFunc(committed[0], func(r record) bool { return r.offset < start })
	const visible = 31 // three batches, and the last record
	if len(want) != visible {
		return fmt.Errorf("%d records of %s are committed and not before offset %d, want %d", len(want), interleaved, start, visible)
	}
	got, err := of.client.seek(ctx, interleaved, s.minute(start).Add(-time.Second), len(want), readCommitted)
	if err != nil {
		return err
	}
	return same(got, want)
}
