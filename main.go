// Command varve is a broker of Kafka's protocol whose log settles into object storage.
//
//	varve dev      everything in one process, for development
//	varve agent    one agent, with etcd and a bucket elsewhere
//	varve status   how a cluster is
//	varve inspect  what a WAL file, an object or a key of etcd holds
//	varve fsck     whether all that a cluster has in etcd and in its bucket is in order
//	varve cost     what a cluster asks of its bucket, and what that comes to
//	varve restore  build a cluster's etcd anew from its bucket
//	varve bench    measure a broker
//	varve version
//
// It exits with status 0 when it was asked to end and did so in order, 2 when something on the command line, in the
// environment or in the configuration file has to be changed, or fsck could not check, and 1 for everything else, such as a cluster that is not well, or something that is damaged.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/agent/fsck"
	"github.com/varve-io/varve/agent/inspect"
	"github.com/varve-io/varve/test/bench/load"
)

// Exit statuses.
const (
	statusFailed = 1
	statusUsage  = 2
)

// ballastBytes count as live memory for the garbage collector, which so lets as much garbage gather again before it runs. They are never touched and take no
// memory themselves. What an agent keeps on its heap is a dozen megabytes, and without ballast it collects three times a second at 5 MB/s of small
// requests, each time with a part of the processor time that requests wait for.
const ballastBytes = 64 << 20

func main() {
	ballast := make([]byte, ballastBytes)
	ctx := untilSignal()
	err := newRoot().ExecuteContext(ctx)
	runtime.KeepAlive(ballast)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "varve:", err)
	if _, usage := errors.AsType[*config.Error](err); usage || errors.Is(err, errUnchecked) {
		os.Exit(statusUsage)
	}
	os.Exit(statusFailed)
}

// untilSignal returns a context that the first SIGINT or SIGTERM ends. The second ends the process.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals
		fmt.Fprintln(os.Stderr, "varve: ended by a second signal; the next start recovers what was not flushed")
		os.Exit(statusFailed)
	}()
	return ctx
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "varve",
		Short: "A Kafka-protocol broker whose log settles into object storage",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &config.Error{Place: "varve", Seen: strconv.Quote(args[0]), Want: "a command: " + commandNames(cmd)}
			}
			return cmd.Help()
		},
		Args:              cobra.ArbitraryArgs, // RunE says what is wrong with them
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(flagError)
	bench := load.Command()
	bench.Args = noArgs
	root.AddCommand(newDev(), newAgent(), newStatus(), newInspect(), newFsck(), newCost(), newRestore(), bench, newVersion())
	return root
}

func commandNames(cmd *cobra.Command) string {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return strings.Join(names, ", ")
}

// noArgs refuses arguments that are no flags.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &config.Error{Place: cmd.CommandPath(), Seen: strconv.Quote(args[0]), Want: "flags only"}
	}
	return nil
}

// flagError says what is wrong with a flag that could not be parsed.
func flagError(cmd *cobra.Command, err error) error {
	wantFlag := "a flag that " + cmd.CommandPath() + " --help lists"
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		place := "--" + unknown.GetSpecifiedName()
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			place = "-" + short
		}
		return &config.Error{Place: place, Seen: "an unknown flag", Want: wantFlag}
	}
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		flag := missing.GetFlag()
		return &config.Error{Place: "--" + flag.Name, Seen: "no value", Want: plainUsage(flag)}
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		flag := invalid.GetFlag()
		return &config.Error{
			Place: "--" + flag.Name, Seen: strconv.Quote(invalid.GetValue()), Want: flag.Value.Type() + ": " + plainUsage(flag),
		}
	}
	return &config.Error{Place: cmd.CommandPath(), Err: err}
}

func plainUsage(flag *pflag.Flag) string { return strings.ReplaceAll(flag.Usage, "`", "") }

func newDev() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything in one process, for development",
		Long: `Run one agent with an etcd of its own, objects in a folder, and its write-ahead log
beside them; or several, which are a cluster. Data survives restarts and crashes. Each
flag may also stand in the environment: --data as VARVE_DATA, --wal-sync as VARVE_WAL_SYNC.`,
		Example: `  varve dev
  varve dev --agents 3 --zones a,b,c
  varve dev --listen 127.0.0.1:19092 --data /tmp/varve`,
		Args: noArgs,
	}
	reader := config.Bind(config.Dev, cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		return run(cmd.Context(), cfg, cmd.OutOrStdout(), true)
	}
	return cmd
}

func newAgent() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run one agent of a cluster",
		Long: `Run one agent, which finds its cluster in etcd and keeps its log in a bucket. It waits
for either that is not there yet, and prints "ready" when it serves clients.

Each flag may also stand in the environment, --wal-sync as VARVE_WAL_SYNC, and in the
YAML file of --config, as wal-sync. A flag wins over the environment, the environment
over the file. The bucket's credentials come from where its client library looks for
them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, shared files, the machine's role.`,
		Example: `  varve agent --etcd http://127.0.0.1:2379 --bucket 's3://lake/varve?region=eu-central-1'
  varve agent --config varve.yaml --listen 0.0.0.0:9092 --advertise broker-1.example.com:9092`,
		Args: noArgs,
	}
	reader := config.Bind(config.Agent, cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		return run(cmd.Context(), cfg, cmd.OutOrStdout(), false)
	}
	return cmd
}

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell how a cluster is",
		Long: `Tell how a cluster is, from what its etcd holds: agents, shards, write-ahead logs and
where their copies lie, what is not in the bucket yet. The exit status is 0 if all is
well, and 1 if it is not, or cannot be told.

Without --etcd, this is the cluster of the varve dev that runs on the folder --data.`,
		Example: `  varve status
  varve status --etcd http://127.0.0.1:2379 --cluster default --json`,
		Args: noArgs,
	}
	reader := config.Bind(config.Status, cmd.Flags())
	machine := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		return printStatus(cmd.Context(), cfg, cmd.OutOrStdout(), *machine)
	}
	return cmd
}

func newInspect() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect [FILE | --bucket URL NAME | --etcd URL [KEY]]",
		Short: "Print what a WAL file, an object or a key of etcd holds",
		Long: `Print what Varve has written, for people or as JSON, one object a line: a local file
(of the WAL, or a copy of an object), an object of a bucket by its name (a segment, of
which header and footer are read, or a manifest), or a key of etcd below /varve/NAME/,
or all that begin with KEY.

What can be read is printed, and damage is told with its place; then the exit status
is 1.`,
		Example: `  varve inspect varve-data/wal/1.wal --batches
  varve inspect --bucket file://$PWD/varve-data/objects manifests/07/00000007/00000001-0000000000000002
  varve inspect --bucket 's3://lake/varve?region=eu-central-1' NAME --records orders/3
  varve inspect --etcd http://127.0.0.1:2379 meta/commits/`,
		Args: cobra.ArbitraryArgs, // inspect says what is wrong with them
	}
	reader := config.Bind(config.Inspect, cmd.Flags())
	batches := cmd.Flags().Bool("batches", false, "list what is inside: each batch of a segment, each entry of a WAL file, what a manifest says of each partition")
	records := cmd.Flags().String("records", "", "print the records of a partition, `TOPIC/NUMBER`; in a WAL file, by the topic's id")
	verify := cmd.Flags().Bool("verify", false, "read everything and check every checksum")
	machine := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		options := inspect.Options{Batches: *batches, Verify: *verify}
		if *records != "" {
			if options.Records, err = inspect.ParsePartition(*records); err != nil {
				return &config.Error{Place: "--records", Seen: strconv.Quote(*records), Want: "TOPIC/NUMBER"}
			}
		}
		return printInspected(cmd.Context(), cfg, cmd.OutOrStdout(), args, options, *machine)
	}
	return cmd
}

// graceChosen is for how long garbage may be in the bucket until it counts as an orphan: a few times what agents leave it there by default.
const graceChosen = time.Hour

func newFsck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Check all that a cluster has in etcd and in its bucket",
		Long: `Check that what a cluster has in etcd and in its bucket is whole and fits together, and
that there is nothing else: every object that something refers to is there, its checksums
hold, offsets continue, and no object is left that nothing refers to. The cluster may run.

The exit status is 0 if all is in order, 1 if not, and 2 if that could not be told.
Nothing is changed but by --repair, which deletes orphans that can never be needed again,
if nothing else is wrong.

Without --etcd and --bucket, this is the cluster of the varve dev that runs on the folder
--data.`,
		Example: `  varve fsck
  varve fsck --etcd http://127.0.0.1:2379 --bucket 's3://lake/varve?region=eu-central-1' --deep`,
		Args: noArgs,
	}
	reader := config.Bind(config.Fsck, cmd.Flags())
	deep := cmd.Flags().Bool("deep", false, "read all that something refers to, and check every checksum, not only those of footers and manifests")
	grace := cmd.Flags().Duration("grace", graceChosen, "`time` after which garbage that is still there is an orphan; longer than the --garbage-grace of agents, who delete it, by some minutes")
	repair := cmd.Flags().Bool("repair", false, "delete orphans")
	machine := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		if *grace <= 0 {
			return &config.Error{Place: "--grace", Seen: grace.String(), Want: "more than 0"}
		}
		options := fsck.Options{Now: time.Now, Grace: *grace, Deep: *deep, Repair: *repair}
		return printFsck(cmd.Context(), cfg, cmd.OutOrStdout(), options, *machine)
	}
	return cmd
}

func newCost() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cost",
		Short: "Tell what a cluster asks of its bucket, and what that comes to",
		Long: `Tell what a cluster asks of its bucket: requests and bytes, of each agent since it
started, and what is stored; by topic too, where requests, of which each serves many
topics, are apportioned by bytes. With a file of prices, what that comes to in a month.

Nothing is changed. The bucket is listed, and one manifest of each shard is read. The exit
status is 0, or 1 if that could not be done.

Without --etcd and --bucket, this is the cluster of the varve dev that runs on the folder
--data.`,
		Example: `  varve cost
  varve cost --etcd http://127.0.0.1:2379 --bucket 's3://lake/varve?region=eu-central-1' --prices prices.yaml`,
		Args: noArgs,
	}
	reader := config.Bind(config.Cost, cmd.Flags())
	prices := cmd.Flags().String("prices", "", "`file` of what the bucket's provider asks, like deploy/prices.yaml; without it, no money is told")
	machine := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		return printCost(cmd.Context(), cfg, cmd.OutOrStdout(), *prices, *machine)
	}
	return cmd
}

func newRestore() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Build a cluster's etcd anew from its bucket",
		Long: `Write into etcd what the bucket tells of the cluster: its newest copy of etcd, and what
was flushed since. For a cluster whose etcd is lost, into an empty one; with --repair, over
one that was set back to an earlier state. No agent may be running, nor start meanwhile; one
that finds etcd lost or set back does not start by itself.

Consumer offsets, topics, their configs and transactions are as of the copy, of which there
is one a minute unless etcd is very large. Open transactions are aborted, and transactional producers fenced.

Agents that have their disks recover from them what was acknowledged and not flushed, before
anything is served. If the disks are gone, give --disks-lost: then WAL logs end where they were
flushed. If something that was committed is missing in the bucket, the exit status is 1, and
etcd is as it was, unless --accept-missing says to go on without it.`,
		Example: `  varve restore --etcd http://127.0.0.1:2379 --bucket 's3://lake/varve?region=eu-central-1'
  varve restore --etcd http://127.0.0.1:2379 --bucket file:///lake --repair`,
		Args: noArgs,
	}
	reader := config.Bind(config.Restore, cmd.Flags())
	repair := cmd.Flags().Bool("repair", false, "bring an etcd up to date that was set back")
	lost := cmd.Flags().Bool("disks-lost", false, "the agents' disks are gone: end their WAL logs where they were flushed")
	missing := cmd.Flags().Bool("accept-missing", false, "go on without what is missing in the bucket")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := reader.Read(os.LookupEnv, os.ReadFile)
		if err != nil {
			return err
		}
		return restore(cmd.Context(), cfg, cmd.OutOrStdout(), *repair, *lost, *missing)
	}
	return cmd
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "varve %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// version returns what the build recorded of the source it was made from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}
