package main

import (
	"strings"

	"github.com/varve-io/varve/test/bench/report"
)

// aim is a number that Varve is meant to reach on a machine with two cores.
type aim struct {
	report.Aim
	measure string
	// ratio compares Varve's median with Kafka's instead of with the bound.
	ratio bool
}

var aims = []aim{
	{report.Aim{Text: "produce at least 1.5 times as much as Apache Kafka (1 KiB records, acks=all, synced against not synced)", Bound: 1.5, AtLeast: true}, produceKiB, true},
	{report.Aim{Text: "at most 1.8 processor seconds per GB produced, log and flush to a folder included", Bound: 1.8}, produceCPU, false},
	{report.Aim{Text: "at most 0.5 processor seconds per GB consumed from memory", Bound: 0.5}, consumeCPU, false},
	{report.Aim{Text: "acknowledgement p50 at most 1 ms", Bound: 1}, ackP50, false},
	{report.Aim{Text: "acknowledgement p99 at most 5 ms, where the disk's own sync allows it", Bound: 5}, ackP99, false},
	{report.Aim{Text: "at most one PUT per 8 MiB under load", Bound: 8, AtLeast: true}, mibPerPut, false},
	{report.Aim{Text: "no PUT when idle", Bound: 0}, putsWhileIdle, false},
}

// writeAims compares the medians with the aims.
func (r results) writeAims(b *strings.Builder) {
	measures := make(map[string]measure)
	for _, s := range sections(r.plan) {
		for _, m := range s.Measures {
			measures[m.Name] = m
		}
	}
	outcomes := make([]report.Outcome, len(aims))
	for i, a := range aims {
		m := measures[a.measure]
		varve := m.Over(r.runs[0])
		outcomes[i] = report.Outcome{Aim: a.Aim, Value: varve.Median, Known: varve.Known, Verb: m.Verb}
		if a.ratio {
			outcomes[i].Value, outcomes[i].Known = report.Ratio(varve, m.Over(r.runs[1]))
			outcomes[i].Verb = "%.2f"
		}
	}
	report.WriteAims(b, outcomes)
}
