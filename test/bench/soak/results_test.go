package main

import (
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/cost"
)

// TestMarkdown: what is flat is told as such, what grows is not, and requests are counted for each GB.
func TestMarkdown(t *testing.T) {
	p := newPlan(time.Hour, 4e6)
	r := results{plan: p, written: 1e12, read: 1}
	for i := range 60 {
		at := time.Duration(i) * time.Minute
		s := sample{at: at, memory: 100 * mib, etcdUsed: float64(i+1) * mib, wal: 9 * mib}
		if at < p.warm {
			s.memory = 1 // which does not count
		}
		s.cost.Total = cost.Total{Objects: 50, Stored: 7 * mib, Produced: int64(i) * 1e9, Requests: cost.Requests{Put: int64(i) * 60, Delete: int64(i)}}
		s.cost.Objects = []cost.Objects{{Kind: cost.Merged, Count: 40}}
		s.cost.Topics = []cost.Topic{{Kind: cost.Named, Stored: 5 * mib}, {Kind: cost.Overhead, Stored: 2 * mib}}
		r.samples = append(r.samples, s)
	}
	text := r.markdown()
	for _, want := range []string{
		"| memory of all agents, MiB | 100 | 100 | 100 |", "| of them merged segments | 40 | 40 | 40 |", "| of it records that may be read, MiB | 5 | 5 | 5 |",
		"| PUT for each GB written | 60 | 60 | 60 |", "memory of all agents, MiB: at the end at most 1.25 times what it was at the beginning | 1.00 | yes |",
		"etcd, in use, MiB: at the end at most 1.25 times what it was at the beginning | 2.", "| no |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if err := r.check(); err != nil {
		t.Error(err)
	}
	r.left.wrong = 1
	if err := r.check(); err == nil || !strings.Contains(err.Error(), "another last record") {
		t.Errorf("a wrong key: %v", err)
	}
	r.left.wrong, r.written = 0, 1
	if err := r.check(); err == nil || !strings.Contains(err.Error(), "nothing was retained away") {
		t.Errorf("more in the bucket than was written: %v", err)
	}
	r.samples = r.samples[:3]
	if err := r.check(); err == nil || !strings.Contains(r.markdown(), "Too few samples") {
		t.Errorf("three samples: %v", err)
	}
}
