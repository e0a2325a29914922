// Package load measures a Kafka-protocol broker, or a cluster of them, from the outside: how fast
// it takes records, how fast it gives them back, how long a producer waits for
// an acknowledgement and a consumer for a record, and what that costs the
// broker in processor time and memory.
//
// # The generator is cheap
//
// On a small machine the client competes with the server for the same cores,
// so a client library that builds, sorts and checks each record would measure
// itself. The throughput phases therefore work on whole record batches:
//
//	Produce  every connection builds one Produce request at the start and sends
//	         it again and again. Between two sends only the correlation id, the
//	         producer's sequence numbers and the CRC32C change.
//	Consume  every connection reads Fetch responses into one reused buffer and
//	         looks at the batch headers alone.
//
// Nothing is allocated per record. The records are uncompressed, idempotent
// producers are the default (as in the Java client and franz-go), and the same
// bytes go to every broker, so that two brokers compare fairly.
//
// # Latency is measured in an open loop
//
// [Latency] offers records at a fixed rate and counts each one from the moment
// at which it should have been sent, not from when the generator got round to
// sending it. A broker that stalls for 100 ms is charged for all the records
// that were due in that time (no coordinated omission). The raw client and the
// real franz-go client run the same schedule.
//
// # Units
//
// A byte is a byte of record value: batch and record headers, which differ by
// record size, are not counted. One MB is 1e6 bytes, one GB is 1e9 bytes.
package load

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Target is the broker or the cluster under load.
type Target struct {
	// Bootstrap is the address, host:port, of any broker of the cluster.
	Bootstrap string
	// PIDs are the processes of all brokers, on this machine; what they use is
	// added up. None when they are elsewhere or unknown: then nothing is
	// reported about processor and memory.
	PIDs []int
	// MetricsURL is where the broker serves its metrics in Prometheus' text
	// format; empty when it has none.
	MetricsURL string
}

// Config describes one run of all phases. Every limit is for one phase.
type Config struct {
	Target Target
	// RecordBytes is the size of a record's value; keys are absent.
	RecordBytes int
	// BatchBytes bounds a record batch of the throughput phases.
	BatchBytes int
	// Acks is what producers ask for: -1 (all) or 1.
	Acks int16
	// NotIdempotent has producers not number their batches (enable.idempotence=false). With Acks 1 they never do.
	NotIdempotent bool
	// Partitions is the number of partitions of the topic each phase creates.
	Partitions int
	// Connections is the number of connections of the throughput phases. Each
	// owns a share of the partitions; the latency phase uses one to produce.
	Connections int
	// Duration ends a throughput phase, and is the length of the latency phase.
	// The broker may then take as long again to become idle.
	Duration time.Duration
	// BytesMax ends a throughput phase early, so that a fast broker does not
	// fill the disk; reading from memory goes on to four times as much.
	BytesMax int64
	// WindowBytes is how much of the log's end the consume phase reads again
	// and again, small enough to be in the broker's memory.
	WindowBytes int64
	// RateBytes is what the latency phase offers, in bytes per second.
	RateBytes float64
	// Client sends the records of the latency phase.
	Client Client
	// Phases selects what runs.
	Phases Phases
}

// Phases selects the parts of a run. Consume reads what Produce wrote, so it
// runs only with it.
type Phases struct {
	Produce bool
	Consume bool
	Latency bool
}

// Client names the producer and consumer of the latency phase.
type Client string

// The clients of the latency phase.
const (
	// ClientRaw is this package's own, which costs next to nothing.
	ClientRaw Client = "raw"
	// ClientFranz is franz-go, without linger.
	ClientFranz Client = "franz"
)

// inFlightMax is how many Produce requests a connection has open, and is the
// most that an idempotent producer may have (KIP-98; five batches per
// partition are remembered by the broker, KAFKA-5494).
const inFlightMax = 5

// Defaults returns the configuration of a plain `varve bench`.
func Defaults() Config {
	return Config{
		Target:      Target{Bootstrap: "127.0.0.1:9092"},
		RecordBytes: 1024,
		BatchBytes:  64 << 10,
		Acks:        -1,
		Partitions:  8,
		Connections: 4,
		Duration:    20 * time.Second,
		BytesMax:    2 << 30,
		WindowBytes: 32 << 20,
		RateBytes:   5e6,
		Client:      ClientRaw,
		Phases:      Phases{Produce: true, Consume: true, Latency: true},
	}
}

// idempotent says whether producers number their batches.
func (c Config) idempotent() bool { return c.Acks == -1 && !c.NotIdempotent }

// Validate reports the first field that cannot be run with, naming the flag
// that sets it.
func (c Config) Validate() error {
	switch {
	case c.RecordBytes < recordBytesMin || c.RecordBytes > recordBytesMax:
		return fmt.Errorf("--record-bytes: %d, want %d to %d", c.RecordBytes, recordBytesMin, recordBytesMax)
	case c.BatchBytes < c.RecordBytes+batchOverheadBytesMax || c.BatchBytes > batchBytesMax:
		return fmt.Errorf("--batch-bytes: %d, want %d to %d", c.BatchBytes, c.RecordBytes+batchOverheadBytesMax, batchBytesMax)
	case c.Acks != -1 && c.Acks != 1:
		return fmt.Errorf("--acks: %d, want all or 1", c.Acks)
	case c.Partitions < 1:
		return fmt.Errorf("--partitions: %d, want at least 1", c.Partitions)
	case c.Connections < 1:
		return fmt.Errorf("--connections: %d, want at least 1", c.Connections)
	case c.Duration < time.Second:
		return fmt.Errorf("--duration: %v, want at least 1s", c.Duration)
	case c.BytesMax < int64(c.BatchBytes):
		return fmt.Errorf("--bytes-max: %d, want at least a batch of %d", c.BytesMax, c.BatchBytes)
	case c.WindowBytes < int64(c.BatchBytes):
		return fmt.Errorf("--window-bytes: %d, want at least a batch of %d", c.WindowBytes, c.BatchBytes)
	case c.RateBytes < float64(c.RecordBytes):
		return fmt.Errorf("--rate: %g bytes/s, want at least one record of %d per second", c.RateBytes, c.RecordBytes)
	case c.Phases == Phases{}:
		return errors.New("--phases: none, want at least one")
	case c.Phases.Consume && !c.Phases.Produce:
		return errors.New("--phases: consume without produce, whose records it reads")
	case c.Client != ClientRaw && c.Client != ClientFranz:
		return fmt.Errorf("--client: %q, want %s or %s", c.Client, ClientRaw, ClientFranz)
	}
	return nil
}

// Run runs the selected phases one after the other, each on a topic of its
// own that is deleted afterwards, and returns what it measured.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if err := cfg.Validate(); err != nil {
		return Report{}, err
	}
	report := Report{Config: cfg}
	if cfg.Phases.Produce {
		if err := runThroughput(ctx, cfg, &report); err != nil {
			return report, err
		}
	}
	if cfg.Phases.Latency {
		latency, err := runLatency(ctx, cfg)
		if err != nil {
			return report, fmt.Errorf("latency: %w", err)
		}
		report.Latency = latency
	}
	if memory, ok := ReadMemory(cfg.Target.PIDs...); ok {
		report.Memory = &memory
	}
	return report, nil
}

// runThroughput produces to a fresh topic, waits until the broker has digested
// it, and reads it back: its end again and again, then all of it once.
func runThroughput(ctx context.Context, cfg Config, report *Report) (err error) {
	topic, err := createTopic(ctx, cfg.Target.Bootstrap, cfg.Partitions)
	if err != nil {
		return err
	}
	defer func() { err = joinClose(err, topic.delete(ctx)) }()

	produced, err := runProduce(ctx, cfg, topic)
	if err != nil {
		return fmt.Errorf("produce: %w", err)
	}
	report.Produce = &produced
	if !cfg.Phases.Consume {
		return nil
	}
	memory, err := runConsume(ctx, cfg, topic, readWindow)
	if err != nil {
		return fmt.Errorf("consume from memory: %w", err)
	}
	report.ConsumeMemory = &memory
	all, err := runConsume(ctx, cfg, topic, readAll)
	if err != nil {
		return fmt.Errorf("consume from the start: %w", err)
	}
	report.ConsumeAll = &all
	return nil
}
