package peer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/peer"
)

const fileBytes = 64 << 10

var (
	segment     = frame.SegmentID{Log: 7, Number: 1}
	credentials = peering.Credentials{Cluster: uuid.UUID{1, 2, 3}, Secret: []byte("sixteen bytes of secret, and more")}
)

// remote is an agent with a store that it serves.
type remote struct {
	*disk.Store
	disk    *disktest.Disk
	server  *peering.Server
	address string
	log     *lines
}

// serve starts an agent. It ends with the test, and must leave nothing behind.
func serve(tb testing.TB, d *disktest.Disk, change func(*disk.Config, *peer.ServerConfig)) *remote {
	tb.Helper()
	log := newLines()
	dc := disk.Config{FS: d, FileBytes: fileBytes}
	sc := peer.ServerConfig{Logger: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&dc, &sc)
	}
	s, err := disk.Open(dc)
	must(tb, err)
	sc.Store = s
	r := &remote{Store: s, disk: d, log: log}
	r.server, r.address = listen(tb, s.Identity(), sc)
	tb.Cleanup(func() { must(tb, r.stop(), s.Close()) })
	return r
}

// listen serves a store at an address, until the server is closed.
func listen(tb testing.TB, identity uuid.UUID, sc peer.ServerConfig) (*peering.Server, string) {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	must(tb, err)
	s := handle(tb, identity, sc)
	go func() {
		if err := s.Serve(l); err != nil {
			tb.Error(err)
		}
	}()
	return s, l.Addr().String()
}

// handle makes a server with a store.
func handle(tb testing.TB, identity uuid.UUID, sc peer.ServerConfig) *peering.Server {
	tb.Helper()
	s, err := peering.NewServer(peering.ServerConfig{Identity: identity, Credentials: credentials, Timeout: sc.Timeout, Logger: sc.Logger})
	must(tb, err)
	s.Handle(peer.ServiceName, 256, peer.NewServer(sc).Serve)
	return s
}

// dialer connects as a test wants it; nil for TCP.
func dialer(tb testing.TB, connect func(ctx context.Context, address string) (net.Conn, error)) *peering.Dialer {
	tb.Helper()
	d, err := peering.NewDialer(peering.DialerConfig{Credentials: credentials, Connect: connect})
	must(tb, err)
	return d
}

// stop closes the server.
func (r *remote) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return r.server.Close(ctx)
}

// TestMain looks whether a server left something behind when it was closed.
func TestMain(m *testing.M) {
	status := m.Run()
	left := goroutines()
	for deadline := time.Now().Add(10 * time.Second); left != "" && time.Now().Before(deadline); left = goroutines() {
		runtime.Gosched() // some may be at their very end
	}
	if left != "" {
		fmt.Println("goroutines are left:", left)
		status = max(status, 1)
	}
	os.Exit(status)
}

// goroutines tells those of the room; empty for none.
func goroutines() string {
	var b strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil || strings.Contains(b.String(), `"varve":"peer-`) {
		return fmt.Sprint(err, b.String())
	}
	return ""
}

// dial gives another agent's view of the store.
func (r *remote) dial(tb testing.TB, change func(*peer.Config)) *peer.Store {
	tb.Helper()
	// A store that is merely slow, as on a busy machine, is no failure but where a test says so.
	cfg := peer.Config{Address: r.address, Identity: r.Identity(), Dialer: dialer(tb, nil), Stall: time.Minute}
	if change != nil {
		change(&cfg)
	}
	s := peer.NewStore(cfg)
	tb.Cleanup(s.Close)
	return s
}

func create(tb testing.TB, s *peer.Store, id frame.SegmentID) *peer.Appender {
	tb.Helper()
	a, err := s.Create(tb.Context(), id, 5, 1)
	must(tb, err)
	return a
}

func must(tb testing.TB, errs ...error) {
	tb.Helper()
	if err := errors.Join(errs...); err != nil {
		tb.Fatal(err)
	}
}

// wants checks the kind of an error.
func wants(tb testing.TB, what string, err, kind error) {
	tb.Helper()
	if !errors.Is(err, kind) {
		tb.Errorf("%s: %v; want: %v", what, err, kind)
	}
}

// content is what entry id holds in these tests, with n more bytes.
func content(id frame.EntryID, n int) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(id))
	return append(b, bytes.Repeat([]byte{byte(id)}, n)...)
}

// framed makes a frame of the segment, with fence 5, of entries from first on, with sizes as given.
func framed(id frame.SegmentID, first frame.EntryID, sizes ...int) []byte {
	body := int64(0)
	for _, n := range sizes {
		body += frame.EntryHeaderBytes + 8 + int64(n)
	}
	n := frame.Padded(frame.HeaderBytes + body)
	b := bytes.Repeat([]byte{0xee}, int(n)+frame.BlockBytes)
	skip := -int64(uintptr(unsafe.Pointer(&b[0]))) & (frame.BlockBytes - 1)
	b = b[skip : skip+n]
	h := frame.Header{Segment: id, Fence: 5, First: first}
	at := frame.HeaderBytes
	for i, n := range sizes {
		at += h.Put(b[at:], nil, content(first+frame.EntryID(i), n), crc32c.Tail{})
	}
	frame.Finish(b, &h)
	return b
}

type reader interface {
	Read(id frame.SegmentID, from frame.EntryID, visit func(frame.EntryID, []byte) error) error
}

// checkRead reads a segment and compares every entry.
func checkRead(tb testing.TB, s reader, id frame.SegmentID, first, last frame.EntryID) {
	tb.Helper()
	next := first
	must(tb, s.Read(id, first, func(id frame.EntryID, b []byte) error {
		if id != next || len(b) < 8 || !bytes.Equal(b, content(id, len(b)-8)) {
			tb.Fatalf("entry %d holds %.20x where %d was due", id, b, next)
		}
		next++
		return nil
	}))
	if next != last+1 {
		tb.Fatalf("read to entry %d, want %d", next-1, last)
	}
}

// lines is a log that can be waited for.
type lines struct {
	mu   sync.Mutex
	cond *sync.Cond
	text strings.Builder
}

func newLines() *lines {
	l := new(lines)
	l.cond = sync.NewCond(&l.mu)
	return l
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cond.Broadcast()
	return l.text.Write(b)
}

// await waits until the log has these words.
func (l *lines) await(words string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !strings.Contains(l.text.String(), words) {
		l.cond.Wait()
	}
}

// meddler is a connection with something between its ends.
type meddler struct {
	net.Conn
	write func(b []byte) []byte // what becomes of bytes on their way; nil closes the connection
}

func (m *meddler) Write(b []byte) (int, error) {
	sent := m.write(b)
	if sent == nil {
		return 0, m.Close()
	}
	if n, err := m.Conn.Write(sent); err != nil || n < len(b) {
		return n, errors.Join(err, m.Close())
	}
	return len(b), nil
}

// through has a store's connections go through write.
func through(tb testing.TB, write func(b []byte) []byte) func(*peer.Config) {
	return func(cfg *peer.Config) {
		cfg.Stall = time.Minute
		cfg.Dialer = dialer(tb, func(ctx context.Context, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			return &meddler{Conn: c, write: write}, err
		})
	}
}
