package load

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what one run measured; a phase that did not run is nil.
type Report struct {
	Config  Config      `json:"config"`
	Produce *Throughput `json:"produce,omitempty"`
	// ConsumeMemory reads the end of the log again and again.
	ConsumeMemory *Throughput `json:"consume_memory,omitempty"`
	// ConsumeAll reads everything that Produce wrote, from the start, once.
	ConsumeAll *Throughput `json:"consume_all,omitempty"`
	Latency    *Latency    `json:"latency,omitempty"`
	// Memory is the broker's at the end of the run.
	Memory *Memory `json:"memory,omitempty"`
	// Disk is what a sync of 4 KiB takes, when a folder to try was given.
	Disk *Quantiles `json:"disk,omitempty"`
}

// Throughput is one phase that goes as fast as the broker can.
type Throughput struct {
	Records int64 `json:"records"`
	Bytes   int64 `json:"bytes"` // of values
	Cost
	// Request is how long each Produce or Fetch request took; with several
	// open per connection, mostly the time in the queue before it.
	Request Quantiles `json:"request"`
}

// MBPerSecond is the rate, in 1e6 bytes of values per second.
func (t Throughput) MBPerSecond() float64 { return float64(t.Bytes) / 1e6 / t.Elapsed.Seconds() }

// ServerCPUPerGB is the broker's processor seconds per 1e9 bytes of values.
func (t Throughput) ServerCPUPerGB() (float64, bool) {
	if t.ServerCPU == nil || t.Bytes == 0 {
		return 0, false
	}
	return t.ServerCPU.Seconds() / (float64(t.Bytes) / 1e9), true
}

// ClientCPUPerGB is the generator's own cost, in the same unit.
func (t Throughput) ClientCPUPerGB() float64 {
	return t.ClientCPU.Seconds() / (float64(t.Bytes) / 1e9)
}

// Latency is the phase at a fixed rate. All durations begin when a record was
// due.
type Latency struct {
	Client    Client  `json:"client"`
	RateBytes float64 `json:"rate_bytes_per_second"`
	Records   int64   `json:"records"`
	// Ack ends when the producer has its acknowledgement, EndToEnd when a
	// consumer has the record.
	Ack      Quantiles `json:"ack"`
	EndToEnd Quantiles `json:"end_to_end"`
	// SentLate ends when the generator handed the record to its client: the
	// generator's own part of the other two. For the raw client it includes
	// the wait for one of its open requests.
	SentLate Quantiles `json:"sent_late"`
	Cost
}

// Write prints the report as tables for people.
func (r Report) Write(w io.Writer) error {
	table := new(strings.Builder) // cells end with tabs
	cfg := r.Config
	acks := "all"
	if cfg.Acks != -1 {
		acks = fmt.Sprint(cfg.Acks)
	}
	fmt.Fprintf(table, "%s: records of %d B in batches of at most %d KiB, acks=%s, %d partitions, %d connections\n",
		cfg.Target.Bootstrap, cfg.RecordBytes, cfg.BatchBytes>>10, acks, cfg.Partitions, cfg.Connections)
	if r.Produce != nil {
		writeThroughputs(table, r)
	}
	if r.Latency != nil {
		writeLatency(table, *r.Latency)
	}
	if r.Disk != nil {
		fmt.Fprintf(table, "disk: append and fdatasync of 4 KiB: %s\n", r.Disk)
	}
	if r.Memory != nil {
		fmt.Fprintf(table, "server memory: %d MiB resident, %d MiB peak\n", r.Memory.Resident>>20, r.Memory.Peak>>20)
	}
	aligned := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if _, err := io.WriteString(aligned, table.String()); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := aligned.Flush(); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func writeThroughputs(w *strings.Builder, r Report) {
	phases := []struct {
		name string
		*Throughput
	}{{"produce", r.Produce}, {"consume from memory", r.ConsumeMemory}, {"consume from the start", r.ConsumeAll}}
	w.WriteString("\nphase\tMB/s\trecords/s\tserver CPU s/GB\tclient CPU s/GB\trequest p50\tp99\tother processes\n")
	for _, t := range phases {
		if t.Throughput == nil {
			continue
		}
		server := "-"
		if perGB, ok := t.ServerCPUPerGB(); ok {
			server = fmt.Sprintf("%.2f", perGB)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%s\t%.2f\t%s\t%s\t%s\n", t.name, t.MBPerSecond(), float64(t.Records)/t.Elapsed.Seconds(),
			server, t.ClientCPUPerGB(), Milliseconds(t.Request.P50), Milliseconds(t.Request.P99), t.others())
	}
	w.WriteString("\n")
	for _, t := range phases {
		if t.Throughput != nil && t.Objects != nil {
			fmt.Fprintf(w, "object requests, %s: %s\n", t.name, t.Objects)
		}
	}
}

// others says how much of the machine other processes took.
func (c Cost) others() string {
	if c.OthersShare == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f %% of CPU", 100**c.OthersShare)
}

func writeLatency(w *strings.Builder, l Latency) {
	fmt.Fprintf(w, "\n%s client at %.1f MB/s\tp50\tp99\tp99.9\tmax\n", l.Client, l.RateBytes/1e6)
	for _, row := range []struct {
		name string
		Quantiles
	}{{"acknowledged", l.Ack}, {"end to end", l.EndToEnd}, {"sent late", l.SentLate}} {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", row.name, Milliseconds(row.P50), Milliseconds(row.P99), Milliseconds(row.P999), Milliseconds(row.Max))
	}
	if l.Objects != nil {
		fmt.Fprintf(w, "object requests, latency: %s\n", l.Objects)
	}
	fmt.Fprintf(w, "other processes, latency: %s\n\n", l.others())
}

// String says the quantiles in milliseconds.
func (q Quantiles) String() string {
	return fmt.Sprintf("p50 %s, p99 %s, p99.9 %s, max %s", Milliseconds(q.P50), Milliseconds(q.P99), Milliseconds(q.P999), Milliseconds(q.Max))
}

// String says how many requests there were, and how large PUTs were on average.
func (o ObjectRequests) String() string {
	if o.Puts == 0 {
		return fmt.Sprintf("no PUT, %.0f others", o.Others)
	}
	return fmt.Sprintf("%.0f PUTs of %.1f MiB on average, %.0f others", o.Puts, o.PutBytes/o.Puts/(1<<20), o.Others)
}

// Milliseconds writes a duration with three digits after the point, so that a
// column of them compares at a glance.
func Milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.3f ms", float64(d)/float64(time.Millisecond))
}
