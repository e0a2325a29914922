package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
)

// transactionResults is everything that was measured of idempotence and transactions.
type transactionResults struct {
	plan transactionPlan
	setting
	runs [2][]transactionRun // by contender, then round
}

// transactionMeasure is a value of such a run.
type transactionMeasure = report.Measure[transactionRun]

// onOff is how fast idempotent producers are, as a part of how fast others are.
var onOff = transactionMeasure{Name: "with / without", Verb: "%.2f", Of: func(r transactionRun) (float64, bool) {
	return r.on.MBPerSecond() / r.off.MBPerSecond(), r.off.Bytes > 0
}}

// sections are the tables.
func (p transactionPlan) sections() []report.Section[transactionRun] {
	milliseconds := func(of func(load.Transactions) time.Duration) func(transactionPhase) (float64, bool) {
		return func(t transactionPhase) (float64, bool) { return of(t.Transactions).Seconds() * 1e3, true }
	}
	return []report.Section[transactionRun]{
		{
			Title:   "Producing with and without idempotence",
			Explain: "Records of 1 KiB, acks=all, in 1e6 bytes of values per second and processor seconds of the broker per GB. On, off, off, on, in each round.",
			Measures: []transactionMeasure{
				{Name: "with, MB/s", Verb: "%.0f", Of: func(r transactionRun) (float64, bool) { return r.on.MBPerSecond(), r.on.Bytes > 0 }},
				{Name: "without, MB/s", Verb: "%.0f", Of: func(r transactionRun) (float64, bool) { return r.off.MBPerSecond(), r.off.Bytes > 0 }},
				onOff,
				{Name: "with, CPU s per GB", Verb: "%.2f", Of: func(r transactionRun) (float64, bool) { return r.on.ServerCPUPerGB() }},
				{Name: "without, CPU s per GB", Verb: "%.2f", Of: func(r transactionRun) (float64, bool) { return r.off.ServerCPUPerGB() }},
			},
		},
		p.section("Transactions per second", fmt.Sprintf("Each of %d records over %d partitions; a producer begins the next when it knows that the one before is committed. Members that copy read "+
			"a topic, and send their offsets along.", p.loads[0].Records, p.loads[0].Partitions),
			value{"", "%.0f", func(t transactionPhase) (float64, bool) { return t.PerSecond(), true }}),
		p.section("From begin to commit, ms", "From before the first record is handed to the client until the producer knows that the transaction is committed.",
			value{" p50", "%.1f", milliseconds(func(t load.Transactions) time.Duration { return t.Commit.P50 })},
			value{" p99", "%.1f", milliseconds(func(t load.Transactions) time.Duration { return t.Commit.P99 })}),
		p.section("End to end, ms", "From the same begin until a read_committed consumer has all records of the transaction.",
			value{" p50", "%.1f", milliseconds(func(t load.Transactions) time.Duration { return t.EndToEnd.P50 })},
			value{" p99", "%.1f", milliseconds(func(t load.Transactions) time.Duration { return t.EndToEnd.P99 })}),
		p.section("Processor milliseconds of the broker per transaction", "Until the broker is idle again. It includes what the consumers take, and, of Varve, its etcd and the watch that counts what is below.",
			value{"", "%.2f", processorMs}),
		p.section("Writes to etcd per transaction", "Of Varve, counted by a watch of its etcd. A write is what a transaction hands over at one time: its record (partitions or a group that come in, the decision; "+
			"a completion goes along with the next transaction's partitions), the offsets that it takes in, the offsets that its commit applies (which deletes those taken in).",
			value{": writes", "%.2f", perTransaction(writes.total)},
			value{": of the record", "%.2f", perTransaction(func(w writes) int { return w.TxnRecords })},
			value{": of offsets", "%.2f", perTransaction(func(w writes) int { return w.Pending + w.Applied })},
			value{": keys", "%.2f", perTransaction(func(w writes) int { return w.Keys })},
			value{": etcd transactions", "%.2f", perTransaction(func(w writes) int { return w.EtcdTxns })}),
		p.section("Transactions that were aborted", "Though their producers tried to commit.", value{"", "%.0f", func(t transactionPhase) (float64, bool) { return float64(t.Aborted), true }}),
		p.section("Other processes", "Percent of the machine's processor time that neither broker nor generator used. More than a few say that the machine was not quiet.",
			value{"", "%.0f", func(t transactionPhase) (float64, bool) {
				if t.OthersShare == nil {
					return 0, false
				}
				return 100 * *t.OthersShare, true
			}}),
		{Title: "The disk itself, ms", Explain: "Append of 4 KiB to a file and fdatasync, just before the transactions, while the broker is idle.", Measures: []transactionMeasure{
			{Name: diskP50, Verb: "%.3f", Of: func(r transactionRun) (float64, bool) { return r.disk.P50.Seconds() * 1e3, true }},
			{Name: diskP99, Verb: "%.3f", Of: func(r transactionRun) (float64, bool) { return r.disk.P99.Seconds() * 1e3, true }},
		}},
	}
}

// value is what a table has of each load.
type value struct {
	suffix, verb string
	of           func(transactionPhase) (float64, bool)
}

// section is a table with values of all loads.
func (p transactionPlan) section(title, explain string, values ...value) report.Section[transactionRun] {
	s := report.Section[transactionRun]{Title: title, Explain: explain}
	for i := range p.loads {
		for _, v := range values {
			s.Measures = append(s.Measures, p.measureOf(i, v))
		}
	}
	return s
}

// measureOf takes a value from one load.
func (p transactionPlan) measureOf(index int, v value) transactionMeasure {
	return transactionMeasure{Name: p.loads[index].name + v.suffix, Verb: v.verb, Of: func(r transactionRun) (float64, bool) {
		if index >= len(r.loads) {
			return 0, false
		}
		return v.of(r.loads[index])
	}}
}

// processorMs is what a transaction cost the broker.
func processorMs(t transactionPhase) (float64, bool) {
	if t.ServerCPU == nil || t.Count == 0 {
		return 0, false
	}
	return t.ServerCPU.Seconds() * 1e3 / float64(t.Count), true
}

// perTransaction divides a count by the transactions; false for a broker without etcd.
func perTransaction(count func(writes) int) func(transactionPhase) (float64, bool) {
	return func(t transactionPhase) (float64, bool) {
		if t.writes == nil || t.Count == 0 {
			return 0, false
		}
		return float64(count(*t.writes)) / float64(t.Count), true
	}
}

// outcomes compares Varve's medians with the aims.
func (r transactionResults) outcomes() []report.Outcome {
	varve := r.runs[0]
	outcome := func(text string, bound float64, m transactionMeasure) report.Outcome {
		sum := m.Over(varve)
		return report.Outcome{Aim: report.Aim{Text: text, Bound: bound}, Value: sum.Median, Known: sum.Known, Verb: m.Verb}
	}
	idempotent := outcome("throughput with idempotence at least 0.95 of without", 0.95, onOff)
	idempotent.AtLeast = true
	total := value{"", "%.2f", perTransaction(writes.total)}
	shared := func(text string, many, alone int) report.Outcome {
		etcd := value{"", "%.2f", perTransaction(func(w writes) int { return w.EtcdTxns })}
		o := outcome(text, 1, r.plan.measureOf(many, etcd))
		o.Value, o.Known = report.Ratio(r.plan.measureOf(many, etcd).Over(varve), r.plan.measureOf(alone, etcd).Over(varve))
		return o
	}
	return []report.Outcome{
		idempotent,
		outcome("at most 4 writes to etcd per transaction that produces", 4, r.plan.measureOf(aloneSmall, total)),
		outcome("at most 4 writes to etcd per transaction that copies", 4, r.plan.measureOf(aloneCopy, total)),
		shared("8 producers at once need less etcd transactions per transaction than one: as a part of its", manySmall, aloneSmall),
		shared("8 members that copy at once need less etcd transactions per transaction than one: as a part of its", manyCopy, aloneCopy),
	}
}

// spoken says which version of transactions the clients spoke with a contender.
func (r transactionResults) spoken(contender int) string {
	least, most := 2, 1
	for _, run := range r.runs[contender] {
		for _, phase := range run.loads {
			least, most = min(least, phase.Version), max(most, phase.Version)
		}
	}
	if least != most {
		return "1 and 2"
	}
	return fmt.Sprint(most)
}

// markdown is the page.
func (r transactionResults) markdown() string {
	var b strings.Builder
	b.WriteString("# What idempotence and transactions cost, beside Apache Kafka\n\n")
	b.WriteString("Written by `go run ./test/bench/compare --only transactions`, whose package comment says what makes the comparison fair. Not to be edited.\n\n")
	r.write(&b, fmt.Sprintf("producing as in [RESULTS.md](RESULTS.md), for %v or %.1f GB; transactions by franz-go, whose producers wait 100 ms when they are told to try again, for %v each. With Varve its clients spoke version %s of transactions\n"+
		"  (transaction.version, KIP-890), with Apache Kafka version %s.",
		r.plan.produce.Duration, float64(r.plan.produce.BytesMax)/1e9, r.plan.loads[0].Duration, r.spoken(0), r.spoken(1)))
	report.WriteComparison(&b, r.names(), r.plan.sections(), r.runs)
	report.WriteAims(&b, r.outcomes())
	return b.String()
}
