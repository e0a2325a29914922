package chaos

import "testing"

// briefTransactions are the faults that TestTransactions makes without -rounds.
var briefTransactions = []string{
	"kill -9 and start", "pause for longer than a lease", "cut from all other agents", "cut from etcd, inwards", "etcd away",
	"the bucket away", "a rolling restart", "an agent whose folder is deleted",
}

// TestTransactions makes the faults of TestCluster while transactional clients are at work, which come to grief themselves.
// In the end no transaction may be open, the output of the copiers must be their input, exactly once, the sum of all accounts what it was, and nobody may
// have read at read_committed what was not committed.
func TestTransactions(t *testing.T) {
	seed := chooseSeed()
	t.Logf("-seed %d -rounds %d -outage %v", seed, *roundsFlag, *outageFlag)
	c := newCluster(t, seed)
	load := newTxnLoad(c.seeds, seed)
	c.load, c.transactions = load, true
	createTopics(t, load.target, nil)
	clients := load.start(t.Context())
	if err := c.healthy(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.campaign(t, briefTransactions)
	if err := clients.finish(t.Context()); err != nil {
		t.Error(err)
	}
	load.judge(t.Context(), t)
}
