package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/varve-io/varve/test/bench/load"
)

// results is everything that one call of the command measured.
type results struct {
	plan       plan
	machine    machine
	contenders []contender
	runs       [][]run // by contender, then round
	began      time.Time
	took       time.Duration
}

// measure is one line of a table. A run may lack it.
type measure struct {
	name string
	verb string // how fmt writes a value
	of   func(run) (float64, bool)
}

// Names of measures that aims speak of.
const (
	produceKiB    = "produce, 1 KiB records, MB/s"
	produceCPU    = "produced, 1 KiB records"
	consumeCPU    = "consumed from memory, 1 KiB records"
	ackP50        = "acknowledgement p50"
	ackP99        = "acknowledgement p99"
	diskP50       = "fdatasync of 4 KiB p50"
	diskP99       = "fdatasync of 4 KiB p99"
	mibPerPut     = "MiB per PUT while producing 1 KiB records"
	putsWhileIdle = "PUTs while idle"
)

// section is one table of the results.
type section struct {
	title    string
	explain  string
	measures []measure
}

func sections(p plan) []section {
	return []section{
		{"Throughput", "Values of records, in 1e6 bytes per second. \"From memory\" reads the last " +
			fmt.Sprintf("%d MiB", p.kib.WindowBytes>>20) + " of the topic again and again, \"from the start\" all that was produced, once.", slices.Concat(
			rates("1 KiB", func(r run) load.Report { return r.kib }),
			rates("100 B", func(r run) load.Report { return r.small }),
		)},
		{"Processor seconds of the broker per GB", "User and system time, until the broker is idle again: what it flushes after the last acknowledgement is included.", slices.Concat(
			costs("1 KiB", func(r run) load.Report { return r.kib }),
			costs("100 B", func(r run) load.Report { return r.small }),
		)},
		{fmt.Sprintf("Latency at %.0f MB/s of 1 KiB records, ms", p.latency.RateBytes/1e6), "One producer without linger and one consumer. Every record counts from when it was due (open loop).", slices.Concat(
			latencies("", func(r run) load.Latency { return r.raw }),
			latencies("franz-go, ", func(r run) load.Latency { return r.franz }),
		)},
		{"The disk itself, ms", "Append of 4 KiB to a file and fdatasync, just before the latency phases, while the broker is idle. No synced acknowledgement can be faster.", []measure{
			milliseconds(diskP50, func(r run) time.Duration { return r.disk.P50 }),
			milliseconds(diskP99, func(r run) time.Duration { return r.disk.P99 }),
			milliseconds("fdatasync of 4 KiB p99.9", func(r run) time.Duration { return r.disk.P999 }),
		}},
		{"Other processes", "Percent of the machine's processor time that neither broker nor generator used. More than a few say that the machine was not quiet.", []measure{
			others("producing 1 KiB records", func(r run) *float64 { return r.kib.Produce.OthersShare }),
			others("consuming 1 KiB records", func(r run) *float64 { return r.kib.ConsumeMemory.OthersShare }),
			others("latency", func(r run) *float64 { return r.raw.OthersShare }),
		}},
		{"Memory, MiB", "Of the process, without the page cache.", []measure{
			{"resident at the end", "%.0f", func(r run) (float64, bool) { return float64(r.memory.Resident) / (1 << 20), r.memory.Peak > 0 }},
			{"peak", "%.0f", func(r run) (float64, bool) { return float64(r.memory.Peak) / (1 << 20), r.memory.Peak > 0 }},
		}},
		{"Object requests", fmt.Sprintf("Of brokers that count them. Idle is %v without clients, from %v after the last record.", p.idle, p.lastFlush), []measure{
			{mibPerPut, "%.1f", func(r run) (float64, bool) { return perPut(*r.kib.Produce) }},
			{"MiB per PUT while producing 100 B records", "%.1f", func(r run) (float64, bool) { return perPut(*r.small.Produce) }},
			{putsWhileIdle, "%.0f", func(r run) (float64, bool) {
				if r.idle == nil {
					return 0, false
				}
				return r.idle.Puts, true
			}},
		}},
	}
}

// perPut is how many bytes of values went into a PUT. It is false when there
// was no PUT, which makes no average.
func perPut(t load.Throughput) (float64, bool) {
	if t.Objects == nil || t.Objects.Puts == 0 {
		return 0, false
	}
	return float64(t.Bytes) / t.Objects.Puts / (1 << 20), true
}

func rates(size string, report func(run) load.Report) []measure {
	rate := func(what string, phase func(load.Report) *load.Throughput) measure {
		return measure{what + ", " + size + " records, MB/s", "%.0f", func(r run) (float64, bool) {
			return phase(report(r)).MBPerSecond(), true
		}}
	}
	return []measure{
		rate("produce", func(r load.Report) *load.Throughput { return r.Produce }),
		rate("consume from memory", func(r load.Report) *load.Throughput { return r.ConsumeMemory }),
		rate("consume from the start", func(r load.Report) *load.Throughput { return r.ConsumeAll }),
	}
}

func costs(size string, report func(run) load.Report) []measure {
	cost := func(what string, phase func(load.Report) *load.Throughput) measure {
		return measure{what + ", " + size + " records", "%.2f", func(r run) (float64, bool) {
			return phase(report(r)).ServerCPUPerGB()
		}}
	}
	return []measure{
		cost("produced", func(r load.Report) *load.Throughput { return r.Produce }),
		cost("consumed from memory", func(r load.Report) *load.Throughput { return r.ConsumeMemory }),
		cost("consumed from the start", func(r load.Report) *load.Throughput { return r.ConsumeAll }),
	}
}

func latencies(client string, latency func(run) load.Latency) []measure {
	return []measure{
		milliseconds(client+ackP50, func(r run) time.Duration { return latency(r).Ack.P50 }),
		milliseconds(client+ackP99, func(r run) time.Duration { return latency(r).Ack.P99 }),
		milliseconds(client+"acknowledgement p99.9", func(r run) time.Duration { return latency(r).Ack.P999 }),
		milliseconds(client+"end to end p50", func(r run) time.Duration { return latency(r).EndToEnd.P50 }),
		milliseconds(client+"end to end p99", func(r run) time.Duration { return latency(r).EndToEnd.P99 }),
		milliseconds(client+"end to end p99.9", func(r run) time.Duration { return latency(r).EndToEnd.P999 }),
	}
}

func milliseconds(name string, of func(run) time.Duration) measure {
	return measure{name, "%.3f", func(r run) (float64, bool) { return of(r).Seconds() * 1e3, true }}
}

func others(name string, share func(run) *float64) measure {
	return measure{name, "%.0f", func(r run) (float64, bool) {
		if s := share(r); s != nil {
			return 100 * *s, true
		}
		return 0, false
	}}
}

// summary is a measure over the rounds.
type summary struct {
	median, least, most float64
	known               bool
}

func summarize(m measure, runs []run) summary {
	var values []float64
	for _, r := range runs {
		if v, ok := m.of(r); ok {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		return summary{}
	}
	slices.Sort(values)
	n := len(values)
	return summary{median: (values[(n-1)/2] + values[n/2]) / 2, least: values[0], most: values[n-1], known: true}
}

// format writes median and spread; one round has no spread.
func (s summary) format(verb string) string {
	if !s.known {
		return "-"
	}
	text := fmt.Sprintf(verb, s.median)
	if s.least != s.most {
		text += fmt.Sprintf(" ("+verb+" to "+verb+")", s.least, s.most)
	}
	return text
}

// markdown is the page that the run writes.
func (r results) markdown() string {
	var b strings.Builder
	b.WriteString("# How fast Varve is, beside Apache Kafka\n\n")
	b.WriteString("Written by `go run ./test/bench/compare`, whose package comment says what makes the comparison fair. Not to be edited.\n\n")
	r.writeSetting(&b)
	for _, s := range sections(r.plan) {
		fmt.Fprintf(&b, "## %s\n\n%s\n\n| median (least to most) |", s.title, s.explain)
		for _, c := range r.contenders {
			fmt.Fprintf(&b, " %s |", c.name)
		}
		fmt.Fprintf(&b, " %s / %s |\n| --- | --: | --: | --: |\n", r.contenders[0].name, r.contenders[1].name)
		for _, m := range s.measures {
			a, k := summarize(m, r.runs[0]), summarize(m, r.runs[1])
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", m.name, a.format(m.verb), k.format(m.verb), ratio(a, k))
		}
		b.WriteString("\n")
	}
	r.writeAims(&b)
	return b.String()
}

func ratio(a, b summary) string {
	if !a.known || !b.known || b.median == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a.median/b.median)
}

// writeSetting says on what and with what the numbers were made.
func (r results) writeSetting(b *strings.Builder) {
	c := r.plan.kib
	fmt.Fprintf(b, "- Machine: %s\n", r.machine)
	for _, contender := range r.contenders {
		fmt.Fprintf(b, "- %s %s\n", contender.name, contender.version)
	}
	fmt.Fprintf(b, "- %s, %d rounds, %v in all. Clients and broker share the machine.\n",
		r.began.UTC().Format("2006-01-02 15:04 UTC"), r.plan.rounds, r.took.Round(time.Second))
	fmt.Fprintf(b, "- Load: acks=all, idempotent, %d partitions, %d connections with up to 5 requests open, uncompressed batches of at most %d KiB, one per partition in a request;\n"+
		"  each phase ends after %v or %.1f GB. Fetches ask for 1 MiB per partition.\n\n", c.Partitions, c.Connections, c.BatchBytes>>10, c.Duration, float64(c.BytesMax)/1e9)
}
