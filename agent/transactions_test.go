package agent_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
)

// versions are the clients that matter: those that raise their epoch with each transaction (KIP-890), and those before.
var versions = map[string]*kversion.Versions{"v1": kversion.V3_6_0(), "v2": kversion.V4_1_0()}

// TestTransactions commits and aborts transactions over partitions of several agents, of which one comes and one leaves in between.
func TestTransactions(t *testing.T) {
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			s := newSeveral(t, true, "a", "b", "c")
			const partitions = 8
			p, err := kgo.NewClient(s.seeds(), kgo.TransactionalID("p"), kgo.MaxVersions(version), kgo.RecordPartitioner(kgo.ManualPartitioner()),
				kgo.MetadataMinAge(50*time.Millisecond), kgo.TransactionTimeout(20*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.Close)
			if resp, err := kadm.NewClient(p).CreateTopic(t.Context(), partitions, 1, nil, "t"); err != nil || resp.Err != nil {
				t.Fatal(err, resp.Err)
			}
			var want, all int
			transaction := func(commit bool) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				if err := p.BeginTransaction(); err != nil {
					t.Fatal(err)
				}
				var records []*kgo.Record
				for n := range int32(partitions) {
					records = append(records, &kgo.Record{Topic: "t", Partition: n, Value: []byte(strconv.FormatBool(commit))})
				}
				if err := p.ProduceSync(ctx, records...).FirstErr(); err != nil {
					t.Fatal(err)
				}
				if err := p.EndTransaction(ctx, kgo.TransactionEndTry(commit)); err != nil {
					t.Fatal(err)
				}
				if all++; commit {
					want++
				}
			}
			for range 3 {
				transaction(true)
				transaction(false)
			}
			s.begin(t, "d")
			s.agents["d"].await(t)
			transaction(true)
			s.drain(t, "a")
			transaction(false)
			transaction(true)
			for isolation, n := range map[kgo.IsolationLevel]int{kgo.ReadCommitted(): want, kgo.ReadUncommitted(): all} {
				s.reads(t, isolation, partitions, n, n == want)
			}
			s.drain(t, s.left()...)
		})
	}
}

// reads wants n records in each partition, in that isolation.
func (s *several) reads(t *testing.T, isolation kgo.IsolationLevel, partitions int32, n int, committed bool) {
	t.Helper()
	for p := range partitions {
		reader, err := kgo.NewClient(s.seeds(), kgo.FetchIsolationLevel(isolation),
			kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {p: kgo.NewOffset().AtStart()}}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		got := 0
		for got < n {
			fetches := reader.PollFetches(ctx)
			if err := fetches.Err(); err != nil {
				t.Fatalf("partition %d, after %d of %d records: %v", p, got, n, err)
			}
			fetches.EachRecord(func(r *kgo.Record) {
				if committed && string(r.Value) != "true" {
					t.Errorf("partition %d: the record at offset %d was aborted", p, r.Offset)
				}
				got++
			})
		}
		if got > n {
			t.Errorf("partition %d: %d records, want %d", p, got, n)
		}
		cancel()
		reader.Close()
	}
}

// TestFencing has a second producer of the same transactional id come while a transaction is open.
func TestFencing(t *testing.T) {
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			s := newSeveral(t, false, "a", "b", "c")
			producer := func() *kgo.Client {
				p, err := kgo.NewClient(s.seeds(), kgo.TransactionalID("p"), kgo.MaxVersions(version), kgo.DefaultProduceTopic("t"), kgo.MetadataMinAge(50*time.Millisecond))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(p.Close)
				return p
			}
			first := producer()
			if resp, err := kadm.NewClient(first).CreateTopic(t.Context(), 1, 1, nil, "t"); err != nil || resp.Err != nil {
				t.Fatal(err, resp.Err)
			}
			send := func(p *kgo.Client, value string) error {
				return p.ProduceSync(t.Context(), kgo.StringRecord(value)).FirstErr()
			}
			if err := errors.Join(first.BeginTransaction(), send(first, "false")); err != nil {
				t.Fatal(err)
			}
			second := producer()
			if err := errors.Join(second.BeginTransaction(), send(second, "true"), second.EndTransaction(t.Context(), kgo.TryCommit)); err != nil {
				t.Fatal(err)
			}
			err := send(first, "false")
			if err == nil {
				err = first.EndTransaction(t.Context(), kgo.TryCommit)
			}
			if !errors.Is(err, kerr.ProducerFenced) && !errors.Is(err, kerr.InvalidProducerEpoch) {
				t.Errorf("the first producer is told %v, want that it is fenced", err)
			}
			s.reads(t, kgo.ReadCommitted(), 1, 1, true)
		})
	}
}

// copier begins a session that copies from one topic to another.
func (s *several) copier(t *testing.T, version *kversion.Versions) *kgo.GroupTransactSession {
	t.Helper()
	session, err := kgo.NewGroupTransactSession(s.seeds(), kgo.TransactionalID("copy"), kgo.MaxVersions(version), kgo.ConsumerGroup("copiers"), kgo.ConsumeTopics("in"),
		kgo.DefaultProduceTopic("t"), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.FetchMaxPartitionBytes(600), kgo.SessionTimeout(6*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	return session
}

// copyOnce copies what comes within a second in one transaction. After an error nobody knows whether it was committed.
func copyOnce(ctx context.Context, session *kgo.GroupTransactSession, midway func(), commit bool) error {
	short, cancel := context.WithTimeout(ctx, time.Second)
	fetches := session.PollRecords(short, 40)
	cancel()
	if err := errors.Join(ctx.Err(), session.Begin()); err != nil {
		return err
	}
	fetches.EachRecord(func(r *kgo.Record) {
		session.Produce(ctx, &kgo.Record{Value: r.Value}, nil)
	})
	midway()
	_, err := session.End(ctx, kgo.TransactionEndTry(commit))
	return err
}

// copied returns how many records the copier's group is done with.
func (s *several) copied(t *testing.T) (n int64) {
	t.Helper()
	eventually(t, "the group tells its offsets", func() bool {
		// A new one each time: while the coordinator's lease lasts, clients are told of one that is gone, and this one then keeps to it.
		c, err := kgo.NewClient(s.seeds())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		offsets, err := kadm.NewClient(c).FetchOffsets(t.Context(), "copiers")
		if n = 0; err != nil || offsets.Error() != nil {
			return false
		}
		offsets.Each(func(o kadm.OffsetResponse) { n += o.At })
		return true
	})
	return n
}

// calm waits until each log that is open has all its copies on agents that live, and leads shards.
func (s *several) calm(t *testing.T) {
	t.Helper()
	eventually(t, "as many logs as agents are open, which lead everything and lie on what lives", func() bool {
		open, stores := s.open(t), make(map[string]bool)
		for i := range open {
			for _, store := range open[i].Segments[len(open[i].Segments)-1].Stores {
				stores[store] = true
			}
		}
		return len(open) == len(s.agents) && len(s.owners(t)) == len(s.agents) && len(stores) == len(s.agents)
	})
}

// TestConsumeTransformProduce has offsets decided with the records, while agents are killed.
func TestConsumeTransformProduce(t *testing.T) {
	t.Parallel()
	for name, version := range versions {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSeveral(t, false, "a", "b", "c", "d")
			const records = 200
			in, err := kgo.NewClient(s.seeds(), kgo.DefaultProduceTopic("in"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(in.Close)
			if _, err := kadm.NewClient(in).CreateTopics(t.Context(), 4, 1, nil, "in", "t"); err != nil {
				t.Fatal(err)
			}
			for i := range records {
				if err := in.ProduceSync(t.Context(), kgo.StringRecord(strconv.Itoa(i))).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			session := s.copier(t, version)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for round, done := 0, false; !done; round++ {
				midway := func() {}
				switch round {
				case 2:
					midway = func() { s.crash("a") }
				case 5:
					s.calm(t) // or too few copies may be left
					midway = func() { s.crash("b") }
				}
				if err := copyOnce(ctx, session, midway, round%3 != 1); err != nil { // as an application does when it cannot tell: it begins anew
					t.Logf("round %d: %v", round, err)
					session.Close()
					session = s.copier(t, version)
				}
				done = s.copied(t) == records
			}
			seen := make(map[string]int)
			out, err := kgo.NewClient(s.seeds(), kgo.ConsumeTopics("t"), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(out.Close)
			for len(seen) < records {
				fetches := out.PollFetches(ctx)
				if err := ctx.Err(); err != nil {
					t.Fatalf("%d of %d records are there: %v", len(seen), records, err)
				}
				fetches.EachRecord(func(r *kgo.Record) { seen[string(r.Value)]++ })
			}
			for value, n := range seen {
				if n != 1 {
					t.Errorf("record %s is there %d times", value, n)
				}
			}
		})
	}
}
