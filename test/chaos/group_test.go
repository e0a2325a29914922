package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// groupMembers is how many members each group of a load has.
	groupMembers = 2
	// commitPace is the least time from one commit of a member to its next.
	commitPace = 50 * time.Millisecond
	// commitWithin is how long a commit, like each other request of a member, is tried again. No rebalance begins meanwhile.
	commitWithin = 4 * time.Second
)

// group is a consumer group that reads all of a load and commits what it has read. What it holds against the broker:
//
//   - who is given a partition begins at the last offset that was committed for it, or at a later one whose commit was tried
//     and not answered; never at an earlier one, which would repeat what was done, nor beyond, which would leave something out;
//   - from there on it is given every offset, once;
//   - what anybody is told of the committed offsets agrees with that, at any time.
//
// A commit that was sent and not answered may be served long after a later one, though its client has closed the connection: the kernel sends what was written again
// when a cut link is mended. It is so with Apache Kafka too. Therefore what was committed may go back to just the offset of such a commit.
type group struct {
	name string
	load *load
	logs []groupLog
	// joined counts how often a member was given partitions.
	joined atomic.Int64
}

// groupLog is what is known of a group's commits for one log. Offsets are those of the next record to read.
type groupLog struct {
	mu    sync.Mutex
	acked int64   // highest that was acknowledged
	tried int64   // highest that was tried
	stray []int64 // that were sent and not answered
}

// addGroup adds a group to a load that has not started.
func (l *load) addGroup(name string) {
	l.groups = append(l.groups, &group{name: name, load: l, logs: make([]groupLog, len(l.logs))})
}

// committed returns the highest offset whose commit was acknowledged.
func (g *group) committed(log int) int64 {
	h := &g.logs[log]
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acked
}

// fits tells whether an offset that the broker holds for committed can be right, if floor was acknowledged before it was asked.
func (g *group) fits(log int, offset, floor int64) error {
	h := &g.logs[log]
	h.mu.Lock()
	defer h.mu.Unlock()
	if offset > h.tried || offset < floor && !slices.Contains(h.stray, offset) {
		return fmt.Errorf("%s in %s is at offset %d, but %d was committed before, and nothing above %d was tried",
			g.name, g.load.name(log), offset, floor, h.tried)
	}
	return nil
}

// member is one consumer of a group.
type member struct {
	group *group

	mu        sync.Mutex
	positions map[int]*position // by log
	trying    map[int]int64     // by log: what the commit that is under way commits
}

// OnBrokerDisconnect implements kgo.HookBrokerDisconnect: if a commit is under way, it may have been sent on that connection.
func (m *member) OnBrokerDisconnect(kgo.BrokerMetadata, net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for log, offset := range m.trying {
		h := &m.group.logs[log]
		h.mu.Lock()
		h.stray = append(h.stray, offset)
		h.mu.Unlock()
	}
}

// position is where a member is in a log that it was given.
type position struct {
	floor     int64 // highest commit that was acknowledged when it was given
	began     bool  // has been given a record
	due       int64 // offset of the next record, if it began
	committed int64 // the latest that was tried
}

// take runs a member until ctx ends, which then leaves the group.
func (g *group) take(ctx context.Context) error {
	m := &member{group: g, positions: make(map[int]*position)}
	client, err := g.load.client(
		kgo.ConsumerGroup(g.name), kgo.ConsumeTopics(g.load.topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(200*time.Millisecond),
		kgo.SessionTimeout(10*time.Second), kgo.HeartbeatInterval(time.Second), kgo.RebalanceTimeout(15*time.Second),
		kgo.RetryTimeout(commitWithin), kgo.WithHooks(m),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsAssigned(m.given), kgo.OnPartitionsRevoked(m.taken), kgo.OnPartitionsLost(m.taken),
	)
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	beat := time.NewTicker(commitPace)
	defer beat.Stop()
	for ctx.Err() == nil {
		<-beat.C
		fetches := client.PollRecords(ctx, 1000)
		g.load.lost(&fetches)
		m.read(&fetches)
		m.commit(context.WithoutCancel(ctx), client)
		client.AllowRebalance()
	}
	return nil
}

func (m *member) given(_ context.Context, _ *kgo.Client, assigned map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.group.joined.Add(1)
	for topic, numbers := range assigned {
		for _, p := range numbers {
			log := m.group.load.find(topic, p)
			m.positions[log] = &position{floor: m.group.committed(log)}
		}
	}
}

func (m *member) taken(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for topic, numbers := range lost {
		for _, p := range numbers {
			delete(m.positions, m.group.load.find(topic, p))
		}
	}
}

// read checks that what comes is what is due.
func (m *member) read(fetches *kgo.Fetches) {
	m.mu.Lock()
	defer m.mu.Unlock()
	load := m.group.load
	fetches.EachRecord(func(r *kgo.Record) {
		log := load.find(r.Topic, r.Partition)
		at := m.positions[log]
		switch {
		case at == nil: // the client gave it away meanwhile
			return
		case !at.began:
			if err := m.group.fits(log, r.Offset, at.floor); err != nil {
				load.fail(fmt.Errorf("a member begins: %w", err))
			}
		case r.Offset != at.due:
			load.fail(fmt.Errorf("a member of %s is given offset %d of %s where %d was due", m.group.name, r.Offset, load.name(log), at.due))
		}
		at.began, at.due = true, r.Offset+1
	})
}

// commit commits what was read since the last time. What is not answered, or refused, is tried again with what comes next, if the
// partition stays with the member.
func (m *member) commit(ctx context.Context, client *kgo.Client) {
	offsets := make(map[string]map[int32]kgo.EpochOffset)
	m.mu.Lock()
	m.trying = make(map[int]int64)
	for log, at := range m.positions {
		if !at.began || at.due == at.committed {
			continue
		}
		topic, partition := m.group.load.place(log)
		if offsets[topic] == nil {
			offsets[topic] = make(map[int32]kgo.EpochOffset)
		}
		offsets[topic][partition] = kgo.EpochOffset{Epoch: -1, Offset: at.due}
		at.committed, m.trying[log] = at.due, at.due
		h := &m.group.logs[log]
		h.mu.Lock()
		h.tried = max(h.tried, at.due)
		h.mu.Unlock()
	}
	m.mu.Unlock()
	if len(offsets) == 0 {
		return
	}
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.trying = nil
	}()
	client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, response *kmsg.OffsetCommitResponse, err error) {
		if err == nil {
			m.acknowledged(offsets, response)
		}
	})
}

func (m *member) acknowledged(offsets map[string]map[int32]kgo.EpochOffset, response *kmsg.OffsetCommitResponse) {
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			log := m.group.load.find(t.Topic, p.Partition)
			if p.ErrorCode != 0 {
				m.again(log)
				continue
			}
			h := &m.group.logs[log]
			h.mu.Lock()
			h.acked = max(h.acked, offsets[t.Topic][p.Partition].Offset)
			h.mu.Unlock()
		}
	}
}

// again lets the next commit try a log's offset again.
func (m *member) again(log int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := m.positions[log]; at != nil {
		at.committed = 0
	}
}

// observe asks again and again until ctx ends what the group has committed, as a tool that looks for lag does.
func (g *group) observe(ctx context.Context) error {
	client, err := g.load.client()
	if err != nil {
		return err
	}
	defer client.Close()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if wrong, err := g.look(ctx, kadm.NewClient(client)); err == nil && wrong != nil {
				g.load.fail(fmt.Errorf("OffsetFetch: %w", wrong))
			}
		}
	}
}

// look asks once. The second error is one of asking.
func (g *group) look(ctx context.Context, client *kadm.Client) (wrong, err error) {
	const within = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	floors := make([]int64, len(g.logs))
	for i := range floors {
		floors[i] = g.committed(i)
	}
	answers, err := client.FetchOffsets(ctx, g.name)
	if err == nil {
		err = answers.Error()
	}
	if err != nil {
		return nil, err
	}
	for i := range g.logs {
		offset := int64(0)
		if answer, ok := answers.Lookup(g.load.place(i)); ok {
			offset = max(answer.At, 0)
		}
		wrong = errors.Join(wrong, g.fits(i, offset, floors[i]))
	}
	return wrong, nil
}

// judge asks until it gets an answer, which must fit.
func (g *group) judge(ctx context.Context) error {
	client, err := g.load.client()
	if err != nil {
		return err
	}
	defer client.Close()
	var wrong, refused error
	err = await(ctx, func() string { return fmt.Sprintf("told what %s has committed: %v", g.name, refused) }, func() (bool, error) {
		wrong, refused = g.look(ctx, kadm.NewClient(client))
		return refused == nil, nil
	})
	return errors.Join(err, wrong)
}
