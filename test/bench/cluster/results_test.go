package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/test/bench/gaps"
	"github.com/varve-io/varve/test/bench/load"
)

// produced is a run whose rate in MB/s is easy to recognise, and whose cost is a tenth of it in CPU seconds per GB.
func produced(rate int64, p99 time.Duration) compared {
	cpu := time.Duration(rate) * time.Second / 10
	t := load.Throughput{Bytes: rate * 1e6, Cost: load.Cost{Elapsed: time.Second, ServerCPU: &cpu}}
	c := compared{kib: t, small: t}
	c.latency.Ack.P99 = p99
	return c
}

// noticed is an episode.
func noticed(gap, took time.Duration) episode {
	return episode{Window: gaps.Window{Gap: gap, Wait: gap / 2, Acked: 10}, took: took, led: 16}
}

// whole is what a run of all parts measured.
func whole() results {
	once := []episode{noticed(time.Second, 2*time.Second), noticed(3*time.Second, 4*time.Second)}
	all := func() *series { return &series{struck: once, undone: once[:1], kept: gaps.Kept{Acked: 100, Read: 101}} }
	r := results{
		plan: newPlan(2, time.Minute), varve: "at abc", kill: all(), drain: all(), move: all(),
		comparison: &comparison{kafka: "4.3", runs: [2][]compared{
			{produced(30, 19*time.Millisecond), produced(20, 15*time.Millisecond)}, {produced(10, time.Second), produced(10, time.Second)},
		}},
		outages: &outageSeries{
			outages: []outage{{without: "the bucket", episode: once[0]}, {without: "etcd", episode: once[1]}},
			kept:    gaps.Kept{Acked: 7, Read: 7, Lost: 1},
		},
		scaled: &scaled{
			created: 1500 * time.Millisecond, left: once[0], etcdAfter: database{used: 3 << 20, file: 16 << 20},
			kept: gaps.Kept{Acked: 9, Read: 8, Lost: 1},
		},
	}
	r.kill.kept.Twice = 1
	r.outages.outages[1].Failed = 4
	return r
}

func TestMarkdown(t *testing.T) {
	text := whole().markdown()
	for _, want := range []string{
		"- Varve at abc: 3 agents", "- Apache Kafka 4.3: 3 brokers",
		"| produce, 1 KiB records, MB/s | 25 (20 to 30) | 10 | 2.50 |",
		"| acknowledgement p99 | 17.000 (15.000 to 19.000) | 1000.000 | 0.02 |",
		"| longest time without an acknowledgement on any partition, s | 2.00 (1.00 to 3.00) |",
		"with a record due on each every 10ms", "with a record due on each every 614ms",
		"100 records were acknowledged and 101 read back: 0 lost, 1 twice.",
		"| etcd | 10 | 4 | 1.50 |",
		"What 100000 partitions do to three agents is in [SCALE.md](SCALE.md).",
		"(1 KiB records, acks=all), times | 2.50 | yes |",
		"where the disk's own sync allows it, ms | 17.000 | yes |",
		"on any partition after kill -9 of its leader, each time | 3.00 | yes |",
		"nothing that was acknowledged lost to kill -9 | 1 | no |",
		"with about 1000 partitions under load, each time | 4.00 | no |",
		"for a planned move, each time | 1.50 | no |",
		"in 1m0s without the bucket at 5.0 MB/s | 0 | yes |",
		"in 1m0s without etcd at 5.0 MB/s | 4 | no |",
		"lost without bucket or etcd | 1 | no |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestScaleMarkdown(t *testing.T) {
	text := whole().scaleMarkdown()
	for _, want := range []string{
		"# 100000 partitions on three agents, 1000 of them in use",
		"- Varve at abc: 3 agents",
		"2.0 MB/s of 1 KiB records go to the 1000 in use",
		"| creating them, 1000 in a topic, until each has a leader | 1.50 s (66667 per second) |",
		"| etcd's database under load, in use (file) | 3.0 MiB (16.0 MiB) |",
		"9 records were acknowledged and 8 read back: 1 lost, 0 twice.",
		"etcd under 1 GiB with 100000 partitions, MiB | 16.0 | yes |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestPartial is pages of a run in which nothing succeeded: every aim is there, and none is reached.
func TestPartial(t *testing.T) {
	r := results{plan: newPlan(1, time.Second)}
	aims := append(whole().outcomes(), whole().scaleOutcome())
	for i, o := range append(r.outcomes(), r.scaleOutcome()) {
		if o.Known || o.Aim.Bound != aims[i].Aim.Bound {
			t.Errorf("%+v, want the aim %+v, not known", o, aims[i])
		}
	}
	text := r.markdown() + r.scaleMarkdown()
	if n := strings.Count(text, "| not measured | - |"); n != len(aims) {
		t.Errorf("%d aims are not measured, want all %d:\n%s", n, len(aims), text)
	}
	if sections := strings.Count(text, "\n## "); sections != 2 {
		t.Errorf("%d sections, want those of the aims alone:\n%s", sections, text)
	}
}

func TestSelectParts(t *testing.T) {
	for only, want := range map[string]string{"": "compare kill drain move outage scale", "kill": "kill", "scale,kill": "scale kill"} {
		names, err := selectParts(only)
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("--only %q: %s, %v, want %s", only, got, err, want)
		}
	}
	for _, bad := range []string{"kil", "kill,", "kill drain"} {
		if _, err := selectParts(bad); err == nil {
			t.Errorf("--only %q was accepted", bad)
		}
	}
}

// TestMakePage holds that a page is whole if all of its parts ran and none failed, and that the others run after one that fails.
func TestMakePage(t *testing.T) {
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	broken := errors.New("broken")
	for _, test := range []struct {
		name     string
		ctx      context.Context
		selected []string
		fails    string // the part that does
		ran      string
		text     string
		whole    bool
	}{
		{"all", t.Context(), []string{"b", "a", "c"}, "", "ab", "page", true},
		{"one", t.Context(), []string{"b"}, "", "b", "page", false},
		{"others", t.Context(), []string{"c"}, "", "", "", false},
		{"the first fails", t.Context(), []string{"a", "b"}, "a", "ab", "page", false},
		{"the last fails", t.Context(), []string{"a", "b"}, "b", "ab", "page", false},
		{"canceled", canceled, []string{"a", "b"}, "", "", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var ran string
			page := page{text: func(results) string { return "page" }}
			for _, name := range []string{"a", "b"} {
				page.parts = append(page.parts, part{name, func(context.Context, plan, *results) error {
					ran += name
					if name == test.fails {
						return broken
					}
					return nil
				}})
			}
			text, whole, err := page.make(test.ctx, plan{}, test.selected)
			if ran != test.ran || text != test.text || whole != test.whole {
				t.Errorf("ran %q, text %q, whole %v, want %q, %q, %v", ran, text, whole, test.ran, test.text, test.whole)
			}
			if (test.fails != "") != errors.Is(err, broken) {
				t.Errorf("error %v, with %q failing", err, test.fails)
			}
		})
	}
}

// TestPlansAreValid holds the plans to what the load generator takes.
func TestPlansAreValid(t *testing.T) {
	full := newPlan(2, time.Minute)
	for name, p := range map[string]plan{"full": full, "smoke": full.smoke()} {
		for i, cfg := range []load.Config{p.warmup, p.kib, p.small, p.latency} {
			if err := cfg.Validate(); err != nil {
				t.Errorf("%s, phase %d: %v", name, i, err)
			}
		}
	}
}
