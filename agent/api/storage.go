package api

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/ledger"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// logDir is the one "log directory" that an agent shows: the bucket.
const logDir = "/varve"

// describeLogDirs serves DescribeLogDirs, versions 1 to 4: the bytes of the partitions that this agent leads, so that the agents' answers add up
// to the cluster's.
func (b *Broker) describeLogDirs(req *kmsg.DescribeLogDirsRequest) *kmsg.DescribeLogDirsResponse {
	resp := kmsg.NewPtrDescribeLogDirsResponse()
	resp.Version = req.Version
	dir := kmsg.NewDescribeLogDirsResponseDir()
	dir.Dir, dir.TotalBytes, dir.UsableBytes = logDir, -1, -1
	if req.Topics == nil {
		for _, t := range b.deps.View.Topics() {
			all := make([]int32, t.Partitions)
			for n := range all {
				all[n] = int32(n)
			}
			b.logDirTopic(&dir, &t, all)
		}
	}
	for i := range req.Topics {
		if t, _, ok := b.deps.View.Topic(req.Topics[i].Topic); ok {
			b.logDirTopic(&dir, &t, req.Topics[i].Partitions)
		}
	}
	resp.Dirs = append(resp.Dirs, dir)
	return resp
}

func (b *Broker) logDirTopic(dir *kmsg.DescribeLogDirsResponseDir, t *coordinator.Topic, partitions []int32) {
	out := kmsg.NewDescribeLogDirsResponseDirTopic()
	out.Topic = t.Name
	for _, n := range partitions {
		live, err := b.deps.Partitions.Get(t, n)
		if err != nil {
			continue
		}
		st, err := live.State()
		if err != nil {
			continue
		}
		p := kmsg.NewDescribeLogDirsResponseDirTopicPartition()
		p.Partition = n
		p.Size = b.deps.Index.Size(live.ID, st.Start) + live.UnflushedBytes(b.deps.Index.End(live.ID))
		out.Partitions = append(out.Partitions, p)
	}
	if len(out.Partitions) > 0 {
		dir.Topics = append(dir.Topics, out)
	}
}

// deleteRecords serves DeleteRecords, versions 0 to 2: it answers when the new log start offsets are durable. Offset -1 stands for the high watermark.
func (b *Broker) deleteRecords(ctx context.Context, req *kmsg.DeleteRecordsRequest) *kmsg.DeleteRecordsResponse {
	ctx, cancel := context.WithTimeout(ctx, max(time.Second, time.Duration(req.TimeoutMillis)*time.Millisecond))
	defer cancel()
	resp := kmsg.NewPtrDeleteRecordsResponse()
	resp.Version = req.Version
	starts := make(map[*ingest.Partition]protocol.Offset)
	type place struct{ topic, partition int }
	places := make(map[place]*ingest.Partition)
	for i := range req.Topics {
		t := &req.Topics[i]
		out := kmsg.NewDeleteRecordsResponseTopic()
		out.Topic = t.Topic
		topic, err := b.topic(false, t.Topic, [16]byte{})
		for j := range t.Partitions {
			p := kmsg.NewDeleteRecordsResponseTopicPartition()
			p.Partition, p.LowWatermark = t.Partitions[j].Partition, -1
			perr := err
			if perr == nil {
				var live *ingest.Partition
				var start protocol.Offset
				if live, start, perr = b.startToDelete(topic, &t.Partitions[j]); perr == nil {
					starts[live] = start
					places[place{i, j}] = live
				}
			}
			p.ErrorCode = int16(protocol.CodeOf(perr))
			out.Partitions = append(out.Partitions, p)
		}
		resp.Topics = append(resp.Topics, out)
	}
	if len(starts) == 0 {
		return resp
	}
	err := b.deleteBefore(ctx, starts)
	if err != nil {
		b.deps.Log.Warn("records were not deleted", "err", err)
	}
	for at, live := range places {
		p := &resp.Topics[at.topic].Partitions[at.partition]
		if err != nil {
			p.ErrorCode = int16(deleteCode(ctx, err))
			continue
		}
		st, _ := live.State()
		p.LowWatermark = int64(st.Start)
	}
	return resp
}

// deleteBefore moves log start offsets. What comes before them is committed first: if the WAL were lost, the log would end before it begins, and what is produced then would
// not continue what is committed.
func (b *Broker) deleteBefore(ctx context.Context, starts map[*ingest.Partition]protocol.Offset) error {
	for p, start := range starts {
		if start <= b.deps.Index.End(p.ID) {
			continue
		}
		if err := b.deps.Flush(ctx); err != nil {
			return err
		}
		break
	}
	return b.deps.Manifests.DeleteBefore(ctx, starts)
}

// startToDelete checks one partition of DeleteRecords and returns the log start offset that it asks for.
func (b *Broker) startToDelete(t *coordinator.Topic, asked *kmsg.DeleteRecordsRequestTopicPartition) (*ingest.Partition, protocol.Offset, error) {
	if !b.deps.Topics.RulesOf(t).Delete {
		return nil, 0, protocol.PolicyViolation.Errorf("topic %s has no delete in its cleanup.policy", t.Name)
	}
	live, err := b.deps.Partitions.Get(t, asked.Partition)
	if err != nil {
		return nil, 0, err
	}
	st, err := live.State()
	if err != nil {
		return nil, 0, err
	}
	start := protocol.Offset(asked.Offset)
	if start == -1 {
		start = st.HighWatermark
	}
	if start < 0 || start > st.HighWatermark {
		return nil, 0, protocol.OffsetOutOfRange.Err()
	}
	return live, start, nil
}

// deleteCode is what a client is told when a log start offset was not, or not certainly, moved; trying again does no harm.
func deleteCode(ctx context.Context, err error) protocol.ErrorCode {
	switch known, ok := errors.AsType[*protocol.Error](err); {
	case ctx.Err() != nil:
		return protocol.RequestTimedOut
	case ok:
		return known.Code
	case errors.Is(err, coordinator.ErrFenced), errors.Is(err, ledger.ErrNotLed):
		return protocol.NotLeaderOrFollower
	default:
		return protocol.KafkaStorageError
	}
}
