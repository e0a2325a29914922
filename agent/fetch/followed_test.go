package fetch

import (
	"testing"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/protocol"
)

// twoSegments has offsets [5,8) in one segment and [8,10) in another, at the end of which the last stable offset is 9.
func twoSegments(t *testing.T) *bucket {
	b := newBucket(t, 1<<20)
	b.add(t, map[int32][][]byte{0: {raw(t, 5, 10, 1, 1), raw(t, 7, 10, 1)}})
	b.stable = 9
	b.add(t, map[int32][][]byte{0: {raw(t, 8, 10, 1), raw(t, 9, 10, 1)}})
	return b
}

// TestFollowed holds what is served of a partition that another agent leads, and where its consumer is sent back.
func TestFollowed(t *testing.T) {
	none := protocol.NoLeaderEpoch
	for _, c := range []struct {
		name      string
		offset    protocol.Offset
		start     protocol.Offset
		epoch     protocol.LeaderEpoch // that the client knows; the partition's is 4
		leader    int32
		committed bool
		leave     bool
		next      protocol.Offset // after what is served
		replica   int32
		code      protocol.ErrorCode
	}{
		{"all", 5, 0, none, 7, false, false, 10, 0, 0},
		{"from within a batch", 6, 0, 4, 7, false, false, 10, 0, 0},
		{"stable ones", 5, 0, 4, 7, true, false, 9, 0, 0},
		{"the end", 10, 0, 4, 7, false, false, 10, 7, 0},
		{"past it", 11, 0, 4, 7, false, false, 11, 7, 0},
		{"the end of stable ones", 9, 0, 4, 7, true, false, 9, 7, 0},
		{"before the first", 4, 0, 4, 7, false, false, 4, 7, 0},
		{"before the log start", 7, 8, 4, 7, false, false, 7, 7, 0},
		{"log start", 8, 8, 4, 7, false, false, 10, 0, 0},
		{"log start that is not committed here", 9, 20, 4, 7, false, false, 9, 7, 0},
		{"no leader", 8, 0, 4, 0, false, false, 10, 0, 0},
		{"the end and no leader", 10, 0, 4, 0, false, false, 10, 0, protocol.NotLeaderOrFollower},
		{"an agent that leaves", 8, 0, 4, 7, false, true, 8, 7, 0},
		{"an agent that leaves, and no leader", 8, 0, 4, 0, false, true, 10, 0, 0},
		{"older epoch", 8, 0, 3, 7, false, false, 8, 0, protocol.FencedLeaderEpoch},
		{"newer epoch", 8, 0, 5, 7, false, false, 8, 0, protocol.UnknownLeaderEpoch},
	} {
		b := twoSegments(t)
		if c.start > 0 {
			if err := b.index.Replace(id(0), index.Merged{Start: c.start, End: 5}); err != nil {
				t.Fatal(err)
			}
		}
		w := Want{
			Followed: &Followed{ID: id(0), Epoch: 4, Leader: c.leader, Leave: c.leave},
			Offset:   c.offset, BytesMax: 1 << 20, CurrentEpoch: c.epoch, LastEpoch: none,
		}
		// However much the client wants to wait for, nothing more comes.
		limits := Limits{BytesMin: 1 << 20, BytesMax: 1 << 20, Wait: time.Hour, ReadCommitted: c.committed}
		r := New(b.reader).Fetch(t.Context(), []Want{w}, limits)
		got := &r.Parts[0]
		if got.Next != c.next || got.Replica != c.replica || protocol.CodeOf(got.Err) != c.code || (got.Bytes > 0) != (c.next > c.offset) {
			t.Errorf("%s: %d bytes up to %d, sent to %d, %v, want up to %d, %d, %v", c.name, got.Bytes, got.Next, got.Replica, got.Err, c.next, c.replica, c.code)
		}
		if st := got.State; st.HighWatermark != 10 || st.LastStable != 9 || st.Start != max(5, c.start) {
			t.Errorf("%s: state %+v", c.name, st)
		}
		r.Release()
	}
}

// TestFollowedBesideOthers holds that a partition without news does not hold up the others of a fetch.
func TestFollowedBesideOthers(t *testing.T) {
	b := twoSegments(t)
	led := restored(1, 0, 0)
	for _, c := range []struct {
		offset  protocol.Offset
		replica int32
	}{{8, 0}, {10, 7}} {
		r := b.fetch(t, Limits{BytesMin: 1, BytesMax: 1 << 20, Wait: time.Hour}, Want{Partition: led, BytesMax: 1 << 20},
			Want{Followed: &Followed{ID: id(0), Leader: 7}, Offset: c.offset, BytesMax: 1 << 20})
		if r.Parts[0].Bytes != 0 || r.Parts[1].Replica != c.replica || (r.Parts[1].Bytes > 0) != (c.replica == 0) {
			t.Errorf("offset %d: %+v", c.offset, r.Parts)
		}
	}
}

// TestBackPause holds that a consumer is sent back with a pause, which ends with the agent.
func TestBackPause(t *testing.T) {
	b := twoSegments(t)
	want := Want{Followed: &Followed{ID: id(0), Leader: 7}, Offset: 10, BytesMax: 1 << 20}
	begin := time.Now()
	b.fetch(t, Limits{BytesMin: 1, BytesMax: 1 << 20, Wait: time.Hour}, want)
	if took := time.Since(begin); took < backPause {
		t.Errorf("a consumer is sent back after %v", took)
	}
	leave := make(chan struct{})
	close(leave)
	begin = time.Now()
	for range 100 {
		b.fetch(t, Limits{BytesMin: 1, BytesMax: 1 << 20, Wait: time.Hour, Leave: leave}, want)
	}
	if took := time.Since(begin); took > 50*backPause {
		t.Errorf("an agent that leaves takes %v for 100 fetches", took)
	}
}

// TestReplica holds what comes before a leader sends a consumer elsewhere: whether it leads, and whether the log has that offset.
func TestReplica(t *testing.T) {
	b := twoSegments(t)
	p := restored(0, 6, 10)
	for offset, code := range map[protocol.Offset]protocol.ErrorCode{5: protocol.OffsetOutOfRange, 6: 0, 10: 0, 11: protocol.OffsetOutOfRange} {
		r := b.fetch(t, Limits{BytesMin: 1, BytesMax: 1 << 20, Wait: time.Hour}, Want{Partition: p, Offset: offset, BytesMax: 1 << 20, Replica: 9})
		got := &r.Parts[0]
		if protocol.CodeOf(got.Err) != code || (got.Replica == 9) != (code == 0) || got.Bytes != 0 {
			t.Errorf("offset %d: sent to %d with %d bytes, %v, want %v", offset, got.Replica, got.Bytes, got.Err, code)
		}
	}
}

func TestSettled(t *testing.T) {
	b := twoSegments(t)
	extents := b.index.Extents(id(0))
	created := time.Now()
	extents[0].Object.CreatedMs = created.UnixMilli()
	extents[1].Object.CreatedMs = created.Add(time.Second).UnixMilli()
	f := New(b.reader)
	for _, c := range []struct {
		offset    protocol.Offset
		committed bool
		after     time.Duration // from the first commit on
		want      bool
	}{
		{5, false, settleTime, true},
		{5, false, settleTime - time.Second, false},
		{7, true, settleTime, true},
		{8, false, settleTime, false}, // of the second segment
		{8, true, settleTime + time.Second, true},
		{9, false, settleTime + time.Second, true},
		{9, true, time.Hour, false}, // not stable
		{10, false, time.Hour, false},
		{4, false, time.Hour, false},
	} {
		if got := f.Settled(id(0), c.offset, c.committed, created.Add(c.after)); got != c.want {
			t.Errorf("offset %d, %v after the commit, committed %v: %v", c.offset, c.after, c.committed, got)
		}
	}
	if f.Settled(id(3), 0, false, created.Add(time.Hour)) {
		t.Error("a partition without records is settled")
	}
}
