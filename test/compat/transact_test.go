package compat

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// transactionTimeout is the timeout of transactions that are not meant to reach it.
const transactionTimeout = time.Minute

// producer starts a transactional producer and waits until it is ready for steps.
func (s *suite) producer(ctx context.Context, t *testing.T, of subject, id string, timeout time.Duration) (*member, error) {
	d, ok := of.client.(driver)
	if !ok {
		return nil, fmt.Errorf("%s has no driver", of.name)
	}
	m, err := d.start(ctx, t, "transact", "--id", id, "--timeout", strconv.FormatInt(timeout.Milliseconds(), 10))
	if err != nil {
		return nil, err
	}
	return m, await(ctx, "the producer is ready", func() bool { return slices.Equal(m.said(), []string{"ready"}) }, m)
}

// refusal is a step that a producer's client has refused.
type refusal struct{ step, name string }

func (r *refusal) Error() string { return fmt.Sprintf("%s is refused: %s", r.step, r.name) }

// do gives a producer steps, one after the other, up to the first that is refused: see refusal.
func (m *member) do(ctx context.Context, steps ...string) error {
	for _, step := range steps {
		before := len(m.said())
		if _, err := m.stdin.Write([]byte(step + "\n")); err != nil {
			return fmt.Errorf("give step %q: %w", step, err)
		}
		name, _, _ := strings.Cut(step, "\t")
		if err := await(ctx, name, func() bool { return len(m.said()) > before }, m); err != nil {
			return err
		}
		if answer := m.said()[before]; answer != "done" {
			return &refusal{step: name, name: strings.TrimPrefix(answer, "refused\t")}
		}
	}
	return nil
}

// sends makes the steps that send records.
func sends(topic string, records []record) []string {
	var steps []string
	for _, r := range records {
		steps = append(steps, strings.Join([]string{"send", topic, strconv.Itoa(r.partition), r.key, r.value}, "\t"))
	}
	return steps
}

// offset makes the step that commits a group's offset in partition 0 of a topic with the transaction.
func offset(group, topic string, at int64) string {
	return strings.Join([]string{"offset", group, topic, "0", strconv.FormatInt(at, 10)}, "\t")
}

// transacted is what is in a topic that was written in transactions.
type transacted struct {
	topic          string
	committed, all map[int][]record // by partition
}

// transacts lets a client commit and abort transactions, and looks at what can be seen of them while they are open and
// afterwards: records by last stable offset and by both isolation levels, offsets by the group's owner.
func (s *suite) transacts(ctx context.Context, t *testing.T, of subject) error {
	const partitions = 12
	topic, err := s.topic(ctx, slug(of, "transacts"), partitions)
	if err != nil {
		return err
	}
	group := topic + "-group"
	p, err := s.producer(ctx, t, of, topic+"-id", transactionTimeout)
	if err != nil {
		return err
	}
	want := &transacted{topic: topic, committed: map[int][]record{}, all: map[int][]record{}}
	stable := int64(-1) // the group's offset, none
	for i, each := range []struct {
		records    int // in each partition
		partitions int
		offset     int64 // -1 is none
		commit     bool
	}{
		{records: 12, partitions: partitions, offset: -1, commit: true},
		{records: 8, partitions: 5, offset: -1, commit: false},
		{records: 6, partitions: partitions, offset: 40, commit: true},
		{records: 20, partitions: 1, offset: 77, commit: false},
		{records: 2, partitions: 7, offset: 55, commit: true},
	} {
		records := numbered(fmt.Sprintf("%s-%d", topic, i), each.partitions, each.records)
		open := opened{topic: topic, partitions: each.partitions, group: group, offset: stable}
		if open.before, err = s.settled(ctx, topic); err != nil {
			return err
		}
		if err := p.do(ctx, slices.Concat([]string{"begin"}, sends(topic, records), []string{"flush"})...); err != nil {
			return fmt.Errorf("transaction %d: %w", i, err)
		}
		if each.offset >= 0 {
			open.unstable = !of.offsetsLast
			if err := p.do(ctx, offset(group, topic, each.offset)); err != nil {
				return fmt.Errorf("transaction %d: %w", i, err)
			}
		}
		if err := s.looksOpen(ctx, open); err != nil {
			return fmt.Errorf("transaction %d, while it is open: %w", i, err)
		}
		end := "abort"
		if each.commit {
			end = "commit"
			if each.offset >= 0 {
				stable = each.offset
			}
		}
		if err := p.do(ctx, end); err != nil {
			return fmt.Errorf("transaction %d: %w", i, err)
		}
		for _, r := range records {
			if each.commit {
				want.committed[r.partition] = append(want.committed[r.partition], r)
			}
			want.all[r.partition] = append(want.all[r.partition], r)
		}
		if got, err := s.stableOffset(ctx, group, topic); err != nil || got != stable {
			return fmt.Errorf("transaction %d: the group's offset is %d after the %s, want %d: %w", i, got, end, stable, err)
		}
	}
	if err := p.leave(ctx, false); err != nil {
		return err
	}
	return s.holds(ctx, want)
}

// numbered makes records for each of some partitions.
func numbered(origin string, partitions, each int) []record {
	var records []record
	for i := range each {
		for partition := range partitions {
			name := fmt.Sprintf("%s-%d-%04d", origin, partition, i)
			records = append(records, record{partition: partition, key: "key-" + name, value: "value-" + name})
		}
	}
	return records
}

// opened is what an open transaction must not change.
type opened struct {
	topic      string
	partitions int
	before     []int64 // the end of each partition before the transaction
	group      string
	offset     int64
	unstable   bool // the transaction has an offset of the group
}

func (s *suite) looksOpen(ctx context.Context, o opened) error {
	stable, ends, err := s.ends(ctx, o.topic)
	if err != nil {
		return err
	}
	for partition := range o.partitions {
		if stable[partition] != o.before[partition] || ends[partition] <= o.before[partition] {
			return fmt.Errorf("partition %d ends at %d, its last stable offset is %d, want more than %d, and %d",
				partition, ends[partition], stable[partition], o.before[partition], o.before[partition])
		}
	}
	topics, err := s.admin.ListTopics(ctx, o.topic)
	if err != nil {
		return fmt.Errorf("look up %s: %w", o.topic, err)
	}
	fetched, err := s.fetch(ctx, topics[o.topic], o.before[0], readCommitted)
	if err != nil {
		return err
	}
	if len(fetched.RecordBatches) > 0 || fetched.LastStableOffset != o.before[0] || fetched.HighWatermark != ends[0] {
		return fmt.Errorf("a reader of committed records gets %d bytes of it, last stable offset %d, high watermark %d, want none, %d, %d",
			len(fetched.RecordBatches), fetched.LastStableOffset, fetched.HighWatermark, o.before[0], ends[0])
	}
	switch got, err := s.groupOffset(ctx, o.group, o.topic, true); {
	case errors.Is(err, kerr.UnstableOffsetCommit):
		if !o.unstable {
			return errors.New("the group's offset is unstable, and the transaction has none of that group")
		}
	case err != nil:
		return err
	case o.unstable:
		return fmt.Errorf("the group's offset is said to be stable, %d", got)
	}
	got, err := s.groupOffset(ctx, o.group, o.topic, false)
	if err != nil || got != o.offset {
		return fmt.Errorf("the group's offset is %d, want %d: %w", got, o.offset, err)
	}
	return nil
}

// ends returns the last stable offset and the high watermark of each of a topic's partitions.
func (s *suite) ends(ctx context.Context, topic string) (stable, ends []int64, err error) {
	// The last stable offset first: without a transaction that begins meanwhile it cannot be beyond the other.
	committed, err := s.admin.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("last stable offsets of %s: %w", topic, err)
	}
	watermarks, err := s.admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = watermarks.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("end of %s: %w", topic, err)
	}
	for partition := range len(watermarks[topic]) {
		stable = append(stable, committed[topic][int32(partition)].Offset)
		ends = append(ends, watermarks[topic][int32(partition)].Offset)
	}
	return stable, ends, nil
}

// pause waits before one looks again for what shows a little after it was answered, as a transaction's end does.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}

// settled waits until no transaction is open in a topic, and returns the end of each partition.
func (s *suite) settled(ctx context.Context, topic string) ([]int64, error) {
	for {
		stable, ends, err := s.ends(ctx, topic)
		if err != nil {
			return nil, err
		}
		if slices.Equal(stable, ends) {
			return ends, nil
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("await the end of transactions in %s: last stable offsets %d, ends %d: %w", topic, stable, ends, err)
		}
	}
}

// groupOffset returns a group's offset in partition 0 of a topic, -1 if there is none.
func (s *suite) groupOffset(ctx context.Context, group, topic string, requireStable bool) (int64, error) {
	request := kmsg.NewPtrOffsetFetchRequest()
	request.RequireStable = requireStable
	asked := kmsg.NewOffsetFetchRequestGroup()
	asked.Group = group
	asked.Topics = []kmsg.OffsetFetchRequestGroupTopic{{Topic: topic, Partitions: []int32{0}}}
	request.Groups = append(request.Groups, asked)
	answer, err := request.RequestWith(ctx, s.probe)
	for errors.Is(err, kerr.CoordinatorNotAvailable) { // Kafka makes its topic of offsets when it is asked for the first
		if err := pause(ctx); err != nil {
			return 0, fmt.Errorf("fetch offset of %s: %w", group, err)
		}
		answer, err = request.RequestWith(ctx, s.probe)
	}
	if err != nil {
		return 0, fmt.Errorf("fetch offset of %s: %w", group, err)
	}
	if len(answer.Groups) != 1 || answer.Groups[0].ErrorCode != 0 || len(answer.Groups[0].Topics) != 1 || len(answer.Groups[0].Topics[0].Partitions) != 1 {
		return 0, fmt.Errorf("fetch offset of %s: not one partition, or an error, in %+v", group, answer.Groups)
	}
	partition := answer.Groups[0].Topics[0].Partitions[0]
	if err := kerr.ErrorForCode(partition.ErrorCode); err != nil {
		return 0, fmt.Errorf("fetch offset of %s: %w", group, err)
	}
	return partition.Offset, nil
}

// stableOffset waits until no open transaction has an offset of the group.
func (s *suite) stableOffset(ctx context.Context, group, topic string) (int64, error) {
	for {
		got, err := s.groupOffset(ctx, group, topic, true)
		if !errors.Is(err, kerr.UnstableOffsetCommit) {
			return got, err
		}
		if err := pause(ctx); err != nil {
			return 0, fmt.Errorf("await the offset of %s: %w", group, err)
		}
	}
}

// holds compares a topic with what must be in it, and notes what is there for readers.
func (s *suite) holds(ctx context.Context, want *transacted) error {
	got := &transacted{topic: want.topic}
	var err error
	if got.committed, err = s.readAll(ctx, want.topic, readCommitted); err != nil {
		return err
	}
	if got.all, err = s.readAll(ctx, want.topic, readUncommitted); err != nil {
		return err
	}
	if err := errors.Join(sameContents(got.committed, want.committed), sameContents(got.all, want.all)); err != nil {
		return fmt.Errorf("topic %s: %w", want.topic, err)
	}
	s.noteTransacted(got)
	return nil
}

// sameContents compares records but for their offsets, which transactions' markers shift.
func sameContents(got, want map[int][]record) error {
	for partition, records := range want {
		var plain []record
		for i, r := range got[partition] {
			if i > 0 && r.offset <= got[partition][i-1].offset {
				return fmt.Errorf("%v comes after %v", r, got[partition][i-1])
			}
			plain = append(plain, record{partition: r.partition, key: r.key, value: r.value})
		}
		if err := same(plain, records); err != nil {
			return fmt.Errorf("partition %d: %w", partition, err)
		}
	}
	if len(got) > len(want) {
		return fmt.Errorf("records in %d partitions, want %d", len(got), len(want))
	}
	return nil
}

// readAll reads a topic, in which no transaction is open, to its end.
func (s *suite) readAll(ctx context.Context, topic string, sees isolation) (map[int][]record, error) {
	ends, err := s.settled(ctx, topic)
	if err != nil {
		return nil, err
	}
	from := map[int32]kgo.Offset{}
	for partition, end := range ends {
		if end > 0 {
			from[int32(partition)] = kgo.NewOffset().AtStart()
		}
	}
	level := kgo.ReadUncommitted()
	if sees == readCommitted {
		level = kgo.ReadCommitted()
	}
	// Markers, which may stand at the end, tell how far it has read.
	client, err := kgo.NewClient(kgo.SeedBrokers(s.bootstrap), kgo.FetchIsolationLevel(level), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	records := map[int][]record{}
	for len(from) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("read %s: %w", topic, err)
		}
		for _, r := range fetches.Records() {
			partition := int(r.Partition)
			if r.Offset+1 == ends[partition] {
				delete(from, r.Partition)
			}
			if !r.Attrs.IsControl() {
				records[partition] = append(records[partition],
					record{partition: partition, offset: r.Offset, key: string(r.Key), value: string(r.Value)})
			}
		}
	}
	return records, nil
}

// fences lets a producer take over another one's transactional id, and lets a transaction reach its timeout.
func (s *suite) fences(ctx context.Context, t *testing.T, of subject) error {
	topic, err := s.topic(ctx, slug(of, "fences"), 1)
	if err != nil {
		return err
	}
	records := func(name string) []record { return numbered(topic+"-"+name, 1, 15) }
	write := func(m *member, name string, end ...string) error {
		return m.do(ctx, slices.Concat([]string{"begin"}, sends(topic, records(name)), []string{"flush"}, end)...)
	}
	first, err := s.producer(ctx, t, of, topic+"-id", transactionTimeout)
	if err != nil {
		return err
	}
	if err := write(first, "kept", "commit"); err != nil {
		return err
	}
	if err := write(first, "fenced"); err != nil {
		return err
	}
	// Long enough that no step of the second is late, short enough to wait for.
	second, err := s.producer(ctx, t, of, topic+"-id", 4*time.Second)
	if err != nil {
		return err
	}
	if err := write(second, "second", "commit"); err != nil {
		return err
	}
	if err := refuses(first.do(ctx, "commit"), of.fenced); err != nil {
		return fmt.Errorf("commit of the first producer after the second began: %w", err)
	}
	if err := write(second, "late"); err != nil {
		return err
	}
	if _, err := s.settled(ctx, topic); err != nil {
		return fmt.Errorf("the timeout of a transaction: %w", err)
	}
	if err := refuses(second.do(ctx, "commit"), of.late); err != nil {
		return fmt.Errorf("commit after the timeout: %w", err)
	}
	return s.holds(ctx, &transacted{
		topic:     topic,
		committed: map[int][]record{0: slices.Concat(records("kept"), records("second"))},
		all:       map[int][]record{0: slices.Concat(records("kept"), records("fenced"), records("second"), records("late"))},
	})
}

// refuses wants a step to be refused by an error of a name.
func refuses(err error, name string) error {
	if refused, ok := errors.AsType[*refusal](err); ok && regexp.MustCompile(name).MatchString(refused.name) {
		return nil
	}
	return fmt.Errorf("got %w, want a refusal by %s", err, name)
}
