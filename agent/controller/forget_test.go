package controller

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

// records checks how many logs have records, and that those are over which should be.
func (w *world) records(want int, over ...coordinator.LogID) {
	w.t.Helper()
	synctest.Wait()
	logs, err := coordinator.ListLogs(w.t.Context(), w.kv, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	if len(logs.Records) != want {
		w.t.Errorf("%d logs have records, want %d", len(logs.Records), want)
	}
	for _, id := range over {
		if !logs.Closed(id) {
			w.t.Errorf("log %s does not count as closed", id)
		}
	}
}

// TestForget: the record of a log goes some time after the log was closed, unless its agent is still there.
func TestForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.log(coordinator.Log{ID: 1, Closed: true})
		w.log(coordinator.Log{ID: 2})
		w.register(3, coordinator.AgentServing)
		w.register(4, coordinator.AgentDraining)
		w.log(coordinator.Log{ID: 4, Closed: true})
		w.run(3)
		time.Sleep(closedKeep - time.Second)
		w.records(4, 1, 4)
		time.Sleep(2 * time.Second)
		w.records(3, 1, 4)
		time.Sleep(2 * closedKeep)
		w.records(3, 1, 4)
		w.gone(4)
		w.records(2, 1, 4)
	})
}

// TestForgetRestored: after a restore the records of logs from the copy stay: what has none was opened after the copy.
func TestForgetRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.put(coordinator.KeyCluster, coordinator.Cluster{Shards: shards, Restored: 5, Since: []coordinator.LogRange{{From: 2, To: 5}}})
		w.log(coordinator.Log{ID: 1, Closed: true})
		w.log(coordinator.Log{ID: 2, Closed: true})
		w.log(coordinator.Log{ID: 5, Closed: true})
		w.register(6, coordinator.AgentServing)
		w.run(6)
		time.Sleep(2 * closedKeep)
		w.records(2, 1, 2, 5) // of logs 2 and 6
	})
}

// TestForgetStarting: the mark does not pass over the number of an agent that has not opened its log yet.
func TestForgetStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentServing)
		waits := coordinator.Agent{Node: 12, Log: 3, State: coordinator.AgentStarting}
		w.put(coordinator.KeyAgent(12), waits)
		w.log(coordinator.Log{ID: 2, Closed: true})
		w.log(coordinator.Log{ID: 4, Closed: true})
		w.run(1)
		time.Sleep(2 * closedKeep)
		w.records(2, 2, 4)
		if _, err := coordinator.OpenLog(t.Context(), w.kv, coordinator.Log{ID: 3}); err != nil {
			t.Errorf("its log could not be opened: %v", err)
		}
		waits.State = coordinator.AgentServing
		w.put(coordinator.KeyAgent(12), waits)
		w.records(2, 2, 4)
	})
}

// TestForgottenOwner: a shard whose owner's log is closed, and was forgotten by who could not know of it, goes to another agent.
func TestForgottenOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(9, coordinator.AgentServing)
		for id := range coordinator.ShardID(shards) {
			w.put(coordinator.KeyShard(id), coordinator.Shard{Owner: 5, Node: 15, Epoch: 1})
			w.put(coordinator.KeyWrite(id), coordinator.Write{Owner: 5, Epoch: 1})
		}
		w.run(9)
		time.Sleep(time.Second)
		w.wants("5:8", "") // nobody knows of the log
		w.put(coordinator.KeyPastLog, 6)
		time.Sleep(2 * absentPause)
		synctest.Wait()
		w.wants("9:8", "")
	})
}

// TestForgetFails: records that could not be deleted are deleted later, and not tried again with each plan while there is another reason to plan.
func TestForgetFails(t *testing.T) {
	for name, absent := range map[string]bool{"all are there": false, "an owner is absent": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.log(coordinator.Log{ID: 1, Closed: true})
				w.register(2, coordinator.AgentServing)
				w.register(3, coordinator.AgentServing)
				w.run(2)
				if absent {
					w.gone(3)
				}
				time.Sleep(closedKeep - time.Second)
				w.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: mem.UnknownLost})
				time.Sleep(forgetPause - time.Second)
				w.records(3, 1)
				time.Sleep(4 * time.Second)
				w.records(2, 1)
			})
		})
	}
}

// TestRest: while an owner is absent the logs are listed often, and after some seconds in which nothing changed less so.
func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.register(1, coordinator.AgentServing)
		w.register(2, coordinator.AgentServing)
		w.run(1)
		w.wants("1:4 2:4", "")
		w.gone(2)
		looks := func(d time.Duration) int {
			before := w.lists.Load()
			time.Sleep(d)
			synctest.Wait()
			return int(w.lists.Load() - before)
		}
		if n := looks(time.Second); n < 9 {
			t.Errorf("the logs were listed %d times in the first second", n)
		}
		looks(restAfter)
		if n := looks(10 * time.Second); n < 9 || n > 11 {
			t.Errorf("the logs were listed %d times in 10 s in which nothing changed", n)
		}
		w.log(coordinator.Log{ID: 2, Claimer: 1, Fence: 2})
		looks(restPause)
		if n := looks(time.Second); n < 9 {
			t.Errorf("the logs were listed %d times in the second after the log was claimed", n)
		}
	})
}
