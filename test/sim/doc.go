// Package sim runs what Varve does around an acknowledged record under a scheduler that decides, from a seed, everything that may happen
// between two steps: sequencing, the write-ahead log on disks that crash, its copies on other machines, flush, commit under a guard, recovery by claim,
// who leads which shard, hand-overs, the restore of a new leader, consumer offsets.
//
// # Model
//
// A world has one etcd, one bucket and machines with a disk each, all in memory. Whenever a goroutine of an agent calls etcd, the bucket, its disk or another
// machine, it parks. When all of them are parked or wait ([testing/synctest] tells), the scheduler does one thing, drawn from the seed:
//
//	let a parked call happen, fail, or happen while its answer is lost (it may then apply later, or never)
//	let a client send, repeat, give up, read, or commit an offset
//	let time pass, stall an agent, take etcd or the bucket away for a while
//	kill an agent; cut the power of its machine, which tears what was not synced; start another agent
//
// There are two scenes:
//
//	single    agents on one machine that succeed each other and may overlap, put together here from the product's rooms, on a log of one copy
//	cluster   three to five machines with the product's own agent each ([agent.Agent]), which lead some of the shards each, keep three copies of each log,
//	          and are spoken to in Kafka's protocol
//
// In a cluster, a machine may also be cut off from another, in one direction or both, or from etcd or the bucket alone; an agent may be told to leave; and a disk may be
// lost for good, as long as no open log lists one that was lost before. A request to another machine is two parked calls, its way there and its way back. The connection
// that a segment is appended through is over after its first error, as in wal/peer, whose place this network takes.
//
// Goroutines run only between two decisions, one at a time, on data that the decisions order, so that a seed gives the same trace each time:
// TestSameSeedSameTrace compares them. A cluster's agents have so many goroutines that the runtime now and then changes their order on a busy machine; TestSameClusterSameTrace
// therefore wants two of a few runs to be the same, and a seed may have to be replayed more than once.
//
// # What is checked
//
// The invariants of the design, by number: after each step that commits (checker), and at the end, when everything has healed, by reading the
// whole log back from the bucket (test/check).
//
//	1 acknowledged records are there              4 a fenced writer commits nothing
//	2 an offset shows the same bytes for ever     5 an idempotent batch is there once
//	3 no gap, no overlap                          7 committed consumer offsets stay
//	8 what a commit refers to exists and matches  - and in the end agents serve again, and can leave
//
// # Breakages
//
// A simulation that finds nothing proves nothing unless it finds what is there. TestBreakages and TestClusterBreakages break one rule at a time, outside of the product's
// code, and want each to be found within some seeds.
//
//	go test ./test/sim                       some seconds
//	go test ./test/sim -seeds 5000           more seeds, and more clusters
//	go test ./test/sim -run TestSeeds -seed 17 -v      replays one, with its trace
//	go test ./test/sim -run TestClusters -seed 17 -v   replays a cluster, with what its agents say
package sim
