package main

import (
	"fmt"

	"github.com/varve-io/varve/test/bench/gaps"
	"github.com/varve-io/varve/test/bench/report"
)

// outcomes compares what was measured with what Varve is meant to reach, but for [results.scaleOutcome].
func (r results) outcomes() []report.Outcome {
	out := r.comparisonOutcomes()
	out = append(out,
		r.kill.most("at most 5 s without an acknowledgement on any partition after kill -9 of its leader, each time", 5, lineGap),
		r.kill.lost("nothing that was acknowledged lost to kill -9"),
		r.drain.most(fmt.Sprintf("at most 3 s for the drain of an agent with about %d partitions under load, each time", r.plan.drained), 3, lineExit),
		r.drain.lost("nothing that was acknowledged lost in a drain"),
		r.move.most("under 0.5 s of waiting for a planned move, each time", 0.5, lineWait),
		r.move.lost("nothing that was acknowledged lost in a planned move"),
	)
	for i, without := range []string{"the bucket", "etcd"} {
		o := report.Outcome{Aim: report.Aim{Text: fmt.Sprintf("no error of the producer in %v without %s at %.1f MB/s", r.plan.outage, without, r.plan.rateBytes/1e6)}, Verb: "%.0f"}
		if r.outages != nil {
			o.Value, o.Known = float64(r.outages.outages[i].Failed), true
		}
		out = append(out, o)
	}
	outages := report.Outcome{Aim: report.Aim{Text: "nothing that was acknowledged lost without bucket or etcd"}, Verb: "%.0f"}
	if r.outages != nil {
		outages.Value, outages.Known = missing(r.outages.kept), true
	}
	return append(out, outages)
}

// scaleOutcome is that with many partitions.
func (r results) scaleOutcome() report.Outcome {
	many := report.Outcome{Aim: report.Aim{Text: fmt.Sprintf("etcd under 1 GiB with %d partitions, MiB", r.plan.many), Bound: 1 << 10}, Verb: "%.1f"}
	if r.scaled != nil {
		many.Value, many.Known = r.scaled.etcdAfter.file/(1<<20), true
	}
	return many
}

// comparisonOutcomes are those beside Apache Kafka.
func (r results) comparisonOutcomes() []report.Outcome {
	out := []report.Outcome{
		{Aim: report.Aim{Text: "produce more than three Apache Kafka brokers (1 KiB records, acks=all), times", Bound: 1, AtLeast: true}, Verb: "%.2f"},
		{Aim: report.Aim{Text: "produce more than three Apache Kafka brokers (100 B records, acks=all), times", Bound: 1, AtLeast: true}, Verb: "%.2f"},
		{Aim: report.Aim{Text: "acknowledgement p99 under 20 ms, where the disk's own sync allows it, ms", Bound: 20}, Verb: "%.3f"},
	}
	if r.comparison == nil {
		return out
	}
	measures := make(map[string]measure)
	for _, s := range sections(r.plan) {
		for _, m := range s.Measures {
			measures[m.Name] = m
		}
	}
	runs := r.comparison.runs
	for i, name := range []string{produceKiB, produceSmall} {
		m := measures[name]
		out[i].Value, out[i].Known = report.Ratio(m.Over(runs[0]), m.Over(runs[1]))
	}
	p99 := measures[ackP99].Over(runs[0])
	out[2].Value, out[2].Known = p99.Median, p99.Known
	return out
}

// most is the outcome of an aim for the worst episode of a series, which may be nil.
func (all *series) most(text string, bound float64, of line) report.Outcome {
	o := report.Outcome{Aim: report.Aim{Text: text, Bound: bound}, Verb: of.Verb}
	if all != nil {
		worst := of.Over(all.struck)
		o.Value, o.Known = worst.Most, worst.Known
	}
	return o
}

// lost is the outcome of an aim to keep everything.
func (all *series) lost(text string) report.Outcome {
	o := report.Outcome{Aim: report.Aim{Text: text}, Verb: "%.0f"}
	if all != nil {
		o.Value, o.Known = missing(all.kept), true
	}
	return o
}

// missing is how many records are not as they were acknowledged: lost, or there twice.
func missing(k gaps.Kept) float64 { return float64(k.Lost + k.Twice) }
