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
// There are two scenes, and transactions, which come to the second one:
//
//	single    agents on one machine that succeed each other and may overlap, put together here from the product's rooms, on a log of one copy
//	cluster   three to five machines with the product's own agent each ([agent.Agent]), which lead some of the shards each, keep three copies of each log,
//	          and are spoken to in Kafka's protocol: by idempotent producers and others, consumers near and far, members of a group that join, commit, leave and
//	          die, and by who asks for offsets and producer ids
//	          with transactions: also by producers of both versions of the protocol (KIP-890), several of a transactional id at once, which commit, abort, leave
//	          transactions to their timeouts, come again with their old epoch, and send offsets to groups; and by readers of both isolation levels, which do with
//	          the list of aborted transactions what Kafka's do
//
// # What may happen
//
//	network       a request or an answer is slow, lost, comes late, overtakes others, or arrives twice; a machine does not reach another, in one direction or both
//	disks         a power cut keeps parts of what was not synced; writes fail, a disk is full, slow, hangs, or is lost for good, unless an open log lists one that was
//	              lost before; that of an agent that has left is thrown away
//	clocks        an hour wrong from the start; they jump, by an hour forward, by seconds back; agents whose calls all wait, for longer than a lease
//	bucket        calls fail (as by a 503), are slow, happen and are not answered, or come late; it is away, for all or for one agent
//	etcd          the same; leases end, it is full, it forgets history under a watch that lags; it is lost, or set back under agents that live, and rebuilt (TestRestore)
//	agents        are killed, start, leave, two at once that take themselves for the leader
//
// A request to another machine is two parked calls, its way there and its way back. So are those that agents ask each other in Kafka's protocol: whether a transaction includes a
// partition, and that markers be written. The connection that a segment is appended through is over after its first error, as in
// wal/peer, whose place this network takes. Clients speak with agents without a network between; they give up, repeat, and ask the wrong agent.
//
// Not there: clocks that jump without the durations that were measured by them, which a time.Time cannot express; agents whose disks are lost with etcd.
//
// # The same seed
//
// Goroutines run only between two decisions, one at a time, on data that the decisions order, so that a seed gives the same trace each time. What remains is the runtime,
// which puts a goroutine off now and then on a busy machine, and so changes the order in which some take a lock: TestSameSeedSameTrace and TestSameClusterSameTrace
// therefore want two of several runs to be the same, and a seed may have to be replayed more than once.
//
// # What is checked
//
// The invariants of the design, by number: after each step that commits (checker), and at the end, when everything has healed, by reading the
// whole log back from the bucket (test/check).
//
//	1 acknowledged records are there              4 a fenced writer commits nothing
//	2 an offset shows the same record for ever    5 an idempotent batch is there once; a producer id is handed out once
//	3 no gap, no overlap                          7 committed consumer offsets stay, and are answered; a fenced member commits none
//	6 see below                                   - and in the end agents serve again, and can leave
//	8 what a commit refers to exists and matches
//
// Of 6, where decided is what etcd's record of the transactional id says:
//
//	a reader of what is committed is shown nothing of a transaction before it is decided, nothing of an aborted one, and all of the range it reads that is not of one
//	in the end, all records of a transaction are visible or none, as it was decided, and none is open: the last stable offset is the high watermark
//	the last stable offset does not pass a transaction that is undecided, and does not go back
//	a group's offset is that of a committed transaction, never before it is decided; a stable one is that of the newest
//	a producer is told what was decided; one that is fenced writes nothing, sends nothing and ends nothing; a producer id with an epoch is handed out once
//
// In clusters whose topic is compacted (TestCompaction), a record that was committed may be gone, in what readers are shown and in the end, if a later one has its key and both are below where the log was
// cleaned, as the newest manifest says it; and so may tombstones there, what was aborted, and markers. Every second of them has transactions, and in most the topic's cleanup.policy changes now and then.
//
// In clusters whose topic has a retention (TestRetention), and whose records are deleted by request too, a log may start later, never earlier, and only as far as somebody asked for or as leaves the bytes
// that are retained. What was seen of what is deleted is compared with what was committed.
//
// In clusters that lose etcd (TestRestore), every second of which has transactions, nobody goes on until it is rebuilt from the newest copy and the bucket, by what `varve restore` runs, which is killed and
// repeated too. All disks are there then, and the copy knows all logs that are open or on a disk, as docs want it; what an earlier loss left to be recovered has been, and is in the copy. Etcd is lost
// whole, or it is again as it once was, 40 revisions or more before what each agent that lives then has seen: they end by themselves, or are killed. Then
//
//	what was committed is committed, and the same; what was acknowledged comes from the disks; what any reader saw stays, and no producer id is given again
//	groups have the offsets that they had at the revision of the copy, neither older ones nor others
//	a transaction that the copy has as decided is decided so, and one whose markers were all written; one that was open is aborted. Not judged are those whose markers
//	were under way, if they were decided after the copy was made, and of version 1 what began behind a decision that the copy has and whose markers it does not
//
// Transactions that no coordinator knows of then are ended by an operator, in the end.
//
// Not here: 9, of limits.
//
// # Interleavings
//
// Those that are known to be dangerous have numbers and are scripts: TestScripts plays those of clusters, the others are tests by their names.
//
//	     script                                                breakage that is noticed
//	1    TestLateOffsetCommit                                  take an offset commit of unknown outcome for not applied
//	     hand-over in doubt                                    -
//	     old hand-over after the next owner                    write a shard's record without comparing its guard
//	     old manifest after a newer one                        the same
//	2    old acknowledgements during a roll                    count only the old ensemble while a roll is listed
//	3    TestLeaderWaitsForTheLastCommit                       restore from a view that has not seen the claim
//	4    TestRetryOfWhatWasLost                                a new leader forgets idempotent producers
//	5    TestSealWaitsForSync                                  seal without refusing the old writer
//	     seal of a copy waits for its sync                     skip the fence at a store
//	6    hand-over waits for durability                        hand over a shard before its entries are flushed
//	7    drain with the only second copy                       leave without waiting for other agents' copies
//	     told to leave while it starts                         the same
//	8    decided elsewhere                                     answer offsets that an open transaction may change
//	     dies after the decision                               a new coordinator forgets open transactions
//	     a marker is not durable                               take markers for written that an old leader was sent
//	     a batch after the timeout                             -
//	     a batch of what is over                               let batches begin transactions that are not open
//	     the coordinator moves                                 write markers of a deposed coordinator
//	     the leader moves                                      -
//	     the group moves                                       a group's new leader forgets the offsets of open transactions
//	9    read beyond the index                                 -
//	     read from a deposed leader                            take leadership for proved
//	     a batch without its stable offset                     answer up to the high watermark
//	10   quorum changes before the seal                        seal on too few answers
//	11   etcd is set back                                      go on while revisions fall; give producer ids from where the copy is
//	     a copier stalls, and etcd is set back                 take the number of a copy for the copy
//	12   TestRecovererDiesAfterUpload                          commit without comparing the log's record
//	     recoverers seal differently                           the same
//	     recoverers seal differently, and etcd is rebuilt      pass over what owners flushed since the copy
//	     on disks alone when etcd is lost                      close WAL logs where they were flushed, with disks there
//	13   TestPutTimesOut                                       take a put that timed out for done
//	     TestNameIsTaken                                       take an object of the same name for one's own
//	14   TestCommitBetweenReadAndClaim                         read the flushed position before the claim
//	15   TestHandedAShardAndDies; handed a shard, and dies     -
//	     a lease, and no peers                                 take leadership for proved
//	     a disk that hangs                                     -
//	     a recoverer stalls                                    a log that was claimed is claimed by nobody else
//	     much to recover                                       -
//	16   a store comes back with a closed log                  -
//	     a store misses the drop                               a store never looks which of its logs are over
//
// # Breakages
//
// A simulation that finds nothing proves nothing unless it finds what is there. TestBreakages and TestClusterBreakages break one rule at a time, outside of the product's
// code, and want each to be found within some seeds; TestScriptBreakages wants a script to fail without its rule. TestTransactionBreakages does so for transactions: markers are
// sent before the decision is durable, the high watermark is answered, the list of aborted transactions is left out, offsets are applied when they are sent, a stale epoch is
// accepted, markers that an old leader was sent count as written, a new coordinator forgets open transactions. TestMergeBreakages has commits leave that are not merged, manifests
// without producers, or without their open transactions, and segments that are in use taken for garbage; TestCompactionBreakages has a part of what a cleaning made put in place, TestRetentionBreakages
// has logs start too late, or anew. TestRestoreBreakages has a restore close logs, pass over segments, let shards be led before logs are recovered, and leave transactions as they were, or groups' offsets out. Not broken, since no boundary lies there: that a marker voids
// a ticket (agent/partition), whose batch the producer's epoch keeps out as well.
//
//	go test ./test/sim                       some seconds, always the same seeds
//	go test ./test/sim -seeds 5000           more seeds, and more clusters
//	go test ./test/sim -fresh                seeds that were hardly run before; it prints which
//	go test ./test/sim -run TestSeeds -seed 17 -v      replays one, with its trace
//	go test ./test/sim -run TestTransactions -seed 17 -v   the same with transactions
//	go test ./test/sim -run TestClusters -seed 17 -v   replays a cluster, with what its agents say
//	go test ./test/sim -run TestRestore -seed 17 -v    one that loses etcd
package sim
