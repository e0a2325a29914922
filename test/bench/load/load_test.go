package load

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/test/servers"
)

// TestAgainstKafka runs every phase, briefly, on the broker that defines what
// is right: a frame that is not understood, a wrong sequence number or CRC, a
// record that is lost or read twice ends the run with an error.
func TestAgainstKafka(t *testing.T) {
	kafka := servers.Kafka(t, servers.KafkaOptions{})
	cfg := Defaults()
	cfg.Target = Target{Bootstrap: kafka.Address, PIDs: []int{kafka.PID()}}
	cfg.Duration, cfg.BytesMax, cfg.RateBytes = time.Second, 2<<20, 1e6
	cfg.Partitions, cfg.Connections = 3, 4
	small := cfg
	small.RecordBytes, small.Client, small.Acks = 100, ClientFranz, 1
	small.Target.PIDs = nil // a broker on another machine
	for _, cfg := range []Config{cfg, small} {
		report, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		// A phase ends early only with all of its bytes.
		if p := report.Produce; p.Bytes < cfg.BytesMax && p.Elapsed < cfg.Duration || p.Bytes == 0 || p.Bytes > 2*cfg.BytesMax {
			t.Errorf("produced %d bytes in %v, want about %d", p.Bytes, p.Elapsed, cfg.BytesMax)
		}
		if report.ConsumeAll.Records != report.Produce.Records {
			t.Errorf("read %d records, want the %d produced", report.ConsumeAll.Records, report.Produce.Records)
		}
		if c := report.ConsumeMemory; c.Bytes < windowTurns*cfg.BytesMax && c.Elapsed < cfg.Duration || c.Bytes == 0 {
			t.Errorf("read %d bytes from memory in %v, want at least %d", c.Bytes, c.Elapsed, windowTurns*cfg.BytesMax)
		}
		if _, ok := report.Produce.ServerCPUPerGB(); ok != (len(cfg.Target.PIDs) > 0) || ok != (report.Memory != nil) {
			t.Errorf("processes %d: processor time %v, memory %v", cfg.Target.PIDs, ok, report.Memory)
		}
		l := report.Latency
		counted := l.Records - l.Records/5
		if diff := l.Ack.Count - counted; diff < -1 || diff > 1 || l.EndToEnd.Count != l.Ack.Count {
			t.Errorf("latencies of %d and %d records, want %d past the warm-up", l.Ack.Count, l.EndToEnd.Count, counted)
		}
		if l.Ack.P50 <= 0 || l.EndToEnd.P50 < l.Ack.P50/100 || l.Ack.Max > cfg.Duration+drainTimeout {
			t.Errorf("latencies %+v", l)
		}
		var text bytes.Buffer
		if err := report.Write(&text); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"produce", "consume from memory", "acknowledged", "end to end"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("the table lacks %q:\n%s", want, &text)
			}
		}
		if _, err := json.Marshal(report); err != nil {
			t.Error(err)
		}
	}
}

// TestHistory has consumers read a topic side by side, all of it, and again while something else goes on.
func TestHistory(t *testing.T) {
	varve := servers.Varve(t, servers.VarveOptions{})
	cfg := Defaults()
	cfg.Target = Target{Bootstrap: varve.Address} // without processes, whose rest would be waited for
	cfg.Duration, cfg.BytesMax, cfg.Partitions = time.Minute, 8<<20, 3
	h, err := WriteHistory(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	read, err := h.Read(t.Context(), cfg, 3)
	if err != nil || read.Records != 3*h.Written.Records || read.Bytes != 3*h.Written.Bytes {
		t.Errorf("three consumers read %d records of %d, %v", read.Records, h.Written.Records, err)
	}
	const beside = 250 * time.Millisecond
	for _, bytes := range []float64{0, 20e6} {
		rate, err := h.Beside(t.Context(), cfg, 2, bytes, func() error {
			time.Sleep(beside) // it is what is measured
			return nil
		})
		// One fetch of each is not held back, and brings as much as a fetch may.
		if err != nil || rate <= 0 || bytes > 0 && rate > bytes+2*fetchPartitionBytes*3/beside.Seconds() {
			t.Errorf("two consumers read %.0f bytes per second beside, want %.0f, %v", rate, bytes, err)
		}
	}
	if err := h.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNoBrokerIsAnError(t *testing.T) {
	free, err := servers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Defaults()
	cfg.Target.Bootstrap = free
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), free) {
		t.Errorf("error %v, want one that names %s", err, free)
	}
}

func TestValidateNamesTheFlag(t *testing.T) {
	if err := Defaults().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for flag, change := range map[string]func(*Config){
		"--record-bytes": func(c *Config) { c.RecordBytes = 1 },
		"--batch-bytes":  func(c *Config) { c.BatchBytes = 2 << 20 },
		"--acks":         func(c *Config) { c.Acks = 0 },
		"--partitions":   func(c *Config) { c.Partitions = 0 },
		"--connections":  func(c *Config) { c.Connections = 0 },
		"--duration":     func(c *Config) { c.Duration = 0 },
		"--bytes-max":    func(c *Config) { c.BytesMax = 0 },
		"--window-bytes": func(c *Config) { c.WindowBytes = 0 },
		"--rate":         func(c *Config) { c.RateBytes = 0 },
		"--client":       func(c *Config) { c.Client = "java" },
		"--phases":       func(c *Config) { c.Phases.Produce = false },
	} {
		cfg := Defaults()
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), flag+":") {
			t.Errorf("%s: error %v", flag, err)
		}
	}
}

// TestSchedule checks the arithmetic that charges a stall to all records that
// were due in it.
func TestSchedule(t *testing.T) {
	start := time.Unix(1000, 0)
	s := schedule{start: start, interval: 10 * time.Millisecond, records: 5}
	for after, want := range map[time.Duration]int64{
		-1: 0, 0: 1, 9 * time.Millisecond: 1, 10 * time.Millisecond: 2, 39 * time.Millisecond: 4, time.Hour: 5,
	} {
		if got := s.due(start.Add(after)); got != want {
			t.Errorf("due after %v: %d, want %d", after, got, want)
		}
	}
	watch := stopwatch{countFrom: start.Add(20 * time.Millisecond), histogram: newHistogram()}
	now := start.Add(110 * time.Millisecond)
	s.slice(1, 3).each(func(due time.Time) { watch.observe(due, now) }) // due at 10, 20 and 30 ms
	if q := watch.histogram.quantiles(); q.Count != 2 || q.Max.Round(time.Millisecond) != 90*time.Millisecond {
		t.Errorf("quantiles %+v, want those of 90 and 80 ms", q)
	}
}

func TestPacerIsNeverEarly(t *testing.T) {
	pace := newPacer()
	defer pace.stop()
	for _, wait := range []time.Duration{-time.Second, 0, 5 * time.Microsecond, 200 * time.Microsecond, 3 * time.Millisecond} {
		at := time.Now().Add(wait)
		pace.until(at)
		if early := time.Until(at); early > 0 {
			t.Errorf("%v too early for a wait of %v", early, wait)
		}
	}
}

func TestShares(t *testing.T) {
	for _, test := range []struct {
		leaders     string // a letter per partition
		connections int
		want        []string // address and partitions
	}{
		{"aaaa", 2, []string{"a02", "a13"}},
		{"aaaa", 1, []string{"a0123"}},
		{"aa", 3, []string{"a0", "a1", "a0"}},
		{"abab", 1, []string{"a02", "b13"}},
		{"abab", 4, []string{"a0", "b1", "a2", "b3"}},
		{"abba", 3, []string{"a0", "b12", "a3"}},
	} {
		var got []string
		for _, s := range (&topic{leaders: strings.Split(test.leaders, "")}).shares(test.connections) {
			text := s.address
			for _, p := range s.partitions {
				text += string('0' + p)
			}
			got = append(got, text)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s over %d connections: %v, want %v", test.leaders, test.connections, got, test.want)
		}
	}
}

// TestProbeDisk also shows that the probe's file is gone.
func TestProbeDisk(t *testing.T) {
	folder := t.TempDir()
	q, err := ProbeDisk(t.Context(), folder)
	if err != nil || q.Count == 0 || q.P50 <= 0 || q.P99 < q.P50 {
		t.Errorf("quantiles %v, error %v", q, err)
	}
	if _, err := ProbeDisk(t.Context(), folder+"/absent"); err == nil {
		t.Error("a folder that does not exist was probed")
	}
}

func TestSequencesWrapToZero(t *testing.T) {
	p := producer{identity: producerID{id: 1}, sequences: []int32{1<<31 - 3}}
	for _, want := range []int32{1<<31 - 3, 2, 7} {
		if got := p.nextSequence(0, 5); got != want {
			t.Errorf("sequence %d, want %d", got, want)
		}
	}
}
