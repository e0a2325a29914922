package agent

import "github.com/prometheus/client_golang/prometheus"

// instruments registers what rooms count for themselves.
type instruments struct{ metrics prometheus.Registerer }

func (i instruments) gauge(name, help string, value func() float64) {
	i.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

func (i instruments) counter(name, help string, value func() float64) {
	i.metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
}

// measure registers what the requests to the bucket, the WAL, the flush and the caches count. The rooms count for themselves; this is where it gets its names.
func (a *Agent) measure() {
	i := instruments{a.deps.Metrics}
	i.metrics.MustRegister(a.requests)
	a.measureWAL(i)
	a.measureUpkeep(i)
	a.measureCoordinator(i)
	a.measureReads(i)
	a.measureDiskCache(i)
	i.gauge("varve_damaged_shards", "Shards that were given to this agent and have no leader, because what the bucket has of them is damaged or missing, or cannot be read.",
		func() float64 { return float64(len(a.damaged.list())) })
	i.gauge("varve_partitions", "Partitions that this agent leads and that were used since it started.",
		func() float64 { return float64(a.partitions.Len()) })
}

func (a *Agent) measureWAL(i instruments) {
	i.gauge("varve_wal_unflushed_bytes", "Memory of batches that are not in the bucket yet; producers wait when it reaches the WAL's limit.",
		func() float64 { return float64(a.wal.Stats().UnflushedBytes) })
	i.gauge("varve_wal_memory_bytes", "Memory of the WAL: unflushed batches, and flushed ones that are kept for consumers of the tail.",
		func() float64 { return float64(a.wal.Stats().MemoryBytes) })
	i.gauge("varve_wal_waiting_requests", "Produce requests that wait for room in the WAL.",
		func() float64 { return float64(a.wal.Stats().Admitting) })
	i.counter("varve_wal_batches_total", "Record batches that were appended to the WAL.",
		func() float64 { return float64(a.wal.Stats().Entries) })
	i.counter("varve_wal_batch_bytes_total", "Bytes of the record batches that were appended to the WAL.",
		func() float64 { return float64(a.wal.Stats().Bytes) })
	i.counter("varve_wal_written_bytes_total", "Bytes that the WAL wrote to its disk, with headers and padding.",
		func() float64 { return float64(a.wal.Stats().WrittenBytes) })
	i.counter("varve_wal_syncs_total", "Writes to the WAL's disk, each one sync; batches per sync tell how well they gather.",
		func() float64 { return float64(a.wal.Stats().Syncs) })

	i.counter("varve_flush_segments_total", "Segments that were put into the bucket and committed.",
		func() float64 { return float64(a.flusher.Stats().Segments) })
	i.counter("varve_flush_segment_bytes_total", "Bytes of the segments that were put into the bucket and committed.",
		func() float64 { return float64(a.flusher.Stats().SegmentBytes) })
	i.gauge("varve_flush_oldest_seconds", "Age of the oldest batch that is not committed; it grows while the bucket or etcd is away.",
		func() float64 {
			oldest := a.flusher.Stats().Oldest
			if oldest.IsZero() {
				return 0
			}
			return a.deps.Now().Sub(oldest).Seconds()
		})
}

func (a *Agent) measureUpkeep(i instruments) {
	i.counter("varve_merges_total", "Merges of a shard's segments that this agent has done.",
		func() float64 { return float64(a.merger.Stats().Merges) })
	i.counter("varve_merged_bytes_total", "Bytes of the segments that merges put into the bucket.",
		func() float64 { return float64(a.merger.Stats().Bytes) })
	i.counter("varve_compactions_total", "Partitions that this agent has compacted.",
		func() float64 { return float64(a.cleaner.Stats().Cleanings) })
	i.counter("varve_compaction_read_bytes_total", "Bytes of the batches that compaction judged.",
		func() float64 { return float64(a.cleaner.Stats().Bytes) })
	i.counter("varve_compaction_kept_bytes_total", "Bytes that compaction left of the batches that it judged.",
		func() float64 { return float64(a.cleaner.Stats().BytesKept) })
	i.gauge("varve_compaction_dirty_ratio_max", "Largest part that is new of a partition that is compacted, among those of this agent; what is not merged yet does not count.",
		func() float64 { return a.cleaner.Stats().DirtyRatioMax })
	i.gauge("varve_compaction_failed_partitions", "Partitions that could not be compacted, and are tried again later.",
		func() float64 { return float64(a.cleaner.Stats().Failed) })

	i.gauge("varve_clogged_shards", "Shards of this agent that take no writes, because what they have in too many flushes cannot be merged; the log says why, and names the object.",
		func() float64 { return float64(a.merger.Clogged()) })
	i.gauge("varve_commits", "Flushes in etcd, which some shard in them has not merged.",
		func() float64 { n, _ := a.tails.Len(); return float64(n) })
}

func (a *Agent) measureCoordinator(i instruments) {
	i.gauge("varve_etcd_copy_age_seconds", "Of the controller: how old the state of etcd is that the bucket has a copy of, or for how long this agent has been the controller and made none; 0 of others.",
		func() float64 { return a.copier.Age().Seconds() })
	i.gauge("varve_etcd_db_bytes", "Size of etcd's database on disk, as the member that was asked has it; it does not shrink until it is defragmented.",
		func() float64 { return float64(a.space.status().SizeBytes) })
	i.gauge("varve_etcd_db_used_bytes", "How much of etcd's database is in use: keys, and their history of some minutes.",
		func() float64 { return float64(a.space.status().UsedBytes) })
	i.gauge("varve_etcd_quota_bytes", "Size at which etcd refuses writes; 0 if it does not say (before etcd 3.6).",
		func() float64 { return float64(a.space.status().QuotaBytes) })
	i.gauge("varve_etcd_no_space", "1 while etcd refuses writes because its quota is used up, until an operator has made room and disarmed the alarm; 0 otherwise.",
		func() float64 {
			if a.space.status().NoSpace {
				return 1
			}
			return 0
		})
}

func (a *Agent) measureReads(i instruments) {
	i.counter("varve_cache_hits_total", "Blocks of segments that a read found in memory or on their way.",
		func() float64 { st := a.blocks.Stats(); return float64(st.Hits + st.Joins) })
	i.counter("varve_cache_misses_total", "Blocks of segments that a read had to fetch, from the bucket, another agent of the zone, or disk.",
		func() float64 { return float64(a.blocks.Stats().Misses) })
	i.counter("varve_cache_gets_total", "Requests for blocks of segments, to the bucket, another agent of the zone, or disk, those ahead of reads included.",
		func() float64 { return float64(a.blocks.Stats().Gets) })
	i.counter("varve_cache_get_bytes_total", "Bytes that requests for blocks of segments brought.",
		func() float64 { return float64(a.blocks.Stats().GetBytes) })
	i.counter("varve_cache_failures_total", "Requests for blocks of segments that failed.",
		func() float64 { return float64(a.blocks.Stats().Failures) })
	i.counter("varve_cache_waits_total", "Reads that had to wait until other consumers took their answers, because those held all blocks.",
		func() float64 { return float64(a.blocks.Stats().Waits) })
	i.gauge("varve_cache_bytes", "Memory of the cache of blocks.",
		func() float64 { return float64(a.blocks.Stats().BlockBytes) })
	i.gauge("varve_cache_pinned_bytes", "Memory of the cache of blocks that answers on their way and GET requests hold.",
		func() float64 { return float64(a.blocks.Stats().PinnedBytes) })

	i.counter("varve_zone_asked_total", "Requests for blocks of segments that another agent of the zone answered, so that the bucket need not.",
		func() float64 { return float64(a.source.Stats().Answers) })
	i.counter("varve_zone_asked_bytes_total", "Bytes of blocks that came from other agents of the zone.",
		func() float64 { return float64(a.source.Stats().Bytes) })
	i.counter("varve_zone_fallbacks_total", "Requests for blocks that another agent of the zone did not answer, or not in time, so that the bucket was asked after all.",
		func() float64 { return float64(a.source.Stats().Fallbacks) })
	i.counter("varve_zone_served_total", "Requests for blocks that this agent answered for others of its zone.",
		func() float64 { return float64(a.zone.Served().Answers) })
	i.counter("varve_zone_served_bytes_total", "Bytes of blocks that this agent handed out to others of its zone.",
		func() float64 { return float64(a.zone.Served().Bytes) })
	i.counter("varve_zone_refused_total", "Requests for blocks by others of the zone that this agent refused: no memory, or the bucket did not answer in time.",
		func() float64 { return float64(a.zone.Served().Refusals) })
}
