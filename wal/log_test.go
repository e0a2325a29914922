package wal_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/quorum"
)

var one = quorum.Size{Copies: 1, Quorum: 1}

func openStore(tb testing.TB, dir string, fileBytes int64) *disk.Store {
	tb.Helper()
	s, err := disk.Open(disk.Config{Dir: dir, FileBytes: fileBytes})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func newLog(tb testing.TB, s *disk.Store, cfg wal.Config) *wal.Log {
	tb.Helper()
	cfg.Segment, cfg.Fence, cfg.First = wal.SegmentID{Log: 1, Number: 1}, 1, 1
	a, err := s.Create(cfg.Segment, cfg.Fence, cfg.First)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := wal.New(cfg, wal.Copy{Name: "own", Store: a})
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

type latch struct {
	sync.WaitGroup
	tb testing.TB
}

func (l *latch) Stored()          {}
func (l *latch) Durable()         { l.Done() }
func (l *latch) Failed(err error) { l.tb.Error(err); l.Done() }

func TestAppendCloseSealRead(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, 1<<20)
	l := newLog(t, s, wal.Config{BytesMax: 16 << 20})
	rng := rand.New(rand.NewPCG(1, 2))
	var want [][]byte
	done := &latch{tb: t}
	for i := range 2000 {
		n := rng.IntN(3000)
		payload := bytes.Repeat([]byte{byte(i)}, n)
		head := binary.BigEndian.AppendUint32(nil, uint32(i))
		adm, err := l.Admit(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		done.Add(1)
		ref, err := l.Append(head, payload, crc32c.Tail{}, done)
		if err != nil {
			t.Fatal(err)
		}
		adm.Done()
		if !bytes.Equal(ref.Payload, payload) || ref.Entry != wal.EntryID(i+1) {
			t.Fatalf("entry %d: ref %d with %d bytes, want %d", i+1, ref.Entry, len(ref.Payload), n)
		}
		want = append(want, append(head, payload...))
		if i%100 == 99 {
			done.Wait()
		}
	}
	done.Wait()
	if err := l.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.Durable() != 2000 {
		t.Fatalf("durable %d", l.Durable())
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	sealed, err := wal.Seal(wal.SegmentID{Log: 1, Number: 1}, 2, one, []wal.Sealer{s})
	if err != nil {
		t.Fatal(err)
	}
	if sealed.First != 1 || sealed.Last != 2000 {
		t.Fatalf("sealed %d-%d", sealed.First, sealed.Last)
	}
	if err := sealed.Read(1, func(id wal.EntryID, b []byte) error {
		if !bytes.Equal(b, want[id-1]) {
			t.Fatalf("entry %d differs", id)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
