package forward

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	forwarded *prometheus.CounterVec
	again     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		forwarded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "varve_forwarded_requests_total", Help: "Requests, or parts of them, that were passed on to other agents.",
		}, []string{"api"}),
		again: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_forwarded_again_total", Help: "Times that parts of a client's request were sent again, because a leader had moved or was gone.",
		}),
	}
	reg.MustRegister(m.forwarded, m.again)
	return m
}
