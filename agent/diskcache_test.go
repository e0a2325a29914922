package agent_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/protocol"
)

// gets reads a topic's partitions up to offset to from each agent in turn, and returns how many blocks the bucket was asked for meanwhile.
func (c *cluster) gets(t *testing.T, topic string, partitions int32, to protocol.Offset) int {
	t.Helper()
	c.bucket.mu.Lock()
	clear(c.bucket.blocks)
	c.bucket.mu.Unlock()
	for _, m := range c.members {
		readAt(t, m, topic, partitions, to)
	}
	c.bucket.mu.Lock()
	defer c.bucket.mu.Unlock()
	return len(c.bucket.blocks)
}

// TestDiskCache: old records that were read once are read from the disks of a zone's agents from then on, however often their memory is used for others in between; and without such disks from the bucket, each time.
func TestDiskCache(t *testing.T) {
	const partitions, n = 6, 1000
	for name, bytes := range map[string]int64{"with": 64 << 20, "without": 0} {
		t.Run(name, func(t *testing.T) {
			folder, agents := t.TempDir(), 0
			c := newCluster(t, func(cfg *agent.Config) {
				cfg.Flush.SegmentBytes, cfg.Flush.AgeMax, cfg.WALCacheBytes = 3<<19, 500*time.Millisecond, 1
				cfg.CacheBytesMax = 4 << 20 // less than what is read, in the same order each time: nothing is in memory when it is wanted again
				agents++
				cfg.DiskCache.Folder, cfg.DiskCache.BytesMax = filepath.Join(folder, fmt.Sprint(agents)), bytes
			}, "a", "a")
			c.create(t, "old", partitions)
			c.produce(t, "old", partitions, 0, n, strings.Repeat("x", 1000))
			c.awaitCommits(t, "old", n)
			if c.gets(t, "old", partitions, n) == 0 {
				t.Fatal("nothing was read from the bucket")
			}
			if bytes == 0 {
				for range 3 {
					if c.gets(t, "old", partitions, n) == 0 {
						t.Error("nothing was read from the bucket again")
					}
				}
				return
			}
			// A disk that is busy with something else keeps nothing, for now.
			for begin := time.Now(); c.gets(t, "old", partitions, n) > 0; {
				if time.Since(begin) > 2*time.Minute {
					t.Fatal("the bucket is asked again and again")
				}
			}
		})
	}
}
