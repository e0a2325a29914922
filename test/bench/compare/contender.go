package main

import (
	"context"

	"github.com/varve-io/varve/test/bench/report"
	"github.com/varve-io/varve/test/servers"
)

// contender is a broker that takes part.
type contender struct {
	name    string
	version string
	// start runs the broker on a data folder that does not exist yet.
	start func(ctx context.Context, data string) (*servers.Server, error)
}

// newContenders builds Varve and installs Kafka. Varve comes first.
func newContenders(ctx context.Context) (both [2]contender, err error) {
	binary, err := servers.BuildVarve()
	if err != nil {
		return both, err
	}
	varve := contender{
		name:    "Varve",
		version: report.VarveVersion(ctx),
		start: func(ctx context.Context, data string) (*servers.Server, error) {
			return servers.StartVarve(ctx, servers.VarveOptions{Binary: binary, Data: data})
		},
	}
	jars, err := servers.Install(ctx, "kafka")
	if err != nil {
		return both, err
	}
	kafkaVersion, err := report.KafkaVersion(jars)
	if err != nil {
		return both, err
	}
	if err := report.SetKafkaJVM(); err != nil {
		return both, err
	}
	kafka := contender{
		name:    "Apache Kafka",
		version: kafkaVersion,
		start: func(ctx context.Context, data string) (*servers.Server, error) {
			// A default that has no part in speed: a busy machine must not make the controller fence its only broker in the middle of a phase.
			return servers.StartKafka(ctx, servers.KafkaOptions{Data: data, Config: map[string]string{"broker.session.timeout.ms": "60000"}})
		},
	}
	return [2]contender{varve, kafka}, nil
}
