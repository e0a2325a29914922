package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// KafkaOptions say how to start Apache Kafka. The zero value starts one broker on a free port.
type KafkaOptions struct {
	// Data is the data folder; an empty one is formatted. See VarveOptions.Data for what no folder means.
	Data string
	// Listen is the address for clients; empty means a free loopback port.
	Listen string
	// Config is added to the broker's configuration, and wins over what this package sets.
	Config  map[string]string
	started func(*Server)
}

// kafkaHeap bounds the broker's heap; Kafka's own start script gives it as much.
const kafkaHeap = "-Xmx1g"

// StartKafka starts Apache Kafka: one process that is broker and controller (KRaft). Beyond what a single node needs, it
// departs from Kafka's defaults in two settings: a group's first rebalance does not wait for more members, and the
// internal offsets topic has few partitions, both of which only take time in a test.
func StartKafka(ctx context.Context, o KafkaOptions) (*Server, error) {
	if o.Data == "" {
		return nil, errors.New("start kafka: no data folder given")
	}
	jars, err := Install(ctx, "kafka")
	if err != nil {
		return nil, err
	}
	listen, err := addressOr(ctx, o.Listen)
	if err != nil {
		return nil, err
	}
	controller, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	config := map[string]string{
		"process.roles":                    "broker,controller",
		"node.id":                          "1",
		"listeners":                        "PLAINTEXT://" + listen + ",CONTROLLER://" + controller,
		"controller.listener.names":        "CONTROLLER",
		"controller.quorum.voters":         "1@" + controller,
		"log.dirs":                         filepath.Join(o.Data, "log"),
		"offsets.topic.replication.factor": "1",
		"transaction.state.log.replication.factor":         "1",
		"transaction.state.log.min.isr":                    "1",
		"share.coordinator.state.topic.replication.factor": "1",
		"share.coordinator.state.topic.min.isr":            "1",
		"offsets.topic.num.partitions":                     "4",
		"group.initial.rebalance.delay.ms":                 "0",
	}
	maps.Copy(config, o.Config)
	if err := os.MkdirAll(o.Data, 0o755); err != nil {
		return nil, fmt.Errorf("start kafka: %w", err)
	}
	properties := filepath.Join(o.Data, "server.properties")
	if err := writeProperties(properties, config); err != nil {
		return nil, err
	}
	jvm := []string{kafkaHeap, "-Dorg.apache.logging.log4j.level=INFO", "-cp", filepath.Join(jars, "*")}
	format := exec.CommandContext(ctx, "java", append(slices.Clone(jvm), "kafka.tools.StorageTool", "format",
		"--ignore-formatted", "--cluster-id", "dmFydmUtdGVzdC1rYWZrYQ", "--config", properties)...)
	if said, err := format.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("format kafka's data folder: %w: %s", err, said)
	}
	return start(ctx, command{
		name: "kafka", program: "java", args: append(jvm, "kafka.Kafka", properties),
		data: o.Data, address: listen,
		ready: regexp.MustCompile(`Kafka Server started`), started: o.started,
	})
}

// writeProperties writes a Java properties file. The values that this package and its callers use need no escapes.
func writeProperties(name string, properties map[string]string) error {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&b, "%s=%s\n", key, properties[key])
	}
	if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write kafka's configuration: %w", err)
	}
	return nil
}

// Kafka starts Apache Kafka for a test.
func Kafka(t testing.TB, o KafkaOptions) *Server {
	t.Helper()
	o.Data, o.started = forTest(t, o.Data, "kafka")
	return must(t)(StartKafka(t.Context(), o))
}
