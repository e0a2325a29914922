package peer_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/peer"
)

// pipes is a network without sockets, for tests in which time is not the machine's.
type pipes struct {
	conns chan net.Conn
	ended chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.ended)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial(context.Context, string) (net.Conn, error) {
	near, far := net.Pipe()
	p.conns <- far
	return near, nil
}

// laggard is a store with something in the way of its reads.
type laggard struct {
	*disk.Store
	begin func()                    // before a read
	pause func(frame.EntryID) error // before an entry, from the segment's first one on, whatever is asked for: so a store reads
}

func (l *laggard) Read(id frame.SegmentID, from frame.EntryID, visit func(frame.EntryID, []byte) error) error {
	l.begin()
	first := l.Segments()[0].First
	if from < first {
		return l.Store.Read(id, from, visit)
	}
	return l.Store.Read(id, first, func(id frame.EntryID, b []byte) error {
		if err := l.pause(id); err != nil || id < from {
			return err
		}
		return visit(id, b)
	})
}

func (l *laggard) stop(server *peering.Server) error {
	return errors.Join(server.Close(context.Background()), l.Store.Close())
}

const laggardEntries = 12

// bubble calls test with a segment of 12 entries, in a store that is slow in its way, as another agent sees it; in a bubble of synctest.
func bubble(t *testing.T, l *laggard, test func(t *testing.T, s *peer.Store)) {
	synctest.Test(t, func(t *testing.T) {
		var err error
		l.Store, err = disk.Open(disk.Config{FS: disktest.New(1), FileBytes: fileBytes})
		must(t, err)
		server := handle(t, l.Identity(), peer.ServerConfig{Store: l})
		p := &pipes{conns: make(chan net.Conn), ended: make(chan struct{})}
		go func() { _ = server.Serve(p) }()
		t.Cleanup(func() { must(t, l.stop(server)) })
		s := peer.NewStore(peer.Config{Address: "far:1", Identity: l.Identity(), Dialer: dialer(t, p.dial)})
		t.Cleanup(s.Close)
		a := create(t, s, segment)
		for id := frame.EntryID(1); id <= laggardEntries; id++ {
			must(t, a.Append([][]byte{framed(segment, id, 20<<10)}))
		}
		must(t, a.Close())
		test(t, s)
	})
}

// TestLongRead: a read takes as long as the store reads, also before the first entry that is asked for.
func TestLongRead(t *testing.T) {
	l := &laggard{begin: func() {}, pause: func(frame.EntryID) error {
		time.Sleep(4 * time.Second) // the limit for any step is 10 s
		return nil
	}}
	bubble(t, l, func(t *testing.T, s *peer.Store) {
		checkRead(t, s, segment, 10, laggardEntries)
		checkRead(t, s, segment, 1, laggardEntries)
	})
}

// TestHangingRead: a read whose store does not get on ends, whether it has come to what was asked for or not.
func TestHangingRead(t *testing.T) {
	l := &laggard{begin: func() {}, pause: func(id frame.EntryID) error {
		if id == 3 {
			time.Sleep(time.Hour)
		}
		return nil
	}}
	bubble(t, l, func(t *testing.T, s *peer.Store) {
		for _, from := range []frame.EntryID{1, 10} {
			began := time.Now()
			err := s.Read(segment, from, func(frame.EntryID, []byte) error { return nil })
			wants(t, "read", err, peering.ErrUnreachable)
			if took := time.Since(began); took > 30*time.Second {
				t.Errorf("read from %d ended after %s", from, took)
			}
		}
	})
}

// TestReadWhileTrimmed: that earlier entries go when a read begins is no matter.
func TestReadWhileTrimmed(t *testing.T) {
	l := &laggard{pause: func(frame.EntryID) error { return nil }}
	l.begin = func() {
		if err := l.Trim(segment, laggardEntries-4); err != nil {
			t.Error(err)
		}
	}
	bubble(t, l, func(t *testing.T, s *peer.Store) {
		checkRead(t, s, segment, laggardEntries-3, laggardEntries)
		wants(t, "read what is trimmed", s.Read(segment, 1, nil), disk.ErrUnknown)
	})
}

// TestSlowReaders: however many read, and however slowly, nothing else waits for them.
func TestSlowReaders(t *testing.T) {
	r := serve(t, disktest.New(1), nil)
	s := r.dial(t, nil)
	a := create(t, s, segment)
	must(t, a.Append([][]byte{framed(segment, 1, 10)}), a.Close())
	const readers = 8
	visiting, enough := make(chan struct{}), make(chan struct{})
	var running sync.WaitGroup
	for range readers {
		running.Go(func() {
			err := s.Read(segment, 1, func(frame.EntryID, []byte) error {
				visiting <- struct{}{}
				<-enough
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	for range readers {
		<-visiting
	}
	_, err := s.Seal(segment, 6)
	other := frame.SegmentID{Log: 8, Number: 1}
	a = create(t, s, other)
	err = errors.Join(err, a.Append([][]byte{framed(other, 1, 10)}), a.Trim(1), a.Close())
	close(enough)
	running.Wait()
	must(t, err)
}
