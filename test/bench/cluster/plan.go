package main

import (
	"time"

	"github.com/varve-io/varve/test/bench/load"
)

const (
	// agents is the size of each cluster.
	agents = 3
	// recordBytes is the size of a record's value, but for the small records of the comparison.
	recordBytes = 1024
)

// plan is how long and how large everything is.
type plan struct {
	rounds                      int
	warmup, kib, small, latency load.Config

	rateBytes  float64 // of the load while things happen
	partitions int     // of the topic of kill, move and outage
	steady     time.Duration
	kills      int
	drains     int
	drained    int // partitions that the agent that leaves is to lead, about
	joins      int
	// outage is how long the bucket and etcd are away, and recovery how long the load runs on after they are back.
	outage, recovery time.Duration
	many, manyBusy   int     // partitions of scale, and those of them that are in use
	manyRateBytes    float64 // of the load on those
}

func newPlan(rounds int, outage time.Duration) plan {
	throughput := load.Defaults()
	throughput.Phases = load.Phases{Produce: true}
	throughput.Partitions, throughput.Connections = 24, 6
	throughput.Duration, throughput.BytesMax = 15*time.Second, 1<<30
	p := plan{
		rounds: rounds, warmup: throughput, kib: throughput, small: throughput, latency: throughput,
		rateBytes: 5e6, partitions: 48, steady: 2 * time.Second,
		kills: 6, drains: 3, drained: 1000, joins: 3, outage: outage, recovery: 15 * time.Second,
		many: 100_000, manyBusy: 1000, manyRateBytes: 2e6,
	}
	p.warmup.BytesMax = 1536 << 20
	p.small.RecordBytes = 100
	p.latency.Phases, p.latency.Client = load.Phases{Latency: true}, load.ClientFranz
	p.latency.Duration, p.latency.RateBytes = 20*time.Second, p.rateBytes
	return p
}

// smoke is a plan that shows that everything works, and measures nothing worth keeping.
func (p plan) smoke() plan {
	p.rounds = 1
	for _, phase := range []*load.Config{&p.warmup, &p.kib, &p.small, &p.latency} {
		phase.Duration, phase.BytesMax = 2*time.Second, 32<<20
	}
	p.latency.RateBytes, p.rateBytes, p.manyRateBytes = 1e6, 5e5, 2e5
	p.partitions, p.steady = 12, time.Second
	p.kills, p.drains, p.drained, p.joins = 1, 1, 50, 1
	p.outage, p.recovery = 4*time.Second, 3*time.Second
	p.many, p.manyBusy = 2100, 100
	return p
}
