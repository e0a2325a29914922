// Package gaps measures what clients notice of a cluster while something happens to it: how long any partition of a topic goes
// without an acknowledgement, how long any record waits for its own, whether a producer reports an error, and whether
// everything that was acknowledged is there in the end.
//
//	probe, err := gaps.Start(ctx, gaps.Config{Seeds: addresses, Topic: "t", Partitions: 48, ...})
//	defer probe.Close()
//	probe.Begin()                            // forgets what was before
//	struck := time.Now()
//	victim.Kill()
//	err = probe.AwaitAll(ctx, struck)        // every partition takes records again
//	fmt.Println(probe.Window().Gap)
//	err = probe.Stop(ctx)                    // waits for the last answers
//	kept, err := probe.ReadBack(ctx)         // kept.Lost, kept.Twice
//
// # The load
//
// Records are due in an open loop, one partition after the other at even intervals, so that a partition that stops does not
// stop the others, and a record that waits is charged from when it was due. One idempotent franz-go producer sends them all. It
// asks for new metadata and tries again as soon as the Java client does; franz-go's own pauses are made for larger clusters,
// and would be most of what is measured.
//
// A gap is the time between two acknowledgements of one partition; it cannot be shorter than the interval of
// [Config.Interval]. With many partitions, which are then seldom due, the wait of a record says more.
package gaps

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// What the Java client does by default (retry.backoff.ms, retry.backoff.max.ms, delivery.timeout.ms).
const (
	backoffFirst    = 100 * time.Millisecond
	backoffLongest  = time.Second
	deliveryTimeout = 2 * time.Minute
)

const (
	// headBytes is where the part of a value ends that says which record it is: partition and number.
	headBytes = 12
	// bufferedMax bounds the records that wait in the client, in memory: at 5 MB/s of 1 KiB, two minutes of them.
	bufferedMax = 600_000
	// tick is the shortest pause of the sender; what falls due meanwhile is sent together.
	tick = time.Millisecond
	// lookEvery is how often AwaitAll looks.
	lookEvery = 10 * time.Millisecond
)

// Config is what a probe sends.
type Config struct {
	// Seeds are addresses of brokers, host:port.
	Seeds []string
	// Topic exists, is empty, and has Partitions partitions.
	Topic      string
	Partitions int
	// RecordBytes is the size of a value, at least 12; keys are absent.
	RecordBytes int
	// RateBytes is what is sent, in bytes of values per second, to all partitions together.
	RateBytes float64
}

// Interval is the time between two records of one partition.
func (c Config) Interval() time.Duration {
	return time.Duration(float64(c.Partitions*c.RecordBytes) / c.RateBytes * float64(time.Second))
}

func (c Config) validate() error {
	if c.Partitions < 1 || c.RecordBytes < headBytes || c.RateBytes <= 0 {
		return fmt.Errorf("%d partitions, values of %d bytes, %g bytes/s: want at least 1, %d and more than 0", c.Partitions, c.RecordBytes, c.RateBytes, headBytes)
	}
	return nil
}

// Probe is a load that runs until Stop. Its methods may be called from any goroutine, but Stop, ReadBack and Close from one.
type Probe struct {
	cfg    Config
	client *kgo.Client
	halt   context.CancelFunc // ends the sender
	sent   chan struct{}      // closed when the sender has ended

	mu         sync.Mutex
	partitions []partition
	window     Window
	failed     int
	first      error // of the producer
}

// partition is what is known of one partition.
type partition struct {
	offsets []int64   // by number of the record; notAcked before its acknowledgement, and for good if it failed
	acked   time.Time // when the latest acknowledgement arrived
	due     time.Time // of the record that was due last of those acknowledged
}

const notAcked = -1

// Window is what was seen since Begin.
type Window struct {
	// Gap is the longest time without an acknowledgement on any one partition. One that has not ended counts as far as it has come,
	// and one that had begun before counts whole.
	Gap time.Duration
	// Wait is the longest that a record that was acknowledged had waited, from when it was due.
	Wait time.Duration
	// Acked and Failed count records; a failed one is an error that the application sees.
	Acked, Failed int
}

// Start begins to send. Until ctx ends, or Stop.
func Start(ctx context.Context, cfg Config) (*Probe, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("probe of %s: %w", cfg.Topic, err)
	}
	client, err := kgo.NewClient(append(options(cfg),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.RecordDeliveryTimeout(deliveryTimeout),
		kgo.UnknownTopicRetries(-1),
		kgo.MaxBufferedRecords(bufferedMax),
	)...)
	if err != nil {
		return nil, fmt.Errorf("probe of %s: %w", cfg.Topic, err)
	}
	now := time.Now()
	p := &Probe{cfg: cfg, client: client, sent: make(chan struct{}), partitions: make([]partition, cfg.Partitions)}
	for i := range p.partitions {
		p.partitions[i].acked = now
	}
	sending, halt := context.WithCancel(ctx)
	p.halt = halt
	go func() {
		defer close(p.sent)
		p.send(sending, now)
	}()
	return p, nil
}

// options are those of the producer and of the reader.
func options(cfg Config) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(cfg.Seeds...),
		kgo.ClientID("varve-bench"),
		kgo.MetadataMinAge(backoffFirst),
		kgo.RetryBackoffFn(backoff),
		kgo.AlwaysRetryEOF(), // a broker that is killed before its first answer looks like one that wants TLS
	}
}

// backoff is the pause after so many failures: doubled each time, a fifth more or less by chance.
func backoff(failures int) time.Duration {
	pause := min(backoffFirst<<min(max(failures-1, 0), 10), backoffLongest)
	return time.Duration(float64(pause) * (0.8 + 0.4*rand.Float64()))
}

// send sends what is due until ctx ends.
func (p *Probe) send(ctx context.Context, start time.Time) {
	noise := make([]byte, p.cfg.RecordBytes)
	random := rand.NewChaCha8([32]byte{'g', 'a', 'p', 's'})
	_, _ = random.Read(noise) // documented never to fail
	between := float64(p.cfg.Interval()) / float64(p.cfg.Partitions)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := 0; ; i++ {
		due := start.Add(time.Duration(float64(i) * between))
		if wait := time.Until(due); wait > 0 {
			timer.Reset(max(wait, tick))
			select {
			case <-ctx.Done():
			case <-timer.C:
			}
		}
		if ctx.Err() != nil {
			return
		}
		value := append([]byte(nil), noise...)
		p.produce(ctx, due, int32(i%p.cfg.Partitions), value)
	}
}

// produce sends one record, which it numbers.
func (p *Probe) produce(ctx context.Context, due time.Time, to int32, value []byte) {
	p.mu.Lock()
	number := len(p.partitions[to].offsets)
	p.partitions[to].offsets = append(p.partitions[to].offsets, notAcked)
	p.mu.Unlock()
	binary.BigEndian.PutUint32(value, uint32(to))
	binary.BigEndian.PutUint64(value[4:], uint64(number))
	record := &kgo.Record{Topic: p.cfg.Topic, Partition: to, Value: value}
	// A record that is given up because the sender is told to end would be a failure that nobody caused.
	p.client.Produce(context.WithoutCancel(ctx), record, func(r *kgo.Record, err error) {
		p.answered(due, to, number, r.Offset, err)
	})
}

// answered takes the outcome of a record.
func (p *Probe) answered(due time.Time, on int32, number int, offset int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if p.first == nil {
			p.first = fmt.Errorf("produce to partition %d: %w", on, err)
		}
		p.failed++
		p.window.Failed++
		return
	}
	now, part := time.Now(), &p.partitions[on]
	part.offsets[number] = offset
	p.window.Acked++
	p.window.Gap = max(p.window.Gap, now.Sub(part.acked))
	p.window.Wait = max(p.window.Wait, now.Sub(due))
	part.acked = now
	if due.After(part.due) {
		part.due = due
	}
}

// Begin forgets what Window would have told.
func (p *Probe) Begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.window = Window{}
}

// Window is what was seen since Begin.
func (p *Probe) Window() Window {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, w := time.Now(), p.window
	for i := range p.partitions {
		w.Gap = max(w.Gap, now.Sub(p.partitions[i].acked))
	}
	return w
}

// AwaitAll returns when each partition has acknowledged a record that was due after that moment. When ctx ends first, its error
// says how many have not, and names one.
func (p *Probe) AwaitAll(ctx context.Context, moment time.Time) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		silent, one := p.silent(moment)
		if silent == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d partitions of %s took no record since %s, partition %d among them: %w",
				silent, p.cfg.Topic, moment.Format("15:04:05.000"), one, ctx.Err())
		case <-ticker.C:
		}
	}
}

// silent counts the partitions without an acknowledgement for anything that was due after a moment.
func (p *Probe) silent(moment time.Time) (silent, one int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.partitions {
		if !p.partitions[i].due.After(moment) {
			silent, one = silent+1, i
		}
	}
	return silent, one
}

// Stop sends nothing more and waits until every record is answered, or ctx ends. That records failed is no error of Stop.
func (p *Probe) Stop(ctx context.Context) error {
	p.halt()
	<-p.sent
	if err := p.client.Flush(ctx); err != nil {
		return fmt.Errorf("probe of %s: wait for the last acknowledgements: %w", p.cfg.Topic, err)
	}
	return nil
}

// Failures are all records that failed, and the first one's error.
func (p *Probe) Failures() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed, p.first
}

// Close ends the probe, and gives up what is not answered. It may be called after Stop, and more than once.
func (p *Probe) Close() {
	p.halt()
	p.client.Close() // lets a sender go on that waits for room
	<-p.sent
}
