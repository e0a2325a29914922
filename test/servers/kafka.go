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
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
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

// kafkaNode is a node's place in its cluster.
type kafkaNode struct {
	id          int
	controllers []string // the addresses for controllers of all nodes, by id - 1
	replicas    int      // of each partition that does not say otherwise
}

// StartKafka starts Apache Kafka: one process that is broker and controller (KRaft). Beyond what a single node needs, it
// departs from Kafka's defaults in two settings: a group's first rebalance does not wait for more members, and the
// internal offsets topic has few partitions, both of which only take time in a test.
func StartKafka(ctx context.Context, o KafkaOptions) (*Server, error) {
	if o.Data == "" {
		return nil, errors.New("start kafka: no data folder given")
	}
	controller, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	return startKafka(ctx, o, kafkaNode{id: 1, controllers: []string{controller}, replicas: 1})
}

// kafkaReplicasMax is how many copies of each partition a cluster keeps, if it has as many brokers.
const kafkaReplicasMax = 3

// StartKafkaCluster starts several brokers as one cluster, each of them also one of its controllers, in folders of their
// own below o.Data. Topics have three replicas, all but one of which must be in sync for acks=all to succeed; with fewer
// brokers, as many as there are. o.Listen must be empty. It returns the brokers by their id, which counts from 1, or none
// and an error if one of them did not start.
func StartKafkaCluster(ctx context.Context, brokers int, o KafkaOptions) ([]*Server, error) {
	if o.Data == "" || o.Listen != "" {
		return nil, fmt.Errorf("start a cluster of kafka: data folder %q, address %q, want a folder and no address", o.Data, o.Listen)
	}
	controllers := make([]string, brokers)
	for i := range controllers {
		address, err := freeAddress(ctx)
		if err != nil {
			return nil, err
		}
		controllers[i] = address
	}
	cluster := make([]*Server, brokers)
	group, groupCtx := errgroup.WithContext(ctx) // none of them is ready before most of them run
	for i := range cluster {
		group.Go(func() (err error) {
			node := kafkaNode{id: i + 1, controllers: controllers, replicas: min(brokers, kafkaReplicasMax)}
			own := o
			own.Data = filepath.Join(o.Data, "broker-"+strconv.Itoa(node.id))
			cluster[i], err = startKafka(groupCtx, own, node)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		for _, s := range cluster {
			if s != nil {
				s.Kill()
			}
		}
		return nil, err
	}
	return cluster, nil
}

// startKafka starts one node.
func startKafka(ctx context.Context, o KafkaOptions, node kafkaNode) (*Server, error) {
	jars, err := Install(ctx, "kafka")
	if err != nil {
		return nil, err
	}
	listen, err := addressOr(ctx, o.Listen)
	if err != nil {
		return nil, err
	}
	config := node.config(listen)
	config["log.dirs"] = filepath.Join(o.Data, "log")
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

// config is what a node is told that listens there for clients, but for its folder.
func (n kafkaNode) config(listen string) map[string]string {
	voters := make([]string, len(n.controllers))
	for i, address := range n.controllers {
		voters[i] = strconv.Itoa(i+1) + "@" + address
	}
	replicas, inSync := strconv.Itoa(n.replicas), strconv.Itoa(max(1, n.replicas-1))
	return map[string]string{
		"process.roles":                                    "broker,controller",
		"node.id":                                          strconv.Itoa(n.id),
		"listeners":                                        "PLAINTEXT://" + listen + ",CONTROLLER://" + n.controllers[n.id-1],
		"controller.listener.names":                        "CONTROLLER",
		"controller.quorum.voters":                         strings.Join(voters, ","),
		"default.replication.factor":                       replicas,
		"min.insync.replicas":                              inSync,
		"offsets.topic.replication.factor":                 replicas,
		"transaction.state.log.replication.factor":         replicas,
		"transaction.state.log.min.isr":                    inSync,
		"share.coordinator.state.topic.replication.factor": replicas,
		"share.coordinator.state.topic.min.isr":            inSync,
		"offsets.topic.num.partitions":                     "4",
		"group.initial.rebalance.delay.ms":                 "0",
	}
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
