package e2e_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// within returns a context that bounds a test's waits.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// connect returns a client, which is closed when the test ends.
func connect(t *testing.T, kafka string, options ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(kafka)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// createTopic creates a topic.
func createTopic(t *testing.T, kafka, topic string, partitions int32) {
	t.Helper()
	admin := kadm.NewClient(connect(t, kafka))
	if _, err := admin.CreateTopic(within(t), partitions, 1, nil, topic); err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
}

// produce writes n records to partition 0 of a topic, with the values that value gives, and wants them acknowledged with
// consecutive offsets from first.
func produce(t *testing.T, kafka, topic string, first, n int64, value func(i int64) string, options ...kgo.Opt) {
	t.Helper()
	options = append(options, kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.AllowAutoTopicCreation())
	client := connect(t, kafka, options...)
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Value: []byte(value(first + int64(i)))}
	}
	results := client.ProduceSync(within(t), records...)
	if err := results.FirstErr(); err != nil {
		t.Fatalf("produce to %s: %v", topic, err)
	}
	for i, r := range records {
		if r.Offset != first+int64(i) {
			t.Fatalf("record %d of %s was acknowledged with offset %d, want %d", i, topic, r.Offset, first+int64(i))
		}
	}
}

// consume reads partition 0 of a topic from its start and wants n records with the values that value gives.
func consume(t *testing.T, kafka, topic string, n int64, value func(i int64) string) {
	t.Helper()
	client := connect(t, kafka, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	ctx := within(t)
	for next := int64(0); next < n; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("consume %s at offset %d of %d: %v", topic, next, n, err)
		}
		for r := range fetches.RecordsAll() {
			if r.Offset != next || string(r.Value) != value(next) {
				t.Fatalf("%s: read offset %d and %.60q, want offset %d and %.60q", topic, r.Offset, r.Value, next, value(next))
			}
			next++
		}
	}
	end, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	if at, _ := end.Lookup(topic, 0); at.Offset != n {
		t.Errorf("%s ends at offset %d, want %d", topic, at.Offset, n)
	}
}

// line is the value of a record in most tests.
func line(i int64) string { return fmt.Sprintf("line %d of the lake's bed", i) }
