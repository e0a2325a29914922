package peering

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	connections *prometheus.GaugeVec // by service
	refused     prometheus.Counter
}

// newMetrics makes a server's metrics, and registers them unless reg is nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "varve_peer_connections", Help: "Connections of other agents to this one that proved themselves.",
		}, []string{"service"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_peer_connections_refused_total",
			Help: "Connections to this agent's port for peers that were refused: strangers, another secret, cluster or agent, or too many.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.connections, m.refused)
	}
	return m
}
