package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/varve-io/varve/agent/cost"
	"github.com/varve-io/varve/test/bench/report"
)

// results is everything that one call of the command measured.
type results struct {
	plan          plan
	machine       string
	varve         string // its version
	began         time.Time
	first         time.Duration // of the first sample
	samples       []sample
	written, read int64 // bytes
	left          remaining
}

// line is a line of the table.
type line struct {
	name string
	verb string
	of   func(s sample) float64
	// counts says that it counts up: what counts is how much for each GB that was written meanwhile.
	counts bool
	// flat is how many times its first value the last one may be; 0 for any.
	flat float64
}

func objects(kind cost.ObjectKind, of func(cost.Objects) int64) func(sample) float64 {
	return func(s sample) float64 {
		for _, o := range s.cost.Objects {
			if o.Kind == kind {
				return float64(of(o))
			}
		}
		return 0
	}
}

func count(o cost.Objects) int64 { return o.Count }

const (
	mib = 1 << 20
	// flatMax is what counts as flat: all of it goes up and down with flushes, merges, and garbage collections.
	flatMax = 1.25
)

var lines = []line{
	{name: "memory of all agents, MiB", verb: "%.0f", of: func(s sample) float64 { return s.memory / mib }, flat: flatMax},
	{name: "etcd, in use, MiB", verb: "%.2f", of: func(s sample) float64 { return s.etcdUsed / mib }, flat: flatMax},
	{name: "etcd, file, MiB", verb: "%.2f", of: func(s sample) float64 { return s.etcdFile / mib }},
	{name: "files of all WALs, MiB", verb: "%.0f", of: func(s sample) float64 { return s.wal / mib }, flat: flatMax},
	{name: "bucket, MiB", verb: "%.0f", of: func(s sample) float64 { return float64(s.cost.Total.Stored) / mib }, flat: flatMax},
	{name: "of it records that may be read, MiB", verb: "%.0f", of: func(s sample) float64 {
		var sum int64
		for _, t := range s.cost.Topics {
			if t.Kind == cost.Named {
				sum += t.Stored
			}
		}
		return float64(sum) / mib
	}},
	{name: "objects", verb: "%.0f", of: func(s sample) float64 { return float64(s.cost.Total.Objects) }, flat: flatMax},
	{name: "of them flushed segments", verb: "%.0f", of: objects(cost.Flushed, count)},
	{name: "of them merged segments", verb: "%.0f", of: objects(cost.Merged, count)},
	{name: "of them manifests", verb: "%.0f", of: objects(cost.Manifests, count)},
	{name: "PUT for each GB written", verb: "%.0f", of: func(s sample) float64 { return float64(s.cost.Total.Requests.Put) }, counts: true},
	{name: "GET for each GB written", verb: "%.0f", of: func(s sample) float64 { return float64(s.cost.Total.Requests.Get) }, counts: true},
	{name: "HEAD for each GB written", verb: "%.0f", of: func(s sample) float64 { return float64(s.cost.Total.Requests.Head) }, counts: true},
	{name: "LIST for each GB written", verb: "%.0f", of: func(s sample) float64 { return float64(s.cost.Total.Requests.List) }, counts: true},
	{name: "DELETE for each GB written", verb: "%.0f", of: func(s sample) float64 { return float64(s.cost.Total.Requests.Delete) }, counts: true},
	{name: "GB put for each GB written", verb: "%.2f", of: func(s sample) float64 { return float64(s.cost.Total.PutBytes) / 1e9 }, counts: true},
	{name: "GB got for each GB written", verb: "%.2f", of: func(s sample) float64 { return float64(s.cost.Total.GetBytes) / 1e9 }, counts: true},
}

// windows are the samples of each part of the time that counts; none if there are too few.
func (r *results) windows() [][]sample {
	warm := r.samples
	for len(warm) > 0 && warm[0].at < r.first+r.plan.warm {
		warm = warm[1:]
	}
	each := len(warm) / parts
	if each < 2 {
		return nil
	}
	var all [][]sample
	for i := range parts {
		all = append(all, warm[i*each:][:each])
	}
	return all
}

// value is a line's value of a part.
func (l *line) value(window []sample) report.Summary {
	if l.counts {
		first, last := window[0], window[len(window)-1]
		written := float64(last.cost.Total.Produced-first.cost.Total.Produced) / 1e9
		if written <= 0 {
			return report.Summary{}
		}
		v := (l.of(last) - l.of(first)) / written
		return report.Summary{Median: v, Least: v, Most: v, Known: true}
	}
	values := make([]float64, len(window))
	for i, s := range window {
		values[i] = l.of(s)
	}
	return report.Summarize(values)
}

// markdown is the page that the run writes.
func (r *results) markdown() string {
	var b strings.Builder
	b.WriteString("# Three agents under a steady load\n\n")
	b.WriteString("Written by `go run ./test/bench/soak`, whose package comment says what is done and when what is measured. Not to be edited.\n\n")
	p := r.plan
	fmt.Fprintf(&b, "- Machine: %s\n- Varve %s: %d agents in zones a, b and c, three WAL copies, synced, one etcd, a bucket that is a folder on the same disk\n", r.machine, r.varve, agents)
	fmt.Fprintf(&b, "- %s, %v of %.1f MB/s of %d byte records to %d partitions, read again at the tail: %.2f GB written, %.2f GB read\n",
		r.began.UTC().Format("2006-01-02 15:04 UTC"), p.length, p.rateBytes/1e6, recordBytes, partitions*len(p.topics()), float64(r.written)/1e9, float64(r.read)/1e9)
	fmt.Fprintf(&b, "- One topic retains what is younger than %v, one as many bytes as come in that time, one the last record of each of as many keys as there come records in that time; merges after %v, looks for what is past its retention each %v, garbage stays for %v\n",
		p.retention, p.merge, p.look, p.grace)
	fmt.Fprintf(&b, "- The first %v do not count; the rest is three parts. Memory counts shared pages for each agent.\n\n", p.warm)
	windows := r.windows()
	if windows == nil {
		b.WriteString("Too few samples.\n")
		return b.String()
	}
	b.WriteString("| median (least to most) | begin | middle | end |\n| --- | --: | --: | --: |\n")
	for i := range lines {
		l := &lines[i]
		fmt.Fprintf(&b, "| %s |", l.name)
		for _, w := range windows {
			fmt.Fprintf(&b, " %s |", l.value(w).Format(l.verb))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	fmt.Fprintf(&b, "The compacted topic had %d keys. In the end there were %d records, and %d keys whose last record was not the last that was written.\n\n", r.left.keys, r.left.records, r.left.wrong)
	report.WriteAims(&b, r.outcomes(windows))
	return b.String()
}

// outcomes tells what is flat.
func (r *results) outcomes(windows [][]sample) (all []report.Outcome) {
	for i := range lines {
		l := &lines[i]
		if l.flat == 0 {
			continue
		}
		o := report.Outcome{Aim: report.Aim{Text: fmt.Sprintf("%s: at the end at most %.2f times what it was at the beginning", l.name, l.flat), Bound: l.flat}, Verb: "%.2f"}
		o.Value, o.Known = report.Ratio(l.value(windows[len(windows)-1]), l.value(windows[0]))
		all = append(all, o)
	}
	return all
}

// check returns what makes the run worthless.
func (r *results) check() error {
	windows := r.windows()
	if windows == nil {
		return errors.New("too few samples")
	}
	last := windows[len(windows)-1]
	end := last[len(last)-1].cost
	switch {
	case r.written == 0 || r.read == 0:
		return fmt.Errorf("%d bytes written, %d read", r.written, r.read)
	case end.Total.Requests.Delete == 0:
		return errors.New("no object was deleted")
	case r.left.wrong > 0:
		return fmt.Errorf("%d of %d keys have another last record than was written", r.left.wrong, r.left.keys)
	case float64(end.Total.Stored) > float64(r.written):
		return fmt.Errorf("%d bytes in the bucket, of %d that were written: nothing was retained away", end.Total.Stored, r.written)
	}
	return nil
}
