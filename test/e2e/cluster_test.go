package e2e_test

import (
	"encoding/json"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/varve-io/varve/test/servers"
)

// freeRow returns loopback addresses with ports that follow each other.
func freeRow(t *testing.T, n int) []string {
	t.Helper()
	for range 100 {
		row, err := servers.FreeAddress()
		if err != nil {
			t.Fatal(err)
		}
		at, err := net.ResolveTCPAddr("tcp", row)
		if err != nil {
			t.Fatal(err)
		}
		addresses := []string{row}
		for len(addresses) < n {
			at.Port++
			l, err := net.ListenTCP("tcp", at)
			if err != nil {
				break
			}
			_ = l.Close()
			addresses = append(addresses, at.String())
		}
		if len(addresses) == n {
			return addresses
		}
	}
	t.Fatalf("found no %d free ports in a row", n)
	return nil
}

// devCluster starts "varve dev" with as many agents as there are addresses, which are in a row, and waits until it is ready.
func devCluster(t *testing.T, data string, kafka []string, args ...string) (p *process, http string) {
	t.Helper()
	http = freeAddress(t)
	p = start(t, nil, append([]string{"dev", "--agents", string('0' + rune(len(kafka))), "--listen", kafka[0], "--http", http, "--data", data}, args...)...)
	p.ready(t)
	return p, http
}

// TestDevCluster: three agents in one process are a cluster to clients, and each is there for operators.
func TestDevCluster(t *testing.T) {
	kafka := freeRow(t, 3)
	data := t.TempDir()
	p, http := devCluster(t, data, kafka, "--zones", "a,b")
	metadata, err := kadm.NewClient(connect(t, kafka[2])).Metadata(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(metadata.Brokers) != 3 {
		t.Fatalf("brokers %v, want three", metadata.Brokers)
	}
	for i, b := range metadata.Brokers {
		at := net.JoinHostPort(b.Host, strings.Split(kafka[i], ":")[1])
		if want := string("aba"[i]); b.NodeID != int32(i+1) || at != kafka[i] || b.Rack == nil || *b.Rack != want {
			t.Errorf("broker %+v, want node %d at %s in zone %s", b, i+1, kafka[i], want)
		}
		if !strings.Contains(p.stdout.String(), kafka[i]) {
			t.Errorf("the greeting does not name %s", kafka[i])
		}
	}
	createTopic(t, kafka[1], "lake", 12)
	leaders := make(map[int32]bool)
	if metadata, err = kadm.NewClient(connect(t, kafka[0])).Metadata(within(t), "lake"); err != nil {
		t.Fatal(err)
	}
	for _, l := range metadata.Topics["lake"].Partitions.Sorted() {
		leaders[l.Leader] = true
	}
	if len(leaders) < 2 {
		t.Errorf("twelve partitions have the leaders %v, want several", leaders)
	}
	produce(t, kafka[0], "lake", 0, 100, line)
	consume(t, kafka[2], "lake", 100, line)
	_, page := get(t, "http://"+http+"/metrics")
	for _, want := range []string{`varve_partitions{agent="1"}`, `varve_partitions{agent="2"}`, `varve_partitions{agent="3"}`} {
		if !strings.Contains(page, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	var told report
	awaitStatus(t, func(status int, out string) bool {
		if err := json.Unmarshal([]byte(out), &told); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return status == 0 && told.Etcd.Commits > 0
	}, "--data", data, "--json")
	shards := 0
	for i, a := range told.Agents {
		shards += a.Shards
		if a.Node != i+1 || a.State != "serving" || a.Kafka != kafka[i] || a.Zone != string("aba"[i]) {
			t.Errorf("status has the agent %+v, want node %d serving at %s", a, i+1, kafka[i])
		}
	}
	if shards != told.Shards || len(told.Agents) != 3 || len(told.Logs) != 3 || told.Etcd.Size == 0 || told.Name != "dev" {
		t.Errorf("status %+v, want three agents with all shards, and three logs", told)
	}
	for _, l := range told.Logs {
		if n := len(l.Segments[len(l.Segments)-1].Stores); n != 3 {
			t.Errorf("WAL log %s is on %d stores, want 3", l.ID, n)
		}
	}
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != 0 {
		t.Errorf("exit status %d after SIGTERM, want 0", status)
	}
}

// report is what the tests want of "varve status --json".
type report struct {
	Name   string
	Shards int
	Agents []struct {
		Node, Shards       int
		State, Kafka, Zone string
	}
	Logs []struct {
		ID       string
		Segments []struct{ Stores []struct{ Node int } }
	}
	Etcd struct {
		Commits int
		Size    int `json:"size_bytes"`
	}
}

// awaitStatus runs "varve status" again and again until its exit status and its standard output are good.
func awaitStatus(t *testing.T, good func(status int, out string) bool, args ...string) {
	t.Helper()
	ctx := within(t)
	for {
		p := start(t, nil, append([]string{"status"}, args...)...)
		if good(p.status(t), p.stdout.String()) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the status does not become what it should be:\n%s%s", p.stdout, p.stderr)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// TestStatusOfTroubles: an agent that waits for others is not well, and a cluster that nobody has started is no cluster.
func TestStatusOfTroubles(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	at := "http://" + etcd.Address
	p := start(t, nil, "agent", "--etcd", at, "--bucket", "file://"+t.TempDir(), "--cluster", "alone", "--data", t.TempDir(),
		"--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0")
	p.await(t, p.stderr, `msg="waiting for stores to keep copies of the WAL"`)
	for _, test := range []struct{ cluster, out, err string }{
		{"alone", "! 128 of 128 shards have no leader that lives: 0-127\n", "varve: cluster alone: not all is well\n"},
		{"nobody", "", "varve: status of cluster nobody in etcd at [" + at + "]: no agent has ever created this cluster\n"},
	} {
		s := start(t, nil, "status", "--etcd", at, "--cluster", test.cluster)
		if status := s.status(t); status != 1 || !strings.HasSuffix(s.stdout.String(), test.out) || s.stderr.String() != test.err {
			t.Errorf("cluster %s: exit status %d, %q and %q; want 1, %q at the end and %q", test.cluster, status, s.stdout, s.stderr, test.out, test.err)
		}
	}
}

// TestDevChangesAgents ends one data folder's process in different ways, with one agent and with three, in turn.
func TestDevChangesAgents(t *testing.T) {
	data, kafka := t.TempDir(), freeRow(t, 3)
	rounds := []struct {
		agents int
		end    syscall.Signal
		status int
	}{
		{1, syscall.SIGKILL, -1},
		{3, syscall.SIGKILL, -1},
		{3, syscall.SIGTERM, 0},
		{1, syscall.SIGTERM, 0},
		{2, syscall.SIGTERM, 0},
	}
	for i, round := range rounds {
		p, _ := devCluster(t, data, kafka[:round.agents])
		if i > 0 {
			consume(t, kafka[0], "lake", int64(i)*100, line)
		}
		produce(t, kafka[0], "lake", int64(i)*100, 100, line)
		p.signal(t, round.end)
		if status := p.status(t); status != round.status {
			t.Errorf("round %d: exit status %d, want %d", i, status, round.status)
		}
	}
}
