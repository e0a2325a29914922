package peer

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	connections   prometheus.Gauge
	refused       prometheus.Counter
	appends       prometheus.Counter
	appendedBytes prometheus.Counter
	readBytes     prometheus.Counter
}

// newMetrics makes a server's metrics, and registers them unless reg is nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "varve_peer_connections", Help: "Connections of other agents to this one's WAL store that proved themselves.",
		}),
		refused: counter("varve_peer_connections_refused_total",
			"Connections to this agent's WAL store that did not prove themselves: strangers, another secret, cluster or store, or too many."),
		appends:       counter("varve_peer_appends_total", "Rounds of frames that other agents had made durable in this agent's WAL store."),
		appendedBytes: counter("varve_peer_appended_bytes_total", "Bytes of the frames that other agents had made durable in this agent's WAL store."),
		readBytes:     counter("varve_peer_read_bytes_total", "Bytes of the entries that other agents read from this agent's WAL store, to recover logs."),
	}
	if reg != nil {
		reg.MustRegister(m.connections, m.refused, m.appends, m.appendedBytes, m.readBytes)
	}
	return m
}
