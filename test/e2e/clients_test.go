package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestCodecs writes with every codec, with and without idempotence, and reads back.
func TestCodecs(t *testing.T) {
	_, kafka, _ := dev(t, t.TempDir())
	codecs := map[string]kgo.CompressionCodec{
		"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
		"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
	}
	for name, codec := range codecs {
		t.Run(name, func(t *testing.T) {
			produce(t, kafka, name, 0, 5000, line, kgo.ProducerBatchCompression(codec))
			produce(t, kafka, name, 5000, 5000, line, kgo.ProducerBatchCompression(codec), kgo.DisableIdempotentWrite())
			consume(t, kafka, name, 10_000, line)
		})
	}
}

// TestAcks writes with acks=1, and with acks=0, which promises nothing but loses nothing here.
func TestAcks(t *testing.T) {
	_, kafka, _ := dev(t, t.TempDir())
	produce(t, kafka, "one", 0, 1000, line, kgo.RequiredAcks(kgo.LeaderAck()), kgo.DisableIdempotentWrite())
	consume(t, kafka, "one", 1000, line)

	createTopic(t, kafka, "zero", 1)
	client := connect(t, kafka, kgo.DefaultProduceTopic("zero"), kgo.RequiredAcks(kgo.NoAck()), kgo.DisableIdempotentWrite())
	for i := range int64(1000) {
		client.Produce(within(t), kgo.StringRecord(line(i)), nil)
	}
	if err := client.Flush(within(t)); err != nil {
		t.Fatal(err)
	}
	consume(t, kafka, "zero", 1000, line)
}

// TestBigBatches writes records near the limit of a batch, which is Kafka's, and one beyond it.
func TestBigBatches(t *testing.T) {
	_, kafka, _ := dev(t, t.TempDir())
	big := func(i int64) string { return fmt.Sprintf("%d %s", i, strings.Repeat("silt ", 190_000)) } // 0.95 MB
	produce(t, kafka, "big", 0, 40, big, kgo.ProducerBatchCompression(kgo.NoCompression()))
	consume(t, kafka, "big", 40, big)

	client := connect(t, kafka, kgo.DefaultProduceTopic("big"), kgo.ProducerBatchMaxBytes(3<<20), kgo.ProducerBatchCompression(kgo.NoCompression()))
	err := client.ProduceSync(within(t), kgo.StringRecord(strings.Repeat("x", 2<<20))).FirstErr()
	if err == nil || !strings.Contains(err.Error(), "MESSAGE_TOO_LARGE") {
		t.Errorf("a record of 2 MiB: %v, want MESSAGE_TOO_LARGE", err)
	}
}

// TestGroup has two members share a topic, one leave, and the other take over and go on from what was committed.
func TestGroup(t *testing.T) {
	_, kafka, _ := dev(t, t.TempDir())
	const partitions, each = 4, 500
	createTopic(t, kafka, "shared", partitions)
	write := connect(t, kafka, kgo.DefaultProduceTopic("shared"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	fill := func() {
		t.Helper()
		for i := range int64(partitions * each) {
			r := kgo.StringRecord(line(i))
			r.Partition = int32(i % partitions)
			write.Produce(within(t), r, nil)
		}
		if err := write.Flush(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	fill()
	seen := make(map[string]int)
	member := func() *kgo.Client {
		return connect(t, kafka, kgo.ConsumerGroup("readers"), kgo.ConsumeTopics("shared"), kgo.DisableAutoCommit(), kgo.HeartbeatInterval(200*time.Millisecond),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	}
	read := func(c *kgo.Client) {
		t.Helper()
		fetches := c.PollFetches(within(t))
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		for r := range fetches.RecordsAll() {
			seen[fmt.Sprint(r.Partition, "/", r.Offset)]++
		}
		if err := c.CommitRecords(within(t), fetches.Records()...); err != nil {
			t.Fatal(err)
		}
	}
	first := member()
	for len(seen) < partitions*each {
		read(first)
	}
	second := member()
	admin := kadm.NewClient(write)
	for {
		groups, err := admin.DescribeGroups(within(t), "readers")
		if err != nil {
			t.Fatal(err)
		}
		if g := groups["readers"]; g.State == "Stable" && len(g.Members) == 2 && assignedTo(g) == partitions {
			break
		}
	}
	first.LeaveGroup()
	fill()
	for len(seen) < 2*partitions*each {
		read(second)
	}
	for where, times := range seen {
		if times != 1 {
			t.Errorf("%s was read %d times, want once: it was committed", where, times)
		}
	}
	lags, err := admin.Lag(within(t), "readers")
	if err != nil {
		t.Fatal(err)
	}
	if lag := lags["readers"].Lag.Total(); lag != 0 {
		t.Errorf("lag %d, want 0", lag)
	}
}

// assignedTo counts partitions that two members share between them; it is 0 if one has none.
func assignedTo(g kadm.DescribedGroup) int {
	all := 0
	for _, m := range g.Members {
		assigned, ok := m.Assigned.AsConsumer()
		if !ok || len(assigned.Topics) == 0 {
			return 0
		}
		for _, topic := range assigned.Topics {
			all += len(topic.Partitions)
		}
	}
	return all
}

// TestAdministration creates, describes, alters, trims and deletes a topic.
func TestAdministration(t *testing.T) {
	_, kafka, _ := dev(t, t.TempDir())
	client := connect(t, kafka)
	admin, ctx := kadm.NewClient(client), within(t)
	createTopic(t, kafka, "lake", 2)
	produce(t, kafka, "lake", 0, 100, line)

	brokers, err := admin.ListBrokers(ctx)
	if err != nil || len(brokers) != 1 || brokers[0].NodeID < 1 || fmt.Sprintf("%s:%d", brokers[0].Host, brokers[0].Port) != kafka {
		t.Errorf("brokers %+v, error %v; want one at %s with an id from 1", brokers, err, kafka)
	}
	topics, err := admin.ListTopics(ctx, "lake")
	if err != nil || len(topics["lake"].Partitions) != 2 {
		t.Errorf("topic %+v, error %v; want 2 partitions", topics, err)
	}
	if _, err := admin.CreatePartitions(ctx, 1, "lake"); err != nil {
		t.Errorf("create a partition: %v", err)
	}
	if topics, err := admin.ListTopics(ctx, "lake"); err != nil || len(topics["lake"].Partitions) != 3 {
		t.Errorf("topic %+v, error %v; want 3 partitions", topics, err)
	}
	value := "3600000"
	if _, err := admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &value}}, "lake"); err != nil {
		t.Errorf("alter: %v", err)
	}
	configs, err := admin.DescribeTopicConfigs(ctx, "lake")
	if err != nil {
		t.Fatal(err)
	}
	if on, err := configs.On("lake", nil); err != nil || configValue(on, "retention.ms") != value {
		t.Errorf("retention.ms is %q, error %v; want %s", configValue(on, "retention.ms"), err, value)
	}
	cut := make(kadm.Offsets)
	cut.Add(kadm.Offset{Topic: "lake", Partition: 0, At: 40})
	if deleted, err := admin.DeleteRecords(ctx, cut); err != nil || deleted.Error() != nil {
		t.Errorf("delete records: %v, %v", err, deleted.Error())
	}
	starts, err := admin.ListStartOffsets(ctx, "lake")
	if at, _ := starts.Lookup("lake", 0); err != nil || at.Offset != 40 {
		t.Errorf("the log starts at %d, error %v; want 40", at.Offset, err)
	}
	if _, err := admin.DeleteTopic(ctx, "lake"); err != nil {
		t.Errorf("delete: %v", err)
	}
	fresh := kadm.NewClient(connect(t, kafka)) // the other client remembers what it saw
	if topics, err := fresh.ListTopics(ctx, "lake"); err != nil || topics["lake"].Err == nil {
		t.Errorf("topic %+v, error %v; want it unknown", topics, err)
	}
}

func configValue(c kadm.ResourceConfig, key string) string {
	for _, config := range c.Configs {
		if config.Key == key {
			return config.MaybeValue()
		}
	}
	return ""
}
