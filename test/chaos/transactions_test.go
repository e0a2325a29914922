package chaos

import (
	"flag"
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/test/check"
	"github.com/varve-io/varve/test/servers"
)

var kafkaFlag = flag.Bool("kafka", false, "TestTransactionLoad runs against Apache Kafka")

// A round of TestTransactionLoad is a time that the load runs.
const roundLasts = 10 * time.Second

// TestTransactionLoad runs the transactional load without faults, other than those of its clients. With -kafka it shows that
// the load and the checker ask for nothing that Apache Kafka does not do.
func TestTransactionLoad(t *testing.T) {
	s := startBroker(t)
	seed := chooseSeed()
	t.Logf("-seed %d", seed)
	l := newTxnLoad([]string{s.Address}, seed)
	createTopics(t, l.target, nil)
	clients := l.start(t.Context())
	for range max(1, *roundsFlag) {
		time.Sleep(roundLasts)
		if _, err := l.through(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := clients.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.judge(t.Context(), t)
	l.judgeUncommitted(t)
}

// startBroker starts Varve, or what else is asked for.
func startBroker(t *testing.T) *servers.Server {
	t.Helper()
	if !*kafkaFlag {
		return servers.Varve(t, servers.VarveOptions{Binary: *binaryFlag})
	}
	return servers.Kafka(t, servers.KafkaOptions{Config: map[string]string{
		// By default a transaction is found to be over its time up to ten seconds later.
		"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
	}})
}

// judgeUncommitted takes what was read at read_uncommitted for read_committed, which the checker must find out.
func (l *txnLoad) judgeUncommitted(t *testing.T) {
	t.Helper()
	operations := slices.Clone(l.operations)
	for i := range operations {
		operations[i].Uncommitted = false
	}
	found := make(map[check.Kind]int)
	for _, f := range check.Transactions(check.TxnHistory{Operations: operations}) {
		found[f.Kind]++
	}
	t.Logf("reading uncommitted finds %v", found)
	if found[check.AbortedRead] == 0 || found[check.Premature] == 0 {
		t.Errorf("reading uncommitted finds %v, want aborted and premature reads", found)
	}
}
