package peer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/peer"
	"github.com/varve-io/varve/wal/quorum"
)

var (
	_ peer.Local = (*disk.Store)(nil)
	_ wal.Store  = (*peer.Appender)(nil)
	_ wal.Sealer = (*peer.Store)(nil)
)

func largeFiles(dc *disk.Config, _ *peer.ServerConfig) { dc.FileBytes = 2 << 20 }

// TestLife goes through what happens to a segment, with small entries, such as have a message for themselves, and rounds that
// are cut.
func TestLife(t *testing.T) {
	r := serve(t, disktest.New(1), largeFiles)
	s := r.dial(t, nil)
	a := create(t, s, segment)
	if a.FrameBytesMax() != r.FrameBytesMax() {
		t.Errorf("frames of at most %d bytes, the store says %d", a.FrameBytesMax(), r.FrameBytesMax())
	}
	next := frame.EntryID(1)
	for range 3 {
		bufs := [][]byte{framed(segment, next, 10, 300<<10, 20), framed(segment, next+3), framed(segment, next+3, 1<<20)}
		for range 20 {
			next += 4
			bufs = append(bufs, framed(segment, next, 10, 300<<10, 20), framed(segment, next+3, 500<<10))
		}
		must(t, a.Append(bufs), a.Append(nil))
		next += 4
	}
	wants(t, "read under the writer", s.Read(segment, 1, nil), disk.ErrLive)
	wants(t, "drop under the writer", s.Drop(segment), disk.ErrLive)
	must(t, a.Trim(20), a.Close(), a.Close())
	wants(t, "append after close", a.Append(nil), disk.ErrClosed)

	answer, err := s.Seal(segment, 6)
	must(t, err)
	if answer.First < 2 || answer.First > 21 || answer.Last != next-1 {
		t.Errorf("answer %+v, want to %d", answer, next-1)
	}
	checkRead(t, s, segment, answer.First, answer.Last)
	checkRead(t, s, segment, answer.Last-5, answer.Last)
	wants(t, "read what is trimmed", s.Read(segment, 1, nil), disk.ErrUnknown)
	infos, err := s.Segments()
	must(t, err)
	if !slices.Equal(infos, r.Segments()) || len(infos) != 1 {
		t.Errorf("segments %+v, want %+v", infos, r.Segments())
	}
	must(t, s.Drop(segment), s.Drop(segment))
	wants(t, "trim what is dropped", s.Trim(segment, 1), disk.ErrUnknown)
}

// TestKinds: errors of the store are told apart at the other end.
func TestKinds(t *testing.T) {
	d := disktest.New(1)
	r := serve(t, d, nil)
	s := r.dial(t, nil)
	a := create(t, s, segment)
	_, err := s.Create(t.Context(), segment, 5, 1)
	wants(t, "create twice", err, disk.ErrExists)
	wants(t, "append too large a frame", a.Append([][]byte{framed(segment, 1, fileBytes)}), disk.ErrTooLarge)
	_, err = s.Seal(segment, 5)
	wants(t, "seal with the writer's fence", err, disk.ErrFenced)
	_, err = s.Seal(frame.SegmentID{Log: 9, Number: 1}, 8)
	wants(t, "seal what is not there", err, disk.ErrUnknown)
	_, err = s.Create(t.Context(), frame.SegmentID{Log: 9, Number: 2}, 7, 1)
	wants(t, "create below the mark", err, disk.ErrFenced)
	if _, err = s.Create(t.Context(), frame.SegmentID{}, 5, 1); err == nil || errors.Is(err, peering.ErrUnreachable) {
		t.Errorf("create nothing: %v", err)
	}

	full := disktest.New(1)
	full.Capacity(fileBytes)
	_, err = serve(t, full, nil).dial(t, nil).Create(t.Context(), segment, 5, 1)
	wants(t, "create on a full disk", err, disk.ErrFull)

	must(t, r.Close())
	_, err = s.Seal(segment, 9)
	wants(t, "seal in a closed store", err, disk.ErrClosed)
}

func TestDamageIsReported(t *testing.T) {
	d := disktest.New(1)
	s, err := disk.Open(disk.Config{FS: d, FileBytes: fileBytes})
	must(t, err)
	a, err := s.Create(segment, 5, 1)
	must(t, err)
	for id := frame.EntryID(1); id <= 5; id++ {
		must(t, a.Append([][]byte{framed(segment, id, 100)}))
	}
	must(t, a.Close(), s.Close())
	d = d.Kill()
	names, err := d.Names()
	must(t, err)
	for _, name := range names {
		if h, err := frame.ParseFileHeader(d.Contents(name)); err == nil && !h.Free() {
			d.Damage(name, 3*frame.BlockBytes+100, 1) // entry 3
		}
	}
	r := serve(t, d, nil)
	_, there := r.Seal(segment, 6)
	_, err = r.dial(t, nil).Seal(segment, 6)
	want, _ := errors.AsType[*frame.CorruptError](there)
	got, ok := errors.AsType[*frame.CorruptError](err)
	if !ok || want == nil || *got != *want || want.First != 3 {
		t.Errorf("sealed: %v, want %v", err, there)
	}
}

type latch struct {
	sync.WaitGroup
	tb testing.TB
}

func (l *latch) Stored()          {}
func (l *latch) Durable()         { l.Done() }
func (l *latch) Failed(err error) { l.tb.Error(err); l.Done() }

// TestLog has a log write to a remote store alone, and read back from there.
func TestLog(t *testing.T) {
	s := serve(t, disktest.New(1), largeFiles).dial(t, nil)
	one := quorum.Size{Copies: 1, Quorum: 1}
	l, err := wal.New(wal.Config{Segment: segment, Fence: 5, First: 1, BytesMax: 16 << 20}, wal.Copy{Name: "away", Store: create(t, s, segment)})
	must(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	var want [][]byte
	done := &latch{tb: t}
	for i := range 3000 {
		entry := append(binary.BigEndian.AppendUint32(nil, uint32(i)), make([]byte, rng.IntN(3000))...)
		done.Add(1)
		_, err := l.Append(entry[:4], entry[4:], crc32c.Tail{}, done)
		must(t, err)
		if want = append(want, entry); i%100 == 99 {
			must(t, l.Prove(t.Context()))
		}
		if i == 2900 {
			l.Trim(2500)
			for first := frame.EntryID(1); first == 1; { // the log trims in its own time
				infos, err := s.Segments()
				must(t, err)
				first = infos[0].First
			}
		}
	}
	done.Wait()
	must(t, l.Close(t.Context()))
	sealed, err := wal.Seal(segment, 6, one, []wal.Sealer{s})
	must(t, err)
	if sealed.First < 2 || sealed.First > 2501 || sealed.Last != 3000 {
		t.Fatalf("sealed %d to %d", sealed.First, sealed.Last)
	}
	must(t, sealed.Read(sealed.First, func(id wal.EntryID, b []byte) error {
		if !bytes.Equal(b, want[id-1]) {
			t.Fatalf("entry %d differs", id)
		}
		return nil
	}))
}

// TestSharedMemory gives the same frames to the writer's own store and to another agent's at once: the one stamps what the other sends.
func TestSharedMemory(t *testing.T) {
	local, err := disk.Open(disk.Config{FS: disktest.New(1), FileBytes: fileBytes})
	must(t, err)
	own, err := local.Create(segment, 5, 1)
	must(t, err)
	s := serve(t, disktest.New(2), nil).dial(t, nil)
	other := create(t, s, segment)
	for first := frame.EntryID(1); first < 600; first += 3 {
		bufs := [][]byte{framed(segment, first, 10, 5000), framed(segment, first+2, 3000)}
		var there error
		var running sync.WaitGroup
		running.Go(func() { there = other.Append(bufs) })
		must(t, own.Append(bufs))
		running.Wait()
		must(t, there)
	}
	must(t, own.Close(), other.Close())
	checkRead(t, local, segment, 1, 600)
	checkRead(t, s, segment, 1, 600)
	must(t, local.Close())
}

// TestStall: a disk that hangs fails the append, and nothing else.
func TestStall(t *testing.T) {
	r := serve(t, disktest.New(1), nil)
	s := r.dial(t, func(cfg *peer.Config) { cfg.Stall = 2 * time.Second })
	a := create(t, s, segment)
	must(t, a.Append([][]byte{framed(segment, 1, 10)}))
	r.disk.Hold()
	appended := make(chan error)
	go func() { appended <- a.Append([][]byte{framed(segment, 2, 10)}) }()
	r.disk.AwaitHeld(1)
	must(t, a.Trim(1))
	_, err := s.Seal(frame.SegmentID{Log: 9, Number: 1}, 8)
	wants(t, "seal of another log", err, disk.ErrUnknown)
	err = <-appended
	wants(t, "append", err, peering.ErrUnreachable)
	wants(t, "append again", a.Append(nil), peering.ErrUnreachable)
	must(t, a.Close())

	// The seal of this segment waits for the append under way, as it must.
	hasty := r.dial(t, func(cfg *peer.Config) { cfg.Timeout = 50 * time.Millisecond })
	_, err = hasty.Seal(segment, 6)
	wants(t, "seal that waits", err, peering.ErrUnreachable)
	r.disk.Go()
	answer, err := s.Seal(segment, 6)
	must(t, err)
	if answer.Last != 2 {
		t.Errorf("answer %+v", answer)
	}
	checkRead(t, s, segment, 1, 2)
}

// TestFencedWhileAppending: the answer to a seal includes the append that was under way, and nothing follows.
func TestFencedWhileAppending(t *testing.T) {
	r := serve(t, disktest.New(1), nil)
	s := r.dial(t, nil)
	a := create(t, s, segment)
	r.disk.Hold()
	appended, last := make(chan error), make(chan frame.EntryID)
	go func() { appended <- a.Append([][]byte{framed(segment, 1, 10)}) }()
	r.disk.AwaitHeld(1)
	go func() {
		answer, err := s.Seal(segment, 6)
		if err != nil {
			t.Error(err)
		}
		last <- answer.Last
	}()
	for r.Fence(segment.Log) != 6 {
		runtime.Gosched()
	}
	r.disk.Go()
	must(t, <-appended)
	if got := <-last; got != 1 {
		t.Errorf("sealed to %d, 1 was acknowledged", got)
	}
	wants(t, "append after the seal", a.Append([][]byte{framed(segment, 2, 10)}), disk.ErrFenced)
	must(t, a.Close())
}

// TestCut ends the connection after so many bytes of an append. What was acknowledged is there, and the segment has no writer any more.
func TestCut(t *testing.T) {
	for _, whole := range []int{1, 11, 40, 60, 100, 5000, 9000} {
		left := -1 // bytes until the cut; negative for no cut
		write := func(b []byte) []byte {
			if left < 0 {
				return b
			}
			b = b[:min(left, len(b))]
			if left -= len(b); len(b) == 0 {
				return nil
			}
			return b
		}
		r := serve(t, disktest.New(1), nil)
		s := r.dial(t, through(t, write))
		a := create(t, s, segment)
		must(t, a.Append([][]byte{framed(segment, 1, 10)}))
		left = whole
		wants(t, "append", a.Append([][]byte{framed(segment, 2, 5000, 6000)}), peering.ErrUnreachable)
		must(t, r.stop())
		if infos := r.Segments(); infos[0].Live {
			t.Errorf("cut after %d bytes: the segment has a writer", whole)
		}
		answer, err := r.Seal(segment, 6)
		must(t, err)
		if answer.Last != 1 {
			t.Errorf("cut after %d bytes: answer %+v", whole, answer)
		}
		checkRead(t, r, segment, 1, 1)
	}
}

// TestDamageOnTheWay inverts each byte of an append in turn: none becomes durable.
func TestDamageOnTheWay(t *testing.T) {
	r := serve(t, disktest.New(1), func(_ *disk.Config, sc *peer.ServerConfig) { sc.Timeout = 5 * time.Second })
	at, sent := -1, 0
	s := r.dial(t, through(t, func(b []byte) []byte {
		if at >= sent && at < sent+len(b) {
			b = slices.Clone(b)
			b[at-sent] ^= 0x10
		}
		sent += len(b)
		return b
	}))
	const messageBytes = 12 + frame.UnplacedBytes + 2*(frame.EntryHeaderBytes+8+10)
	for i := range messageBytes {
		id := frame.SegmentID{Log: frame.LogID(i + 1), Number: 1}
		at = -1
		a := create(t, s, id)
		at, sent = i, 0
		err := a.Append([][]byte{framed(id, 1, 10, 10)})
		if !errors.Is(err, peering.ErrProtocol) && !errors.Is(err, peering.ErrUnreachable) {
			t.Errorf("byte %d: %v", i, err)
		}
		if sent != messageBytes {
			t.Fatalf("message of %d bytes, want %d", sent, messageBytes)
		}
		at = -1
		answer, err := s.Seal(id, 6)
		must(t, err)
		if answer.Last != 0 {
			t.Errorf("byte %d: %+v", i, answer)
		}
	}
}

// TestSlowReader: a peer that does not take what it asked for is cut off, and goes on later where it was.
func TestSlowReader(t *testing.T) {
	r := serve(t, disktest.New(1), func(dc *disk.Config, sc *peer.ServerConfig) {
		dc.FileBytes, sc.Timeout = 2<<20, 3*time.Second
	})
	s := r.dial(t, func(cfg *peer.Config) {
		cfg.Dialer = dialer(t, func(ctx context.Context, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err == nil {
				err = c.(*net.TCPConn).SetReadBuffer(64 << 10)
			}
			return c, err
		})
	})
	a := create(t, s, segment)
	const entries = 16
	for id := frame.EntryID(1); id <= entries; id++ {
		must(t, a.Append([][]byte{framed(segment, id, 1<<20)}))
	}
	must(t, a.Close())
	next := frame.EntryID(1)
	must(t, s.Read(segment, 1, func(id frame.EntryID, b []byte) error {
		if id != next || !bytes.Equal(b, content(id, 1<<20)) {
			t.Fatalf("entry %d where %d was due", id, next)
		}
		if next++; id == 2 {
			r.log.await("i/o timeout")
		}
		return nil
	}))
	if next != entries+1 {
		t.Errorf("read to %d", next-1)
	}
	stop := errors.New("stop")
	if err := s.Read(segment, 1, func(frame.EntryID, []byte) error { return stop }); err != stop { //nolint:errorlint // as it is
		t.Errorf("read that the visitor ended: %v", err)
	}
}

// TestRestart: connections that wait in the pool outlive the server only in the client's mind.
func TestRestart(t *testing.T) {
	r := serve(t, disktest.New(1), nil)
	address := r.address // and then another: somebody else may have this port by then
	s := r.dial(t, func(cfg *peer.Config) {
		cfg.Timeout = 2 * time.Second
		cfg.Dialer = dialer(t, func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		})
	})
	a := create(t, s, segment)
	must(t, s.Trim(segment, 0), r.stop())
	wants(t, "append", a.Append(nil), peering.ErrUnreachable)
	server, elsewhere := listen(t, r.Identity(), peer.ServerConfig{Store: r})
	address = elsewhere
	must(t, s.Trim(segment, 0), s.Trim(segment, 0), s.Drop(segment), server.Close(t.Context()))
	wants(t, "segments without a server", func() error { _, err := s.Segments(); return err }(), peering.ErrUnreachable)
}

// TestClose: whatever waits for an answer is told.
func TestClose(t *testing.T) {
	r := serve(t, disktest.New(1), nil)
	s := r.dial(t, nil)
	a := create(t, s, segment)
	r.disk.Hold()
	appended := make(chan error)
	go func() { appended <- a.Append([][]byte{framed(segment, 1, 10)}) }()
	r.disk.AwaitHeld(1)
	s.Close()
	wants(t, "append", <-appended, disk.ErrClosed)
	wants(t, "trim", s.Trim(segment, 1), disk.ErrClosed)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wants(t, "close of the server while its disk hangs", r.server.Close(ctx), context.Canceled)
	r.disk.Go()
	_, err := s.Create(ctx, segment, 5, 1)
	wants(t, "create", err, context.Canceled)
}

// TestCloseWhileConnecting: nobody waits for a connection that is being made.
func TestCloseWhileConnecting(t *testing.T) {
	for name, dial := range map[string]func(ctx context.Context, begun func()) (net.Conn, error){
		"dial": func(ctx context.Context, begun func()) (net.Conn, error) {
			begun()
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"handshake": func(_ context.Context, begun func()) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				_, _ = far.Read(make([]byte, 1000))
				begun()
			}()
			return near, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			begun, sealed := make(chan struct{}), make(chan error)
			s := peer.NewStore(peer.Config{
				Address: "nowhere:1", Timeout: time.Hour,
				Dialer: dialer(t, func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, func() { close(begun) }) }),
			})
			go func() {
				_, err := s.Seal(segment, 6)
				sealed <- err
			}()
			<-begun
			s.Close()
			wants(t, "seal", <-sealed, disk.ErrClosed)
		})
	}
}
