package groups

import "github.com/prometheus/client_golang/prometheus"

// Values of the label outcome.
const (
	outcomeCommitted = "committed"
	outcomeAborted   = "aborted"
	outcomeDropped   = "dropped"
)

// metrics of the group coordinator.
type metrics struct {
	live       *prometheus.GaugeVec
	joins      prometheus.Counter
	rebalances prometheus.Counter
	commits    prometheus.Counter
	expired    prometheus.Counter
	txnCommits prometheus.Counter
	txnEnds    *prometheus.CounterVec
}

// newMetrics registers the metrics, unless reg is nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		live: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "varve_groups_live",
			Help: "Consumer groups that this agent holds in memory, by state.",
		}, []string{"state"}),
		joins:      counter("varve_group_joins_total", "JoinGroup requests."),
		rebalances: counter("varve_group_rebalances_total", "Join phases that began."),
		commits:    counter("varve_group_offset_commits_total", "Offsets of partitions that OffsetCommit made durable."),
		expired:    counter("varve_group_offsets_expired_total", "Offsets that outlived their retention."),
		txnCommits: counter("varve_group_txn_offset_commits_total", "Offsets of partitions that TxnOffsetCommit took into transactions."),
		txnEnds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "varve_group_txn_ends_total",
			Help: "Transactions that ended in a group: committed, aborted, or dropped because they were over and no marker had come.",
		}, []string{"outcome"}),
	}
	if reg != nil {
		reg.MustRegister(m.live, m.joins, m.rebalances, m.commits, m.expired, m.txnCommits, m.txnEnds)
	}
	return m
}
