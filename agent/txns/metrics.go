package txns

import "github.com/prometheus/client_golang/prometheus"

// metrics of the transaction coordinator.
type metrics struct {
	writes prometheus.Counter
}

// newMetrics registers the metrics, unless there is nowhere to.
func newMetrics(c *Coordinator) *metrics {
	m := &metrics{
		writes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_txn_writes_total", Help: "Writes of transactional ids' records. Those that wait together share an etcd transaction.",
		}),
	}
	if reg := c.deps.Metrics; reg != nil {
		reg.MustRegister(m.writes, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "varve_txn_ids", Help: "Transactional ids that this agent coordinates.",
		}, func() float64 {
			c.mu.Lock()
			defer c.mu.Unlock()
			return float64(c.ids)
		}))
	}
	return m
}
