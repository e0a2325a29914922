package controller

import (
	"context"
	"time"

	"github.com/varve-io/varve/coordinator"
)

const (
	// closedKeep is how long this controller must have seen a log closed before its record is deleted. Safety does not need it; whoever waits for an answer to the
	// write that closed a log finds the record, and so do people.
	closedKeep = 10 * time.Minute
	// forgetPause is the wait after a deletion that failed.
	forgetPause = time.Minute
)

// forget deletes the records of logs that have been closed for a while, own nothing, and have no agent any more. It returns after how long to look again; 0 for never.
func (c *Controller) forget(ctx context.Context, logs coordinator.Logs) time.Duration {
	due, wait := c.due(logs, time.Now())
	if len(due) == 0 {
		return wait
	}
	if err := logs.Forget(ctx, c.deps.KV, due); err != nil {
		c.deps.Logger.Warn("records of closed WAL logs could not be deleted; trying again later", "err", err)
		for _, id := range due { // not at the next plan, which may be soon
			c.closed[id] = time.Now().Add(forgetPause - closedKeep)
		}
		return forgetPause
	}
	c.deps.Logger.Info("deleted the records of closed WAL logs", "logs", len(due))
	return wait
}

// due returns the logs to be forgotten now, and after how long there may be others; 0 for never.
func (c *Controller) due(logs coordinator.Logs, now time.Time) (due []coordinator.LogID, wait time.Duration) {
	used := make(map[coordinator.LogID]bool)
	for _, s := range c.deps.View.Shards() {
		used[s.Owner] = true
	}
	// An agent that starts has a number, and no record yet. The mark must not pass it over.
	unopened := coordinator.LogID(0)
	for _, a := range c.deps.View.Agents() {
		used[a.Log] = true
		if logs.Record(a.Log) == nil && (unopened == 0 || a.Log < unopened) {
			unopened = a.Log
		}
	}
	closed := make(map[coordinator.LogID]time.Time)
	cluster := c.deps.View.Cluster()
	for _, l := range logs.Records {
		if !l.Closed || cluster.SinceCopy(l.ID) { // without its record, such a one would look like one that the copy did not know
			continue
		}
		since, ok := c.closed[l.ID]
		if !ok {
			since = now
		}
		closed[l.ID] = since
		if used[l.ID] || unopened != 0 && l.ID >= unopened {
			continue // what ends that is told
		}
		switch left := since.Add(closedKeep).Sub(now); {
		case left <= 0:
			due = append(due, l.ID)
		case wait == 0 || left < wait:
			wait = left
		}
	}
	c.closed = closed
	return due, wait
}
