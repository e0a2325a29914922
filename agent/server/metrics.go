package server

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-io/varve/protocol"
)

// Registerer is where the server's metrics are registered.
type Registerer = prometheus.Registerer

type metrics struct {
	connections prometheus.Gauge
	refused     prometheus.Counter
	failed      prometheus.Counter
	sent        prometheus.Counter
	requests    map[protocol.Key]prometheus.Observer
}

func newMetrics(reg Registerer) *metrics {
	m := &metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "varve_connections", Help: "Kafka connections that are open.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_connections_refused_total", Help: "Kafka connections that were closed at once because there were too many.",
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_connections_failed_total", Help: "Kafka connections that ended by an error: a bad frame, a time-out, a reset.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_response_bytes_total", Help: "Bytes of responses that were written to Kafka connections.",
		}),
		requests: make(map[protocol.Key]prometheus.Observer),
	}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "varve_request_seconds",
		Help:    "Time from a request's last byte until its answer is in line; a Produce request is in line before it is durable.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
	}, []string{"api"})
	for _, api := range protocol.APIs() {
		m.requests[api.Key] = seconds.WithLabelValues(api.Name)
	}
	reg.MustRegister(m.connections, m.refused, m.failed, m.sent, seconds)
	return m
}

func (m *metrics) request(key protocol.Key, took time.Duration) {
	m.requests[key].Observe(took.Seconds())
}
