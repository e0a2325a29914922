package compat

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"
)

// copying is one member of a group that copies a topic in transactions.
type copying struct {
	from, to, group, id string
	timeout             time.Duration // of its transactions
	stall               string        // the key of the record in whose transaction it stops for good; "" for none
}

const (
	copyPartitions = 4
	copySession    = 6 * time.Second // the shortest that brokers allow by default
	copyRecordsMax = 20              // in one transaction
)

func (s *suite) copier(ctx context.Context, t *testing.T, of subject, c copying) (*member, error) {
	d, ok := of.client.(driver)
	if !ok {
		return nil, fmt.Errorf("%s has no driver", of.name)
	}
	return d.start(ctx, t, "copy", "--topic", c.from, "--to", c.to, "--group", c.group, "--id", c.id,
		"--timeout", strconv.FormatInt(c.timeout.Milliseconds(), 10), "--session", strconv.FormatInt(copySession.Milliseconds(), 10),
		"--isolation", string(readCommitted), "--max", strconv.Itoa(copyRecordsMax), "--stall", c.stall)
}

// newCopying makes the topics of a copy.
func (s *suite) newCopying(ctx context.Context, name string) (*group, copying, error) {
	from, err := s.topic(ctx, name+"-in", copyPartitions)
	if err != nil {
		return nil, copying{}, err
	}
	to, err := s.topic(ctx, name+"-out", copyPartitions)
	if err != nil {
		return nil, copying{}, err
	}
	return &group{topic: from, write: s.write, want: map[int][]record{}},
		copying{from: from, to: to, group: name + "-group", id: name + "-id", timeout: transactionTimeout}, nil
}

// copied compares the copy with what was to be copied, and with the group's offsets.
func (s *suite) copied(ctx context.Context, c copying, in *group) error {
	got, err := s.readAll(ctx, c.to, readCommitted)
	if err != nil {
		return err
	}
	want := map[int][]record{}
	for partition, records := range in.want {
		for _, r := range records {
			want[partition] = append(want[partition], record{partition: partition, key: r.key, value: r.value})
		}
	}
	if err := sameContents(got, want); err != nil {
		return fmt.Errorf("the copy: %w", err)
	}
	offsets, err := s.admin.FetchOffsets(ctx, c.group)
	if err != nil {
		return fmt.Errorf("fetch offsets of %s: %w", c.group, err)
	}
	for partition, records := range in.want {
		if offset, _ := offsets.Lookup(c.from, int32(partition)); offset.At != int64(len(records)) {
			return fmt.Errorf("the group's offset in partition %d is %d, want %d", partition, offset.At, len(records))
		}
	}
	return nil
}

// copies kills a client that copies in the midst of a transaction. Another instance, of the same transactional id, goes on.
func (s *suite) copies(ctx context.Context, t *testing.T, of subject) error {
	in, c, err := s.newCopying(ctx, slug(of, "copies"))
	if err != nil {
		return err
	}
	if err := in.put(ctx, 60, "first"); err != nil {
		return err
	}
	if err := in.put(ctx, 40, "second"); err != nil {
		return err
	}
	stalls := c
	stalls.stall = "second-70"
	first, err := s.copier(ctx, t, of, stalls)
	if err != nil {
		return err
	}
	if err := await(ctx, "the first copier stands in a transaction", func() bool { return len(first.said()) > 0 }, first); err != nil {
		return err
	}
	first.kill()
	second, err := s.copier(ctx, t, of, c)
	if err != nil {
		return err
	}
	if err := in.delivered(ctx, first, second); err != nil {
		return err
	}
	if err := second.leave(ctx, false); err != nil {
		return err
	}
	return s.copied(ctx, c, in)
}

// copiesByTwo lets two members of a group copy, each by a transactional id of its own. One is killed in the midst of a
// transaction; the other gets its partitions, and, once that transaction has reached its timeout, their offsets.
func (s *suite) copiesByTwo(ctx context.Context, t *testing.T, of subject) error {
	in, c, err := s.newCopying(ctx, slug(of, "copies-by-two"))
	if err != nil {
		return err
	}
	c.timeout = 7 * time.Second // more than any transaction takes that goes well
	one, two := c, c
	one.id, one.stall = c.id+"-1", "last"
	two.id = c.id + "-2"
	if err := in.put(ctx, 20, "early"); err != nil {
		return err
	}
	first, err := s.copier(ctx, t, of, one)
	if err != nil {
		return err
	}
	if err := in.delivered(ctx, first); err != nil {
		return err
	}
	second, err := s.copier(ctx, t, of, two)
	if err != nil {
		return err
	}
	for round := 0; len(second.delivered()) == 0; round++ {
		if err := in.put(ctx, 5, fmt.Sprint("round-", round)); err != nil {
			return err
		}
		if err := in.delivered(ctx, first, second); err != nil {
			return err
		}
	}
	if err := in.put(ctx, 30, "late"); err != nil {
		return err
	}
	if err := in.putKey(ctx, "last"); err != nil {
		return err
	}
	if err := await(ctx, "the first copier stands in a transaction", func() bool { return len(first.said()) > 0 }, first, second); err != nil {
		return err
	}
	first.kill()
	if err := in.put(ctx, 10, "afterwards"); err != nil {
		return err
	}
	if err := in.delivered(ctx, first, second); err != nil {
		return err
	}
	if err := second.leave(ctx, false); err != nil {
		return err
	}
	return s.copied(ctx, c, in)
}

// group is what was written for a group to consume.
type group struct {
	topic string
	write func(ctx context.Context, topic string, records []record, stamp func(int) time.Time) error
	want  map[int][]record // by partition
}

// put writes some records into each of four partitions, with numbered keys.
func (g *group) put(ctx context.Context, perPartition int, key string) error {
	keys := make([]string, perPartition)
	for i := range keys {
		keys[i] = fmt.Sprint(key, "-", len(g.want[0])+i)
	}
	return g.putKey(ctx, keys...)
}

// putKey writes records of these keys into each of four partitions.
func (g *group) putKey(ctx context.Context, keys ...string) error {
	var fresh []record
	for partition := range copyPartitions {
		for _, key := range keys {
			offset := int64(len(g.want[partition]))
			r := record{partition: partition, offset: offset, key: key, value: fmt.Sprint("value-", partition, "-", offset)}
			fresh, g.want[partition] = append(fresh, r), append(g.want[partition], r)
		}
	}
	return g.write(ctx, g.topic, fresh, func(int) time.Time { return time.Now() })
}

// delivered waits until the members have each record that was ever written, once.
func (g *group) delivered(ctx context.Context, members ...*member) error {
	var want []record
	for partition := range copyPartitions {
		want = append(want, g.want[partition]...)
	}
	gather := func() []record {
		var all []record
		for _, m := range members {
			all = append(all, m.delivered()...)
		}
		return all
	}
	err := await(ctx, fmt.Sprintf("the members get %d records", len(want)), func() bool { return len(gather()) >= len(want) }, members...)
	if err != nil {
		return err
	}
	return same(byOffset(gather()), slices.Clip(want))
}
