package report

import (
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	of := Measure[float64]{Name: "rate", Verb: "%.0f", Of: func(v float64) (float64, bool) { return v, v >= 0 }}
	if even := of.Over([]float64{40, 10, -1, 20, 30}); even != (Summary{Median: 25, Least: 10, Most: 40, Known: true}) {
		t.Errorf("of four: %+v", even)
	}
	none := of.Over(nil)
	if none.Known || none.Format("%.0f") != "-" {
		t.Errorf("of none: %+v", none)
	}
	one := Summarize([]float64{3})
	if text := one.Format("%.1f"); text != "3.0" {
		t.Errorf("of one: %s", text)
	}
	if r, ok := Ratio(one, Summarize([]float64{2})); !ok || r != 1.5 {
		t.Errorf("ratio %v, %v", r, ok)
	}
	for _, second := range []Summary{none, Summarize([]float64{0})} {
		if r, ok := Ratio(one, second); ok {
			t.Errorf("ratio %v to %+v", r, second)
		}
	}
}

func TestWriteComparison(t *testing.T) {
	var b strings.Builder
	sections := []Section[float64]{{Title: "Speed", Explain: "How fast.", Measures: []Measure[float64]{
		{Name: "rate", Verb: "%.0f", Of: func(v float64) (float64, bool) { return v, true }},
		{Name: "none", Verb: "%.0f", Of: func(float64) (float64, bool) { return 0, false }},
	}}}
	WriteComparison(&b, [2]string{"A", "B"}, sections, [2][]float64{{10, 30}, {40}})
	const want = "## Speed\n\nHow fast.\n\n| median (least to most) | A | B | A / B |\n| --- | --: | --: | --: |\n" +
		"| rate | 20 (10 to 30) | 40 | 0.50 |\n| none | - | - | - |\n\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestWriteAims(t *testing.T) {
	var b strings.Builder
	WriteAims(&b, []Outcome{
		{Aim: Aim{Text: "at most", Bound: 5}, Value: 5, Known: true, Verb: "%.1f"},
		{Aim: Aim{Text: "too much", Bound: 5}, Value: 5.1, Known: true, Verb: "%.1f"},
		{Aim: Aim{Text: "at least", Bound: 5, AtLeast: true}, Value: 5, Known: true, Verb: "%.0f"},
		{Aim: Aim{Text: "too little", Bound: 5, AtLeast: true}, Value: 4, Known: true, Verb: "%.0f"},
		{Aim: Aim{Text: "who knows"}},
	})
	for _, want := range []string{
		"| at most | 5.0 | yes |", "| too much | 5.1 | no |", "| at least | 5 | yes |", "| too little | 4 | no |", "| who knows | not measured | - |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no line %q in\n%s", want, b.String())
		}
	}
}

func TestDescribeMachine(t *testing.T) {
	const info = "processor\t: 0\nmodel name\t: A CPU @ 2: GHz\nmodel name\t: another\n"
	if got := field(info, "model name"); got != "A CPU @ 2: GHz" {
		t.Errorf("model %q", got)
	}
	if m := describeMachine(); m.cores < 1 || m.kernel == "" {
		t.Errorf("machine %+v", m)
	}
}
