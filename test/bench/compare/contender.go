package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/varve-io/varve/test/servers"
)

// contender is a broker that takes part.
type contender struct {
	name    string
	version string
	// start runs the broker on a data folder that does not exist yet.
	start func(ctx context.Context, data string) (*servers.Server, error)
}

// kafkaJVM is what Kafka's own start scripts give the JVM (bin/kafka-run-class.sh
// and bin/kafka-server-start.sh) beyond the heap's limit.
const kafkaJVM = "-Xms1g -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 " +
	"-XX:+ExplicitGCInvokesConcurrent -Djava.awt.headless=true"

// newContenders builds Varve and installs Kafka. Varve comes first.
func newContenders(ctx context.Context) ([]contender, error) {
	binary, err := servers.BuildVarve()
	if err != nil {
		return nil, err
	}
	varve := contender{
		name:    "Varve",
		version: varveVersion(ctx),
		start: func(ctx context.Context, data string) (*servers.Server, error) {
			return servers.StartVarve(ctx, servers.VarveOptions{Binary: binary, Data: data})
		},
	}
	jars, err := servers.Install(ctx, "kafka")
	if err != nil {
		return nil, err
	}
	kafkaVersion, err := versionOfJars(jars)
	if err != nil {
		return nil, err
	}
	// The java launcher reads its own variable; the broker's starter has no other way in.
	if err := os.Setenv("JDK_JAVA_OPTIONS", kafkaJVM); err != nil {
		return nil, fmt.Errorf("set the JVM's options: %w", err)
	}
	kafka := contender{
		name:    "Apache Kafka",
		version: kafkaVersion,
		start: func(ctx context.Context, data string) (*servers.Server, error) {
			// A default that has no part in speed: a busy machine must not make the controller fence its only broker in the middle of a phase.
			return servers.StartKafka(ctx, servers.KafkaOptions{Data: data, Config: map[string]string{"broker.session.timeout.ms": "60000"}})
		},
	}
	return []contender{varve, kafka}, nil
}

// varveVersion is the commit of the working tree, marked when it has changes.
func varveVersion(ctx context.Context) string {
	described, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "of an unknown commit"
	}
	return "at " + strings.TrimSpace(string(described))
}

// versionOfJars finds Kafka's version in the name of its client's jar.
func versionOfJars(folder string) (string, error) {
	const prefix, suffix = "kafka-clients-", ".jar"
	names, err := filepath.Glob(filepath.Join(folder, prefix+"*"+suffix))
	if err != nil || len(names) != 1 {
		return "", fmt.Errorf("find Kafka's version in %s: want one %s*%s", folder, prefix, suffix)
	}
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(names[0]), prefix), suffix), nil
}
