// Package compact decides what log compaction leaves of a partition (cleanup.policy=compact), as Kafka's LogCleaner,
// Cleaner and LogCleanerManager do, for a caller that reads and writes the batches.
//
// A partition's log is clean up to an offset, Cleaned: below it no two records have the same key. What
// follows is dirty, and may be cleaned up to a bound that the last stable offset and min.compaction.lag.ms set:
//
//	log start         Cleaned                   End             Bound
//	| one of each key | dirty, in the map       | dirty         | not cleanable yet
//	|<--------------- second pass ------------->|
//	                  |<--- first pass: until the map is full -->|
//
// One cleaning, with a map that is used for one partition after the other:
//
//	r := policy.Range(state, now)               // is it due, from where to where
//	...                                         // tell transactions of all batches from the log start on
//	keys := compact.NewKeys(offsets, decompressor, r.Cleaned, r.Bound, transactions.Aborted())
//	for ... { full, err := keys.Add(&h, b) }    // batches from r.Cleaned on, until full or the bound
//	end := keys.End()
//	cleaner := compact.NewCleaner(offsets, filter, compact.Cleaning{End: end, Bound: r.Bound, ...})
//	for ... { out, err := cleaner.Clean(&h, b) } // batches from the log start to end
//	...                                         // put what was left in place of what was; end is what Cleaned becomes
//
// What is put in place may be a prefix of the log: a record is removed because of a later one, a tombstone once what is before it has
// gone, a marker once its transaction has gone. Cleaned may move only when all of it is in place.
//
// The rules, of which each batch and record is judged by the first that applies:
//
//   - From End on nothing changes. Offsets never change. What stays of a batch is what [batch.Filter] says.
//   - Batches of aborted transactions go. So do markers whose transaction had no batch left when this cleaning began, once
//     delete.retention.ms has passed since a cleaning first found that.
//   - A record without a key goes (it cannot have come in as long as the topic was compacted).
//   - A record goes if the map has a later offset for its key.
//   - A tombstone goes once delete.retention.ms has passed since the first cleaning that went beyond its batch: until then a reader that has seen an
//     older value sees it too (KIP-534).
//   - The newest batch of each producer stays, if need be without records, so that the log shows its last sequence; of a producer
//     that has none under its epoch the marker stays that raised it. The last batch before the bound stays likewise, so that the log shows where it ends.
//
// Where Kafka keeps a marker for its producer's sake without its record, the record stays here: a marker without it says nothing, but that it was one.
//
// The room is pure. Nothing in it is for concurrent use.
package compact
