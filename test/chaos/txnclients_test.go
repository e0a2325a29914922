package chaos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/test/check"
)

// attempt is a transaction that is under way.
type attempt struct {
	in *incarnation

	mu        sync.Mutex
	operation check.Operation
	err       error // of a send
}

// begin begins to write down a transaction, which has failed unless it gets farther.
func (in *incarnation) begin() *attempt {
	return &attempt{in: in, operation: check.Operation{Process: in.process, Outcome: check.Failed}}
}

// send sends a record.
func (a *attempt) send(client *kgo.Client, log int, f fact, value []byte) {
	load := a.in.load
	id := check.ID{Writer: a.in.slot.number, Seq: a.in.sequence.Add(1)}
	load.mu.Lock()
	load.facts[id] = f
	load.mu.Unlock()
	a.mu.Lock()
	i := len(a.operation.Sends)
	a.operation.Sends = append(a.operation.Sends, check.TxnSend{Log: int32(log), ID: id, Content: maphash.Bytes(load.hash, value), Offset: -1})
	a.mu.Unlock()
	topic, partition := load.place(log)
	record := &kgo.Record{Topic: topic, Partition: partition, Key: appendID(nil, id), Value: value}
	client.Produce(a.in.alive, record, func(r *kgo.Record, err error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err != nil {
			if a.err == nil {
				a.err = err
			}
			return
		}
		a.operation.Sends[i].Offset = r.Offset
	})
}

// flush waits for the answers to all that was sent.
func (a *attempt) flush(client *kgo.Client) error {
	err := client.Flush(a.in.alive)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return fmt.Errorf("send: %w", a.err)
	}
	return err
}

// ask says that the commit is asked for from now on.
func (a *attempt) ask() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.operation.Outcome, a.operation.Asked = check.Unknown, a.in.load.now()
}

// done puts the transaction into the history, as it is by now, and returns its outcome.
func (a *attempt) done(committed bool) check.Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	if committed {
		a.operation.Outcome, a.operation.Confirmed = check.Acked, a.in.load.now()
	}
	o := a.operation
	o.Sends = slices.Clone(o.Sends) // an answer may still come
	a.in.load.note(o)
	a.in.load.count(a.in.kind + [...]string{check.Unknown: " in doubt", check.Acked: " committed", check.Failed: " aborted"}[o.Outcome])
	return o.Outcome
}

// rest waits for a while, or until the client is killed.
func (in *incarnation) rest(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-in.alive.Done():
	}
}

// think waits before the transaction is ended: for a moment, or, once another client is about to fence this one, for as long as that takes to get going.
func (in *incarnation) think() {
	in.does("think")
	if in.superseded.Load() {
		in.paused.Do(func() { close(in.pausing) })
		in.rest(upTo(in.rng, fencedMost))
		return
	}
	in.rest(upTo(in.rng, thinkMax))
}

// commits tells whether the next transaction is to commit.
func (in *incarnation) commits() bool { return in.rng.IntN(abortOne) > 0 }

// options are those of all transactional clients.
func (in *incarnation) options(opts ...kgo.Opt) []kgo.Opt {
	return in.load.options(append(opts,
		kgo.WithContext(in.alive), kgo.TransactionalID(in.id), kgo.TransactionTimeout(txnTimeout),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
	)...)
}

// initialise gets the client its producer id, which ends what clients of the same transactional id have open.
func (in *incarnation) initialise(client *kgo.Client) error {
	in.does("initialise")
	if _, _, err := client.ProducerID(in.alive); err != nil {
		return fmt.Errorf("initialise: %w", err)
	}
	in.settled(in.number)
	return nil
}

// transact makes transactions of what send sends until the client is to end, or cannot go on.
func (in *incarnation) transact(send func(*attempt, *kgo.Client), before func() (after func(check.Outcome))) error {
	client, err := kgo.NewClient(in.options()...)
	if err != nil {
		return err
	}
	defer client.Close()
	defer in.does("close")
	if err := in.initialise(client); err != nil {
		return err
	}
	for in.working.Err() == nil {
		in.rest(upTo(in.rng, 2*txnPace))
		after := before()
		a := in.begin()
		committed, err := in.transaction(a, client, send)
		after(a.done(committed))
		if err != nil {
			return err
		}
	}
	return nil
}

// transaction makes one transaction. The client is of no use after an error.
func (in *incarnation) transaction(a *attempt, client *kgo.Client, send func(*attempt, *kgo.Client)) (committed bool, err error) {
	in.does("begin")
	if err := client.BeginTransaction(); err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	in.does("send")
	send(a, client)
	commit := in.commits()
	if !commit && in.rng.IntN(2) == 0 { // before anything is known of what was sent
		err = client.AbortBufferedRecords(in.alive)
	} else {
		err = a.flush(client)
	}
	if err != nil {
		return false, err
	}
	in.think()
	if commit {
		a.ask()
	}
	in.does("end")
	if err := client.EndTransaction(in.alive, kgo.TransactionEndTry(commit)); err != nil {
		return false, fmt.Errorf("end: %w", err)
	}
	return commit, nil
}

// move moves amounts between accounts.
func (in *incarnation) move() error {
	return in.transact(func(a *attempt, client *kgo.Client) {
		amount := 1 + in.rng.Int64N(1000)
		from := in.rng.IntN(partitions)
		to := (from + 1 + in.rng.IntN(partitions-1)) % partitions
		a.send(client, moneyLogs+from, fact{amount: -amount}, binary.AppendVarint(nil, -amount))
		a.send(client, moneyLogs+to, fact{amount: amount}, binary.AppendVarint(nil, amount))
	}, func() func(check.Outcome) {
		in.load.underWay.RLock()
		return func(outcome check.Outcome) {
			if outcome == check.Unknown {
				in.settle(in.number, in.load.underWay.RUnlock)
				return
			}
			in.load.underWay.RUnlock()
		}
	})
}

// spread writes some records to some partitions.
func (in *incarnation) spread() error {
	return in.transact(func(a *attempt, client *kgo.Client) {
		for range 1 + in.rng.IntN(6) {
			value := make([]byte, in.rng.IntN(2000))
			a.send(client, mixedLogs+in.rng.IntN(partitions), fact{}, value)
		}
	}, func() func(check.Outcome) { return func(check.Outcome) {} })
}

// moves are the logs whose position was set anew.
type moves struct {
	mu            sync.Mutex
	before, since []int32 // until the latest poll, and since then
}

// given takes the logs that a rebalance gave to the consumer.
func (m *moves) given(l *txnLoad, assigned map[string][]int32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for topic, numbers := range assigned {
		for _, p := range numbers {
			m.since = append(m.since, int32(l.find(topic, p)))
		}
	}
}

// all says that all of the input begins anew.
func (m *moves) all() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for log := range int32(partitions) {
		m.since = append(m.since, inputLogs+log)
	}
}

// take returns the logs that were moved before a poll that has just ended. Those that were moved while it ended may have been so
// after it, and count for the next one too.
func (m *moves) take() []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	moved := slices.Concat(m.before, m.since)
	m.before, m.since = m.since, nil
	return moved
}

// copy copies the input.
func (in *incarnation) copy() error {
	const pollMax, pollWait = 40, 200 * time.Millisecond
	m := new(moves)
	// Not BlockRebalanceOnPoll: if the group is lost meanwhile, the session's End waits for a heartbeat, and who would make it for the end of the poll.
	session, err := kgo.NewGroupTransactSession(in.options(
		kgo.ConsumerGroup(copyGroup), kgo.ConsumeTopics(in.load.topics[0]), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(pollWait),
		kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(time.Second), kgo.RebalanceTimeout(10*time.Second),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, assigned map[string][]int32) { m.given(in.load, assigned) }),
	)...)
	if err != nil {
		return err
	}
	defer session.Close()
	defer in.does("close")
	if err := in.initialise(session.Client()); err != nil {
		return err
	}
	for in.working.Err() == nil {
		in.does("poll")
		ctx, cancel := context.WithTimeout(in.alive, pollWait)
		fetches := session.PollRecords(ctx, pollMax)
		cancel()
		in.load.lost(&fetches)
		if err := in.copyThese(session, &fetches, m); err != nil {
			return err
		}
	}
	return nil
}

// copyThese copies what was polled, in one transaction.
func (in *incarnation) copyThese(session *kgo.GroupTransactSession, fetches *kgo.Fetches, m *moves) (err error) {
	if fetches.NumRecords() == 0 {
		return nil
	}
	a := in.begin()
	a.operation.Group = 1
	a.operation.Polls = []check.Poll{in.load.poll(fetches, m.take())}
	committed := false
	defer func() {
		if a.done(committed) != check.Acked {
			m.all()
		}
	}()
	in.does("begin")
	if err := session.Begin(); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	in.does("send")
	fetches.EachRecord(func(r *kgo.Record) {
		a.send(session.Client(), outputLogs+int(r.Partition), fact{source: idOf(r.Key)}, append(slices.Clone(r.Key), r.Value...))
	})
	if err := a.flush(session.Client()); err != nil {
		return err
	}
	commit := in.commits()
	if !commit && in.rng.IntN(2) == 0 {
		in.sendOffsets(session.Client(), fetches)
	}
	in.think()
	if commit {
		a.ask()
	}
	in.does("end")
	if committed, err = session.End(in.alive, kgo.TransactionEndTry(commit)); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	return nil
}

// sendOffsets sends the offsets of what was polled to a transaction that will be aborted, which a session does not. That it
// may be refused is all right.
func (in *incarnation) sendOffsets(client *kgo.Client, fetches *kgo.Fetches) {
	id, epoch, err := client.ProducerID(in.alive)
	if err != nil {
		return
	}
	request := kmsg.NewPtrTxnOffsetCommitRequest()
	request.TransactionalID, request.Group, request.ProducerID, request.ProducerEpoch = in.id, copyGroup, id, epoch
	request.MemberID, request.Generation = client.GroupMetadata()
	topic := kmsg.NewTxnOffsetCommitRequestTopic()
	topic.Topic = in.load.topics[0]
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if n := len(p.Records); n > 0 {
			partition := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			partition.Partition, partition.Offset = p.Partition, p.Records[n-1].Offset+1
			topic.Partitions = append(topic.Partitions, partition)
		}
	})
	request.Topics = append(request.Topics, topic)
	what := "sent to be aborted"
	response, err := request.RequestWith(in.alive, client)
	if err == nil {
		err = kerr.ErrorForCode(response.Topics[0].Partitions[0].ErrorCode)
	}
	if err != nil {
		what = "that were to be aborted refused: " + err.Error()
	}
	in.load.count("offsets " + what)
}

// lost counts what kgo reports as lost. It is no finding: the client remembers the epoch of the last record that it has given out, so
// that it is told of an end below its position when what follows in the log begins with a marker of the next leader. (Then it goes back, to that
// marker.) What is really lost, the checker finds.
func (l *txnLoad) lost(fetches *kgo.Fetches) {
	fetches.EachError(func(_ string, _ int32, err error) {
		if lost := (*kgo.ErrDataLoss)(nil); errors.As(err, &lost) {
			l.count("loss suspected by a client")
		}
	})
}

// poll writes down what was polled.
func (l *txnLoad) poll(fetches *kgo.Fetches, moved []int32) check.Poll {
	p := check.Poll{Ended: l.now(), Moved: moved}
	fetches.EachRecord(func(r *kgo.Record) {
		p.Records = append(p.Records, check.Read{Log: int32(l.find(r.Topic, r.Partition)), Record: l.record(r)})
	})
	return p
}

func (l *txnLoad) record(r *kgo.Record) check.Record {
	return check.Record{Offset: r.Offset, ID: idOf(r.Key), Content: maphash.Bytes(l.hash, r.Value)}
}

// writeInput writes the input until ctx ends, and waits for all answers.
func (l *txnLoad) writeInput(ctx context.Context) error {
	client, err := l.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	if err != nil {
		return err
	}
	defer client.Close()
	process := l.processes.Add(1)
	beat := time.NewTicker(inputPace)
	defer beat.Stop()
	giveUpNever := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		<-beat.C
		id := check.ID{Writer: inputWriter, Seq: l.inputs.Add(1)}
		partition := int(id.Seq) * 7 % 13 % partitions // not in turn
		value := binary.AppendVarint(nil, id.Seq)
		l.mu.Lock()
		operation := len(l.operations)
		l.operations = append(l.operations, check.Operation{Process: process, Asked: l.now(), Sends: []check.TxnSend{{
			Log: int32(inputLogs + partition), ID: id, Content: maphash.Bytes(l.hash, value), Offset: -1,
		}}})
		l.mu.Unlock()
		record := &kgo.Record{Topic: l.topics[0], Partition: int32(partition), Key: appendID(nil, id), Value: value}
		client.Produce(giveUpNever, record, func(r *kgo.Record, err error) {
			if err != nil {
				l.fail(fmt.Errorf("produce the input: %w", err))
				return
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			o := &l.operations[operation]
			o.Outcome, o.Sends[0].Offset = check.Acked, r.Offset
			l.acked[partition] = max(l.acked[partition], id.Seq)
		})
	}
	return client.Flush(giveUpNever)
}

// follow reads everything until ctx ends.
func (l *txnLoad) follow(ctx context.Context, level kgo.IsolationLevel) error {
	client, err := l.reader(kgo.FetchIsolationLevel(level))
	if err != nil {
		return err
	}
	defer client.Close()
	process, uncommitted := l.processes.Add(1), level == kgo.ReadUncommitted()
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		l.lost(&fetches)
		if fetches.NumRecords() == 0 {
			continue
		}
		p := l.poll(&fetches, nil)
		l.note(check.Operation{Process: process, Outcome: check.Acked, Uncommitted: uncommitted, Polls: []check.Poll{p}})
		l.progress(&p, uncommitted)
	}
	return nil
}

// progress notes how far readers are.
func (l *txnLoad) progress(p *check.Poll, uncommitted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for _, r := range p.Records {
		l.ends[r.Log] = max(l.ends[r.Log], r.Offset+1)
		if uncommitted {
			continue
		}
		q := &l.quietest[r.Log]
		q.longest, q.since = max(q.longest, now.Sub(q.since)), now
		l.read[r.ID.Writer] = max(l.read[r.ID.Writer], r.ID.Seq)
		if r.Log >= outputLogs && r.Log < moneyLogs {
			partition := r.Log - outputLogs
			l.copied[partition] = max(l.copied[partition], l.facts[r.ID].source.Seq)
		}
	}
}

// audit makes cuts through all accounts until ctx ends.
func (l *txnLoad) audit(ctx context.Context) error {
	const within, again = 2 * time.Second, 3 * time.Millisecond
	client, err := l.client()
	if err != nil {
		return err
	}
	defer client.Close()
	next := time.NewTimer(auditPace)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
		if !l.underWay.TryLock() {
			next.Reset(again)
			continue
		}
		asking, cancel := context.WithTimeout(ctx, within)
		ends, err := kadm.NewClient(client).ListEndOffsets(asking, l.topics[moneyLogs/partitions])
		cancel()
		l.underWay.Unlock()
		if err == nil && ends.Error() == nil {
			cut := make([]int64, partitions)
			ends.Each(func(o kadm.ListedOffset) { cut[o.Partition] = o.Offset })
			l.mu.Lock()
			l.cuts = append(l.cuts, cut)
			l.mu.Unlock()
		}
		next.Reset(auditPace)
	}
}

// ask asks the broker for offsets, and hands them to take.
type ask func(ctx context.Context, client *kadm.Client, take func(topic string, partition int32, offset int64)) error

// groupOffsets asks for the offsets of the copiers, but for those that are not stable if that is asked.
func groupOffsets(ctx context.Context, client *kadm.Client, take func(topic string, partition int32, offset int64)) error {
	answers, err := client.FetchOffsets(ctx, copyGroup)
	answers.Each(func(o kadm.OffsetResponse) {
		if o.Err == nil {
			take(o.Topic, o.Partition, o.At)
		}
	})
	return err
}

// stableOffsets asks for the last stable offsets of all logs.
func (l *txnLoad) stableOffsets(ctx context.Context, client *kadm.Client, take func(topic string, partition int32, offset int64)) error {
	answers, err := client.ListCommittedOffsets(ctx, l.topics...)
	answers.Each(func(o kadm.ListedOffset) {
		if o.Err == nil {
			take(o.Topic, o.Partition, o.Offset)
		}
	})
	return err
}

// observe asks for offsets until ctx ends, and notes what it is told, with what else there is to say of it.
func (l *txnLoad) observe(ctx context.Context, told *[]check.Told, about check.Told, ask ask) error {
	const within = 2 * time.Second
	client, err := l.client()
	if err != nil {
		return err
	}
	defer client.Close()
	tick := time.NewTicker(observePace)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		asking, cancel := context.WithTimeout(ctx, within)
		if about.Stable {
			asking = kadm.RequireStable(asking)
		}
		about.Began = l.now()
		var answers []check.Told
		err := ask(asking, kadm.NewClient(client), func(topic string, partition int32, offset int64) {
			about.Log, about.Offset = int32(l.find(topic, partition)), offset
			answers = append(answers, about)
		})
		cancel()
		if err != nil {
			continue
		}
		ended := l.now()
		l.mu.Lock()
		for _, a := range answers {
			a.Ended = ended
			*told = append(*told, a)
		}
		l.mu.Unlock()
	}
}
