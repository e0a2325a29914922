package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/varve-io/varve/objectstore/cache"
	"github.com/varve-io/varve/test/bench/load"
	"github.com/varve-io/varve/test/bench/report"
)

// catchupResults is everything that was measured of old data.
type catchupResults struct {
	plan catchupPlan
	setting
	subjects []subject
	runs     [][]catchupRun // by subject, then round
}

type catchupMeasure = report.Measure[catchupRun]

// reading takes a value from the phase with so many readers.
func reading(index int, name, verb string, of func(catchupRead) (float64, bool)) catchupMeasure {
	return catchupMeasure{Name: name, Verb: verb, Of: func(r catchupRun) (float64, bool) {
		if index >= len(r.cold) {
			return 0, false
		}
		return of(r.cold[index])
	}}
}

func mbPerSecond(r catchupRead) (float64, bool) { return r.MBPerSecond(), r.Bytes > 0 }

func cpuPerGB(r catchupRead) (float64, bool) { return r.ServerCPUPerGB() }

func mibPerGet(r catchupRead) (float64, bool) {
	if r.gets == nil || *r.gets == 0 {
		return 0, false
	}
	return r.getBytes / *r.gets / (1 << 20), true
}

// fetched is how often a byte of the topic came from the object store.
func fetched(r catchupRead) (float64, bool) {
	if r.gets == nil || r.history == 0 {
		return 0, false
	}
	return r.getBytes / float64(r.history), true
}

func besideName(p catchupPlan) string {
	return fmt.Sprintf("beside %d readers of %.0f MB/s", p.beside, p.besideRate/1e6)
}

func ackP99Of(name string, of func(catchupRun) load.Latency) catchupMeasure {
	return quantile(name, func(r catchupRun) time.Duration { return of(r).Ack.P99 })
}

func quantile(name string, of func(catchupRun) time.Duration) catchupMeasure {
	return catchupMeasure{Name: name, Verb: "%.3f", Of: func(r catchupRun) (float64, bool) {
		d := of(r)
		return d.Seconds() * 1e3, d > 0
	}}
}

// sections are the tables of reading, and of the others.
func (r catchupResults) sections() (reads, others []report.Section[catchupRun]) {
	per := func(verb string, of func(catchupRead) (float64, bool)) []catchupMeasure {
		var all []catchupMeasure
		for i, n := range r.plan.readers {
			name := fmt.Sprintf("%d consumers", n)
			if n == 1 {
				name = "1 consumer"
			}
			all = append(all, reading(i, name, verb, of))
		}
		return all
	}
	rates := append(per("%.0f", mbPerSecond), catchupMeasure{Name: "the object store alone", Verb: "%.0f", Of: func(r catchupRun) (float64, bool) { return r.store / 1e6, r.store > 0 }})
	reads = []report.Section[catchupRun]{
		{
			Title: "Reading everything from the start, MB/s", Measures: rates,
			Explain: fmt.Sprintf("Each consumer reads the whole topic, all of them side by side; values of records, of all consumers together, in 1e6 bytes per second. Before each phase Varve starts anew, and the kernel drops "+
				"what it has of the files; \"page cache\" is Kafka once more, right afterwards. The object store alone gives the same objects to %d connections that ask for %d MiB at a time.", storeReaders, cache.GetBytesDefault>>20),
		},
		{Title: "Processor seconds of the broker per GB", Explain: "Of what the consumers got; the object store's are not in it.", Measures: per("%.2f", cpuPerGB)},
		{Title: "MiB per GET", Explain: "Of requests for blocks of segments; footers come on top, one for some 48 MiB.", Measures: per("%.1f", mibPerGet)},
		{Title: "Fetched from the object store, as a part of the topic", Explain: "1 is that every byte came once, however many consumers read it.", Measures: per("%.2f", fetched)},
	}
	others = []report.Section[catchupRun]{
		{
			Title: fmt.Sprintf("Producers and consumers of the end at %.0f MB/s, ms", r.plan.latency.RateBytes/1e6),
			Explain: "One producer without linger and one consumer, on a topic of their own; every record counts from when it was due. Alone, then while others read the history, then while these read as fast as they can, " +
				"which takes all of the machine's processors, the clients' part included.",
			Measures: []catchupMeasure{
				ackP99Of("acknowledgement p99, alone", func(r catchupRun) load.Latency { return r.alone }),
				ackP99Of("acknowledgement p99, "+besideName(r.plan), func(r catchupRun) load.Latency { return r.paced }),
				ackP99Of("acknowledgement p99, beside readers at full speed", func(r catchupRun) load.Latency { return r.full }),
				quantile("end to end p99, alone", func(r catchupRun) time.Duration { return r.alone.EndToEnd.P99 }),
				quantile("end to end p99, "+besideName(r.plan), func(r catchupRun) time.Duration { return r.paced.EndToEnd.P99 }),
				quantile("end to end p99, beside readers at full speed", func(r catchupRun) time.Duration { return r.full.EndToEnd.P99 }),
				quantile("sent late p99, beside readers at full speed", func(r catchupRun) time.Duration { return r.full.SentLate.P99 }),
				{Name: "what these read, MB/s", Verb: "%.0f", Of: func(r catchupRun) (float64, bool) { return r.besides / 1e6, r.besides > 0 }},
			},
		},
	}
	return reads, others
}

// outcomes compares Varve's medians with the aims.
func (r catchupResults) outcomes() []report.Outcome {
	var all []report.Outcome
	most := len(r.plan.readers) - 1
	for i, s := range r.subjects[:len(r.subjects)-1] {
		outcome := func(aim report.Aim, m catchupMeasure) {
			sum := m.Over(r.runs[i])
			aim.Text = s.name + ": " + aim.Text
			all = append(all, report.Outcome{Aim: aim, Value: sum.Median, Known: sum.Known, Verb: m.Verb})
		}
		outcome(report.Aim{Text: fmt.Sprintf("%d consumers of the same data have every byte fetched once, or nearly", r.plan.readers[most]), Bound: 1.1}, reading(most, "", "%.2f", fetched))
		outcome(report.Aim{Text: "at least 3.5 MiB per GET for one consumer", Bound: 3.5, AtLeast: true}, reading(0, "", "%.1f", mibPerGet))
		slower := catchupMeasure{Verb: "%.2f", Of: func(r catchupRun) (float64, bool) {
			return float64(r.paced.Ack.P99) / float64(r.alone.Ack.P99), r.alone.Ack.P99 > 0
		}}
		outcome(report.Aim{Text: "acknowledgement p99 " + besideName(r.plan) + " at most twice that alone", Bound: 2}, slower)
	}
	return all
}

// markdown is the page.
func (r catchupResults) markdown() string {
	var b strings.Builder
	b.WriteString("# Reading old data, beside Apache Kafka\n\n")
	b.WriteString("Written by `go run ./test/bench/compare --only catchup`, whose package comment says what makes the comparison fair. Not to be edited.\n\n")
	c := r.plan.history
	r.write(&b, fmt.Sprintf("a topic of %.1f GB at most in %d partitions, records of %d B in uncompressed batches of at most %d KiB. Varve is one agent beside an etcd, and has merged all of it before it is read. "+
		"Fetches ask for 1 MiB per partition.", float64(c.BytesMax)/1e9, c.Partitions, c.RecordBytes, c.BatchBytes>>10))
	var names []string
	for _, s := range r.subjects {
		names = append(names, s.name)
	}
	kafka := len(names) - 1
	warm := make([]catchupRun, 0, len(r.runs[kafka]))
	for _, run := range r.runs[kafka] {
		warm = append(warm, catchupRun{cold: run.warm})
	}
	reads, others := r.sections()
	columns := append(append([]string(nil), names[:kafka]...), names[kafka]+", disk", names[kafka]+", page cache")
	report.WriteColumns(&b, columns, reads, append(append([][]catchupRun(nil), r.runs...), warm))
	report.WriteColumns(&b, names, others, r.runs)
	report.WriteAims(&b, r.outcomes())
	return b.String()
}
