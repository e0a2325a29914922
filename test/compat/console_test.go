package compat

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Classes behind Apache Kafka's command-line tools.
const (
	consoleProducer = "org.apache.kafka.tools.ConsoleProducer"
	consoleConsumer = "org.apache.kafka.tools.consumer.ConsoleConsumer"
	topicsCommand   = "org.apache.kafka.tools.TopicCommand"
	configsCommand  = "kafka.admin.ConfigCommand"
	groupsCommand   = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
	verifiableIn    = "org.apache.kafka.tools.VerifiableProducer"
	verifiableOut   = "org.apache.kafka.tools.VerifiableConsumer"
)

// java is the start of a command line for a short-lived JVM: the quick compiler, and as little memory and collection as
// such programs need.
func java(classes ...string) []string {
	return []string{
		"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m",
		"-Dorg.apache.logging.log4j.level=ERROR", "-cp", strings.Join(classes, ":"),
	}
}

// console translates the drivers' verbs into Apache Kafka's command-line classes.
type console struct {
	bootstrap string
	jars      string // the folder of Kafka's jars
}

func (c console) argv(class string, args ...string) []string {
	program, server := append(java(filepath.Join(c.jars, "*")), class), []string{"--bootstrap-server", c.bootstrap}
	if class == transactionsCommand { // which takes the rest for its subcommand's
		return slices.Concat(program, server, args)
	}
	return slices.Concat(program, args, server)
}

// run executes a tool to its end and returns its standard output.
func (c console) run(ctx context.Context, class string, args ...string) (string, error) {
	return run(ctx, nil, "", c.argv(class, args...)...)
}

func (c console) produce(ctx context.Context, topic, codec string, idempotent bool, records []record) error {
	_, err := run(ctx, nil, lines(records), c.argv(consoleProducer, "--topic", topic, "--compression-codec", codec,
		"--reader-property", "parse.key=true", "--command-property", "enable.idempotence="+strconv.FormatBool(idempotent))...)
	return err
}

// records runs the console consumer, which prints a record as "Partition:0 TAB Offset:7 TAB key TAB value".
func (c console) records(ctx context.Context, maximum int, args ...string) ([]record, error) {
	printed, err := c.run(ctx, consoleConsumer, slices.Concat([]string{
		"--from-beginning", "--max-messages", strconv.Itoa(maximum), "--timeout-ms", "30000",
		"--formatter-property", "print.partition=true", "--formatter-property", "print.offset=true",
		"--formatter-property", "print.key=true",
	}, args)...)
	if err != nil {
		return nil, err
	}
	return parseRecords(consoleRecord.ReplaceAllString(printed, "record\t$1\t$2\t"))
}

var consoleRecord = regexp.MustCompile(`(?m)^Partition:(\d+)\tOffset:(\d+)\t`)

func (c console) consume(ctx context.Context, topics []string, maximum int, sees isolation) ([]record, error) {
	return c.records(ctx, maximum, "--include", strings.Join(topics, "|"), "--isolation-level", string(sees))
}

func (c console) resume(ctx context.Context, topic, group string, maximum int) ([]record, error) {
	return c.records(ctx, maximum, "--topic", topic, "--group", group)
}

// seek resets a group's offsets to a time and consumes as that group.
func (c console) seek(ctx context.Context, topic string, since time.Time, maximum int, sees isolation) ([]record, error) {
	group := topic + "-group"
	_, err := c.run(ctx, groupsCommand, "--group", group, "--topic", topic, "--reset-offsets", "--execute",
		"--to-datetime", since.UTC().Format("2006-01-02T15:04:05.000Z07:00"))
	if err != nil {
		return nil, err
	}
	return c.records(ctx, maximum, "--topic", topic, "--group", group, "--isolation-level", string(sees))
}

// member is a VerifiableConsumer, which tells its assignment and its records as JSON.
func (c console) member(t *testing.T, topic, group string) (*member, error) {
	return startMember(t.Context(), t, nil, parseVerifiable, c.argv(verifiableOut, "--topic", topic, "--group-id", group, "--verbose",
		"--session-timeout", "10000")...)
}

func parseVerifiable(line string) (*event, error) {
	var said struct {
		Name       string
		Partitions []struct{ Partition int }
		Partition  int
		Offset     int64
		Key, Value string
	}
	if !strings.HasPrefix(line, "{") {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(line), &said); err != nil {
		return nil, fmt.Errorf("parse %q: %w", line, err)
	}
	switch said.Name {
	case "record_data":
		return &event{record: &record{partition: said.Partition, offset: said.Offset, key: said.Key, value: said.Value}}, nil
	case "partitions_assigned":
		e := &event{assigned: []int{}}
		for _, each := range said.Partitions {
			e.assigned = append(e.assigned, each.Partition)
		}
		return e, nil
	case "partitions_revoked":
		return &event{assigned: []int{}}, nil
	}
	return nil, nil
}

// admin walks a topic through its life with kafka-topics and kafka-configs, and prints what drivers print.
func (c console) admin(ctx context.Context, topic string) (string, error) {
	partitions := regexp.MustCompile(`PartitionCount: (\d+)`)
	retention := regexp.MustCompile(`(?m)^\s*retention\.ms=(\d+) `)
	listed := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(topic) + `$`)
	var seen strings.Builder
	for _, step := range []struct {
		class  string
		args   []string
		find   *regexp.Regexp // what to look for in the output
		format string         // how to print what was found; "" prints nothing
	}{
		{topicsCommand, []string{"--create", "--topic", topic, "--partitions", "2", "--config", "retention.ms=3600000"}, nil, "created"},
		{topicsCommand, []string{"--describe", "--topic", topic}, partitions, "partitions %s"},
		{configsCommand, []string{"--describe", "--entity-type", "topics", "--entity-name", topic}, retention, "retention.ms %s"},
		{configsCommand, []string{"--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", "retention.ms=7200000"}, nil, ""},
		{configsCommand, []string{"--describe", "--entity-type", "topics", "--entity-name", topic}, retention, "retention.ms %s"},
		{topicsCommand, []string{"--alter", "--topic", topic, "--partitions", "4"}, nil, ""},
		{topicsCommand, []string{"--describe", "--topic", topic}, partitions, "partitions %s"},
		{topicsCommand, []string{"--delete", "--topic", topic}, nil, ""},
	} {
		printed, err := c.run(ctx, step.class, step.args...)
		if err != nil {
			return seen.String(), fmt.Errorf("%s %s: %w", step.class, step.args[0], err)
		}
		line := step.format
		if step.find != nil {
			found := step.find.FindStringSubmatch(printed)
			if found == nil {
				return seen.String(), fmt.Errorf("%s %s: no %v in %q", step.class, step.args[0], step.find, printed)
			}
			line = fmt.Sprintf(step.format, found[1])
		}
		if line != "" {
			seen.WriteString(line + "\n")
		}
	}
	printed, err := c.run(ctx, topicsCommand, "--list")
	if err != nil {
		return seen.String(), err
	}
	if listed.MatchString(printed) {
		return seen.String(), fmt.Errorf("%s is listed after its deletion", topic)
	}
	return seen.String() + "deleted\n", nil
}
