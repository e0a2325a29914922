// Package api has one file per Kafka API: what a request means here, which errors it may be answered with, and where the answer
// deviates from Apache Kafka's.
//
// [Broker] decodes a request, hands it to its handler and frames the answer. Handlers are synchronous; the two exceptions are Produce,
// whose answer waits for the WAL while the connection goes on, and Fetch, whose answer refers to records instead of copying them.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/groups"
	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/agent/txns"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// Partitions finds the partitions that this agent leads.
type Partitions interface {
	// Get returns a partition of the topic; errors are [*protocol.Error].
	Get(t *coordinator.Topic, partition int32) (*ingest.Partition, error)
}

// Manifests are what shards' leaders have settled.
type Manifests interface {
	// DeleteBefore makes the log start offset of each partition at least the one given, which what is committed must reach, and returns when that is durable.
	DeleteBefore(ctx context.Context, starts map[*ingest.Partition]protocol.Offset) error
	// Follow has the index know what the manifest of that name, or a newer one, says of a shard that another agent leads.
	Follow(ctx context.Context, id coordinator.ShardID, name string) error
}

// ProducerIDs hands out ids for producers, each once.
type ProducerIDs interface {
	Next(ctx context.Context) (protocol.ProducerID, error)
}

// Config is what an operator decides about the APIs.
type Config struct {
	Node       int32
	Zone       string // empty for none
	AutoCreate bool   // auto.create.topics.enable
	// Balancer is the one broker that clients are told of if they reach the agents through a load balancer; its node id is 0 if they choose the agent.
	Balancer coordinator.Agent
}

// Deps is what the handlers work with.
type Deps struct {
	View        *coordinator.View
	Partitions  Partitions
	Ingest      *ingest.Ingest
	Fetcher     *fetch.Fetcher
	Lookup      *fetch.Lookup
	Index       *index.Index
	Groups      *groups.Coordinator
	Topics      *topics.Topics
	Manifests   Manifests
	ProducerIDs ProducerIDs
	Txns        *txns.Coordinator
	Verifier    *txns.Verifier
	// Refuses returns a [*protocol.Error] if a shard that is led takes no records at the moment, but for those that are in the log already.
	Refuses func(coordinator.ShardID) error
	// Prove returns once it is certain that this agent led what it leads after the call began, or, after some seconds at most, with an error.
	Prove func(context.Context) error
	// Flush returns once everything that was taken before the call is committed.
	Flush func(context.Context) error
	// Draining reports whether this agent is about to leave.
	Draining func() bool
	Now      func() time.Time
	Log      *slog.Logger
}

// Broker serves Kafka's APIs. It implements [server.Handler].
type Broker struct {
	cfg      Config
	deps     Deps
	sessions *sessions

	followedAt atomic.Int64 // Unix nanoseconds
}

// New returns a broker.
func New(cfg Config, deps Deps) *Broker {
	return &Broker{cfg: cfg, deps: deps, sessions: newSessions(deps.Now)}
}

var _ server.Handler = (*Broker)(nil)

// Serve implements [server.Handler].
func (b *Broker) Serve(ctx context.Context, r *server.Request) (server.Answer, error) {
	req, err := wire.DecodeRequest(r.Header, r.Body)
	if err != nil {
		return nil, err
	}
	switch req := req.(type) {
	case *kmsg.ProduceRequest:
		return b.produce(ctx, r, req)
	case *kmsg.FetchRequest:
		return b.fetch(ctx, r, req), nil
	}
	resp, err := b.dispatch(ctx, r, req)
	if err != nil {
		return nil, err
	}
	resp.SetVersion(r.Version)
	return server.Message(r.CorrelationID, resp), nil
}

// dispatch serves the requests that are answered by one message.
func (b *Broker) dispatch(ctx context.Context, r *server.Request, req kmsg.Request) (kmsg.Response, error) {
	switch req := req.(type) {
	case *kmsg.ApiVersionsRequest:
		return b.apiVersions(req), nil
	case *kmsg.MetadataRequest:
		return b.metadata(ctx, req), nil
	case *kmsg.DescribeClusterRequest:
		return b.describeCluster(req), nil
	case *kmsg.ListOffsetsRequest:
		return b.listOffsets(ctx, req), nil
	case *kmsg.OffsetForLeaderEpochRequest:
		return b.offsetForLeaderEpoch(req), nil
	case *kmsg.InitProducerIDRequest:
		return b.initProducerID(ctx, req), nil
	case *kmsg.DescribeProducersRequest:
		return b.describeProducers(req), nil
	case *kmsg.DescribeLogDirsRequest:
		return b.describeLogDirs(req), nil
	case *kmsg.DeleteRecordsRequest:
		return b.deleteRecords(ctx, req), nil
	case *kmsg.FindCoordinatorRequest:
		return b.findCoordinator(req), nil
	}
	if resp := b.admin(ctx, req); resp != nil {
		return resp, nil
	}
	if resp := b.group(ctx, r, req); resp != nil {
		return resp, nil
	}
	if resp := b.transaction(ctx, req); resp != nil {
		return resp, nil
	}
	return nil, fmt.Errorf("no handler for %T", req)
}

// admin serves topics and their configurations.
func (b *Broker) admin(ctx context.Context, req kmsg.Request) kmsg.Response {
	t := b.deps.Topics
	switch req := req.(type) {
	case *kmsg.CreateTopicsRequest:
		return t.CreateTopics(ctx, req)
	case *kmsg.DeleteTopicsRequest:
		return t.DeleteTopics(ctx, req)
	case *kmsg.CreatePartitionsRequest:
		return t.CreatePartitions(ctx, req)
	case *kmsg.DescribeConfigsRequest:
		return t.DescribeConfigs(ctx, req)
	case *kmsg.AlterConfigsRequest:
		return t.AlterConfigs(ctx, req)
	case *kmsg.IncrementalAlterConfigsRequest:
		return t.IncrementalAlterConfigs(ctx, req)
	}
	return nil
}

// message returns a pointer to a text for a response's error message, nil for no error.
func message(err error) *string {
	if err == nil {
		return nil
	}
	text := err.Error()
	if known, ok := errors.AsType[*protocol.Error](err); ok {
		text = known.Text() // the code stands beside it
	}
	return &text
}
