package report

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kafkaJVM is what Kafka's own start scripts give the JVM (bin/kafka-run-class.sh and bin/kafka-server-start.sh) beyond
// the heap's limit.
const kafkaJVM = "-Xms1g -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 " +
	"-XX:+ExplicitGCInvokesConcurrent -Djava.awt.headless=true"

// SetKafkaJVM gives each JVM that this process starts from here on the options of Kafka's start scripts. The java launcher
// reads its own environment variable; the brokers' starter has no other way in.
func SetKafkaJVM() error {
	if err := os.Setenv("JDK_JAVA_OPTIONS", kafkaJVM); err != nil {
		return fmt.Errorf("set the JVM's options: %w", err)
	}
	return nil
}

// VarveVersion is the commit of the working tree, marked when it has changes.
func VarveVersion(ctx context.Context) string {
	described, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "of an unknown commit"
	}
	return "at " + strings.TrimSpace(string(described))
}

// KafkaVersion finds Kafka's version in the name of its client's jar, in the folder that test/tools/install prints.
func KafkaVersion(jars string) (string, error) {
	const prefix, suffix = "kafka-clients-", ".jar"
	names, err := filepath.Glob(filepath.Join(jars, prefix+"*"+suffix))
	if err != nil || len(names) != 1 {
		return "", fmt.Errorf("find Kafka's version in %s: want one %s*%s", jars, prefix, suffix)
	}
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(names[0]), prefix), suffix), nil
}
