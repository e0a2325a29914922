package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/test/check"
)

const (
	topic      = "chaos"
	partitions = 6
	// recordBytesMax is the largest value that a writer sends; most are far smaller.
	recordBytesMax = 200 << 10
	// tableKeys is how many keys a compacted topic has for each of its partitions.
	tableKeys = 50
	// underWayMax is how many records of one partition a writer has under way. A partition that stands still so keeps no
	// other one waiting.
	underWayMax = 64
)

// load is what runs against the broker all the time: writers that are idempotent producers and live across faults, a reader
// that follows them, and groups that commit what they have read. It keeps the history that is judged in the end.
type load struct {
	target
	// pace is the time from one record of a writer to its next; 0 is as soon as it can be.
	pace time.Duration
	// table says that the topics are compacted: values are put under a few keys, and some of them deleted, again and again. Else no record has the key of another.
	table  bool
	groups []*group

	hash  maphash.Seed
	logs  []logHistory // those of the first topic, then those of the second, and so on
	acked atomic.Int64 // records, all logs together
	// onAck is called, once, by the next acknowledgement that arrives, and before anything else; nil for nothing.
	onAck atomic.Pointer[func()]

	mu     sync.Mutex
	errors []error
	marks  []mark
}

// newTable makes a load for topics that are compacted.
func newTable(seeds []string, topics ...string) *load {
	l := newLoad(seeds, topics...)
	l.table = true
	return l
}

// newLoad makes a load for topics that are there when it starts.
func newLoad(seeds []string, topics ...string) *load {
	l := &load{target: target{seeds, topics}, hash: maphash.MakeSeed()}
	l.logs = make([]logHistory, l.size())
	for i := range l.logs {
		l.logs[i].floor, l.logs[i].newest = -1, -1
	}
	return l
}

// fail notes an error of a client that should have gone on, and when.
func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errors = append(l.errors, fmt.Errorf("at %s: %w", time.Now().UTC().Format("15:04:05.000"), err))
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

// running is a load's clients at work.
type running struct {
	load              *load
	writers, readers  errgroup.Group
	stop, stopReading context.CancelFunc
}

// start starts the clients. They end with ctx at the latest.
func (l *load) start(ctx context.Context, seed uint64) *running {
	r := &running{load: l}
	writing, stop := context.WithCancel(ctx)
	reading, stopReading := context.WithCancel(ctx)
	r.stop, r.stopReading = stop, stopReading
	for w := range writerKinds {
		r.writers.Go(func() error { return l.write(writing, w, seed) })
	}
	r.readers.Go(func() error { return l.follow(reading) })
	for _, g := range l.groups {
		for range groupMembers {
			r.readers.Go(func() error { return g.take(reading) })
		}
		r.readers.Go(func() error { return g.observe(reading) })
	}
	return r
}

// finish lets the writers wait for the answers to what is under way, and the readers read all of it, and ends them.
func (r *running) finish(ctx context.Context) error {
	defer r.stopReading()
	r.stop()
	written := make(chan error, 1)
	go func() { written <- r.writers.Wait() }()
	select {
	case err := <-written:
		if err != nil {
			return err
		}
	case <-time.After(progressWithin):
		return fmt.Errorf("writers have no answers within %v: %s", progressWithin, r.load.pending())
	}
	if err := r.load.caughtUp(ctx); err != nil {
		return err
	}
	r.stopReading()
	return r.readers.Wait()
}

// write sends records until ctx ends, and then waits for the answers to those that are under way.
func (l *load) write(ctx context.Context, writer int, seed uint64) error {
	kind := writerKinds[writer%len(writerKinds)]
	client, err := l.client(
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(kind.codec), kgo.ProducerBatchMaxBytes(kind.batchBytes), kgo.ProducerLinger(kind.linger),
		kgo.MaxBufferedRecords(underWayMax*len(l.logs)+1),
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
	beat := time.NewTicker(max(l.pace, 1))
	defer beat.Stop()
	turn := newTurns(ctx, len(l.logs))
	giveUpNever := context.WithoutCancel(ctx) // a record that is given up leaves a hole in the producer's sequence
	for seq := int64(0); ctx.Err() == nil; seq++ {
		if l.pace > 0 {
			<-beat.C
		}
		size := 1 + rng.IntN(2*kind.valueBytes)
		if rng.IntN(500) == 0 {
			size = min(1+rng.IntN(recordBytesMax), int(kind.batchBytes)/2)
		}
		start := rng.IntN(len(noise) - size)
		log, ok := turn.take(ctx, rng.IntN(len(l.logs)))
		if !ok {
			break
		}
		s := check.Send{ID: check.ID{Writer: int32(writer), Seq: seq}}
		value := noise[start : start+size]
		if l.table {
			s.Key, s.Deletes = uint64(1+rng.IntN(tableKeys)), rng.IntN(10) == 0
			if s.Deletes {
				value = nil
			}
		}
		l.send(giveUpNever, client, s, log, value, func() { turn.give(log) })
	}
	if l.table { // so that no log ends with what compaction may remove
		for log := range l.logs {
			id := check.ID{Writer: int32(writer), Seq: lastSeq + int64(log)}
			l.send(giveUpNever, client, check.Send{ID: id, Key: uint64(1 + tableKeys + writer)}, log, noise[:1], func() {})
		}
	}
	return client.Flush(giveUpNever)
}

// lastSeq is above all that a writer numbers before it ends.
const lastSeq = 1 << 40

// send sends one record, and calls done when it knows what became of it.
func (l *load) send(ctx context.Context, client *kgo.Client, s check.Send, number int, value []byte, done func()) {
	s.Content = l.content(value)
	at := l.logs[number].sent(s)
	topic, partition := l.place(number)
	record := &kgo.Record{Topic: topic, Partition: partition, Key: appendID(nil, s.ID), Value: value}
	if l.table { // a value may be missing
		record.Key, record.Headers = binary.BigEndian.AppendUint64(nil, s.Key), []kgo.RecordHeader{{Key: "id", Value: record.Key}}
	}
	client.Produce(ctx, record, func(r *kgo.Record, err error) {
		if f := l.onAck.Swap(nil); f != nil {
			(*f)()
		}
		defer done()
		if err != nil { // the outcome stays unknown
			l.fail(fmt.Errorf("produce to %s: %w", l.name(number), err))
			return
		}
		l.logs[number].acknowledged(at, r.Offset)
		l.acked.Add(1)
	})
}

// turns bounds what a writer has under way, partition by partition.
type turns struct {
	mu       sync.Mutex
	changed  *sync.Cond
	underWay []int
}

func newTurns(ctx context.Context, logs int) *turns {
	t := &turns{underWay: make([]int, logs)}
	t.changed = sync.NewCond(&t.mu)
	context.AfterFunc(ctx, t.changed.Broadcast)
	return t
}

// take returns the first log from a number on that may take another record, and waits for one if need be. It is false if ctx
// ends first.
func (t *turns) take(ctx context.Context, from int) (int, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for ctx.Err() == nil {
		for i := range t.underWay {
			log := (from + i) % len(t.underWay)
			if t.underWay[log] < underWayMax {
				t.underWay[log]++
				return log, true
			}
		}
		t.changed.Wait()
	}
	return 0, false
}

// give gives back a record's place.
func (t *turns) give(log int) {
	t.mu.Lock()
	t.underWay[log]--
	t.mu.Unlock()
	t.changed.Signal()
}

// follow reads every partition until ctx ends, and notes what it sees.
func (l *load) follow(ctx context.Context) error {
	client, err := l.reader()
	if err != nil {
		return err
	}
	defer client.Close()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		l.lost(&fetches)
		fetches.EachRecord(func(r *kgo.Record) {
			log := l.find(r.Topic, r.Partition)
			if due, ok := l.logs[log].saw(l.record(r)); !ok && (!l.table || r.Offset < due) {
				l.fail(fmt.Errorf("the reader of %s is given offset %d where %d was due", l.name(log), r.Offset, due))
			}
		})
	}
	return nil
}

// lost notes data loss, which is what a reader reports that was told of records that are gone. Other errors pass.
func (l *load) lost(fetches *kgo.Fetches) {
	fetches.EachError(func(_ string, _ int32, err error) {
		if lost := (*kgo.ErrDataLoss)(nil); errors.As(err, &lost) {
			l.fail(err)
		}
	})
}

func (l *load) record(r *kgo.Record) check.Record {
	id := r.Key
	if l.table && len(r.Headers) == 1 {
		id = r.Headers[0].Value
	}
	return check.Record{Offset: r.Offset, ID: idOf(id), Content: l.content(r.Value)}
}

// content gives the hash of a value. No value at all is not an empty one.
func (l *load) content(value []byte) uint64 {
	if value == nil {
		return 0
	}
	return maphash.Bytes(l.hash, value)
}
