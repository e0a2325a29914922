// Package report is what the pages of the benchmarks have in common: the machine and the versions that the numbers
// belong to, tables of medians with their spread, and the aims with what became of them.
//
// A page is made of values that are taken from runs of some type R:
//
//	rate := report.Measure[run]{Name: "produce, MB/s", Verb: "%.0f", Of: func(r run) (float64, bool) { ... }}
//	rate.Over(runs).Format(rate.Verb) // "310 (300 to 330)"
package report

import (
	"fmt"
	"slices"
	"strings"
)

// Measure is one line of a table.
type Measure[R any] struct {
	// Name says what it is, and the unit where the table does not.
	Name string
	// Verb is how fmt writes a value.
	Verb string
	// Of takes the value from a run; false where the run lacks it.
	Of func(R) (float64, bool)
}

// Over sums up the values of several runs.
func (m Measure[R]) Over(runs []R) Summary {
	var values []float64
	for _, r := range runs {
		if v, ok := m.Of(r); ok {
			values = append(values, v)
		}
	}
	return Summarize(values)
}

// Section is one table.
type Section[R any] struct {
	Title    string
	Explain  string
	Measures []Measure[R]
}

// WriteComparison writes a table for each section, with a column for each of two contenders and one for their ratio.
func WriteComparison[R any](b *strings.Builder, names [2]string, sections []Section[R], runs [2][]R) {
	for _, s := range sections {
		fmt.Fprintf(b, "## %s\n\n%s\n\n| median (least to most) | %s | %s | %s / %s |\n| --- | --: | --: | --: |\n",
			s.Title, s.Explain, names[0], names[1], names[0], names[1])
		for _, m := range s.Measures {
			first, second := m.Over(runs[0]), m.Over(runs[1])
			ratio := "-"
			if r, ok := Ratio(first, second); ok {
				ratio = fmt.Sprintf("%.2f", r)
			}
			fmt.Fprintf(b, "| %s | %s | %s | %s |\n", m.Name, first.Format(m.Verb), second.Format(m.Verb), ratio)
		}
		b.WriteString("\n")
	}
}

// WriteColumns writes a table for each section, with a column for each of several contenders.
func WriteColumns[R any](b *strings.Builder, names []string, sections []Section[R], runs [][]R) {
	for _, s := range sections {
		fmt.Fprintf(b, "## %s\n\n%s\n\n| median (least to most) | %s |\n| --- |%s\n", s.Title, s.Explain, strings.Join(names, " | "), strings.Repeat(" --: |", len(names)))
		for _, m := range s.Measures {
			fmt.Fprintf(b, "| %s |", m.Name)
			for _, of := range runs {
				fmt.Fprintf(b, " %s |", m.Over(of).Format(m.Verb))
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
}

// Summary is a value over several runs.
type Summary struct {
	Median, Least, Most float64
	// Known is false when no run had the value; the numbers are zero then.
	Known bool
}

// Summarize sums up values, whose order it changes.
func Summarize(values []float64) Summary {
	if len(values) == 0 {
		return Summary{}
	}
	slices.Sort(values)
	n := len(values)
	return Summary{Median: (values[(n-1)/2] + values[n/2]) / 2, Least: values[0], Most: values[n-1], Known: true}
}

// Format writes median and spread, each with the verb; one run has no spread.
func (s Summary) Format(verb string) string {
	if !s.Known {
		return "-"
	}
	text := fmt.Sprintf(verb, s.Median)
	if s.Least != s.Most {
		text += fmt.Sprintf(" ("+verb+" to "+verb+")", s.Least, s.Most)
	}
	return text
}

// Ratio compares two medians. It is false where one is unknown, or the second is zero.
func Ratio(first, second Summary) (float64, bool) {
	if !first.Known || !second.Known || second.Median == 0 {
		return 0, false
	}
	return first.Median / second.Median, true
}

// Aim is a number that Varve is meant to reach.
type Aim struct {
	Text string
	// Bound is the most that reaches the aim, or with AtLeast the least.
	Bound   float64
	AtLeast bool
}

// Reached reports whether a value reaches the aim.
func (a Aim) Reached(value float64) bool {
	if a.AtLeast {
		return value >= a.Bound
	}
	return value <= a.Bound
}

// Outcome is an aim and what was measured; without Known, nothing was.
type Outcome struct {
	Aim
	Value float64
	Known bool
	Verb  string // how fmt writes the value
}

// WriteAims writes the table of the aims.
func WriteAims(b *strings.Builder, outcomes []Outcome) {
	b.WriteString("## Aims\n\n| aim | measured | reached |\n| --- | --: | --- |\n")
	for _, o := range outcomes {
		if !o.Known {
			fmt.Fprintf(b, "| %s | not measured | - |\n", o.Text)
			continue
		}
		verdict := "no"
		if o.Reached(o.Value) {
			verdict = "yes"
		}
		fmt.Fprintf(b, "| %s | "+o.Verb+" | %s |\n", o.Text, o.Value, verdict)
	}
}
