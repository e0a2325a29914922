package fetch

import (
	"context"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/protocol"
)

// Followed is a partition that another agent leads and whose committed records are read here.
//
// Where this agent's knowledge ends, the consumer is sent back to the leader, as it was sent here: by the preferred read replica of the answer, without an error.
// Clients take that from whomever it comes, keep their position, and go on at once. What else could say "ask the leader" does not work with all of them:
// after NOT_LEADER_OR_FOLLOWER and OFFSET_NOT_AVAILABLE franz-go and KafkaJS come back here until their metadata shows another leader; after
// OFFSET_OUT_OF_RANGE librdkafka may reset the offset, and sarama gives up.
type Followed struct {
	ID     partition.ID
	Epoch  protocol.LeaderEpoch // under which it is led, as far as this agent knows
	Leader int32                // node id of its leader; 0 if nobody who serves is known
	Leave  bool                 // this agent is about to leave: consumers should go back while they hear of it
}

// settleTime is how long ago records must have been committed for a consumer of them to be sent to another agent. An agent that has not heard of a commit by
// then has lost its registration: else consumers could be sent to and fro between one that lags and the leader. And a consumer that is nearly at the end
// stays at the leader, which has the end in memory: each move costs a client up to one long poll, and librdkafka holds back one that comes within a minute
// of the last.
const settleTime = time.Minute

// Settled reports whether every agent can be expected to serve a partition's records from the offset on.
func (f *Fetcher) Settled(id partition.ID, offset protocol.Offset, readCommitted bool, now time.Time) bool {
	idx := f.reader.index
	if offset >= readLimit(idx.Range(id), readCommitted) {
		return false
	}
	e, ok := idx.Find(id, offset)
	return ok && e.Object.CreatedMs <= now.Add(-settleTime).UnixMilli()
}

// backPause is how long a fetch that brings nothing but the word to go back to the leader waits: a consumer that the leader at once sends here again, because
// this agent lags, must not go to and fro as fast as it can.
const backPause = 50 * time.Millisecond

// pauseBack waits that long, if that is what r says.
func (r *Result) pauseBack(ctx context.Context, wants []Want, limits Limits) {
	back := false
	for i := range wants {
		back = back || wants[i].Followed != nil && r.Parts[i].Replica != 0
	}
	if !back || r.Bytes > 0 {
		return
	}
	select {
	case <-time.After(min(backPause, limits.Wait)):
	case <-limits.Leave:
	case <-ctx.Done():
	}
}

// readLimit is the offset up to which committed records may be read.
func readLimit(r index.Range, readCommitted bool) protocol.Offset {
	if readCommitted {
		return r.LastStable
	}
	return r.End
}

// knows reports whether the index has where an offset is: of a commit that has just left, the manifest may not be here yet.
func (f *Fetcher) knows(id partition.ID, offset protocol.Offset) bool {
	_, ok := f.reader.index.Find(id, offset)
	return ok
}

// judgeFollowed is judge for a partition that another agent leads. The epoch of the client's last record is not looked at: the leader has, before it
// sent the client here, and committed records have one history.
func (f *Fetcher) judgeFollowed(w *Want, part *Part, limits Limits) (limit protocol.Offset, again bool) {
	at, known := w.Followed, f.reader.index.Range(w.Followed.ID)
	part.State = ingest.State{
		Start: known.First, HighWatermark: known.End, LastStable: known.LastStable, End: known.End, Epoch: at.Epoch, Tail: known.End,
	}
	part.Next = w.Offset
	limit = readLimit(known, limits.ReadCommitted)
	switch err := checkEpoch(w.CurrentEpoch, at.Epoch); {
	case err != nil:
		part.Err = err
	case w.Offset >= known.First && w.Offset < limit && !(at.Leave && at.Leader != 0) && f.knows(w.Followed.ID, w.Offset):
		return limit, true
	case at.Leader == 0:
		part.Err = protocol.NotLeaderOrFollower.Errorf("offset %d is not known here, and no leader either", w.Offset)
	default: // only the leader can say whether the offset is out of range
		part.Replica = at.Leader
	}
	return 0, false
}
