package compact

import "github.com/varve-io/varve/protocol"

// Policy is what a topic's configs say about when it is compacted.
type Policy struct {
	// DirtyRatioMin is min.cleanable.dirty.ratio: the part of what would be cleaned that must be dirty.
	DirtyRatioMin float64
	// LagMsMin is min.compaction.lag.ms: what is younger is not cleaned. LagMsMax is max.compaction.lag.ms: what is older is cleaned, whatever the ratio.
	LagMsMin, LagMsMax int64
}

// Piece is a range of the log in one place, as a segment is in Kafka: its timestamps are judged together.
type Piece struct {
	First, Next protocol.Offset
	Bytes       int64
	// TimestampMs is that of the first batch that is dirty, of which the age for LagMsMax is taken; 0 or less if it is not known. MaxTimestampMs is the largest; both in ms since the Unix epoch.
	TimestampMs, MaxTimestampMs int64
}

// Log is what a partition has.
type Log struct {
	Start protocol.Offset
	// Cleaned is where the last cleaning ended; 0 before the first.
	Cleaned protocol.Offset
	// LastStable is the last stable offset.
	LastStable protocol.Offset
	// Pieces are what may be cleaned, in order of offsets, with or without gaps. What was written last is not in them: it is what the active segment is in Kafka.
	Pieces []Piece
}

// Range is what may be cleaned of a partition, and whether it should be now.
type Range struct {
	// Cleaned is where the dirty part begins, and Bound where it ends as far as it may be cleaned; they are equal if there is none.
	Cleaned, Bound protocol.Offset
	// DirtyBytes and CleanBytes are the sizes of the dirty part up to the bound, and of what is before it.
	DirtyBytes, CleanBytes int64
	// LateMs is by how much max.compaction.lag.ms has passed; 0 if it has not.
	LateMs int64
	// Due says that the partition should be cleaned.
	Due bool
}

// Ratio returns how much of what would be read is dirty, 0 to 1. The partition that has the most is the first to clean.
func (r *Range) Ratio() float64 {
	if r.DirtyBytes == 0 {
		return 0
	}
	return float64(r.DirtyBytes) / float64(r.DirtyBytes+r.CleanBytes)
}

// Range decides what to clean (LogCleanerManager.cleanableOffsets, maxCompactionDelay, calculateCleanableBytes, grabFilthiestCompactedLog). The bound is the last stable offset, or the end of the last piece, or the
// beginning of the first dirty piece that has a record younger than LagMsMin. Where Kafka counts segments, parts of pieces count here by their share of its offsets.
func (p Policy) Range(l Log, nowMs int64) Range {
	r := Range{Cleaned: l.Cleaned}
	var end protocol.Offset
	if len(l.Pieces) > 0 {
		end = l.Pieces[len(l.Pieces)-1].Next
	}
	if r.Cleaned < l.Start || r.Cleaned > max(end, l.LastStable) {
		r.Cleaned = l.Start // records were deleted, or lost
	}
	r.Bound = min(l.LastStable, end)
	oldest := nowMs - max(p.LagMsMax, 0)
	for _, piece := range l.Pieces {
		if piece.Next <= r.Cleaned {
			continue
		}
		if p.LagMsMin > 0 && piece.MaxTimestampMs > nowMs-p.LagMsMin {
			r.Bound = min(r.Bound, piece.First)
		}
		if piece.TimestampMs > 0 && piece.TimestampMs < oldest {
			r.LateMs = max(r.LateMs, oldest-piece.TimestampMs)
		}
	}
	r.Bound = max(r.Bound, r.Cleaned)
	for _, piece := range l.Pieces {
		r.CleanBytes += piece.share(l.Start, r.Cleaned)
		r.DirtyBytes += piece.share(r.Cleaned, r.Bound)
	}
	r.Due = r.DirtyBytes > 0 && (r.LateMs > 0 || r.Ratio() > p.DirtyRatioMin)
	return r
}

// share returns how many of a piece's bytes are within a range, as far as its offsets tell; at least one, if there are any offsets of it.
func (p *Piece) share(from, to protocol.Offset) int64 {
	from, to = max(from, p.First), min(to, p.Next)
	if from >= to {
		return 0
	}
	return max(1, int64(float64(p.Bytes)*(float64(to-from)/float64(p.Next-p.First))))
}
