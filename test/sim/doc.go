// Package sim runs what Varve does around an acknowledged record under a scheduler that decides, from a seed, everything that may happen
// between two steps: sequencing, the write-ahead log on a disk that crashes, flush, commit under a guard, recovery by claim, claims of
// shards, the restore of a new leader, the ledger of consumer offsets.
//
// # Model
//
// A world has one etcd, one bucket and machines with a disk each, all in memory. Agents on the machines are put together from the product's own
// rooms, with their own goroutines, in the order of agent/start.go. Whenever one of these goroutines calls etcd, the bucket or the disk, it parks. When all
// of them are parked or wait ([testing/synctest] tells), the scheduler does one thing, drawn from the seed:
//
//	let a parked call happen, fail, or happen while its answer is lost (it may then apply later, or never)
//	let a client send, repeat, give up, read, or commit an offset
//	let time pass, stall an agent, take etcd or the bucket away for a while
//	kill an agent; cut the power of its machine, which tears what was not synced; start another agent while the first still runs
//
// Goroutines run only between two decisions, one at a time, on data that the decisions order, so that a seed gives the same trace each time:
// TestSameSeedSameTrace compares them.
//
// # What is checked
//
// The invariants of the design, by number: after each step that commits (checker), and at the end, when everything has healed, by reading the
// whole log back from the bucket (test/check).
//
//	1 acknowledged records are there              4 a fenced writer commits nothing
//	2 an offset shows the same bytes for ever     5 an idempotent batch is there once
//	3 no gap, no overlap                          7 committed consumer offsets stay
//	8 what a commit refers to exists and matches  - and in the end an agent serves again
//
// # Breakages
//
// A simulation that finds nothing proves nothing unless it finds what is there. TestBreakages breaks one rule at a time, outside of the product's
// code, and wants each to be found within some seeds.
//
//	go test ./test/sim                       some seconds
//	go test ./test/sim -seeds 5000           more seeds
//	go test ./test/sim -run Seeds -seed 17 -v   replays one, with its trace
package sim
