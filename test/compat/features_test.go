package compat

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// feature is a column of the table.
type feature string

const (
	produceIdempotent feature = "produce idempotently"
	groupOfTwo        feature = "group of two"
	commitResume      feature = "commit and resume"
	seekByTime        feature = "seek by time"
	administer        feature = "administer topics"
	transactional     feature = "transactions"
	fencing           feature = "fencing and timeout"
	copyRestarted     feature = "copy restarted"
	copyByTwo         feature = "copy by two"
	readIsolated      feature = "read committed"
)

// codecs in the order of their numbers in a batch's attributes.
var codecs = []string{"none", "gzip", "snappy", "lz4", "zstd"}

func produceIn(codec string) feature { return feature("produce " + codec) }
func consumeIn(codec string) feature { return feature("consume " + codec) }

// features lists the columns in the order of the table.
func features() []feature {
	var all []feature
	for _, codec := range codecs {
		all = append(all, produceIn(codec))
	}
	all = append(all, produceIdempotent)
	for _, codec := range codecs {
		all = append(all, consumeIn(codec))
	}
	return append(all, groupOfTwo, commitResume, seekByTime, administer, transactional, fencing, copyRestarted, copyByTwo, readIsolated)
}

// explained says what a feature's cell stands for.
var explained = map[feature]string{
	"produce CODEC":   fmt.Sprintf("%d records with acks=all; the log then holds them, in batches of that codec", corpusRecords),
	produceIdempotent: "the same with idempotence; the log's batches carry a producer id",
	"consume CODEC":   "reads, in order, what each client of this table produced in that codec, itself included",
	groupOfTwo:        "a second member joins and gets half of four partitions, each record goes to one member, the second leaves and the first gets all again, and no record is delivered twice",
	commitResume:      "a member consumes, commits and leaves; the next continues after the commit, which the broker shows",
	seekByTime:        "finds the first record at or after a time within a batch and reads on from there",
	administer:        "creates a topic, describes it, alters its configuration, adds partitions, deletes it",
	transactional: "commits and aborts transactions over a dozen partitions and a group's offset; while one is open the last stable " +
		"offset and the group's offset stand still, afterwards both isolation levels see exactly what they must",
	fencing:       "a second producer of the transactional id fences the first; a transaction beyond its timeout is aborted, and its commit refused",
	copyRestarted: "a member of a group copies a topic in transactions, a third of which it aborts, and is killed in one; another of the same transactional id goes on; each record is copied once, in order",
	copyByTwo:     "the same by two members of two transactional ids; the one that is left waits for the transaction of the one that was killed to be aborted",
	readIsolated:  "by both isolation levels, reads what each client of this table wrote in transactions; starts in the middle of one that was aborted, between others",
}

// corpusRecords is how many records a client produces in each codec.
const corpusRecords = 300

// TestClients runs every feature of every client. First each client works alone, several at a time; then each reads what
// the others have produced.
func TestClients(t *testing.T) {
	s := newSuite(t)
	t.Run("clients", func(t *testing.T) {
		for _, of := range s.subjects {
			t.Run(of.name, func(t *testing.T) {
				t.Parallel()
				for _, codec := range codecs {
					s.check(t, of, produceIn(codec), func(ctx context.Context, _ *testing.T) error {
						return s.produces(ctx, of, codec, false)
					})
				}
				s.check(t, of, produceIdempotent, func(ctx context.Context, _ *testing.T) error {
					return s.produces(ctx, of, "none", true)
				})
				s.check(t, of, groupOfTwo, func(ctx context.Context, t *testing.T) error { return s.rebalances(ctx, t, of) })
				s.check(t, of, commitResume, func(ctx context.Context, _ *testing.T) error { return s.resumes(ctx, of) })
				s.check(t, of, seekByTime, func(ctx context.Context, _ *testing.T) error { return s.seeks(ctx, of) })
				s.check(t, of, administer, func(ctx context.Context, _ *testing.T) error { return s.administers(ctx, of) })
				s.check(t, of, transactional, func(ctx context.Context, t *testing.T) error { return s.transacts(ctx, t, of) })
				s.check(t, of, fencing, func(ctx context.Context, t *testing.T) error { return s.fences(ctx, t, of) })
				s.check(t, of, copyRestarted, func(ctx context.Context, t *testing.T) error { return s.copies(ctx, t, of) })
				s.check(t, of, copyByTwo, func(ctx context.Context, t *testing.T) error { return s.copiesByTwo(ctx, t, of) })
			})
		}
		t.Run("tools", func(t *testing.T) {
			t.Parallel()
			s.runTools(t)
			s.runTransactionTools(t)
		})
		t.Run("applications", func(t *testing.T) {
			t.Parallel()
			s.runTool(t, "Kafka Streams", "counts words exactly once, stopped, started, and killed", s.countsWords)
		})
		t.Run("compaction", func(t *testing.T) {
			t.Parallel()
			s.testCompaction(t)
		})
	})
	if err := s.interleave(t.Context()); err != nil {
		t.Error(err)
	}
	t.Run("readers", func(t *testing.T) {
		for _, of := range s.subjects {
			t.Run(of.name, func(t *testing.T) {
				t.Parallel()
				for _, codec := range codecs {
					s.check(t, of, consumeIn(codec), func(ctx context.Context, _ *testing.T) error { return s.reads(ctx, of, codec) })
				}
				s.check(t, of, readIsolated, func(ctx context.Context, _ *testing.T) error { return s.readsIsolated(ctx, of) })
			})
		}
	})
	if err := s.results.write(s.subjects); err != nil {
		t.Error(err)
	}
}

// slug is a name that topics and groups may carry.
func slug(of subject, parts ...string) string {
	return strings.Join(append([]string{strings.ToLower(strings.ReplaceAll(of.name, " ", "-"))}, parts...), "-")
}

// produces lets a client produce, and looks at what the log holds afterwards.
func (s *suite) produces(ctx context.Context, of subject, codec string, idempotent bool) error {
	name := slug(of, "produces", codec)
	if idempotent {
		name += "-idempotently"
	}
	topic, err := s.topic(ctx, name, 1)
	if err != nil {
		return err
	}
	records := corpus(topic, corpusRecords)
	if err := of.client.produce(ctx, topic, codec, idempotent, records); err != nil {
		return err
	}
	stored, err := s.stored(ctx, topic)
	if err != nil {
		return err
	}
	count := 0
	for _, batch := range stored {
		count += int(batch.NumRecords)
		if got := int(batch.Attributes & 7); got >= len(codecs) || codecs[got] != codec {
			return fmt.Errorf("the batch at offset %d is stored with codec %d, want %s", batch.FirstOffset, got, codec)
		}
		if idempotent != (batch.ProducerID >= 0) {
			return fmt.Errorf("the batch at offset %d has producer id %d, idempotence %v", batch.FirstOffset, batch.ProducerID, idempotent)
		}
	}
	if count != len(records) {
		return fmt.Errorf("the log holds %d records, want %d", count, len(records))
	}
	return nil
}

// stored returns the headers of the batches in partition 0 of a topic.
func (s *suite) stored(ctx context.Context, topic string) ([]kmsg.RecordBatch, error) {
	topics, err := s.admin.ListTopics(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", topic, err)
	}
	ends, err := s.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("end of %s: %w", topic, err)
	}
	detail := topics[topic]
	end, _ := ends.Lookup(topic, 0)
	var batches []kmsg.RecordBatch
	for next := int64(0); next < end.Offset; {
		answer, err := s.fetch(ctx, detail, next, readUncommitted)
		if err != nil {
			return nil, err
		}
		fetched, err := parseBatches(answer.RecordBatches)
		if err != nil {
			return nil, fmt.Errorf("fetch %s at offset %d: %w", topic, next, err)
		}
		for _, batch := range fetched {
			batches = append(batches, batch)
			next = batch.FirstOffset + int64(batch.LastOffsetDelta) + 1
		}
	}
	return batches, nil
}

// fetch asks once for what is in partition 0 of a topic from an offset on.
func (s *suite) fetch(
	ctx context.Context, topic kadm.TopicDetail, from int64, sees isolation,
) (kmsg.FetchResponseTopicPartition, error) {
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.FetchOffset, partition.PartitionMaxBytes, partition.CurrentLeaderEpoch = from, 1<<20, -1
	request := kmsg.NewPtrFetchRequest()
	request.MaxBytes, request.SessionEpoch = 1<<20, -1
	if sees == readCommitted {
		request.IsolationLevel = 1
	}
	request.Topics = []kmsg.FetchRequestTopic{{
		Topic: topic.Topic, TopicID: [16]byte(topic.ID), Partitions: []kmsg.FetchRequestTopicPartition{partition},
	}}
	answer, err := request.RequestWith(ctx, s.probe.Broker(int(topic.Partitions[0].Leader)))
	if err != nil {
		return kmsg.FetchResponseTopicPartition{}, fmt.Errorf("fetch %s: %w", topic.Topic, err)
	}
	if len(answer.Topics) != 1 || len(answer.Topics[0].Partitions) != 1 {
		return kmsg.FetchResponseTopicPartition{}, fmt.Errorf("fetch %s: error code %d and not one partition in the answer", topic.Topic, answer.ErrorCode)
	}
	fetched := answer.Topics[0].Partitions[0]
	if fetched.ErrorCode != 0 {
		return fetched, fmt.Errorf("fetch %s: error code %d", topic.Topic, fetched.ErrorCode)
	}
	return fetched, nil
}

// parseBatches reads the whole batches in a fetch of one partition. There is at least one.
func parseBatches(fetched []byte) ([]kmsg.RecordBatch, error) {
	const lengthEnd = 12 // a batch starts with 8 bytes of offset and 4 of the length of what follows
	var batches []kmsg.RecordBatch
	for left := fetched; len(left) >= lengthEnd; {
		size := lengthEnd + int(left[8])<<24 + int(left[9])<<16 + int(left[10])<<8 + int(left[11])
		if size > len(left) {
			break
		}
		var batch kmsg.RecordBatch
		if err := batch.ReadFrom(left[:size]); err != nil {
			return nil, fmt.Errorf("parse batch: %w", err)
		}
		batches, left = append(batches, batch), left[size:]
	}
	if len(batches) == 0 {
		return nil, fmt.Errorf("no whole batch in %d bytes", len(fetched))
	}
	return batches, nil
}

// reads lets a client read what every client has produced in a codec.
func (s *suite) reads(ctx context.Context, of subject, codec string) error {
	var topics []string
	want := map[string][]record{}
	for _, writer := range s.subjects {
		if s.results.ok(writer.name, produceIn(codec)) {
			topic := slug(writer, "produces", codec)
			topics, want[topic] = append(topics, topic), corpus(topic, corpusRecords)
		}
	}
	if len(topics) == 0 {
		return fmt.Errorf("no client has produced in %s", codec)
	}
	records, err := of.client.consume(ctx, topics, len(topics)*corpusRecords, readUncommitted)
	if err != nil {
		return err
	}
	got := map[string][]record{}
	for _, r := range records {
		topic, _, _ := strings.Cut(r.value, "/")
		got[topic] = append(got[topic], r)
	}
	for _, topic := range topics {
		if err := same(got[topic], want[topic]); err != nil {
			return fmt.Errorf("topic %s: %w", topic, err)
		}
	}
	return nil
}

// resumes lets a client consume a part as a group's member, leave, and come back for the rest.
func (s *suite) resumes(ctx context.Context, of subject) error {
	const total, first = 100, 40
	topic, err := s.topic(ctx, slug(of, "resumes"), 1)
	if err != nil {
		return err
	}
	records := corpus(topic, total)
	if err := s.write(ctx, topic, records, func(int) time.Time { return time.Now() }); err != nil {
		return err
	}
	group := topic + "-group"
	for _, part := range [][]record{records[:first], records[first:]} {
		got, err := of.client.resume(ctx, topic, group, len(part))
		if err != nil {
			return err
		}
		if err := same(got, part); err != nil {
			return err
		}
		committed, err := s.admin.FetchOffsets(ctx, group)
		if err != nil {
			return fmt.Errorf("fetch offsets of %s: %w", group, err)
		}
		want := part[len(part)-1].offset + 1
		if offset, _ := committed.Lookup(topic, 0); offset.At != want {
			return fmt.Errorf("the group's committed offset is %d, want %d", offset.At, want)
		}
	}
	return nil
}

// seeks lets a client find a time that lies between two records.
func (s *suite) seeks(ctx context.Context, of subject) error {
	const total, sought = 100, 57
	topic, err := s.topic(ctx, slug(of, "seeks"), 1)
	if err != nil {
		return err
	}
	start := time.Now().Add(-24 * time.Hour).Truncate(time.Second)
	stamp := func(i int) time.Time { return start.Add(time.Duration(i) * time.Minute) }
	records := corpus(topic, total)
	if err := s.write(ctx, topic, records, stamp); err != nil {
		return err
	}
	got, err := of.client.seek(ctx, topic, stamp(sought).Add(-time.Second), total-sought, readUncommitted)
	if err != nil {
		return err
	}
	return same(got, records[sought:])
}

// administers lets a client walk a topic through its life.
func (s *suite) administers(ctx context.Context, of subject) error {
	seen, err := of.client.admin(ctx, slug(of, "administers"))
	if err != nil {
		return fmt.Errorf("%w (after %q)", err, seen)
	}
	const want = "created\npartitions 2\nretention.ms 3600000\nretention.ms 7200000\npartitions 4\ndeleted\n"
	if seen != want {
		return fmt.Errorf("the client saw %q, want %q", seen, want)
	}
	return nil
}

// rebalances follows a group that grows to two members and shrinks to one.
func (s *suite) rebalances(ctx context.Context, t *testing.T, of subject) error {
	const partitions, perPartition = copyPartitions, 10
	topic, err := s.topic(ctx, slug(of, "rebalances"), partitions)
	if err != nil {
		return err
	}
	g := &group{topic: topic, write: s.write, want: map[int][]record{}}
	deliver := func(members ...*member) error {
		if err := g.put(ctx, perPartition, "key"); err != nil {
			return err
		}
		return g.delivered(ctx, members...)
	}
	first, err := of.client.member(t, topic, topic+"-group")
	if err != nil {
		return err
	}
	if err := await(ctx, "the first member gets all partitions", func() bool { return len(first.owns()) == partitions }, first); err != nil {
		return err
	}
	second, err := of.client.member(t, topic, topic+"-group")
	if err != nil {
		return err
	}
	err = await(ctx, "two members share the partitions", func() bool {
		own, others := first.owns(), second.owns()
		all := slices.Sorted(slices.Values(slices.Concat(own, others)))
		return len(own) == partitions/2 && len(others) == partitions/2 && len(slices.Compact(all)) == partitions
	}, first, second)
	if err != nil {
		return err
	}
	if err := deliver(first, second); err != nil {
		return err
	}
	if got := second.delivered(); len(got) != partitions/2*perPartition {
		return fmt.Errorf("the second member got %d records, want those of its two partitions, %d", len(got), partitions/2*perPartition)
	}
	_, isDriver := of.client.(driver)
	if err := second.leave(ctx, !isDriver); err != nil {
		return err
	}
	if err := await(ctx, "the first member gets all partitions again", func() bool { return len(first.owns()) == partitions }, first); err != nil {
		return err
	}
	if err := deliver(first, second); err != nil {
		return err
	}
	return first.leave(ctx, !isDriver)
}

// await waits until a condition on members holds; only their events can make it so.
func await(ctx context.Context, what string, holds func() bool, members ...*member) error {
	for {
		var changes []<-chan struct{}
		for _, m := range members {
			changes = append(changes, m.next())
		}
		if holds() {
			return nil
		}
		for i, m := range members {
			if err := m.broken(); err != nil {
				return fmt.Errorf("%s: member %d %w", what, i+1, err)
			}
		}
		if err := anyOf(ctx, changes); err != nil {
			var states strings.Builder
			for i, m := range members {
				fmt.Fprintf(&states, "\nmember %d: %s", i+1, m)
			}
			return fmt.Errorf("%s: %w%s", what, err, states.String())
		}
	}
}

// anyOf waits until one of one or two channels is closed.
func anyOf(ctx context.Context, changes []<-chan struct{}) error {
	other := changes[len(changes)-1]
	select {
	case <-changes[0]:
	case <-other:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
