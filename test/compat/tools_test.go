package compat

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// tool is one use of one of Apache Kafka's command-line tools.
type tool struct {
	name  string // as the script is called
	does  string
	class string
	args  []string
	// wants must match the output.
	wants string
}

// toolGroup, toolTopic are what the tools work on, one after the other.
const (
	toolTopic = "tools"
	toolGroup = "tools-group"
)

var tools = []tool{
	{
		"kafka-broker-api-versions", "lists the broker's APIs", "org.apache.kafka.tools.BrokerApiVersionsCommand",
		nil, `Produce\(0\): \d+ to \d+ \[usable: \d+\]`,
	},
	{
		"kafka-cluster", "shows the cluster's id", "org.apache.kafka.tools.ClusterTool",
		[]string{"cluster-id"},
		`Cluster ID: \S+`,
	},
	{
		"kafka-topics", "creates a topic", topicsCommand,
		[]string{"--create", "--topic", toolTopic, "--partitions", "3", "--replication-factor", "1"},
		`Created topic tools`,
	},
	{
		"kafka-topics", "refuses to create it again", topicsCommand,
		[]string{"--create", "--topic", toolTopic, "--if-not-exists"},
		`^$`,
	},
	{
		"kafka-topics", "lists topics", topicsCommand, []string{"--list"}, `(?m)^tools$`,
	},
	{
		"kafka-configs", "describes all of a topic's configuration", configsCommand,
		[]string{"--describe", "--all", "--entity-type", "topics", "--entity-name", toolTopic},
		`(?m)^\s*cleanup\.policy=delete `,
	},
	{
		"kafka-configs", "describes the broker's configuration", configsCommand,
		[]string{"--describe", "--all", "--entity-type", "brokers", "--entity-name", "1"},
		`All configs for broker 1 are:`,
	},
	{
		"kafka-producer-perf-test", "produces 20,000 records", "org.apache.kafka.tools.ProducerPerformance",
		[]string{
			"--topic", toolTopic, "--num-records", "20000", "--record-size", "200", "--throughput", "-1",
			"--command-property", "compression.type=lz4",
		},
		`20000 records sent, `,
	},
	{
		"kafka-consumer-perf-test", "consumes them", "org.apache.kafka.tools.ConsumerPerformance",
		[]string{"--topic", toolTopic, "--num-records", "20000", "--timeout", "30000", "--hide-header"},
		`, 20000, `,
	},
	{
		"kafka-verifiable-producer", "produces 500 records", verifiableIn,
		[]string{"--topic", toolTopic, "--max-messages", "500"},
		`"name":"tool_data","sent":500,"acked":500`,
	},
	{
		"kafka-verifiable-consumer", "consumes all and commits", verifiableOut,
		[]string{"--topic", toolTopic, "--group-id", toolGroup, "--max-messages", "20500"},
		`"name":"offsets_committed"`,
	},
	{
		"kafka-get-offsets", "shows the end offsets", "org.apache.kafka.tools.GetOffsetShell",
		[]string{"--topic", toolTopic, "--time", "latest"},
		`(?m)^tools:0:\d+\ntools:1:\d+\ntools:2:\d+$`,
	},
	{
		"kafka-groups", "lists groups with their type", "org.apache.kafka.tools.GroupsCommand",
		[]string{"--list"},
		`(?m)^tools-group\s+Classic\s+consumer\s*$`,
	},
	{
		"kafka-consumer-groups", "lists groups with their state", groupsCommand,
		[]string{"--list", "--state"},
		`(?m)^tools-group\s+Empty\s*$`,
	},
	{
		"kafka-consumer-groups", "describes a group's lag", groupsCommand,
		[]string{"--describe", "--group", toolGroup},
		`(?m)^tools-group\s+tools\s+0\s+(\d+)\s+\d+\s+0\s`,
	},
	{
		"kafka-consumer-groups", "describes a group's state", groupsCommand,
		[]string{"--describe", "--group", toolGroup, "--state"},
		`(?m)^tools-group\s.*\sEmpty\s+0\s*$`,
	},
	{
		"kafka-consumer-groups", "resets a group's offsets", groupsCommand,
		[]string{"--group", toolGroup, "--topic", toolTopic, "--reset-offsets", "--to-earliest", "--execute"},
		`(?m)^tools-group\s+tools\s+0\s+0\s`,
	},
	{
		"kafka-consumer-groups", "deletes a group's offsets", groupsCommand,
		[]string{"--group", toolGroup, "--topic", toolTopic, "--delete-offsets"},
		`(?m)^tools\s+0\s+Successful`,
	},
	{
		"kafka-consumer-groups", "deletes a group", groupsCommand,
		[]string{"--group", toolGroup, "--delete"},
		`Deletion of requested consumer groups \('tools-group'\) was successful`,
	},
	{
		"kafka-log-dirs", "shows a topic's size", "org.apache.kafka.tools.LogDirsCommand",
		[]string{"--describe", "--topic-list", toolTopic},
		`"partition":"tools-0","size":[1-9]\d*`,
	},
	{
		"kafka-topics", "deletes the topic", topicsCommand,
		[]string{"--delete", "--topic", toolTopic},
		`^$`,
	},
}

// runTools runs the tools in their order: each starts from what those before it left.
func (s *suite) runTools(t *testing.T) {
	for _, use := range tools {
		s.runTool(t, use.name, use.does, func(ctx context.Context, _ *testing.T) error { return s.uses(ctx, use) })
	}
}

// runTool runs one use of a tool, or of an application, as a subtest and notes the result.
func (s *suite) runTool(t *testing.T, name, does string, body func(ctx context.Context, t *testing.T) error) {
	s.runToolWithin(t, featureWithin, name, does, body)
}

func (s *suite) runToolWithin(t *testing.T, limit time.Duration, name, does string, body func(ctx context.Context, t *testing.T) error) {
	t.Run(name+" "+does, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		err := body(ctx, t)
		s.results.addTool(toolResult{tool: name, does: does, err: err})
		if err != nil {
			t.Error(err)
		}
	})
}

func (s *suite) uses(ctx context.Context, use tool) error {
	printed, err := s.tools.run(ctx, use.class, use.args...)
	if err != nil {
		return err
	}
	if !regexp.MustCompile(use.wants).MatchString(strings.TrimSpace(printed)) {
		return fmt.Errorf("no %s in %q", use.wants, end(printed, 600))
	}
	return nil
}
