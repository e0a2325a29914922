package main

import (
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/test/bench/load"
)

// aRun is a run whose numbers are easy to recognise: produce is its rate in
// MB/s at 1 KiB, and every cost is a tenth of it in CPU seconds per GB.
func aRun(produce int64, puts float64) run {
	cpu := time.Duration(produce) * time.Second / 10
	throughput := func(objects *load.ObjectRequests) *load.Throughput {
		return &load.Throughput{Bytes: produce * 1e6, Cost: load.Cost{Elapsed: time.Second, ServerCPU: &cpu, Objects: objects}}
	}
	report := load.Report{Produce: throughput(nil), ConsumeMemory: throughput(nil), ConsumeAll: throughput(nil)}
	r := run{kib: report, small: report}
	r.raw.Ack = load.Quantiles{P50: 900 * time.Microsecond, P99: 7 * time.Millisecond}
	if puts > 0 {
		r.kib.Produce = throughput(&load.ObjectRequests{Puts: puts})
		r.idle = &load.ObjectRequests{}
	}
	return r
}

var twoContenders = contest{contenders: [2]contender{{name: "Varve", version: "at abc"}, {name: "Apache Kafka", version: "4.3"}}, rounds: 3}

func TestMarkdown(t *testing.T) {
	r := results{
		plan:    newPlan(false),
		setting: setting{contest: twoContenders},
		runs: [2][]run{
			{aRun(300, 20), aRun(330, 30), aRun(310, 10)},
			{aRun(210, 0), aRun(190, 0), aRun(200, 0)},
		},
	}
	text := r.markdown()
	for _, want := range []string{
		"| produce, 1 KiB records, MB/s | 310 (300 to 330) | 200 (190 to 210) | 1.55 |",
		"| produced, 1 KiB records | 100.00 | 100.00 | 1.00 |",
		"| MiB per PUT while producing 1 KiB records | 14.3 (10.5 to 29.6) | - | - |",
		"| PUTs while idle | 0 | - | - |",
		"synced against not synced) | 1.55 | yes |",
		"log and flush to a folder included | 100.00 | no |",
		"acknowledgement p50 at most 1 ms | 0.900 | yes |",
		"where the disk's own sync allows it | 7.000 | no |",
		"one PUT per 8 MiB under load | 14.3 | yes |",
		"no PUT when idle | 0 | yes |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestAimsAreMeasured holds the aims to the names of measures.
func TestAimsAreMeasured(t *testing.T) {
	names := make(map[string]bool)
	for _, s := range sections(newPlan(true)) {
		for _, m := range s.Measures {
			if names[m.Name] {
				t.Errorf("two measures are called %q", m.Name)
			}
			names[m.Name] = true
		}
	}
	for _, a := range aims {
		if !names[a.measure] {
			t.Errorf("aim %q is about %q, which is not measured", a.Text, a.measure)
		}
	}
}
