package agent

import (
	"context"
	"errors"
	"time"

	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/objectstore/diskcache"
)

// diskCloseMax is how long the end of an agent waits for the disk cache's file to be removed.
const diskCloseMax = 5 * time.Second

var errDiskLate = errors.New("the disk takes too long")

// openDiskCache puts a cache on disk in front of the bucket, if one is configured, until the incarnation ends. One that cannot be made is done without: all that it does is to save requests.
func (a *Agent) openDiskCache(run context.Context, bucket cache.Source) cache.Source {
	cfg := a.cfg.DiskCache
	if cfg.BytesMax == 0 {
		return bucket
	}
	cfg.Log = a.log
	disk, err := diskcache.Open(cfg, bucket)
	if err != nil {
		a.log.Error("there is no disk cache", "folder", cfg.Folder, "err", err)
		return bucket
	}
	a.disk = disk
	a.spawn(run, "remove the disk cache at the end", func(ctx context.Context) error {
		<-ctx.Done()
		closed := make(chan error, 1)
		go func() { closed <- disk.Close() }()
		err := errDiskLate
		select {
		case err = <-closed:
		case <-time.After(diskCloseMax):
		}
		if err != nil {
			a.log.Warn("the disk cache is not removed; the next start does", "folder", cfg.Folder, "err", err)
		}
		return nil
	})
	return disk
}

// measureDiskCache registers what the disk cache counts, if there is one.
func (a *Agent) measureDiskCache(i instruments) {
	if a.disk == nil {
		return
	}
	i.counter("varve_disk_cache_hits_total", "Requests for blocks of segments that were answered from disk, so that the bucket need not.",
		func() float64 { return float64(a.disk.Stats().Hits) })
	i.counter("varve_disk_cache_hit_bytes_total", "Bytes of blocks that came from disk.",
		func() float64 { return float64(a.disk.Stats().HitBytes) })
	i.counter("varve_disk_cache_misses_total", "Requests for blocks of segments that the bucket was asked, because they were not on disk, or not whole.",
		func() float64 { return float64(a.disk.Stats().Misses) })
	i.counter("varve_disk_cache_written_bytes_total", "Bytes of blocks that were written to disk.",
		func() float64 { return float64(a.disk.Stats().WrittenBytes) })
	i.counter("varve_disk_cache_skips_total", "Requests that brought blocks which were not kept on disk, because it was busy, failing or full.",
		func() float64 { return float64(a.disk.Stats().Skips) })
	i.counter("varve_disk_cache_evictions_total", "Blocks on disk that went for others, or for room on the disk.",
		func() float64 { return float64(a.disk.Stats().Evictions) })
	i.counter("varve_disk_cache_damages_total", "Requests that found a block damaged on disk, and asked the bucket.",
		func() float64 { return float64(a.disk.Stats().Damages) })
	i.counter("varve_disk_cache_failures_total", "Reads and writes of blocks on disk that failed, or took too long.",
		func() float64 { return float64(a.disk.Stats().Failures) })
	i.gauge("varve_disk_cache_bytes", "Length of the file of blocks.",
		func() float64 { return float64(a.disk.Stats().Bytes) })
}
