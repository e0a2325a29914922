package peer

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
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
		appends:       counter("varve_peer_appends_total", "Rounds of frames that other agents had made durable in this agent's WAL store."),
		appendedBytes: counter("varve_peer_appended_bytes_total", "Bytes of the frames that other agents had made durable in this agent's WAL store."),
		readBytes:     counter("varve_peer_read_bytes_total", "Bytes of the entries that other agents read from this agent's WAL store, to recover logs."),
	}
	if reg != nil {
		reg.MustRegister(m.appends, m.appendedBytes, m.readBytes)
	}
	return m
}
