package load

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// The range and precision of a histogram: from a microsecond to a minute, in
// nanoseconds, with three digits.
const (
	shortest = time.Microsecond
	longest  = time.Minute
	digits   = 3
)

// histogram counts durations without keeping them. One goroutine records.
type histogram struct{ *hdrhistogram.Histogram }

func newHistogram() *histogram {
	return &histogram{hdrhistogram.New(int64(shortest), int64(longest), digits)}
}

// record counts a duration; one out of range counts as the nearest in range.
func (h *histogram) record(d time.Duration) {
	_ = h.RecordValue(int64(min(max(d, shortest), longest))) // fails out of range alone
}

// Quantiles sums up a distribution of durations. All are zero when nothing was
// counted.
type Quantiles struct {
	Count int64         `json:"count"`
	P50   time.Duration `json:"p50_ns"`
	P99   time.Duration `json:"p99_ns"`
	P999  time.Duration `json:"p999_ns"`
	Max   time.Duration `json:"max_ns"`
}

func (h *histogram) quantiles() Quantiles {
	return Quantiles{
		Count: h.TotalCount(),
		P50:   time.Duration(h.ValueAtQuantile(50)),
		P99:   time.Duration(h.ValueAtQuantile(99)),
		P999:  time.Duration(h.ValueAtQuantile(99.9)),
		Max:   time.Duration(h.Max()),
	}
}

// mergeQuantiles sums up several histograms as one.
func mergeQuantiles(histograms []*histogram) Quantiles {
	all := newHistogram()
	for _, h := range histograms {
		all.Merge(h.Histogram)
	}
	return all.quantiles()
}
