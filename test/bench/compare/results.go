package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
)

// results is everything that was measured of records.
type results struct {
	plan plan
	setting
	runs [2][]run // by contender, then round
}

// What a page of the comparison is made of.
type (
	measure = report.Measure[run]
	section = report.Section[run]
)

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

func sections(p plan) []section {
	return []section{
		{Title: "Throughput", Explain: "Values of records, in 1e6 bytes per second. \"From memory\" reads the last " +
			fmt.Sprintf("%d MiB", p.kib.WindowBytes>>20) + " of the topic again and again, \"from the start\" all that was produced, once.", Measures: slices.Concat(
			rates("1 KiB", func(r run) load.Report { return r.kib }),
			rates("100 B", func(r run) load.Report { return r.small }),
		)},
		{Title: "Processor seconds of the broker per GB", Explain: "User and system time, until the broker is idle again: what it flushes after the last acknowledgement is included.", Measures: slices.Concat(
			costs("1 KiB", func(r run) load.Report { return r.kib }),
			costs("100 B", func(r run) load.Report { return r.small }),
		)},
		{Title: fmt.Sprintf("Latency at %.0f MB/s of 1 KiB records, ms", p.latency.RateBytes/1e6), Explain: "One producer without linger and one consumer. Every record counts from when it was due (open loop).", Measures: slices.Concat(
			latencies("", func(r run) load.Latency { return r.raw }),
			latencies("franz-go, ", func(r run) load.Latency { return r.franz }),
		)},
		{Title: "The disk itself, ms", Explain: "Append of 4 KiB to a file and fdatasync, just before the latency phases, while the broker is idle. No synced acknowledgement can be faster.", Measures: []measure{
			milliseconds(diskP50, func(r run) time.Duration { return r.disk.P50 }),
			milliseconds(diskP99, func(r run) time.Duration { return r.disk.P99 }),
			milliseconds("fdatasync of 4 KiB p99.9", func(r run) time.Duration { return r.disk.P999 }),
		}},
		{Title: "Other processes", Explain: "Percent of the machine's processor time that neither broker nor generator used. More than a few say that the machine was not quiet.", Measures: []measure{
			others("producing 1 KiB records", func(r run) *float64 { return r.kib.Produce.OthersShare }),
			others("consuming 1 KiB records", func(r run) *float64 { return r.kib.ConsumeMemory.OthersShare }),
			others("latency", func(r run) *float64 { return r.raw.OthersShare }),
		}},
		{Title: "Memory, MiB", Explain: "Of the process, without the page cache.", Measures: []measure{
			{Name: "resident at the end", Verb: "%.0f", Of: func(r run) (float64, bool) { return float64(r.memory.Resident) / (1 << 20), r.memory.Peak > 0 }},
			{Name: "peak", Verb: "%.0f", Of: func(r run) (float64, bool) { return float64(r.memory.Peak) / (1 << 20), r.memory.Peak > 0 }},
		}},
		{Title: "Object requests", Explain: fmt.Sprintf("Of brokers that count them. Idle is %v without clients, from %v after the last record.", p.idle, p.lastFlush), Measures: []measure{
			{Name: mibPerPut, Verb: "%.1f", Of: func(r run) (float64, bool) { return perPut(*r.kib.Produce) }},
			{Name: "MiB per PUT while producing 100 B records", Verb: "%.1f", Of: func(r run) (float64, bool) { return perPut(*r.small.Produce) }},
			{Name: putsWhileIdle, Verb: "%.0f", Of: func(r run) (float64, bool) {
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

func rates(size string, of func(run) load.Report) []measure {
	rate := func(what string, phase func(load.Report) *load.Throughput) measure {
		return measure{Name: what + ", " + size + " records, MB/s", Verb: "%.0f", Of: func(r run) (float64, bool) {
			return phase(of(r)).MBPerSecond(), true
		}}
	}
	return []measure{
		rate("produce", func(r load.Report) *load.Throughput { return r.Produce }),
		rate("consume from memory", func(r load.Report) *load.Throughput { return r.ConsumeMemory }),
		rate("consume from the start", func(r load.Report) *load.Throughput { return r.ConsumeAll }),
	}
}

func costs(size string, of func(run) load.Report) []measure {
	cost := func(what string, phase func(load.Report) *load.Throughput) measure {
		return measure{Name: what + ", " + size + " records", Verb: "%.2f", Of: func(r run) (float64, bool) {
			return phase(of(r)).ServerCPUPerGB()
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
	return measure{Name: name, Verb: "%.3f", Of: func(r run) (float64, bool) { return of(r).Seconds() * 1e3, true }}
}

func others(name string, share func(run) *float64) measure {
	return measure{Name: name, Verb: "%.0f", Of: func(r run) (float64, bool) {
		if s := share(r); s != nil {
			return 100 * *s, true
		}
		return 0, false
	}}
}

// markdown is the page that the run writes.
func (r results) markdown() string {
	var b strings.Builder
	b.WriteString("# How fast Varve is, beside Apache Kafka\n\n")
	b.WriteString("Written by `go run ./test/bench/compare`, whose package comment says what makes the comparison fair. Not to be edited.\n\n")
	c := r.plan.kib
	r.write(&b, fmt.Sprintf("acks=all, idempotent, %d partitions, %d connections with up to 5 requests open, uncompressed batches of at most %d KiB, one per partition in a request;\n"+
		"  each phase ends after %v or %.1f GB. Fetches ask for 1 MiB per partition.", c.Partitions, c.Connections, c.BatchBytes>>10, c.Duration, float64(c.BytesMax)/1e9))
	b.WriteString("What else was measured: what idempotence and transactions cost ([TRANSACTIONS.md](TRANSACTIONS.md)), consumers of old data ([CATCHUP.md](CATCHUP.md)), " +
		"three agents ([CLUSTER.md](CLUSTER.md)), a hundred thousand partitions ([SCALE.md](SCALE.md)), an hour of writing with retention and compaction ([SOAK.md](SOAK.md)), " +
		"ten million keys ([KEYS.md](KEYS.md)).\n\n")
	report.WriteComparison(&b, r.names(), sections(r.plan), r.runs)
	r.writeAims(&b)
	return b.String()
}
