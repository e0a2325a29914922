package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal"
)

// drain leaves in order: give the shards away, and those who read here, out of metadata, answer what is here, flush, close the log, wait until no other log needs this store. What cannot be
// done in time is left to recovery, and said.
func (a *Agent) drain(run context.Context) error {
	start := a.deps.Now()
	a.log.Info("draining")
	ctx, cancel := context.WithTimeout(run, a.cfg.DrainMax)
	defer cancel()
	a.draining.Store(true)
	// Without etcd nobody hears of it, and nobody takes the shards; clients should be answered all the same, and etcd may be back for the close.
	tell, enough := context.WithTimeout(ctx, a.cfg.DrainMax/3)
	err := a.registration.become(tell, coordinator.AgentDraining)
	enough()
	if err == nil {
		err = a.handOverAll(ctx)
	}
	if err != nil {
		a.log.Warn("drain: recovery will move the shards that are left", "err", err)
	}
	a.leading.stop()
	a.awaitReaders(ctx)
	// Whoever waits for other members of a group, or takes an answer slowly, must not use up the time that the flush needs.
	answer, cut := context.WithTimeout(ctx, a.cfg.DrainMax/3)
	a.server.Drain(answer)
	cut()
	a.keeper.Leave()
	select {
	case <-a.keeping.done:
	case <-ctx.Done():
	}
	a.keeping.stop()
	a.log.Info("drain: flushing what is left, and closing the WAL log", "unflushed", a.wal.Stats().UnflushedBytes, "left", a.cfg.DrainMax-a.deps.Now().Sub(start))
	if err := a.closeLog(ctx); err != nil {
		return fmt.Errorf("drain: WAL log %s stays open, and recovery closes it: %w", a.id, err)
	}
	if err := a.standBy(ctx); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	a.lease.stop()
	a.log.Info("drained", "took", a.deps.Now().Sub(start).Round(time.Millisecond))
	return nil
}

// errEarly: the agent was told to leave before others knew it, and could take their copies away.
var errEarly = errors.New("told to leave before it had joined, and its disk holds WAL segments that others may need")

// leaveEarly is the drain of an agent that was told to leave before it had a log: its disk may have copies of other agents' logs, of this incarnation's time or of earlier ones.
func (a *Agent) leaveEarly(run context.Context) error {
	if a.lease.done == nil {
		if len(a.deps.Disk.Segments()) > 0 {
			return errEarly
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(run, a.cfg.DrainMax)
	defer cancel()
	a.draining.Store(true)
	if err := a.registration.become(ctx, coordinator.AgentDraining); err != nil {
		a.log.Warn("drain: the others do not know", "err", err)
	}
	if err := a.standBy(ctx); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	return nil
}

const (
	// readersQuiet is how long nobody must have read here what other agents lead, for all who did to have heard that they should go back.
	readersQuiet = 500 * time.Millisecond
	// readersMax bounds the wait for that.
	readersMax = 2 * time.Second
)

// awaitReaders lets consumers that read here what other agents lead hear that they should go back to those: some look for an agent that is gone, in vain, for
// half an hour (franz-go's RecheckPreferredReplicaInterval).
func (a *Agent) awaitReaders(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readersMax)
	defer cancel()
	for {
		left := readersQuiet - a.deps.Now().Sub(a.api.Load().FollowedAt())
		if left <= 0 {
			return
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return
		}
	}
}

// standByPause is how often an agent that is about to leave looks whether its store is still needed.
const standByPause = 50 * time.Millisecond

// standBy waits until no log that is open has a copy on this agent's disk that is not flushed, or one that another agent may be about to list. It takes no new ones.
func (a *Agent) standBy(ctx context.Context) error {
	a.deps.Disk.Leave()
	store := a.deps.Disk.Identity().String()
	for {
		var needs coordinator.LogID
		err := retry.Coordinator(ctx, a.log, "list WAL logs", func(ctx context.Context) error {
			needs = 0
			logs, err := coordinator.ListLogs(ctx, a.deps.KV, 0)
			for _, l := range logs.Records {
				here := slices.ContainsFunc(l.Segments, func(s coordinator.WALSegment) bool { return slices.Contains(s.Stores, store) })
				if here && !l.Closed {
					needs = l.ID
				}
			}
			for _, s := range a.deps.Disk.Segments() {
				if id := coordinator.LogID(s.ID.Log); id != a.id && (s.Live || recovery.Needed(logs, s)) {
					needs = id
				}
			}
			return err
		})
		if err != nil || needs == 0 {
			return err
		}
		select {
		case <-time.After(standByPause):
		case <-ctx.Done():
			return fmt.Errorf("WAL log %s still has a copy on this agent's disk: %w", needs, ctx.Err())
		}
	}
}

// closeLog flushes everything and closes the log, so that nothing is to be recovered.
func (a *Agent) closeLog(ctx context.Context) error {
	// An agent that could not hand its shards over still ends transactions in them, though it answers nobody. What is flushed now must be all that there is: a log that is closed is not recovered.
	a.wal.Stop()
	// Entries of producers that wait for no answer may still be on their way to the disk.
	if err := a.flush(ctx); err != nil {
		return err
	}
	a.flushing.stop()
	if last, flushed := int64(a.wal.Durable()), a.writer.Record().Flushed; last > flushed {
		return fmt.Errorf("its last entry is %d, and only those up to %d are committed", last, flushed)
	}
	if err := a.writer.Close(ctx); err != nil {
		return err
	}
	if err := a.wal.Close(ctx); err != nil { // as when other agents left meanwhile; everything is in the bucket
		a.log.Warn("end the WAL", "err", err)
	}
	for _, s := range a.deps.Disk.Segments() {
		if s.ID.Log != wal.LogID(a.id) {
			continue
		}
		if err := a.deps.Disk.Drop(s.ID); err != nil {
			return err
		}
	}
	return nil
}

// dropTopic forgets what the agent holds of a topic that was deleted.
func (a *Agent) dropTopic(t coordinator.Topic) {
	a.partitions.DropTopic(&t)
	select {
	case a.deleted <- t.Name:
	default:
		a.log.Warn("too many topics are deleted at once; the groups' offsets of this one expire", "topic", t.Name)
	}
}

// deletedMax bounds the topics whose offsets wait to be deleted.
const deletedMax = 10_000

// dropOffsets deletes the offsets of topics that were deleted, whoever did it, in the groups that this agent coordinates.
func (a *Agent) dropOffsets(ctx context.Context) error {
	for {
		select {
		case topic := <-a.deleted:
			if err := a.groups.TopicDeleted(ctx, topic); err != nil && ctx.Err() == nil {
				a.log.Warn("offsets of a deleted topic stay until they expire", "topic", topic, "err", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// producerSweep is how often idle producers are looked for.
const producerSweep = time.Minute

// producersMax is how many idempotent producers one partition remembers.
const producersMax = 10_000

// expireProducers forgets idempotent producers that were idle for too long.
func (a *Agent) expireProducers(ctx context.Context) error {
	return retry.Every(ctx, producerSweep, func() error {
		before := a.deps.Now().Add(-a.cfg.ProducerIdleMax).UnixMilli()
		for _, p := range a.partitions.All() {
			p.ExpireProducers(before, producersMax)
		}
		return nil
	})
}
