package status_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/agent/status"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
)

// well returns a cluster of three agents, in which nothing is wrong. Agent N has node N and log N, and the store "sN".
func well() status.Records {
	r := status.Records{
		Revision: 70, Cluster: coordinator.Cluster{ID: "id", Shards: 6}, Controller: coordinator.Controller{Log: 2, Node: 2},
		Shards: make(map[coordinator.ShardID]coordinator.Shard), Unflushed: make(map[int32]coordinator.Unflushed),
		Loads: make(map[int32]coordinator.Load), Nodes: make(map[string]int32),
		Commits: 12, SizeBytes: 3 << 20, UsedBytes: 1 << 20,
	}
	for n := range int32(3) {
		node, log, store := n+1, coordinator.LogID(n+1), storeName(n+1)
		r.Agents = append(r.Agents, coordinator.Agent{
			Node: node, Log: log, Host: "broker", Port: 9092, Store: store, Peer: "broker:9093", Zone: "z", State: coordinator.AgentServing, Copies: 3,
		})
		r.Nodes[store] = node
		r.Logs = append(r.Logs, coordinator.Log{
			ID: log, Node: node, Fence: 1, Flushed: 40, Commits: 4,
			Segments: []coordinator.WALSegment{{Number: 1, First: 1, Last: -1, Stores: []string{"s1", "s2", "s3"}, Quorum: 2}},
		})
		r.Unflushed[node] = coordinator.Unflushed{Log: log, Bytes: 1536, OldestMs: 2500}
		r.Loads[node] = coordinator.Load{Log: log, Produced: 3 << 20, Consumed: 5 << 19, Shards: map[coordinator.ShardID]int64{coordinator.ShardID(n): 7}}
		for shard := range coordinator.ShardID(2) {
			r.Shards[coordinator.ShardID(2*n)+shard] = coordinator.Shard{Owner: log, Node: node, Epoch: 1}
		}
	}
	r.Logs = append(r.Logs, coordinator.Log{ID: 9, Node: 9, Closed: true})
	return r
}

func storeName(node int32) string { return fmt.Sprintf("s%d", node) }

// lose takes an agent's registration away.
func lose(r *status.Records, node int32) {
	r.Agents = slices.DeleteFunc(r.Agents, func(a coordinator.Agent) bool { return a.Node == node })
}

func TestProblems(t *testing.T) {
	const log1, log3 = "WAL log 0000000000000001 of node 1 ", "WAL log 0000000000000003 of node 3 "
	tests := []struct {
		name   string
		change func(r *status.Records)
		want   []string // none: all is well
	}{
		{"nothing", func(*status.Records) {}, nil},
		{"a drain", func(r *status.Records) { r.Agents[0].State = coordinator.AgentDraining }, nil},
		{"an agent that has no log yet", func(r *status.Records) {
			r.Agents = append(r.Agents, coordinator.Agent{Node: 4, Log: 4, Store: "s4", State: coordinator.AgentStarting, Copies: 3})
		}, nil},
		{"a shard nobody ever led", func(r *status.Records) { delete(r.Shards, 5) }, []string{"1 of 6 shards have no leader that lives: 5"}},
		{"shards of the dead", func(r *status.Records) {
			for _, id := range []coordinator.ShardID{0, 2, 3, 4} {
				r.Shards[id] = coordinator.Shard{Owner: 9, Node: 9}
			}
		}, []string{"4 of 6 shards have no leader that lives: 0, 2-4"}},
		{"an earlier incarnation of an agent that lives", func(r *status.Records) {
			r.Shards[1] = coordinator.Shard{Owner: 8, Node: 1}
			r.Logs = append(r.Logs, coordinator.Log{ID: 8, Node: 1, Segments: r.Logs[0].Segments})
		}, []string{"1 of 6 shards have no leader that lives: 1", "WAL log 0000000000000008 of node 1 has no agent, and nobody recovers it yet"}},
		{"an agent is gone", func(r *status.Records) { lose(r, 3) }, []string{
			"2 of 6 shards have no leader that lives: 4-5",
			log1 + "is on 2 stores that live, want 3", "WAL log 0000000000000002 of node 2 is on 2 stores that live, want 3",
			log3 + "has no agent, and nobody recovers it yet; stores that are away: node 3",
		}},
		{"a log is recovered", func(r *status.Records) {
			r.Logs[2].Claimer, r.Shards[4], r.Shards[5] = 1, r.Shards[0], r.Shards[0]
			r.Agents[2].Log = 10
		}, []string{log3 + "is being recovered by node 1"}},
		{"who recovered a log is gone", func(r *status.Records) {
			r.Logs[2].Claimer, r.Shards[4], r.Shards[5] = 7, r.Shards[0], r.Shards[0]
			r.Agents[2].Log = 10
		}, []string{log3 + "has no agent, and nobody recovers it yet"}},
		{"a log from before a restore", func(r *status.Records) {
			r.Cluster.Restored, r.Logs[2].Claimer, r.Shards[4], r.Shards[5] = 4, 1, r.Shards[0], r.Shards[0]
			r.Agents[2].Log, r.Logs = 10, r.Logs[2:]
		}, []string{log3 + "is being recovered by node 1", "no shard gets a leader until the WAL logs from before etcd was restored are recovered: 0000000000000003"}},
		{"fewer copies", func(r *status.Records) { r.Logs[0].Segments[0].Stores = []string{"s1", "s2"} }, []string{log1 + "is on 2 stores that live, want 3"}},
		{"fewer than the quorum", func(r *status.Records) { r.Logs[0].Segments[0].Stores = []string{"s1", "s7", "s8"} }, []string{
			log1 + "is on 1 stores that live, fewer than its ack quorum of 2: nothing is acknowledged",
		}},
		{"only the open segment counts", func(r *status.Records) {
			old := coordinator.WALSegment{Number: 1, First: 1, Last: 60, Stores: []string{"s1", "s7"}, Quorum: 2}
			r.Logs[0].Segments = append([]coordinator.WALSegment{old}, r.Logs[1].Segments...)
		}, nil},
		{"no flush", func(r *status.Records) {
			r.Unflushed[2] = coordinator.Unflushed{Log: 2, Bytes: 5 << 20, OldestMs: 61_000}
		}, []string{
			"node 2 could not flush for 1m1s: 5.0 MiB wait for the bucket or for etcd",
		}},
		{"no bucket", func(r *status.Records) { r.Agents[1].Bucketless = true }, []string{"node 2 does not reach the bucket"}},
		{"a full disk", func(r *status.Records) {
			r.Agents = append(r.Agents, coordinator.Agent{Node: 4, Log: 4, Store: "s4", State: coordinator.AgentStarting, Copies: 3, Full: true})
		}, []string{"node 4 waits with its start for room on its WAL's disk"}},
		{"damage in the bucket", func(r *status.Records) {
			r.Unflushed[3] = coordinator.Unflushed{Log: 3, Damaged: []coordinator.ShardID{4, 5}}
		}, []string{
			"node 3 cannot lead 2 shards, of which something in the bucket is damaged, missing or unreadable: 4-5",
		}},
		{"no flush of an earlier incarnation", func(r *status.Records) { r.Unflushed[2] = coordinator.Unflushed{Log: 1, OldestMs: 61_000} }, nil},
		{"nearly full", func(r *status.Records) { r.UsedBytes, r.SizeBytes, r.QuotaBytes = 9<<20, 10<<20, 10<<20 }, []string{
			"etcd is nearly full: 9.0 MiB of its quota of 10.0 MiB are in use",
		}},
		{"a file that was full", func(r *status.Records) { r.SizeBytes, r.QuotaBytes = 9<<20, 10<<20 }, nil},
		{"full", func(r *status.Records) {
			r.UsedBytes, r.SizeBytes, r.QuotaBytes, r.NoSpace = 9<<20, 10<<20, 10<<20, true
		}, []string{
			"etcd has no space left and refuses writes, until it is defragmented and its alarm disarmed",
		}},
		{"scaled to zero", func(r *status.Records) {
			r.Agents, r.Logs = nil, []coordinator.Log{{ID: 1, Closed: true}}
		}, []string{"no agent is registered"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			records := well()
			test.change(&records)
			report := status.Make("test", records)
			if !slices.Equal(report.Problems, test.want) || report.Well != (len(test.want) == 0) {
				t.Errorf("well %v, problems\n%s\nwant\n%s", report.Well, strings.Join(report.Problems, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

func TestTable(t *testing.T) {
	records := well()
	lose(&records, 3)
	records.QuotaBytes = 2 << 30
	records.Agents[1].State, records.Agents[1].Zone = coordinator.AgentStarting, ""
	delete(records.Unflushed, 2)
	records.Loads[2] = coordinator.Load{Log: 1, Produced: 1} // of an earlier incarnation
	records.Logs[2].Claimer = 2
	old := coordinator.WALSegment{Number: 1, First: 1, Last: 60, Stores: []string{"s1", "s7"}, Quorum: 2}
	records.Logs[0].Segments = []coordinator.WALSegment{old, {Number: 3, First: 61, Last: -1, Stores: []string{"s1", "s2"}, Quorum: 2}}
	records.Logs[1].Segments[0].Stores = []string{"s2", "s3", "s1"}
	report := status.Make("test", records)
	var got bytes.Buffer
	if err := report.WriteTable(&got); err != nil {
		t.Fatal(err)
	}
	const want = `
cluster test, id
shards 6, 2 without a leader, 0 to be handed over, planned by node 2
etcd 1.0 MiB of 3.0 MiB in use, quota 2.0 GiB, revision 70, 12 commits

NODE  STATE     ZONE  SHARDS  PRODUCED   CONSUMED   UNFLUSHED  OLDEST  KAFKA        PEERS
1     serving   z     2       3.0 MiB/s  2.5 MiB/s  1.5 KiB    2.5s    broker:9092  broker:9093
2     starting  -     2       -          -          -          -       broker:9092  broker:9093

WAL LOG           NODE  STATE           SEGMENT  ENTRIES  ON NODES  ACK QUORUM  FLUSHED
0000000000000001  1     open            1        1-60     1 (?)     2           40
0000000000000001  1     open            3        61-      1 2       2           40
0000000000000002  2     open            1        1-       2 (3) 1   2           40
0000000000000003  3     recovered by 2  1        1-       1 2 (3)   2           40

! 2 of 6 shards have no leader that lives: 4-5
! WAL log 0000000000000001 of node 1 is on 2 stores that live, want 3
! WAL log 0000000000000002 of node 2 is on 2 stores that live, want 3
! WAL log 0000000000000003 of node 3 is being recovered by node 2
`
	if got.String() != want[1:] {
		t.Errorf("table\n%s\nwant\n%s", got.String(), want[1:])
	}
}

// TestRead writes the records into a coordinator and wants the same report of what is read there.
func TestRead(t *testing.T) {
	kv := mem.New(mem.Config{})
	if _, err := status.Read(t.Context(), kv); err == nil {
		t.Error("the status of a cluster that does not exist was read")
	}
	records := well()
	ops := []coordinator.Op{
		{Key: coordinator.KeyCluster, Value: coordinator.Encode(records.Cluster)},
		{Key: coordinator.KeyController, Value: coordinator.Encode(records.Controller)},
		{Key: coordinator.KeyMove(3), Value: coordinator.Encode(coordinator.Move{To: 1})},
		{Key: coordinator.KeyCommit(1, 1), Value: []byte("not looked at")},
		{Key: coordinator.KeyTopic("lake"), Value: []byte("not looked at")},
		{Key: coordinator.KeyPastLog, Value: []byte("not looked at")},
	}
	for _, a := range records.Agents {
		ops = append(ops, coordinator.Op{Key: coordinator.KeyAgent(a.Node), Value: coordinator.Encode(a)},
			coordinator.Op{Key: coordinator.KeyStore(a.Store), Value: coordinator.Encode(a.Node)},
			coordinator.Op{Key: coordinator.KeyUnflushed(a.Node), Value: coordinator.Encode(records.Unflushed[a.Node])},
			coordinator.Op{Key: coordinator.KeyLoad(a.Node), Value: coordinator.Encode(records.Loads[a.Node])})
	}
	for _, l := range records.Logs {
		ops = append(ops, coordinator.Op{Key: coordinator.KeyLog(l.ID), Value: coordinator.Encode(l)})
	}
	for id, s := range records.Shards {
		ops = append(ops, coordinator.Op{Key: coordinator.KeyShard(id), Value: coordinator.Encode(s)})
	}
	if _, err := kv.Txn(t.Context(), nil, ops); err != nil {
		t.Fatal(err)
	}
	read, err := status.Read(t.Context(), kv)
	if err != nil {
		t.Fatal(err)
	}
	records.Revision, records.SizeBytes, records.UsedBytes = read.Revision, read.SizeBytes, read.UsedBytes
	records.Moves, records.Commits = 1, 1
	if got, want := asJSON(t, status.Make("test", read)), asJSON(t, status.Make("test", records)); got != want {
		t.Errorf("report\n%s\nwant\n%s", got, want)
	}
	if read.Revision == 0 {
		t.Error("no revision")
	}
	if _, err := kv.Txn(t.Context(), nil, []coordinator.Op{{Key: coordinator.KeyLog(1), Value: []byte("damaged")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := status.Read(t.Context(), kv); err == nil || !strings.Contains(err.Error(), coordinator.KeyLog(1)) {
		t.Errorf("a record that cannot be read: %v", err)
	}
}

func asJSON(t *testing.T, r status.Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b.Bytes()) {
		t.Fatalf("no JSON: %s", b.Bytes())
	}
	return b.String()
}
