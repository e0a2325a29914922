package peer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
)

const testFrameBytesMax = 64 << 10

// message makes a message whose checksum is right.
func message(o op, payload []byte) []byte {
	b := append(make([]byte, messageHeaderBytes), payload...)
	putMessageHeader(b, o, nil)
	return b
}

// appendOf makes the message that an Appender sends for frames with entries of these lengths.
func appendOf(sizes ...int) []byte {
	var headers, bodies []byte
	for i, n := range sizes {
		h := frame.Header{Segment: frame.SegmentID{Log: 7, Number: 1}, Fence: 5, First: frame.EntryID(i + 1)}
		b := make([]byte, frame.Padded(int64(frame.HeaderBytes+frame.EntryHeaderBytes+n)))
		h.Put(b[frame.HeaderBytes:], nil, bytes.Repeat([]byte{'x'}, n), crc32c.Tail{})
		frame.Finish(b, &h)
		headers = frame.AppendUnplaced(headers, b)
		bodies = append(bodies, b[frame.HeaderBytes:][:h.BodyBytes]...)
	}
	return append(message(opAppend, headers), bodies...)
}

func TestErrorsSurviveTheWire(t *testing.T) {
	long := strings.Repeat("long ", 10000)
	for kind := byte(0); kind <= kindLast+1; kind++ {
		sentinel := kindOf(kind)
		if sentinel == nil {
			sentinel = errors.New("some other error")
		}
		err := parseError(appendError(nil, errors.Join(sentinel, errors.New(long))))
		if kindOf(kind) != nil && !errors.Is(err, sentinel) || !strings.HasPrefix(err.Error(), sentinel.Error()) {
			t.Errorf("%v became %.80v", sentinel, err)
		}
		if n := len(err.Error()); n > errorTextBytesMax {
			t.Errorf("%v became %d bytes", sentinel, n)
		}
	}
	want := &frame.CorruptError{
		Segment: frame.SegmentID{Log: 1 << 60, Number: 3}, File: "12.wal", Offset: 1 << 40, First: 4, Last: 5, Reason: "checksum",
	}
	got := parseError(appendError(nil, errors.Join(want, disk.ErrClosed)))
	if !reflect.DeepEqual(got, error(want)) {
		t.Errorf("%v became %v", want, got)
	}
	if n := int64(len(appendError(nil, &frame.CorruptError{File: long, Reason: long}))); n > opFailed.payloadMax(testFrameBytesMax) {
		t.Errorf("an error of %d bytes", n)
	}
}

func TestRefusedMessages(t *testing.T) {
	request := request{op: opSeal, segment: frame.SegmentID{Log: 7, Number: 1}, fence: 6}
	flipped := request.appendTo(nil)
	flipped[30] ^= 1
	huge := message(opAppend, nil)
	binary.LittleEndian.PutUint32(huge[4:], 1<<31)
	long := appendOf(10, 10)
	long = append(message(opAppend, slicesOf(long, 2, testFrameBytesMax)), long[12+96:]...)
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"flipped bit":               {flipped, peering.ErrProtocol},
		"no such type":              {message(9, nil), peering.ErrProtocol},
		"an answer":                 {message(opDone, nil), peering.ErrProtocol},
		"reserved bytes":            {append([]byte{byte(opSeal), 1}, make([]byte, 10)...), peering.ErrProtocol},
		"short payload":             {message(opSeal, make([]byte, 20)), peering.ErrProtocol},
		"huge payload":              {huge, peering.ErrProtocol},
		"half a header":             {message(opAppend, make([]byte, 30)), peering.ErrProtocol},
		"no header":                 {message(opAppend, make([]byte, frame.UnplacedBytes)), peering.ErrProtocol},
		"a frame that is too long":  {long, peering.ErrProtocol},
		"a round that is too long":  {message(opAppend, bytes.Repeat(slicesOf(appendOf(10), 1, 60<<10), 200)), peering.ErrProtocol},
		"damaged body, then a body": {damaged(appendOf(10, 20), 12+96+6), peering.ErrProtocol},
		"cut in a header":           {appendOf(10)[:8], io.ErrUnexpectedEOF},
		"cut in a payload":          {appendOf(10)[:30], io.ErrUnexpectedEOF},
		"cut in a body":             {appendOf(1000)[:500], io.ErrUnexpectedEOF},
	} {
		r := receiver{in: bufio.NewReader(bytes.NewReader(c.b)), frameBytesMax: testFrameBytesMax, memory: newMemory(testFrameBytesMax)}
		if _, _, err := r.next(t.Context()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if r.block != nil && len(r.block.b) > 1<<20 {
			t.Errorf("%s: %d bytes allocated", name, len(r.block.b))
		}
	}
}

func damaged(b []byte, at int) []byte {
	b[at] ^= 1
	return b
}

// slicesOf gives the n headers of an append, with another length of the body.
func slicesOf(message []byte, n int, bodyBytes uint32) []byte {
	headers := bytes.Clone(message[messageHeaderBytes:][:n*frame.UnplacedBytes])
	for i := range n {
		binary.LittleEndian.PutUint32(headers[i*frame.UnplacedBytes+12:], bodyBytes)
	}
	return headers
}

// serveDisk serves a disk to another agent, until end is called.
func serveDisk(t *testing.T) (local *Server, far *Store, end func() error) {
	t.Helper()
	d, err := disk.Open(disk.Config{FS: disktest.New(1), FileBytes: testFrameBytesMax})
	if err != nil {
		t.Fatal(err)
	}
	credentials := peering.Credentials{Cluster: uuid.UUID{1}, Secret: bytes.Repeat([]byte("secret "), 4)}
	server, err := peering.NewServer(peering.ServerConfig{Identity: d.Identity(), Credentials: credentials})
	if err != nil {
		t.Fatal(err)
	}
	local = NewServer(ServerConfig{Store: d, Timeout: 3 * time.Second})
	server.Handle(ServiceName, 256, local.Serve)
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	dialer, err := peering.NewDialer(peering.DialerConfig{Credentials: credentials})
	if err != nil {
		t.Fatal(err)
	}
	far = NewStore(Config{Address: l.Addr().String(), Identity: d.Identity(), Dialer: dialer})
	return local, far, func() error { return errors.Join(server.Close(t.Context()), d.Close()) }
}

// TestGarbageFromAPeer: also somebody who knows the secret gets nothing but an error, and the end of the connection.
func TestGarbageFromAPeer(t *testing.T) {
	local, s, end := serveDisk(t)
	id := frame.SegmentID{Log: 7, Number: 1}
	create := request{op: opCreate, segment: id, fence: 5, entry: 1}
	for name, c := range map[string]struct {
		before []request // that are answered
		b      []byte
		want   error
	}{
		"garbage":               {nil, bytes.Repeat([]byte{0xa5}, 1000), peering.ErrProtocol},
		"append without create": {nil, appendOf(10), peering.ErrProtocol},
		"garbage to a writer":   {[]request{create}, bytes.Repeat([]byte{0xa5}, 1000), peering.ErrProtocol},
		"seal by a writer":      {[]request{{op: opCreate, segment: frame.SegmentID{Log: 8, Number: 1}, fence: 5, entry: 1}}, (&request{op: opSeal, segment: id, fence: 9}).appendTo(nil), peering.ErrProtocol},
		"half a message":        {nil, appendOf(10)[:30], peering.ErrUnreachable},
	} {
		conn, err := s.connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range c.before {
			if err := errors.Join(conn.ask(q), conn.done()); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.send([][]byte{c.b}); err != nil {
			t.Fatal(err)
		}
		if err := conn.done(); !errors.Is(err, c.want) {
			// What was not read yet resets the connection, which may overtake the answer.
			if !errors.Is(err, peering.ErrUnreachable) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		if _, err := conn.in.ReadByte(); err == nil {
			t.Errorf("%s: the connection goes on", name)
		}
	}
	s.Close()
	fence := local.cfg.Store.(*disk.Store).Fence(7)
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if fence != 0 {
		t.Error("sealed by a connection with a writer")
	}
}

// FuzzRequests: whatever arrives, the server's decoder gives whole requests or an error, within its limits.
func FuzzRequests(f *testing.F) {
	for _, o := range []op{opCreate, opFinish, opSeal, opRead, opTrim, opDrop, opSegments} {
		r := request{op: o, segment: frame.SegmentID{Log: 7, Number: 1}, fence: 5, entry: 1}
		f.Add(append(r.appendTo(nil), appendOf(10)...))
	}
	f.Add(appendOf())
	f.Add(append(appendOf(20, 0), appendOf(1)...))
	f.Add(message(opAppend, slicesOf(appendOf(10), 1, 60<<10)))
	m := newMemory(testFrameBytesMax)
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum of a message is made right, so that what is behind it is reached.
		if len(b) >= messageHeaderBytes {
			n := min(uint64(len(b)), messageHeaderBytes+uint64(binary.LittleEndian.Uint32(b[4:])))
			b = bytes.Clone(b)
			crc := crc32c.Update(crc32c.Update(0, b[:8]), b[messageHeaderBytes:n])
			binary.LittleEndian.PutUint32(b[8:], crc)
		}
		r := receiver{in: bufio.NewReaderSize(bytes.NewReader(b), 64), frameBytesMax: testFrameBytesMax, memory: m}
		defer r.release()
		for {
			r.release()
			q, got, err := r.next(t.Context())
			if err != nil {
				if !errors.Is(err, peering.ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("error %v", err)
				}
				return
			}
			if q.op != opAppend {
				again := q.appendTo(nil)
				if o, payload, err := readMessage(bufio.NewReader(bytes.NewReader(again)), nil, testFrameBytesMax); err != nil || o != q.op || len(payload) != requestBytes {
					t.Fatalf("%+v is sent as %x", q, again)
				}
				continue
			}
			for at := 0; at < len(got.frames); {
				h, err := frame.Unstamped(got.frames[at:])
				if err != nil {
					t.Fatal(err)
				}
				if err := frame.CheckBody(&h, got.frames[at+frame.HeaderBytes:][:h.BodyBytes]); err != nil {
					t.Fatal(err)
				}
				at += int(h.Bytes())
			}
		}
	})
}
