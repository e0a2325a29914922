package agent_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/frame"
)

// fullFolder is a folder on a full disk: no file can be made. What is there can be written over.
type fullFolder struct{ disk.Folder }

func (f fullFolder) Open(name string, create, direct bool) (disk.File, error) {
	file, err := f.Folder.Open(name, false, direct)
	if create && errors.Is(err, os.ErrNotExist) {
		return nil, disk.ErrFull
	}
	return file, err
}

// removeSpare removes the WAL files of a folder that hold nothing which a log lists.
func removeSpare(t *testing.T, dir string, logs []coordinator.Log) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		header, err := frame.ParseFileHeader(b[:frame.BlockBytes])
		if err != nil {
			t.Fatal(err)
		}
		needed := slices.ContainsFunc(logs, func(l coordinator.Log) bool {
			return header.Segment.Log == frame.LogID(l.ID) && slices.ContainsFunc(l.Segments, func(s coordinator.WALSegment) bool { return s.Number == header.Segment.Number })
		})
		if needed {
			continue
		}
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAllDisksFull: agents whose disks have filled up while all were away say so, recover what is on them, and begin their logs where that was.
func TestAllDisksFull(t *testing.T) {
	// Each log is on both disks, which have room for two.
	c := newCluster(t, func(cfg *agent.Config) { cfg.Copies, cfg.Flush.AgeMax = 2, time.Hour }, "a", "b")
	c.create(t, "t", 12)
	c.produce(t, "t", 12, 0, 100, "")
	c.killAll()
	logs, err := coordinator.ListLogs(t.Context(), c.kv, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, revision, err := c.kv.Get(t.Context(), coordinator.KeyCluster)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.members {
		removeSpare(t, m.dir, logs.Records)
		m.fs = fullFolder{disk.Folder(m.dir)}
	}
	c.startAll(t)
	expect(t, c.client(t, kgo.ConsumeTopics("t")), make([]int64, 12), 100)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	full := make(map[int32]bool)
	_ = c.kv.Watch(ctx, coordinator.PrefixAgents, revision, func(b coordinator.Batch) {
		for _, e := range b.Events {
			a, err := coordinator.Decode[coordinator.Agent](e.Item)
			switch {
			case e.Deleted || err != nil:
			case a.Full:
				full[a.Node] = true
			case full[a.Node]: // and no longer
				cancel()
			}
		}
	})
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("nodes %v say that their disks are full, and none that it is no longer", slices.Sorted(maps.Keys(full)))
	}
}
