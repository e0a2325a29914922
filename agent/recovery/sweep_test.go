package recovery_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/agent/recovery"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
)

// fill puts a segment of log 5 on a disk, with one entry or none, and leaves it open if it lives.
func fill(t *testing.T, d *disk.Store, number uint32, entries int, lives bool) {
	t.Helper()
	id := wal.SegmentID{Log: 5, Number: number}
	a, err := d.Create(id, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		h := frame.Header{Segment: id, Fence: 1, First: wal.EntryID(i + 1)}
		memory := disk.Aligned(frame.BlockBytes)
		h.Put(memory[frame.HeaderBytes:], nil, []byte("acknowledged"), crc32c.Tail{})
		frame.Finish(memory, &h)
		if err := a.Append([][]byte{memory}); err != nil {
			t.Fatal(err)
		}
	}
	if lives {
		return
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, kv *mem.Store, key string, value any) {
	t.Helper()
	if _, err := kv.Txn(t.Context(), nil, []coordinator.Op{{Key: key, Value: coordinator.Encode(value)}}); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, kv *mem.Store) coordinator.Logs {
	t.Helper()
	logs, err := coordinator.ListLogs(t.Context(), kv, 0)
	if err != nil {
		t.Fatal(err)
	}
	return logs
}

// TestSweep holds what a disk may forget of segment 3 of a log.
func TestSweep(t *testing.T) {
	segment := func(number uint32, last int64, stores ...string) coordinator.WALSegment {
		return coordinator.WALSegment{Number: number, First: 1, Last: last, Stores: stores, Quorum: 1}
	}
	since := func(from, to coordinator.LogID) coordinator.Cluster {
		return coordinator.Cluster{Restored: to, Since: []coordinator.LogRange{{From: from, To: to}}}
	}
	const own = "own" // stands for the disk's identity
	for name, test := range map[string]struct {
		log      *coordinator.Log // nil: it has no record
		past     bool             // the mark is above it
		starting bool
		entries  int
		lives    bool
		cluster  coordinator.Cluster
		lost     coordinator.LogID // of which an operator has said so
		dropped  bool
		refused  bool
	}{
		"open segment":                                                 {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(3, -1, own)}}, entries: 1},
		"open segment at the start":                                    {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(3, -1, own)}}, entries: 1, starting: true},
		"rolled away and not flushed":                                  {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(3, 1, own), segment(4, -1, "b")}}, entries: 1},
		"rolled away and flushed":                                      {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(4, -1, "b")}}, entries: 1, dropped: true},
		"above the newest, about to be listed":                         {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(2, -1, own)}}, entries: 1},
		"above the newest, at the start":                               {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(2, -1, own)}}, entries: 1, starting: true},
		"tried, and another one taken instead":                         {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(2, 9, own), segment(4, -1, own)}}, dropped: true},
		"log closed":                                                   {log: &coordinator.Log{Closed: true, Segments: []coordinator.WALSegment{segment(3, -1, own)}}, entries: 1, dropped: true},
		"log closed, its writer lives":                                 {log: &coordinator.Log{Closed: true, Segments: []coordinator.WALSegment{segment(3, -1, own)}}, entries: 1, lives: true},
		"unknown log":                                                  {entries: 1},
		"unknown log without entries":                                  {},
		"unknown log without entries, at a start":                      {starting: true}, // a transaction may still list it
		"unknown log that lives, at a start":                           {starting: true, lives: true},
		"unknown log at the start":                                     {starting: true, entries: 1, refused: true},
		"another cluster's":                                            {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(3, -1, "b")}}, entries: 1},
		"another cluster's at the start":                               {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(3, -1, "b")}}, entries: 1, starting: true, refused: true},
		"another cluster's, closed, at the start":                      {log: &coordinator.Log{Closed: true, Segments: []coordinator.WALSegment{segment(3, -1, "b")}}, entries: 1, starting: true, refused: true},
		"record without segments":                                      {log: &coordinator.Log{}, entries: 1},
		"log closed and forgotten":                                     {past: true, entries: 1, dropped: true},
		"log closed and forgotten, at the start":                       {past: true, entries: 1, starting: true, dropped: true},
		"log forgotten, its writer lives":                              {past: true, entries: 1, lives: true},
		"open segment of a log below the mark":                         {log: &coordinator.Log{Segments: []coordinator.WALSegment{segment(3, -1, own)}}, past: true, entries: 1},
		"opened after the copy, and the mark is above it":              {past: true, entries: 1, cluster: since(5, 9)},
		"opened after the copy, at the start":                          {past: true, entries: 1, cluster: since(5, 9), starting: true, refused: true},
		"opened after the copy, and another is given up":               {past: true, entries: 1, cluster: since(5, 9), lost: 6, starting: true, refused: true},
		"opened after the copy, and given up":                          {past: true, entries: 1, cluster: since(5, 9), lost: 5, starting: true, dropped: true},
		"opened after the copy, and given up before the mark is above": {entries: 1, cluster: since(5, 9), lost: 5, starting: true, dropped: true},
		"opened after the copy of an earlier restore, at the start":    {past: true, entries: 1, cluster: coordinator.Cluster{Restored: 9, Since: []coordinator.LogRange{{From: 4, To: 6}, {From: 7, To: 9}}}, starting: true, refused: true},
		"forgotten between two restores":                               {past: true, entries: 1, cluster: coordinator.Cluster{Restored: 9, Since: []coordinator.LogRange{{From: 4, To: 5}, {From: 7, To: 9}}}, starting: true, dropped: true},
		"opened after the copy, which shows, so that it is closed":     {log: &coordinator.Log{Closed: true}, entries: 1, cluster: since(5, 9), starting: true, dropped: true},
		"forgotten before the copy":                                    {past: true, entries: 1, cluster: since(6, 9), starting: true, dropped: true},
		"forgotten, of after the restore":                              {past: true, entries: 1, cluster: since(1, 5), starting: true, dropped: true},
		"unknown, of after the restore, though it is said to be lost":  {entries: 1, cluster: since(1, 5), lost: 5, starting: true, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := disk.Open(disk.Config{FS: disktest.New(1), FileBytes: 64 << 10})
			if err != nil {
				t.Fatal(err)
			}
			fill(t, d, 3, test.entries, test.lives)
			kv := mem.New(mem.Config{})
			mark := coordinator.LogID(5)
			if test.past {
				mark++
			}
			put(t, kv, coordinator.KeyPastLog, mark)
			if test.log != nil {
				l := *test.log
				l.ID = 5
				for i := range l.Segments {
					if n := slices.Index(l.Segments[i].Stores, own); n >= 0 {
						l.Segments[i].Stores[n] = d.Identity().String()
					}
				}
				put(t, kv, coordinator.KeyLog(5), l)
			}
			unlisted, err := recovery.Sweep(d, d.Segments(), list(t, kv), test.cluster, test.lost)
			if err == nil && test.starting {
				err = recovery.CheckUnlisted(d, unlisted)
			}
			if refused := err != nil; refused != test.refused || refused && !strings.Contains(err.Error(), "is this the right cluster?") {
				t.Errorf("sweep: %v", err)
			}
			if dropped := len(d.Segments()) == 0; dropped != test.dropped {
				t.Errorf("the disk holds %+v", d.Segments())
			}
		})
	}
}

// TestSweepLater: what came to the disk after it was looked at stays, whatever the logs say; what went meanwhile does no harm.
func TestSweepLater(t *testing.T) {
	d, err := disk.Open(disk.Config{FS: disktest.New(1), FileBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, d, 3, 1, false)
	held := d.Segments()
	if err := d.Drop(held[0].ID); err != nil {
		t.Fatal(err)
	}
	fill(t, d, 4, 1, false)
	kv := mem.New(mem.Config{})
	put(t, kv, coordinator.KeyLog(5), coordinator.Log{ID: 5, Closed: true})
	if _, err := recovery.Sweep(d, held, list(t, kv), coordinator.Cluster{}, 0); err != nil {
		t.Error(err)
	}
	if left := d.Segments(); len(left) != 1 || left[0].ID.Number != 4 {
		t.Errorf("the disk holds %+v", left)
	}
}
