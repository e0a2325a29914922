package main

import (
	"fmt"
	"strings"
)

// aim is a number that Varve is meant to reach on a machine with two cores.
type aim struct {
	text    string
	measure string
	// ratio compares Varve's median with Kafka's instead of with the bound.
	ratio bool
	// bound is the most that reaches the aim, or with atLeast the least.
	bound   float64
	atLeast bool
}

var aims = []aim{
	{text: "produce at least 1.5 times as much as Apache Kafka (1 KiB records, acks=all, synced against not synced)", measure: produceKiB, ratio: true, bound: 1.5, atLeast: true},
	{text: "at most 1.8 processor seconds per GB produced, log and flush to a folder included", measure: produceCPU, bound: 1.8},
	{text: "at most 0.5 processor seconds per GB consumed from memory", measure: consumeCPU, bound: 0.5},
	{text: "acknowledgement p50 at most 1 ms", measure: ackP50, bound: 1},
	{text: "acknowledgement p99 at most 5 ms, where the disk's own sync allows it", measure: ackP99, bound: 5},
	{text: "at most one PUT per 8 MiB under load", measure: mibPerPut, bound: 8, atLeast: true},
	{text: "no PUT when idle", measure: putsWhileIdle, bound: 0},
}

// reached reports whether a value reaches the aim.
func (a aim) reached(value float64) bool {
	if a.atLeast {
		return value >= a.bound
	}
	return value <= a.bound
}

// writeAims compares the medians with the aims.
func (r results) writeAims(b *strings.Builder) {
	measures := make(map[string]measure)
	for _, s := range sections(r.plan) {
		for _, m := range s.measures {
			measures[m.name] = m
		}
	}
	b.WriteString("## Aims\n\n| aim | measured | reached |\n| --- | --: | --- |\n")
	for _, a := range aims {
		m := measures[a.measure]
		varve, kafka := summarize(m, r.runs[0]), summarize(m, r.runs[1])
		value, known, verb := varve.median, varve.known, m.verb
		if a.ratio {
			known = varve.known && kafka.known && kafka.median > 0
			value, verb = varve.median/kafka.median, "%.2f"
		}
		if !known {
			fmt.Fprintf(b, "| %s | not measured | - |\n", a.text)
			continue
		}
		verdict := "no"
		if a.reached(value) {
			verdict = "yes"
		}
		fmt.Fprintf(b, "| %s | "+verb+" | %s |\n", a.text, value, verdict)
	}
}
