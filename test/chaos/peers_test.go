package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/test/servers"
)

// Waiting bounds of TestBadPeers.
const (
	// answerWithin is what an answer, or the end of a connection that did wrong, may take.
	answerWithin = 20 * time.Second
	// cutWithin is how long a peer may stall until it is cut off, with room: the server's limit is 30 s.
	cutWithin = 60 * time.Second
	// healthyWithin is what a healthy client may wait for a record to be acknowledged and read, on a loaded machine.
	healthyWithin = 10 * time.Second
)

// TestBadPeers sends what no client sends, each on connections of its own, all at the same time. Each must be answered as
// Kafka answers it or lose its connection, and a healthy client must not notice.
func TestBadPeers(t *testing.T) {
	varve := servers.Varve(t, servers.VarveOptions{Binary: *binaryFlag})
	l := newLoad([]string{varve.Address}, topic)
	createTopics(t, l.target, nil)
	fill(t, l)
	stopHealthy := healthy(t, l)
	p := peers{address: varve.Address, http: varve.HTTP}
	t.Run("peers", func(t *testing.T) {
		for name, f := range map[string]func(*testing.T){
			"a negative size":                   p.closedAfter(frame(-1, nil)),
			"an empty frame":                    p.closedAfter(frame(0, nil)),
			"a frame of one byte":               p.closedAfter(frame(1, []byte{0})),
			"a size of 2 GiB":                   p.closedAfter(frame(1<<31-1, []byte{0, 3, 0, 9})),
			"a size of over 100 MiB":            p.closedAfter(frame(101<<20, []byte{0, 0, 0, 9})),
			"an unknown API key":                p.closedAfter(request(999, 0, nil)),
			"an unknown version":                p.closedAfter(request(int16(protocol.KeyMetadata), 99, make([]byte, 16))),
			"a header that ends early":          p.closedAfter(frame(10, []byte{0, 3, 0, 9, 0, 0, 0, 1, 0, 50})),
			"a body that ends early":            p.closedAfter(request(int16(protocol.KeyMetadata), 4, []byte{0, 0, 0, 9})),
			"an array of 2 billion":             p.closedAfter(request(int16(protocol.KeyMetadata), 4, []byte{0x7f, 0xff, 0xff, 0xff})),
			"an HTTP request":                   p.closedAfter([]byte("GET / HTTP/1.1\r\nHost: varve\r\n\r\n")),
			"an unknown version of ApiVersions": p.unknownAPIVersions,
			"a wrong CRC":                       p.wrongCRC,
			"half a request":                    p.halfRequest,
			"half a size":                       p.halfSize,
			"readers that take nothing":         p.slowReaders,
			"a thousand connections":            p.thousand,
			"random bytes":                      p.randomBytes,
			"requests with flipped bits":        p.flippedBits,
		} {
			t.Run(name, func(t *testing.T) { t.Parallel(); f(t) })
		}
	})
	stopHealthy()
	select {
	case <-varve.Exited():
		t.Fatalf("varve ended:\n%s", varve.Output())
	default:
	}
	c := campaign{load: l, varve: varve}
	err := c.await(t.Context(), "all bad connections gone", func() (bool, error) {
		n, err := metric(t.Context(), varve.HTTP, "varve_connections")
		return n <= 1, err
	})
	if err != nil {
		t.Error(err)
	}
}

// fill writes enough that answers to fetches are large.
func fill(t *testing.T, l *load) {
	t.Helper()
	client, err := l.client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	value := make([]byte, 900<<10)
	for i := range 64 {
		client.Produce(t.Context(), &kgo.Record{Topic: topic, Partition: int32(i % (partitions - 1)), Value: value}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// healthy writes a record and reads it back, again and again, in a partition of its own, until the function that it returns is
// called; that reports how it went.
func healthy(t *testing.T, l *load) (stop func()) {
	t.Helper()
	const partition = partitions - 1
	client, err := l.client(
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.FetchMaxWait(time.Second),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {partition: kgo.NewOffset().AtStart()}}),
	)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	rounds, slowest := 0, time.Duration(0)
	go func() {
		defer client.Close()
		for ; ctx.Err() == nil; rounds++ {
			began := time.Now()
			if err := echo(context.WithoutCancel(ctx), client, partition, rounds); err != nil {
				done <- fmt.Errorf("after %d records: %w", rounds, err)
				return
			}
			slowest = max(slowest, time.Since(began))
			pause(rand.New(rand.NewPCG(uint64(rounds), 0)), 20*time.Millisecond)
		}
		done <- nil
	}()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the healthy client: %v", err)
		}
		t.Logf("the healthy client wrote and read %d records, in %v at most", rounds, slowest.Round(time.Millisecond))
	}
}

// echo writes a record and reads it.
func echo(ctx context.Context, client *kgo.Client, partition int32, n int) error {
	ctx, cancel := context.WithTimeout(ctx, healthyWithin)
	defer cancel()
	sent := &kgo.Record{Topic: topic, Partition: partition, Value: binary.BigEndian.AppendUint64(nil, uint64(n))}
	if err := client.ProduceSync(ctx, sent).FirstErr(); err != nil {
		return err
	}
	fetches := client.PollFetches(ctx)
	if err := fetches.Err(); err != nil {
		return err
	}
	records := fetches.Records()
	if len(records) != 1 || records[0].Offset != int64(n) || string(records[0].Value) != string(sent.Value) {
		return fmt.Errorf("read %d records, want the one at offset %d", len(records), n)
	}
	return nil
}

// peers are connections that do wrong.
type peers struct{ address, http string }

func (p peers) connect(t *testing.T) net.Conn {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", p.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// frame returns a size and what follows it.
func frame(size int32, content []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(size)), content...)
}

// request returns a frame with a header of version 1.
func request(key, version int16, body []byte) []byte {
	content := binary.BigEndian.AppendUint16(nil, uint16(key))
	content = binary.BigEndian.AppendUint16(content, uint16(version))
	content = append(content, 0, 0, 0, 7, 0xff, 0xff) // correlation id, no client id
	content = append(content, body...)
	return frame(int32(len(content)), content)
}

// encode returns a real request as a frame.
func encode(r kmsg.Request) []byte {
	return kmsg.NewRequestFormatter(kmsg.FormatterClientID("peer")).AppendRequest(nil, r, 7)
}

// ends waits until the server closes the connection.
func ends(t *testing.T, c net.Conn, within time.Duration) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, c); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes and %v, want the connection closed", n, err)
	}
}

// answer reads one answer's body, after the correlation id.
func answer(t *testing.T, c net.Conn) []byte {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(answerWithin)); err != nil {
		t.Fatal(err)
	}
	var size [4]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		t.Fatalf("read an answer: %v", err)
	}
	body := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(c, body); err != nil {
		t.Fatalf("read an answer: %v", err)
	}
	if len(body) < 4 || binary.BigEndian.Uint32(body) != 7 {
		t.Fatalf("answer % x has not correlation id 7", body[:min(len(body), 16)])
	}
	return body[4:]
}

func send(t *testing.T, c net.Conn, content []byte) {
	t.Helper()
	if _, err := c.Write(content); err != nil {
		t.Fatal(err)
	}
}

// alive checks that a connection is served still.
func alive(t *testing.T, c net.Conn) {
	t.Helper()
	send(t, c, request(int16(protocol.KeyAPIVersions), 0, nil))
	response := kmsg.NewPtrApiVersionsResponse()
	if err := response.ReadFrom(answer(t, c)); err != nil || response.ErrorCode != 0 || len(response.ApiKeys) == 0 {
		t.Errorf("ApiVersions gives error code %d, %d keys, %v", response.ErrorCode, len(response.ApiKeys), err)
	}
}

func (p peers) closedAfter(content []byte) func(*testing.T) {
	return func(t *testing.T) {
		c := p.connect(t)
		send(t, c, content)
		ends(t, c, answerWithin)
	}
}

// unknownAPIVersions asks as a client from the future does, which learns the versions from the answer (KIP-511).
func (p peers) unknownAPIVersions(t *testing.T) {
	c := p.connect(t)
	send(t, c, request(int16(protocol.KeyAPIVersions), 99, []byte("whatever that version has")))
	response := kmsg.NewPtrApiVersionsResponse()
	if err := response.ReadFrom(answer(t, c)); err != nil {
		t.Fatal(err)
	}
	if response.ErrorCode != int16(protocol.UnsupportedVersion) || len(response.ApiKeys) == 0 {
		t.Errorf("got error code %d and %d keys, want UNSUPPORTED_VERSION and the list", response.ErrorCode, len(response.ApiKeys))
	}
	alive(t, c)
}

// wrongCRC sends a batch whose CRC is wrong beside one that is good.
func (p peers) wrongCRC(t *testing.T) {
	c := p.connect(t)
	bad := batch("bad")
	bad[len(bad)-1] ^= 1
	r := kmsg.NewPtrProduceRequest()
	r.Version, r.Acks, r.TimeoutMillis = 9, -1, 10_000
	rt := kmsg.NewProduceRequestTopic()
	rt.Topic = topic
	for i, records := range [][]byte{batch("good"), bad} {
		rp := kmsg.NewProduceRequestTopicPartition()
		rp.Partition, rp.Records = int32(i), records
		rt.Partitions = append(rt.Partitions, rp)
	}
	r.Topics = append(r.Topics, rt)
	send(t, c, encode(r))
	response := kmsg.NewPtrProduceResponse()
	response.Version = r.Version
	if err := response.ReadFrom(answer(t, c)[1:]); err != nil { // after the header's tags
		t.Fatal(err)
	}
	got := response.Topics[0].Partitions
	if len(got) != 2 || got[0].ErrorCode != 0 || got[1].ErrorCode != int16(protocol.CorruptMessage) {
		t.Errorf("got %+v, want success and CORRUPT_MESSAGE", got)
	}
	alive(t, c)
}

// halfRequest promises 1,000 bytes and sends ten.
func (p peers) halfRequest(t *testing.T) {
	c := p.connect(t)
	send(t, c, frame(1000, []byte{0, 3, 0, 9, 0, 0, 0, 7, 0, 0}))
	ends(t, c, cutWithin)
}

// halfSize sends two bytes of four.
func (p peers) halfSize(t *testing.T) {
	c := p.connect(t)
	send(t, c, []byte{0, 0})
	ends(t, c, cutWithin)
}

// slowReaders ask for all there is again and again, and read none of it. The server must cut them off, and hold little
// meanwhile.
func (p peers) slowReaders(t *testing.T) {
	const readers = 20
	fetch := kmsg.NewPtrFetchRequest()
	fetch.Version, fetch.MaxBytes, fetch.SessionEpoch = 12, 55<<20, -1
	ft := kmsg.NewFetchRequestTopic()
	ft.Topic = topic
	for i := range int32(partitions - 1) {
		fp := kmsg.NewFetchRequestTopicPartition()
		fp.Partition, fp.PartitionMaxBytes = i, 50<<20
		ft.Partitions = append(ft.Partitions, fp)
	}
	fetch.Topics = append(fetch.Topics, ft)
	asked := encode(fetch)
	var wg sync.WaitGroup
	for range readers {
		c := p.connect(t)
		wg.Go(func() {
			if err := c.SetWriteDeadline(time.Now().Add(cutWithin)); err != nil {
				t.Error(err)
				return
			}
			for { // until the server does not take any more, and then not the connection
				if _, err := c.Write(asked); err != nil {
					if errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("not cut off after %v", cutWithin)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	resident, err := metric(t.Context(), p.http, "process_resident_memory_bytes")
	if err != nil {
		t.Fatal(err)
	}
	const most = 2 << 30
	if t.Logf("%.0f MiB resident", resident/(1<<20)); resident > most {
		t.Errorf("%.0f bytes resident, want at most %d", resident, most)
	}
}

// thousand opens many connections, each of which works.
func (p peers) thousand(t *testing.T) {
	connections := make([]net.Conn, 1000)
	for i := range connections {
		connections[i] = p.connect(t)
	}
	for _, c := range connections {
		alive(t, c)
	}
}

// randomBytes sends noise, some of it with a size that fits.
func (p peers) randomBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 300 {
		c := p.connect(t)
		content := make([]byte, 8+rng.IntN(2000))
		for j := range content {
			content[j] = byte(rng.Uint32())
		}
		if i%2 == 0 {
			binary.BigEndian.PutUint32(content, uint32(len(content)-4))
		}
		_, _ = c.Write(content) // the server may have closed it before it took everything
		_ = c.Close()
	}
}

// flippedBits sends a request of every API in every version with some bits flipped behind its header. What the server makes of
// it is its business: an answer, the end of the connection, or a wait that the request now asks for.
func (p peers) flippedBits(t *testing.T) {
	const each = 4
	rng := rand.New(rand.NewPCG(2, 2))
	served := new(errgroup.Group)
	served.SetLimit(16)
	for _, api := range protocol.APIs() {
		for version := api.Min; version <= api.Max; version++ {
			r := kmsg.RequestForKey(int16(api.Key))
			r.SetVersion(version)
			good := encode(r)
			for range each {
				bad := append([]byte(nil), good...)
				for range 1 + rng.IntN(4) {
					bad[headerEnd+rng.IntN(len(bad)-headerEnd)] ^= 1 << rng.IntN(8)
				}
				served.Go(func() error { return p.exchange(t.Context(), bad) })
			}
		}
	}
	if err := served.Wait(); err != nil {
		t.Error(err)
	}
}

// headerEnd is where size, key and version of a framed request end.
const headerEnd = 8

// exchange sends something on a connection of its own and takes whatever comes back within a second.
func (p peers) exchange(ctx context.Context, content []byte) error {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	// The server may end the connection at any moment from here on.
	if _, err := c.Write(content); err == nil {
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}
	return nil
}

// batch returns a record batch of one record, as a client encodes it.
func batch(value string) []byte {
	var encoded []byte
	record := kmsg.NewRecord()
	record.Value = []byte(value)
	body := record.AppendTo(nil)[1:] // without the length, one byte here
	record.Length = int32(len(body))
	rb := kmsg.NewRecordBatch()
	rb.Magic, rb.PartitionLeaderEpoch = 2, -1
	rb.ProducerID, rb.ProducerEpoch, rb.FirstSequence = -1, -1, -1
	rb.NumRecords, rb.Records = 1, record.AppendTo(nil)
	rb.FirstTimestamp = time.Now().UnixMilli()
	rb.MaxTimestamp = rb.FirstTimestamp
	encoded = rb.AppendTo(nil)
	const lengthAt, lengthEnd, crcAt, crcEnd = 8, 12, 17, 21
	binary.BigEndian.PutUint32(encoded[lengthAt:], uint32(len(encoded)-lengthEnd))
	binary.BigEndian.PutUint32(encoded[crcAt:], crc32.Checksum(encoded[crcEnd:], crc32.MakeTable(crc32.Castagnoli)))
	return encoded
}
