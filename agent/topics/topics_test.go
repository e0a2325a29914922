package topics_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

// nowMs is the present of all tests.
const nowMs = 1_700_000_000_000

// agent is Topics on a coordinator in memory, as one of the agents has it.
type agent struct {
	*topics.Topics
	kv   *mem.Store
	view *coordinator.View

	mu      sync.Mutex
	lastID  byte
	deleted []string
}

// start starts an agent on a coordinator, which several may share.
func start(t *testing.T, kv *mem.Store, cfg topics.Config) *agent {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	a := &agent{kv: kv, view: coordinator.NewView(kv, coordinator.ViewConfig{Log: log})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.view.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the view ended with %v", err)
		}
	})
	if err := a.view.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	a.Topics = topics.New(cfg, topics.Deps{
		KV: kv, View: a.view, Log: log, NewID: a.newID, Node: 3,
		Now:     func() time.Time { return time.UnixMilli(nowMs) },
		Deleted: a.onDeleted,
		Broker:  map[string]string{"advertised.listeners": "PLAINTEXT://k:9092", "group.max.size": "5000", "log.retention.ms": "1"},
	})
	return a
}

// alone starts the only agent of a new cluster.
func alone(t *testing.T) *agent {
	t.Helper()
	return start(t, mem.New(mem.Config{}), topics.Defaults())
}

// newID counts, and gives a reserved id first.
func (a *agent) newID() protocol.TopicID {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lastID++
	if a.lastID == 1 {
		return protocol.TopicID{}
	}
	return protocol.TopicID{0: a.lastID}
}

func (a *agent) onDeleted(_ context.Context, topic string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deleted = append(a.deleted, topic)
	return errors.New("which is only logged")
}

// topic asks for a topic with partitions, replication factor 1 and configurations as "name=value".
func topic(name string, partitions int32, configs ...string) kmsg.CreateTopicsRequestTopic {
	asked := kmsg.NewCreateTopicsRequestTopic()
	asked.Topic, asked.NumPartitions, asked.ReplicationFactor = name, partitions, 1
	for _, c := range configs {
		key, value, _ := strings.Cut(c, "=")
		config := kmsg.NewCreateTopicsRequestTopicConfig()
		config.Name, config.Value = key, &value
		asked.Configs = append(asked.Configs, config)
	}
	return asked
}

// creation is a request of the newest version.
func creation(asked ...kmsg.CreateTopicsRequestTopic) *kmsg.CreateTopicsRequest {
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Version, req.TimeoutMillis, req.Topics = 7, 5000, asked
	return req
}

// make creates a topic, which must work.
func (a *agent) make(t *testing.T, name string, partitions int32, configs ...string) coordinator.Topic {
	t.Helper()
	resp := a.CreateTopics(t.Context(), creation(topic(name, partitions, configs...)))
	if code := resp.Topics[0].ErrorCode; code != 0 {
		t.Fatalf("create %s: %v: %s", name, protocol.ErrorCode(code), message(resp.Topics[0].ErrorMessage))
	}
	return a.must(t, name)
}

// must returns a topic of the view.
func (a *agent) must(t *testing.T, name string) coordinator.Topic {
	t.Helper()
	got, _, ok := a.view.Topic(name)
	if !ok {
		t.Fatalf("the view has no topic %s", name)
	}
	return got
}

func message(m *string) string {
	if m == nil {
		return ""
	}
	return *m
}

// expect compares an answer with a code and the beginning of a message.
func expect(t *testing.T, what string, gotCode int16, gotMessage *string, code protocol.ErrorCode, text string) {
	t.Helper()
	if protocol.ErrorCode(gotCode) != code || !strings.HasPrefix(message(gotMessage), text) {
		t.Errorf("%s: %v %q, want %v %q", what, protocol.ErrorCode(gotCode), message(gotMessage), code, text)
	}
	if (gotMessage == nil) != (gotCode == 0) {
		t.Errorf("%s: code %d with message %q", what, gotCode, message(gotMessage))
	}
}
