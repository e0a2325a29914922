package load

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// Command is `varve bench`: Run against a broker that is already up.
func Command() *cobra.Command {
	cfg := Defaults()
	var (
		acks       string
		client     string
		phases     []string
		rateMB     float64
		diskFolder string
		asJSON     bool
	)
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure throughput, latency and cost of a Kafka-protocol broker",
		Long: `Measure a running broker: produce and consume throughput, and the latency of
acknowledgements and deliveries at a fixed rate. It makes a topic for each phase
and deletes it afterwards. With --pid, the broker's processor time and memory
are read from /proc.`,
		Example: `  varve bench
  varve bench --record-bytes 100 --duration 5s
  varve bench --phases latency --rate 5 --client franz
  varve bench --pid $(pgrep -d, -x varve) --metrics http://127.0.0.1:9080/metrics --json`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if cfg.Acks, err = parseAcks(acks); err != nil {
				return err
			}
			if cfg.Phases, err = parsePhases(phases); err != nil {
				return err
			}
			cfg.RateBytes, cfg.Client = rateMB*1e6, Client(client)
			return runCommand(cmd, cfg, diskFolder, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Target.Bootstrap, "bootstrap", cfg.Target.Bootstrap, "address of a broker")
	flags.IntSliceVar(&cfg.Target.PIDs, "pid", nil, "the broker's process, or those of all brokers, for processor time and memory")
	flags.StringVar(&cfg.Target.MetricsURL, "metrics", "", "the broker's metrics page, for its object requests")
	flags.IntVar(&cfg.RecordBytes, "record-bytes", cfg.RecordBytes, "size of a record's value")
	flags.IntVar(&cfg.BatchBytes, "batch-bytes", cfg.BatchBytes, "limit of a record batch in the throughput phases")
	flags.StringVar(&acks, "acks", "all", "what producers wait for: all or 1")
	flags.IntVar(&cfg.Partitions, "partitions", cfg.Partitions, "partitions of the topics")
	flags.IntVar(&cfg.Connections, "connections", cfg.Connections, "connections in the throughput phases")
	flags.DurationVar(&cfg.Duration, "duration", cfg.Duration, "limit of a throughput phase, and length of the latency phase")
	flags.Int64Var(&cfg.BytesMax, "bytes-max", cfg.BytesMax, "limit of a throughput phase in bytes")
	flags.Int64Var(&cfg.WindowBytes, "window-bytes", cfg.WindowBytes, "the end of the log that is consumed from memory")
	flags.Float64Var(&rateMB, "rate", cfg.RateBytes/1e6, "what the latency phase offers, in MB/s")
	flags.StringVar(&client, "client", string(cfg.Client), "who sends in the latency phase: raw or franz")
	flags.StringSliceVar(&phases, "phases", []string{"produce", "consume", "latency"}, "what to run; consume reads what produce wrote")
	flags.StringVar(&diskFolder, "disk", "", "a folder on the broker's disk, to measure the disk's own sync")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func parseAcks(acks string) (int16, error) {
	switch acks {
	case "all", "-1":
		return -1, nil
	case "1":
		return 1, nil
	}
	return 0, fmt.Errorf("--acks: %q, want all or 1", acks)
}

func parsePhases(names []string) (Phases, error) {
	var phases Phases
	for _, name := range names {
		switch name {
		case "produce":
			phases.Produce = true
		case "consume":
			phases.Consume = true
		case "latency":
			phases.Latency = true
		default:
			return Phases{}, fmt.Errorf("--phases: %q, want produce, consume or latency", name)
		}
	}
	return phases, nil
}

func runCommand(cmd *cobra.Command, cfg Config, diskFolder string, asJSON bool) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	var disk *Quantiles
	if diskFolder != "" {
		probed, err := ProbeDisk(cmd.Context(), diskFolder)
		if err != nil {
			return err
		}
		disk = &probed
	}
	began := time.Now()
	report, err := Run(cmd.Context(), cfg)
	if err != nil {
		return fmt.Errorf("bench %s after %v: %w", cfg.Target.Bootstrap, time.Since(began).Round(time.Second), err)
	}
	report.Disk = disk
	if !asJSON {
		return report.Write(cmd.OutOrStdout())
	}
	encoder := json.NewEncoder(cmd.OutOrStdout())
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(report); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}
