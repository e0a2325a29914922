package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/varve-io/varve/test/bench/gaps"
	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
)

// results is everything that was measured for a page; a part that did not run, or failed, is nil.
type results struct {
	plan        plan
	machine     string
	varve       string // its version
	began       time.Time
	took        time.Duration
	comparison  *comparison
	kill        *series
	drain, move *series
	outages     *outageSeries
	scaled      *scaled
}

// markdown is the page that the run writes.
func (r results) markdown() string {
	var b strings.Builder
	b.WriteString("# Three agents: beside Apache Kafka, and when things happen to them\n\n")
	b.WriteString("Written by `go run ./test/bench/cluster`, whose package comment says what is compared and what makes it fair; `test/bench/gaps` says how\n" +
		"gaps and waits are measured. Not to be edited.\n\n")
	r.writeSetting(&b)
	fmt.Fprintf(&b, "What %d partitions do to three agents is in [SCALE.md](SCALE.md).\n\n", r.plan.many)
	if r.comparison != nil {
		report.WriteComparison(&b, [2]string{nameVarve, nameKafka}, sections(r.plan), r.comparison.runs)
	}
	r.writeKill(&b)
	r.writeDrain(&b)
	r.writeMove(&b)
	r.writeOutages(&b)
	report.WriteAims(&b, r.outcomes())
	return b.String()
}

// writeSubject says on what machine and of what the numbers are.
func (r results) writeSubject(b *strings.Builder) {
	fmt.Fprintf(b, "- Machine: %s\n- Varve %s: %d agents in zones a, b and c, three WAL copies, synced, one etcd\n", r.machine, r.varve, agents)
}

// writeTime says when they were made, and where the clients were.
func (r results) writeTime(b *strings.Builder, rounds string) {
	fmt.Fprintf(b, "- %s, %s%v in all. Clients and all servers share the machine, and its one disk.\n", r.began.UTC().Format("2006-01-02 15:04 UTC"), rounds, r.took.Round(time.Second))
}

// writeSetting says on what and with what the numbers were made.
func (r results) writeSetting(b *strings.Builder) {
	r.writeSubject(b)
	if r.comparison != nil {
		fmt.Fprintf(b, "- Apache Kafka %s: %d brokers that are controllers too, replication factor 3, min.insync.replicas 2, else its defaults\n", r.comparison.kafka, agents)
	}
	r.writeTime(b, fmt.Sprintf("%d rounds of the comparison, ", r.plan.rounds))
	c := r.plan.kib
	fmt.Fprintf(b, "- Throughput: acks=all, idempotent, %d partitions, %d connections with up to 5 requests open, uncompressed batches of at most %d KiB, one per partition in a\n"+
		"  request; each phase ends after %v or %.1f GB.\n", c.Partitions, c.Connections, c.BatchBytes>>10, c.Duration, float64(c.BytesMax)/1e9)
	fmt.Fprintf(b, "- Everything below \"When agents come and go\": %.1f MB/s of 1 KiB records to all partitions in turn, acks=all, idempotent, from one franz-go client with the pauses of the\n"+
		"  Java client.\n\n", r.plan.rateBytes/1e6)
}

type measure = report.Measure[compared]

// Names of measures that aims speak of.
const (
	produceKiB   = "produce, 1 KiB records, MB/s"
	produceSmall = "produce, 100 B records, MB/s"
	ackP99       = "acknowledgement p99"
)

// sections are the tables of the comparison.
func sections(p plan) []report.Section[compared] {
	rate := func(name string, of func(compared) load.Throughput) measure {
		return measure{Name: name, Verb: "%.0f", Of: func(c compared) (float64, bool) { return of(c).MBPerSecond(), true }}
	}
	cost := func(name string, of func(compared) load.Throughput) measure {
		return measure{Name: name, Verb: "%.2f", Of: func(c compared) (float64, bool) { return of(c).ServerCPUPerGB() }}
	}
	milliseconds := func(name string, of func(compared) time.Duration) measure {
		return measure{Name: name, Verb: "%.3f", Of: func(c compared) (float64, bool) { return of(c).Seconds() * 1e3, true }}
	}
	mebibytes := func(name string, of func(load.Memory) int64) measure {
		return measure{Name: name, Verb: "%.0f", Of: func(c compared) (float64, bool) { return float64(of(c.memory)) / (1 << 20), c.memory.Peak > 0 }}
	}
	others := func(name string, of func(compared) *float64) measure {
		return measure{Name: name, Verb: "%.0f", Of: func(c compared) (float64, bool) {
			if share := of(c); share != nil {
				return 100 * *share, true
			}
			return 0, false
		}}
	}
	kib, small := func(c compared) load.Throughput { return c.kib }, func(c compared) load.Throughput { return c.small }
	return []report.Section[compared]{
		{Title: "Throughput", Explain: "Values of records, in 1e6 bytes per second.", Measures: []measure{rate(produceKiB, kib), rate(produceSmall, small)}},
		{
			Title:    "Processor seconds of the cluster per GB",
			Explain:  "User and system time of all agents and etcd, or all brokers, until they are idle again: what is flushed after the last acknowledgement is included.",
			Measures: []measure{cost("produced, 1 KiB records", kib), cost("produced, 100 B records", small)},
		},
		{
			Title:   fmt.Sprintf("Latency at %.1f MB/s of 1 KiB records, ms", p.latency.RateBytes/1e6),
			Explain: "One franz-go producer without linger and one consumer. Every record counts from when it was due (open loop).",
			Measures: []measure{
				milliseconds("acknowledgement p50", func(c compared) time.Duration { return c.latency.Ack.P50 }),
				milliseconds(ackP99, func(c compared) time.Duration { return c.latency.Ack.P99 }),
				milliseconds("acknowledgement p99.9", func(c compared) time.Duration { return c.latency.Ack.P999 }),
				milliseconds("end to end p50", func(c compared) time.Duration { return c.latency.EndToEnd.P50 }),
				milliseconds("end to end p99", func(c compared) time.Duration { return c.latency.EndToEnd.P99 }),
			},
		},
		{
			Title:   "The disk itself, ms",
			Explain: "Append of 4 KiB to a file and fdatasync, one at a time, just before the latency phase, while the cluster is idle.",
			Measures: []measure{
				milliseconds("fdatasync of 4 KiB p50", func(c compared) time.Duration { return c.disk.P50 }),
				milliseconds("fdatasync of 4 KiB p99", func(c compared) time.Duration { return c.disk.P99 }),
			},
		},
		{Title: "Memory of the cluster, MiB", Explain: "Of all its processes together, without the page cache.", Measures: []measure{
			mebibytes("resident at the end", func(m load.Memory) int64 { return m.Resident }), mebibytes("peak", func(m load.Memory) int64 { return m.Peak }),
		}},
		{
			Title:   "Other processes",
			Explain: "Percent of the machine's processor time that neither cluster nor generator used. More than a few say that the machine was not quiet.",
			Measures: []measure{
				others("producing 1 KiB records", func(c compared) *float64 { return c.kib.OthersShare }),
				others("latency", func(c compared) *float64 { return c.latency.OthersShare }),
			},
		},
	}
}

// line is a measure of episodes.
type line = report.Measure[episode]

var (
	lineGap  = line{Name: "longest time without an acknowledgement on any partition, s", Verb: "%.2f", Of: func(e episode) (float64, bool) { return e.Gap.Seconds(), true }}
	lineWait = line{Name: "longest wait of any record for its acknowledgement, s", Verb: "%.2f", Of: func(e episode) (float64, bool) { return e.Wait.Seconds(), true }}
	lineExit = line{Name: "from SIGTERM to the exit, s", Verb: "%.2f", Of: func(e episode) (float64, bool) { return e.took.Seconds(), true }}
	lineUp   = line{Name: "from the start of the process until it is ready, s", Verb: "%.2f", Of: func(e episode) (float64, bool) { return e.took.Seconds(), true }}
	lineLed  = line{Name: "partitions that it led", Verb: "%.0f", Of: func(e episode) (float64, bool) { return float64(e.led), true }}
	lineGot  = line{Name: "partitions that it got", Verb: "%.0f", Of: lineLed.Of}
)

// writeEpisodes writes a table of episodes.
func writeEpisodes(b *strings.Builder, episodes []episode, lines ...line) {
	b.WriteString("| | median (least to most) |\n| --- | --: |\n")
	for _, l := range lines {
		fmt.Fprintf(b, "| %s | %s |\n", l.Name, l.Over(episodes).Format(l.Verb))
	}
	b.WriteString("\n")
}

// writeKept says what became of the records of a part.
func writeKept(b *strings.Builder, kept gaps.Kept, failed int) {
	fmt.Fprintf(b, "%d records were acknowledged and %d read back: %d lost, %d twice. The producer reported %d errors.\n\n", kept.Acked, kept.Read, kept.Lost, kept.Twice, failed)
}

func (r results) writeKill(b *strings.Builder) {
	if r.kill == nil {
		return
	}
	fmt.Fprintf(b, "## When agents come and go: kill -9\n\nOf three agents, the one that leads most partitions is killed, %d times; %d partitions, with a record due on each every %v. Once every partition takes records again, it is started again.\n\n",
		len(r.kill.struck), r.plan.partitions, r.interval(r.plan.partitions))
	writeEpisodes(b, r.kill.struck, lineGap, lineWait, lineLed)
	b.WriteString("When it comes back and takes its share:\n\n")
	writeEpisodes(b, r.kill.undone, lineGap, lineWait, lineUp, lineGot)
	writeKept(b, r.kill.kept, r.kill.failed)
}

// interval is the time between two records of a partition at the plan's rate.
func (r results) interval(partitions int) time.Duration {
	return gaps.Config{Partitions: partitions, RecordBytes: recordBytes, RateBytes: r.plan.rateBytes}.Interval().Round(time.Millisecond)
}

func (r results) writeDrain(b *strings.Builder) {
	if r.drain == nil {
		return
	}
	partitions := agents * r.plan.drained
	fmt.Fprintf(b, "## When agents come and go: drain\n\nOf three agents, the one that leads most partitions gets SIGTERM, %d times; %d partitions, with a record due on each every %v, which is the shortest gap possible.\n\n",
		len(r.drain.struck), partitions, r.interval(partitions))
	writeEpisodes(b, r.drain.struck, lineExit, lineGap, lineWait, lineLed)
	b.WriteString("When it comes back and takes its share:\n\n")
	writeEpisodes(b, r.drain.undone, lineGap, lineWait, lineUp, lineGot)
	writeKept(b, r.drain.kept, r.drain.failed)
}

func (r results) writeMove(b *strings.Builder) {
	if r.move == nil {
		return
	}
	fmt.Fprintf(b, "## When agents come and go: planned moves\n\nA fourth agent joins and is given shards, %d times; %d partitions, with a record due on each every %v.\n\n",
		len(r.move.struck), r.plan.partitions, r.interval(r.plan.partitions))
	writeEpisodes(b, r.move.struck, lineGap, lineWait, lineUp, lineGot)
	b.WriteString("When it leaves (SIGTERM):\n\n")
	writeEpisodes(b, r.move.undone, lineExit, lineGap, lineWait)
	writeKept(b, r.move.kept, r.move.failed)
}

func (r results) writeOutages(b *strings.Builder) {
	if r.outages == nil {
		return
	}
	fmt.Fprintf(b, "## %v without the bucket, and without etcd\n\nMinIO and etcd are killed and started again %v later; the numbers go on until %v after that. %d partitions.\n\n",
		r.plan.outage, r.plan.outage, r.plan.recovery, r.plan.partitions)
	b.WriteString("| without | records acknowledged | errors of the producer | longest wait of a record, s |\n| --- | --: | --: | --: |\n")
	for _, o := range r.outages.outages {
		fmt.Fprintf(b, "| %s | %d | %d | %.2f |\n", o.without, o.Acked, o.Failed, o.Wait.Seconds())
	}
	b.WriteString("\n")
	k := r.outages.kept
	fmt.Fprintf(b, "%d records were acknowledged and %d read back: %d lost, %d twice.\n\n", k.Acked, k.Read, k.Lost, k.Twice)
}
