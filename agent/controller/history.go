package controller

import (
	"context"
	"time"

	"github.com/varve-io/varve/coordinator"
)

// etcd keeps what every key ever held until it is told to forget. Whoever needs the past has some minutes for it: a watch that
// was cut off goes on where it was if it comes back within them, and lists anew if not; a listing in pages ends with the revision that it began with.
const (
	// historyPause is how often the controller looks how far the coordinator has come, and compacts.
	historyPause = 15 * time.Second
	// historyKeep is how much of the past stays, and historyLeast while what is in use is more than half of the quota: what is written within minutes may be more than the rest.
	historyKeep  = 5 * time.Minute
	historyLeast = 30 * time.Second
)

// history is what the controller knows of the coordinator's past. The zero history knows nothing.
type history struct {
	looked    time.Time
	marks     []mark // that lie ahead of what was compacted, the oldest first; as many as there are looks in historyKeep
	compacted int64
}

// mark is how far the coordinator had come at some time.
type mark struct {
	at       time.Time
	revision int64
}

// compact has the coordinator forget its past, from time to time. It needs no office: that two do it is no harm.
func (c *Controller) compact(ctx context.Context) {
	now := time.Now()
	if now.Sub(c.history.looked) < historyPause {
		return
	}
	c.history.looked = now
	st, err := c.deps.KV.Status(ctx)
	if err != nil {
		c.deps.Logger.Warn("the size of etcd could not be read; its history stays for now", "err", err)
		return
	}
	revision := c.history.due(mark{now, st.Revision}, keep(st))
	if revision <= c.history.compacted {
		return
	}
	if err := c.deps.KV.Compact(ctx, revision); err != nil {
		c.deps.Logger.Warn("the history of etcd could not be compacted; trying again later", "revision", revision, "err", err)
		return
	}
	c.history.compacted = revision
}

// keep is how much of the past stays. The size of the file does not count: it shrinks only when an operator defragments it, and what is free in it is used again.
func keep(st coordinator.Status) time.Duration {
	if st.NoSpace || st.QuotaBytes > 0 && st.UsedBytes > st.QuotaBytes/2 {
		return historyLeast
	}
	return historyKeep
}

// due takes in how far the coordinator has come, and returns the revision whose past may be forgotten: the newest that is old enough; what was compacted if there is none.
func (h *history) due(now mark, keep time.Duration) int64 {
	h.marks = append(h.marks, now)
	revision := h.compacted
	for len(h.marks) > 0 && now.at.Sub(h.marks[0].at) >= keep {
		revision = h.marks[0].revision
		h.marks = h.marks[1:]
	}
	return revision
}
