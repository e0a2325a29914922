package load

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/errgroup"
)

// TransactionsConfig describes a run of franz-go's transactional producers, each of which makes one transaction after the
// other, as fast as they are committed.
type TransactionsConfig struct {
	Target Target
	// Producers run at once, each with a transactional id and a client of its own.
	Producers int
	// Records are the records of a transaction; they go to the partitions in turn.
	Records int
	// RecordBytes is the size of a record's value; keys are absent.
	RecordBytes int
	// Partitions is the number of partitions of the topic.
	Partitions int
	// Duration is how long producers begin new transactions. The broker may then take as long again to become idle.
	Duration time.Duration
	// Copy has the records come from another topic, and the offsets in that go along in the transaction: the producers
	// are members of one group, with a partition each.
	Copy bool
}

// refusedPause is how long a producer waits that was refused for a while, as those are that begin a transaction before the one before has
// ended everywhere: as in the Java client (retry.backoff.ms). By default, franz-go waits for new metadata, for up to 5 s.
const refusedPause = 100 * time.Millisecond

// copiedBytes is how much there is to copy, whatever the duration.
const copiedBytes = 128 << 20

// Transactions is what a run of transactions showed.
type Transactions struct {
	// Count is how many were committed, without each producer's first, and Records how many records they had.
	Count, Records int64
	// Aborted is how many were not, though the producers wanted all to be.
	Aborted int64
	// Version is the version of transactions that the clients spoke: 2 where partitions are added by producing to them
	// (KIP-890), else 1.
	Version int
	// Began is when the producers had made their first transactions, and counting began. Elapsed counts from there until
	// the consumer had the last record.
	Began time.Time
	Cost
	// Commit is from a transaction's begin until its producer knows that it is committed, and EndToEnd until a
	// read_committed consumer has all its records.
	Commit, EndToEnd Quantiles
}

// PerSecond is the rate of transactions.
func (t Transactions) PerSecond() float64 { return float64(t.Count) / t.Elapsed.Seconds() }

// transactions is a run under way.
type transactions struct {
	cfg    TransactionsConfig
	input  *topic // nil unless records are copied
	output *topic
	start  time.Time // what stamps count from
	tally  *tally
	added  atomic.Bool // a client has sent AddPartitionsToTxn
}

// RunTransactions runs transactions on topics of its own, which are deleted afterwards, and follows them with a consumer.
func RunTransactions(ctx context.Context, cfg TransactionsConfig) (result Transactions, err error) {
	r := &transactions{cfg: cfg, start: time.Now(), tally: newTally()}
	if r.output, err = createTopic(ctx, cfg.Target.Bootstrap, cfg.Partitions); err != nil {
		return result, err
	}
	defer func() { err = joinClose(err, r.output.delete(ctx)) }()
	if cfg.Copy {
		if r.input, err = createTopic(ctx, cfg.Target.Bootstrap, cfg.Producers); err != nil {
			return result, err
		}
		defer func() { err = joinClose(err, r.input.delete(ctx)) }()
		fill := Defaults()
		fill.Target, fill.RecordBytes, fill.BytesMax = cfg.Target, cfg.RecordBytes, copiedBytes
		if _, err := runProduce(ctx, fill, r.input); err != nil {
			return result, fmt.Errorf("produce what is to be copied: %w", err)
		}
	}
	producers, err := r.producers(ctx)
	for _, t := range producers {
		defer t.client.Close()
	}
	if err != nil {
		return result, err
	}
	followCtx, stopFollowing := context.WithCancel(ctx)
	followed := make(chan error, 1)
	go func() {
		defer close(followed)
		followed <- r.follow(followCtx)
	}()
	defer func() {
		stopFollowing()
		for range followed { // it may have been taken already
		}
	}()

	if err := each(ctx, producers, func(ctx context.Context, t *transactor) error { return t.first(ctx) }); err != nil {
		return result, err
	}
	r.added.Store(false)
	result.Began = time.Now()
	meter := startMeter(ctx, Config{Target: cfg.Target, Duration: cfg.Duration})
	deadline := result.Began.Add(cfg.Duration)
	if err := each(ctx, producers, func(ctx context.Context, t *transactor) error { return t.until(ctx, deadline) }); err != nil {
		return result, err
	}
	r.sum(&result, producers)
	if err := r.tally.await(result.Count+int64(len(producers)), followed); err != nil {
		return result, err
	}
	result.Cost, err = meter.stop(ctx)
	result.EndToEnd = r.tally.histogram.quantiles()
	return result, err
}

// each does something for all producers at once.
func each(ctx context.Context, producers []*transactor, do func(context.Context, *transactor) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range producers {
		group.Go(func() error { return do(ctx, t) })
	}
	return group.Wait()
}

// sum adds up what the producers did.
func (r *transactions) sum(result *Transactions, producers []*transactor) {
	histograms := make([]*histogram, len(producers))
	for i, t := range producers {
		histograms[i] = t.commit
		result.Count += t.committed
		result.Aborted += t.aborted
		result.Records += t.records
	}
	result.Commit = mergeQuantiles(histograms)
	result.Version = 2
	if r.added.Load() {
		result.Version = 1
	}
}

// OnBrokerWrite notes what tells the clients' version of transactions. It is franz-go's hook.
func (r *transactions) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, _ int, _, _ time.Duration, _ error) {
	if key == int16(kmsg.AddPartitionsToTxn) {
		r.added.Store(true)
	}
}

// transactor is one producer. One goroutine uses it.
type transactor struct {
	run     *transactions
	index   int
	client  *kgo.Client
	session *kgo.GroupTransactSession // nil unless it copies
	// assigned is how many partitions its group has given it.
	assigned atomic.Int64

	number             uint32 // of its newest transaction
	committed, aborted int64  // but for the first
	records            int64
	commit             *histogram
}

// producers starts the producers. Members of a group are returned when each has its partition: what comes before is not
// their steady state.
func (r *transactions) producers(ctx context.Context) (all []*transactor, err error) {
	for i := range r.cfg.Producers {
		t := &transactor{run: r, index: i, commit: newHistogram()}
		if err := t.open(); err != nil {
			return all, err
		}
		all = append(all, t)
	}
	if !r.cfg.Copy {
		return all, nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	for _, t := range all {
		for t.assigned.Load() != 1 {
			select {
			case <-ctx.Done():
				return all, fmt.Errorf("member %d has %d partitions, want 1: %w", t.index, t.assigned.Load(), ctx.Err())
			case <-ticker.C:
			}
		}
	}
	return all, nil
}

// open makes the client.
func (t *transactor) open() (err error) {
	r := t.run
	options := []kgo.Opt{
		kgo.SeedBrokers(r.cfg.Target.Bootstrap),
		kgo.ClientID(clientID),
		kgo.TransactionalID(r.output.name + "-" + strconv.Itoa(t.index)),
		kgo.DefaultProduceTopic(r.output.name),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MetadataMinAge(refusedPause),
		kgo.WithHooks(r),
	}
	if !r.cfg.Copy {
		if t.client, err = kgo.NewClient(options...); err != nil {
			return fmt.Errorf("franz-go transactional producer: %w", err)
		}
		return nil
	}
	count := func(sign int64) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, of map[string][]int32) {
			t.assigned.Add(sign * int64(len(of[r.input.name])))
		}
	}
	t.session, err = kgo.NewGroupTransactSession(append(options,
		kgo.ConsumerGroup(r.output.name),
		kgo.ConsumeTopics(r.input.name),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.Balancers(kgo.RangeBalancer()),
		kgo.OnPartitionsAssigned(count(1)), kgo.OnPartitionsRevoked(count(-1)), kgo.OnPartitionsLost(count(-1)),
	)...)
	if err != nil {
		return fmt.Errorf("franz-go transactional session: %w", err)
	}
	t.client = t.session.Client()
	return nil
}

// first makes a transaction that does not count: it asks for the producer id and makes the connections. In it, the client may not know
// yet which version of transactions the broker has, and a broker may not have all that it takes, so that several are aborted.
func (t *transactor) first(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		made, err := t.once(ctx, false)
		if err != nil {
			return fmt.Errorf("first transaction of producer %d: %w", t.index, err)
		}
		if made.committed {
			return nil
		}
	}
}

// until makes transactions until then.
func (t *transactor) until(ctx context.Context, deadline time.Time) error {
	for time.Now().Before(deadline) {
		made, err := t.once(ctx, true)
		if err != nil {
			return fmt.Errorf("transaction %d of producer %d: %w", t.number, t.index, err)
		}
		if !made.committed {
			t.aborted++
			continue
		}
		t.committed++
		t.records += int64(made.records)
		t.commit.record(made.took)
	}
	return nil
}

// made is what came of a transaction.
type made struct {
	committed bool
	records   int
	took      time.Duration // from its begin
}

// once makes a transaction. It fails if a record does: the run is against a healthy broker, where none is expected to.
func (t *transactor) once(ctx context.Context, counts bool) (m made, err error) {
	m.records = t.run.cfg.Records
	if t.session != nil {
		if m.records, err = t.poll(ctx); err != nil {
			return m, err
		}
	}
	begin := time.Now()
	t.number++
	value := make([]byte, t.run.cfg.RecordBytes)
	stamp{counts: counts, begin: begin.Sub(t.run.start), producer: uint32(t.index), number: t.number, records: uint32(m.records)}.write(value)
	if t.session != nil {
		err = t.session.Begin()
	} else {
		err = t.client.BeginTransaction()
	}
	if err != nil {
		return m, fmt.Errorf("begin: %w", err)
	}
	var failed kgo.FirstErrPromise
	for i := range m.records {
		t.client.Produce(ctx, &kgo.Record{Partition: int32(i % t.run.cfg.Partitions), Value: value}, failed.Promise())
	}
	if err := errors.Join(t.client.Flush(ctx), failed.Err()); err != nil {
		return m, fmt.Errorf("produce: %w", err)
	}
	m.committed = true
	if t.session != nil {
		m.committed, err = t.session.End(ctx, kgo.TryCommit)
	} else {
		err = t.client.EndTransaction(ctx, kgo.TryCommit)
	}
	m.took = time.Since(begin)
	if err != nil {
		return m, fmt.Errorf("commit: %w", err)
	}
	return m, nil
}

// poll takes records to copy, and returns how many: mostly as many as a transaction has.
func (t *transactor) poll(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	fetches := t.session.PollRecords(ctx, t.run.cfg.Records)
	if err := fetches.Err(); err != nil {
		return 0, fmt.Errorf("%d records were copied, poll for more: %w", t.records, err)
	}
	return fetches.NumRecords(), nil
}
