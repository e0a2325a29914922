package peer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/peer"
	"github.com/varve-io/varve/wal/quorum"
)

// rolling rolls a log to its own store and others, and remembers where the segment begins.
type rolling struct {
	own    *disk.Store
	others []*peer.Store
	first  wal.EntryID
}

func (r *rolling) Open(id wal.SegmentID, first wal.EntryID) ([]wal.Copy, error) {
	a, err := r.own.Create(id, 5, first)
	if err != nil {
		return nil, err
	}
	copies := []wal.Copy{{Name: "own", Store: a}}
	for _, s := range r.others {
		a, err := s.Create(context.Background(), id, 5, first)
		if err != nil {
			return nil, err
		}
		copies = append(copies, wal.Copy{Name: s.Identity().String(), Store: a})
	}
	return copies, nil
}

func (r *rolling) List(first wal.EntryID) error {
	r.first = first
	return nil
}

// TestReplicatedLog has a log write to its own disk and to two other agents under load; one of them goes, the log goes on and rolls to a fourth; then the writer's
// own disk is lost, and everything is found on the others.
func TestReplicatedLog(t *testing.T) {
	own, err := disk.Open(disk.Config{FS: disktest.New(1), FileBytes: 2 << 20})
	must(t, err)
	remotes := make([]*remote, 3)
	stores := make([]*peer.Store, 3)
	for i := range remotes {
		remotes[i] = serve(t, disktest.New(uint64(2+i)), largeFiles)
		stores[i] = remotes[i].dial(t, nil)
	}
	first := &rolling{own: own, others: stores[:2]}
	copies, err := first.Open(segment, 1)
	must(t, err)
	lost := make(chan string, 8)
	l, err := wal.New(wal.Config{
		Segment: segment, Fence: 5, First: 1, Quorum: 2, BytesMax: 256 << 20,
		OnLost: func(_ uint32, name string, _ error) { lost <- name },
	}, copies...)
	must(t, err)

	done := &latch{tb: t}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 2 {
		writers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				done.Add(1)
				if _, err := l.Append(nil, binary.BigEndian.AppendUint32(bytes.Repeat([]byte{7}, 2000), uint32(n)), crc32c.Tail{}, done); err != nil {
					t.Error(err)
					return
				}
				if n%20 > 0 {
					continue
				}
				if err := l.Prove(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	must(t, l.Prove(t.Context()), remotes[0].server.Close(t.Context()))
	if name := <-lost; name != stores[0].Identity().String() {
		t.Errorf("lost %s", name)
	}
	must(t, l.Prove(t.Context()))
	second := &rolling{own: own, others: stores[1:]}
	size := quorum.Size{Copies: 3, Quorum: 2}
	must(t, l.Roll(2, size, second))
	done.Add(1)
	_, err = l.Append(nil, make([]byte, 2004), crc32c.Tail{}, done) // the writers may have ended by chance
	must(t, err, l.Prove(t.Context()))
	close(stop)
	writers.Wait()
	done.Wait()
	must(t, l.Close(t.Context()))

	last := l.Durable()
	if second.first < 2 || second.first > last {
		t.Fatalf("rolled before entry %d of %d", second.first, last)
	}
	next := frame.EntryID(1)
	for i, s := range []struct {
		id      wal.SegmentID
		last    wal.EntryID
		sealers []wal.Sealer
	}{
		{segment, second.first - 1, []wal.Sealer{nil, nil, stores[1]}},
		{wal.SegmentID{Log: segment.Log, Number: 2}, last, []wal.Sealer{nil, stores[1], stores[2]}},
	} {
		size := quorum.Size{Copies: 3, Quorum: 2}
		if i == 0 {
			size.Quorum = 3 // it was rolled away: one store that has all up to where it ends is enough
		}
		sealed, err := wal.Seal(s.id, 6, size, s.sealers)
		must(t, err)
		if sealed.Last < s.last {
			t.Fatalf("segment %s ends with %d, want %d", s.id, sealed.Last, s.last)
		}
		sealed.Last = s.last
		must(t, sealed.Read(next, func(id wal.EntryID, b []byte) error {
			if id != next || len(b) != 2004 {
				t.Errorf("entry %d of %d bytes, want entry %d", id, len(b), next)
			}
			next++
			return nil
		}))
	}
	if next != last+1 {
		t.Errorf("found entries to %d of %d", next-1, last)
	}
}
