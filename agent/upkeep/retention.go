package upkeep

import (
	"context"
	"log/slog"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/protocol"
)

// Limits are how much of a partition is kept.
type Limits struct {
	AgeMs int64 // retention.ms; negative: for ever
	Bytes int64 // retention.bytes; negative: everything
}

// RetentionDeps is what a [Retention] works with.
type RetentionDeps struct {
	Manifests  *Manifests
	Index      *index.Index
	Partitions func() []*ingest.Partition // that are led here
	// Limits returns what is kept of a topic; ok is false if nothing of it is deleted by age or size, or it does not exist (any more).
	Limits func(topic [16]byte) (l Limits, ok bool)
	Now    func() time.Time
	Log    *slog.Logger
}

// Retention moves the log start offsets of the partitions that this agent leads, as their topics' retention.ms and retention.bytes say.
type Retention struct {
	pause time.Duration
	deps  RetentionDeps
}

// RetentionPause is how often it is looked whether something has become too old, or too much: Kafka's log.retention.check.interval.ms.
const RetentionPause = 5 * time.Minute

// NewRetention returns a retention that looks at intervals of pause; [Retention.Run] makes it work.
func NewRetention(pause time.Duration, deps RetentionDeps) *Retention {
	return &Retention{pause: pause, deps: deps}
}

// Run looks until ctx ends.
func (r *Retention) Run(ctx context.Context) error {
	return retry.Every(ctx, r.pause, func() error {
		if err := r.look(ctx); err != nil && ctx.Err() == nil {
			r.deps.Log.Warn("records that are past their topics' retention stay for now", "err", err)
		}
		return nil
	})
}

func (r *Retention) look(ctx context.Context) error {
	starts := make(map[*ingest.Partition]protocol.Offset)
	for _, p := range r.deps.Partitions() {
		l, ok := r.deps.Limits(p.ID.Topic)
		if !ok {
			continue
		}
		st, err := p.State()
		if err != nil {
			continue // not led any more
		}
		extents := r.deps.Index.Extents(p.ID)
		start := l.start(extents, st.Start, p.UnflushedBytes(r.deps.Index.End(p.ID)), r.deps.Now().UnixMilli())
		if start > st.Start {
			starts[p] = min(start, st.HighWatermark)
		}
	}
	if len(starts) == 0 {
		return nil
	}
	return r.deps.Manifests.DeleteBefore(ctx, starts)
}

// start returns where a partition's log is to start that starts at offset from now: what goes, goes by whole extents, the oldest first, as Kafka deletes whole segments
// (UnifiedLog.deleteRetentionMsBreachedSegments, deleteRetentionSizeBreachedSegments). unflushed is the size of what comes behind the extents.
func (l Limits) start(extents []index.Extent, from protocol.Offset, unflushed, nowMs int64) protocol.Offset {
	for len(extents) > 0 && extents[0].Next <= from {
		extents = extents[1:]
	}
	bytes := unflushed
	for i := range extents {
		bytes += extents[i].Size
	}
	for i := range extents {
		e := &extents[i]
		newest := e.MaxTimestamp
		if newest < 0 { // its records have none
			newest = e.Object.CreatedMs
		}
		old := l.AgeMs >= 0 && nowMs-newest > l.AgeMs
		much := l.Bytes >= 0 && bytes-e.Size >= l.Bytes
		if !old && !much {
			break
		}
		bytes -= e.Size
		from = e.Next
	}
	return from
}
