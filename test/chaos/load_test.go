package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/check"
)

const (
	topic      = "chaos"
	partitions = 6
	// recordBytesMax is the largest value that a writer sends; most are far smaller.
	recordBytesMax = 200 << 10
	// errorsShown bounds how many errors and findings of a kind a run prints.
	errorsShown = 10
)

// load is what runs against the broker all the time: writers that are idempotent producers and live across crashes, and a
// reader that follows them. It keeps the history that package check judges.
type load struct {
	address string
	seed    maphash.Seed
	logs    [partitions]logHistory
	acked   atomic.Int64 // records, all logs together
	// onAck is called, once, by the next acknowledgement that arrives, and before anything else; nil for nothing.
	onAck atomic.Pointer[func()]

	mu     sync.Mutex
	errors []error
}

// logHistory is the history of one partition.
type logHistory struct {
	mu    sync.Mutex
	sends []check.Send
	floor int64 // highest acknowledged offset
	seen  []check.Record
}

func newLoad(address string) *load {
	l := &load{address: address, seed: maphash.MakeSeed()}
	for p := range l.logs {
		l.logs[p].floor = -1
	}
	return l
}

// fail notes an error of a client that should have gone on.
func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, err)
}

// writerKinds are the producers of a load.
var writerKinds = []struct {
	codec      kgo.CompressionCodec
	batchBytes int32         // largest batch
	linger     time.Duration // what a batch waits for more
	valueBytes int           // typical size of a value
}{
	{kgo.NoCompression(), 1 << 20, 0, 300},
	{kgo.Lz4Compression(), 512 << 10, 5 * time.Millisecond, 4 << 10},
	{kgo.ZstdCompression(), 16 << 10, 0, 1 << 10},
	{kgo.SnappyCompression(), 900 << 10, 20 * time.Millisecond, 16 << 10},
	{kgo.GzipCompression(), 4 << 10, 0, 100},
}

// client returns a client that reconnects soon and never gives up.
func (l *load) client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(l.address),
		kgo.MetadataMinAge(20 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }),
		kgo.DialTimeout(2 * time.Second),
		kgo.UnknownTopicRetries(-1),
		kgo.AlwaysRetryEOF(), // a broker that is killed before its first answer looks like one that wants TLS
	}, opts...)...)
}

// write sends records until ctx ends, and then waits for the answers to those that are under way.
func (l *load) write(ctx context.Context, writer int, seed uint64) error {
	kind := writerKinds[writer%len(writerKinds)]
	client, err := l.client(
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kind.codec), kgo.ProducerBatchMaxBytes(kind.batchBytes), kgo.ProducerLinger(kind.linger),
		kgo.MaxBufferedRecords(400), kgo.MaxBufferedBytes(4<<20),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	rng := rand.New(rand.NewPCG(seed, uint64(writer)))
	noise := make([]byte, 2*recordBytesMax)
	for i := range noise {
		noise[i] = byte(rng.IntN(64)) // compresses a little
	}
	giveUpNever := context.WithoutCancel(ctx) // a record that is given up leaves a hole in the producer's sequence
	for seq := int64(0); ctx.Err() == nil; seq++ {
		size := 1 + rng.IntN(2*kind.valueBytes)
		if rng.IntN(500) == 0 {
			size = min(1+rng.IntN(recordBytesMax), int(kind.batchBytes)/2)
		}
		start := rng.IntN(len(noise) - size)
		l.send(giveUpNever, client, check.ID{Writer: int32(writer), Seq: seq}, int32(rng.IntN(partitions)), noise[start:start+size])
	}
	return client.Flush(giveUpNever)
}

// send sends one record, and blocks while too many are under way.
func (l *load) send(ctx context.Context, client *kgo.Client, id check.ID, partition int32, value []byte) {
	log := &l.logs[partition]
	log.mu.Lock()
	at := len(log.sends)
	log.sends = append(log.sends, check.Send{ID: id, Content: maphash.Bytes(l.seed, value), Floor: log.floor})
	log.mu.Unlock()
	record := &kgo.Record{Topic: topic, Partition: partition, Key: appendID(nil, id), Value: value}
	client.Produce(ctx, record, func(r *kgo.Record, err error) {
		if f := l.onAck.Swap(nil); f != nil {
			(*f)()
		}
		if err != nil { // the outcome stays unknown
			l.fail(err)
			return
		}
		log.mu.Lock()
		log.sends[at].Outcome, log.sends[at].Offset = check.Acked, r.Offset
		log.floor = max(log.floor, r.Offset)
		log.mu.Unlock()
		l.acked.Add(1)
	})
}

// follow reads every partition until ctx ends, and notes what it sees.
func (l *load) follow(ctx context.Context) error {
	client, err := l.reader(0)
	if err != nil {
		return err
	}
	defer client.Close()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		fetches.EachError(func(_ string, _ int32, err error) {
			// Data loss is what a reader reports that was told of records that are gone.
			if lost := (*kgo.ErrDataLoss)(nil); errors.As(err, &lost) {
				l.fail(err)
			}
		})
		fetches.EachRecord(func(r *kgo.Record) {
			log := &l.logs[r.Partition]
			log.mu.Lock()
			defer log.mu.Unlock()
			log.seen = append(log.seen, l.record(r))
		})
	}
	return nil
}

// reader returns a client that reads every partition from an offset on.
func (l *load) reader(from int64) (*kgo.Client, error) {
	starts := make(map[int32]kgo.Offset, partitions)
	for p := range int32(partitions) {
		starts[p] = kgo.NewOffset().At(from)
	}
	return l.client(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: starts}),
		kgo.FetchMaxWait(200*time.Millisecond),
	)
}

func (l *load) record(r *kgo.Record) check.Record {
	return check.Record{Offset: r.Offset, ID: idOf(r.Key), Content: maphash.Bytes(l.seed, r.Value)}
}

// readAll reads every partition from its start to its end.
func (l *load) readAll(ctx context.Context) (final [partitions][]check.Record, err error) {
	client, err := l.reader(0)
	if err != nil {
		return final, err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return final, err
	}
	left := int64(0)
	ends.Each(func(o kadm.ListedOffset) { left += o.Offset })
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return final, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			final[r.Partition] = append(final[r.Partition], l.record(r))
			left--
		})
	}
	return final, nil
}

// judge reads everything and reports what is wrong with the history.
func (l *load) judge(ctx context.Context, t *testing.T) {
	t.Helper()
	final, err := l.readAll(ctx)
	if err != nil {
		t.Fatalf("read everything: %v", err)
	}
	shown, records := make(map[check.Kind]int), 0
	for p := range l.logs {
		log := &l.logs[p]
		records += len(final[p])
		for _, f := range check.Log(check.History{Sends: log.sends, Final: final[p], Seen: log.seen}) {
			if shown[f.Kind]++; shown[f.Kind] <= errorsShown {
				t.Errorf("partition %d: %v", p, f)
			}
		}
	}
	for kind, n := range shown {
		if n > errorsShown {
			t.Errorf("%s: %d in all", kind, n)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, err := range l.errors {
		if i == errorsShown {
			t.Errorf("%d errors of clients in all", len(l.errors))
			break
		}
		t.Errorf("a client gave up: %v", err)
	}
	t.Logf("%d records acknowledged, %d read", l.acked.Load(), records)
}

func appendID(dst []byte, id check.ID) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(dst, uint32(id.Writer)), uint64(id.Seq))
}

// idOf is the reverse of appendID; a key that it did not make gives an ID that nobody used.
func idOf(key []byte) check.ID {
	if len(key) != 12 {
		return check.ID{Writer: -1}
	}
	return check.ID{Writer: int32(binary.BigEndian.Uint32(key)), Seq: int64(binary.BigEndian.Uint64(key[4:]))}
}
