package agent_test

import (
	"net"
	"testing"
	"time"

	"github.com/varve-io/varve/agent"
)

// TestDrainWithoutEtcd: an agent that leaves while etcd is away does not spend all its time on telling the others: its clients are answered and sent away first.
func TestDrainWithoutEtcd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.launch(t, w.dir, -1, func(c *agent.Config) { c.Copies, c.Shards, c.DrainMax = 1, 8, 9*time.Second })
	a.await(t)
	a.line.cut()
	a.leave()
	start := time.Now()
	eventually(t, "nobody is let in any more", func() bool {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", a.addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	if took := time.Since(start); took > 7*time.Second {
		t.Errorf("clients were let in for %v", took)
	}
}
