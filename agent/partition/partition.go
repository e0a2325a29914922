// Package partition is one partition as its leader sees it: which offset a batch gets, what is a duplicate, how far the
// log is readable.
//
//	start <= last stable offset <= high watermark <= end
//
// A batch of a transaction begins it here, if none of its producer is open; a marker, which the transaction's coordinator has written, ends it. The last stable offset
// is where the first transaction begins that is open, or whose marker is not durable yet: a reader of committed transactions gets nothing from there on.
//
// A batch is judged and given its place by [Log.Append]; it becomes readable when the WAL says that it is durable
// ([Log.Durable]). Durability comes in the order of appends, so the high watermark only grows. There is no way back from Append: if
// the WAL fails, the leadership ends and recovery builds the state anew from what was stored.
//
// The package is pure; its caller holds a lock.
package partition

import (
	"fmt"
	"slices"
	"sort"

	"github.com/varve-io/varve/protocol"
)

// ID names a partition.
type ID struct {
	Topic     protocol.TopicID
	Partition int32
}

// EpochStart is where a leader epoch begins.
type EpochStart struct {
	Epoch protocol.LeaderEpoch
	Start protocol.Offset
}

// Log is the leader's state of one partition.
type Log struct {
	start     protocol.Offset // log start offset
	high      protocol.Offset // high watermark: everything below is durable and readable
	end       protocol.Offset // offset that the next record gets
	epoch     protocol.LeaderEpoch
	epochs    []EpochStart // ascending in both fields; epochs without a batch are not listed
	producers Producers
}

// New returns an empty partition under the leader epoch.
func New(epoch protocol.LeaderEpoch) *Log { return &Log{epoch: epoch} }

// Restore adds a batch that is committed already, in order of offsets, while a new leader rebuilds the state; gaps are allowed
// only where the log was cut or compacted. nowMs is the clock that producers' expiry counts from.
func (l *Log) Restore(nowMs int64, epoch protocol.LeaderEpoch, base protocol.Offset, b Batch) {
	if b.ProducerID >= 0 {
		l.producers.Append(nowMs, b, base)
	}
	l.RestoreEnd(epoch, base, base+protocol.Offset(b.Records))
	l.producers.settle(l.high)
}

// RestoreEnd adds a stretch of committed offsets without looking at its batches.
func (l *Log) RestoreEnd(epoch protocol.LeaderEpoch, first, next protocol.Offset) {
	l.noteEpoch(epoch, first)
	if next > l.end {
		l.end, l.high = next, next
	}
}

func (l *Log) noteEpoch(epoch protocol.LeaderEpoch, start protocol.Offset) {
	if n := len(l.epochs); n == 0 || l.epochs[n-1].Epoch < epoch {
		l.epochs = append(l.epochs, EpochStart{Epoch: epoch, Start: start})
	}
}

// Placement is what Append decided.
type Placement struct {
	Base      protocol.Offset // of the batch, or of the one that it repeats
	Last      protocol.Offset // offset of its last record
	Duplicate bool            // it, or all that it would do, is in the log already; readable once the high watermark has passed Last
}

// Append judges a batch and, unless it is a duplicate or refused, gives it its place. The caller must then append it to the WAL
// before it lets go of its lock. An error is a [*protocol.Error], and changed nothing.
func (l *Log) Append(nowMs int64, b Batch) (Placement, error) {
	switch {
	case b.ProducerID < 0:
		if b.Refused != nil {
			return Placement{}, b.Refused
		}
	case b.Marker:
		again, err := l.producers.CheckMarker(b)
		if err != nil {
			return Placement{}, err
		}
		if again { // its first copy may not be durable yet
			return Placement{Base: l.end - 1, Last: l.end - 1, Duplicate: true}, nil
		}
	default:
		dup, err := l.producers.Check(b)
		switch {
		case dup != nil:
			return Placement{Base: dup.BaseOffset, Last: dup.LastOffset, Duplicate: true}, nil
		case b.Refused != nil: // rather than for a gap that is there because the batch before it was
			return Placement{}, b.Refused
		case err != nil:
			return Placement{}, err
		}
	}
	base := l.end
	l.noteEpoch(l.epoch, base)
	l.end += protocol.Offset(b.Records)
	if b.ProducerID >= 0 {
		l.producers.Append(nowMs, b, base)
	}
	return Placement{Base: base, Last: l.end - 1}, nil
}

// Durable moves the high watermark: all offsets below next are durable. It reports whether the high watermark grew.
// A position beyond the end is a broken invariant and panics.
func (l *Log) Durable(next protocol.Offset) bool {
	if next > l.end {
		panic(fmt.Sprintf("partition: offset %d durable, but the log ends at %d", next, l.end))
	}
	if next <= l.high {
		return false
	}
	l.high = next
	l.producers.settle(next)
	return true
}

// SetStart moves the log start offset on; it never goes back. An offset past the high watermark is an
// OFFSET_OUT_OF_RANGE error, as DeleteRecords answers it.
func (l *Log) SetStart(start protocol.Offset) error {
	if start > l.high {
		return protocol.OffsetOutOfRange.Errorf("log start offset %d is beyond the high watermark %d", start, l.high)
	}
	l.start = max(l.start, start)
	return nil
}

// RestoreStart sets the log start offset of a partition that is being rebuilt.
func (l *Log) RestoreStart(start protocol.Offset) {
	l.start = max(l.start, start)
	l.high, l.end = max(l.high, start), max(l.end, start)
}

// Start returns the log start offset.
func (l *Log) Start() protocol.Offset { return l.start }

// HighWatermark returns the offset below which every record is durable.
func (l *Log) HighWatermark() protocol.Offset { return l.high }

// LastStable returns the last stable offset: everything below is durable and of no transaction that may yet be aborted. It is not below the log start offset, which
// may pass an open transaction.
func (l *Log) LastStable() protocol.Offset {
	if len(l.producers.unstable) > 0 {
		return max(l.start, min(l.high, l.producers.unstable[0].first))
	}
	return l.high
}

// StableAtEnd returns what the last stable offset will be when everything up to the end is durable, and nothing follows: it goes with the newest batch into the
// WAL and its segment, so that whoever restores the log or reads it from there knows where its open transactions begin.
func (l *Log) StableAtEnd() protocol.Offset {
	return l.producers.firstOpen(l.end)
}

// End returns the offset that the next record will get.
func (l *Log) End() protocol.Offset { return l.end }

// Epoch returns the leader epoch under which batches are appended now.
func (l *Log) Epoch() protocol.LeaderEpoch { return l.epoch }

// Producers returns the idempotent producers.
func (l *Log) Producers() *Producers { return &l.producers }

// EpochEnd answers OffsetForLeaderEpoch (KIP-101, KIP-320): the largest epoch not above the asked one that has
// records, and where it ends: the start of the next epoch, or the log's high watermark for the newest. An asked epoch
// that is the leader's own is answered with itself even without a record, one older than every known epoch with itself and where the
// first known one starts, as Kafka's LeaderEpochFileCache does. ok is false if the asked epoch is yet to come.
func (l *Log) EpochEnd(asked protocol.LeaderEpoch) (epoch protocol.LeaderEpoch, end protocol.Offset, ok bool) {
	if asked == l.epoch {
		return asked, l.high, true
	}
	i := sort.Search(len(l.epochs), func(i int) bool { return l.epochs[i].Epoch > asked })
	switch {
	case asked > l.epoch:
		return protocol.NoLeaderEpoch, protocol.NoOffset, false
	case len(l.epochs) == 0:
		return asked, l.high, true
	case i == 0:
		return asked, l.epochs[0].Start, true
	case i == len(l.epochs):
		return l.epochs[i-1].Epoch, l.high, true
	default:
		return l.epochs[i-1].Epoch, min(l.epochs[i].Start, l.high), true
	}
}

// EpochOf returns the leader epoch of the batch that holds the offset; the newest one for offsets past the end.
func (l *Log) EpochOf(offset protocol.Offset) protocol.LeaderEpoch {
	i := sort.Search(len(l.epochs), func(i int) bool { return l.epochs[i].Start > offset })
	if i == 0 {
		return l.epoch
	}
	return l.epochs[i-1].Epoch
}

// Epochs returns a copy of the known epochs.
func (l *Log) Epochs() []EpochStart { return slices.Clone(l.epochs) }
