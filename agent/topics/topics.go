// Package topics keeps the cluster's topics: it creates, alters, deletes and describes them, and turns their configurations into
// the rules that Produce holds batches against.
//
// # Records
//
// A topic is one record in the coordinator, under its name. Every agent may write it, by a transaction that compares the record's
// revision; who loses the comparison reads the newer record and decides again. A transaction whose outcome is unknown is sent
// again until one of them is answered, and what stands in the record then tells whether an earlier one was applied. A request
// is answered once this agent's [coordinator.View] shows what it wrote.
//
// Not covered by a comparison, and so not exact when agents create topics at the same moment, are the limit of partitions of the cluster and
// the collision of names that differ only in '.' and '_'.
//
// # Configurations
//
// A record holds only what was set, in canonical form: numbers as Go prints them, lists joined by commas. definitions is
// the one table of what can be set, with Kafka's defaults and with what each key does here. Defaults cannot be changed; brokers
// have no dynamic configuration.
//
//	rules := t.RulesOf(topic)
//	h, err := batch.Check(records, rules.Limits(version, nowMs))
//	h, records, err = rules.Apply(nowMs, h, records)
package topics

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// Config is what an operator decides about topics.
type Config struct {
	Partitions            int32 // of a topic that asks for the default (num.partitions)
	Replication           int16 // of a topic that asks for the default (default.replication.factor)
	PartitionsPerTopicMax int32
	PartitionsMax         int // of all topics together
}

// Defaults returns the settings that hold unless they are configured.
func Defaults() Config {
	return Config{Partitions: 1, Replication: 1, PartitionsPerTopicMax: 100_000, PartitionsMax: 200_000}
}

// Deps is what Topics works with.
type Deps struct {
	KV   coordinator.KV
	View *coordinator.View
	Now  func() time.Time
	Log  *slog.Logger
	// NewID returns a random id. It is asked again for one that Kafka reserves.
	NewID func() protocol.TopicID
	// Deleted is called for each topic that a request to this agent deleted, once this agent's view shows it, and before the
	// request is answered; nil for nothing. Its error is only logged.
	Deleted func(ctx context.Context, topic string) error
	// Node is this agent's node id, the only broker whose configuration it describes.
	Node int32
	// Broker holds the values of broker configurations that differ here from Kafka's defaults, by key, such as
	// "advertised.listeners"; they are described as set statically. Defaults of topic configurations, which cannot be changed, are ignored.
	Broker map[string]string
}

// Topics serves the requests about topics. All methods may be called concurrently. Methods that take a request return a response of
// its version and never fail as a whole: errors are in the response, by topic or resource.
type Topics struct {
	cfg          Config
	deps         Deps
	broker       map[string]*setting // this agent's, as a broker
	brokerSorted []setting
	flight       singleflight.Group // AutoCreate, by name

	codecs       *codecs
	defaultRules *Rules // of a topic without configurations, which most topics are

	mu    sync.RWMutex
	rules map[protocol.TopicID]cachedRules
}

// New returns Topics.
func New(cfg Config, deps Deps) *Topics {
	t := &Topics{cfg: cfg, deps: deps, codecs: newCodecs(), rules: make(map[protocol.TopicID]cachedRules)}
	t.defaultRules = parseRules(nil, t.codecs)
	t.brokerSorted = t.brokerSettings()
	t.broker = make(map[string]*setting, len(t.brokerSorted))
	for i := range t.brokerSorted {
		t.broker[t.brokerSorted[i].name] = &t.brokerSorted[i]
	}
	return t
}
