package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/test/servers"
)

// trio is a cluster of three agents that can be ended and started anew, on the same addresses.
type trio struct {
	cluster
	kafka, peers, http []string
	agents             []*process
}

// start starts three agents with empty data folders, all at once, and waits until they are ready.
func (c *trio) start(t *testing.T) (folders []string) {
	t.Helper()
	c.agents = nil
	for i, zone := range []string{"a", "b", "c"} {
		data := filepath.Join(t.TempDir(), "data")
		folders = append(folders, data)
		c.agents = append(c.agents, start(t, nil, "agent", "--etcd", c.etcd, "--bucket", c.bucket, "--cluster", c.name, "--zone", zone,
			"--listen", c.kafka[i], "--peer-listen", c.peers[i], "--http", c.http[i], "--data", data))
	}
	for _, p := range c.agents {
		p.ready(t)
	}
	return folders
}

// drain ends all agents at once.
func (c *trio) drain(t *testing.T) {
	t.Helper()
	for _, p := range c.agents {
		p.signal(t, syscall.SIGTERM)
	}
	for i, p := range c.agents {
		if status := p.status(t); status != 0 {
			t.Fatalf("agent %d: exit status %d after SIGTERM, want 0", i, status)
		}
	}
}

// spread is how many partitions the topic of the test has.
const spread = 6

// TestScaleToZero drains all agents and deletes their folders, and wants of new ones whatever the old ones knew: records, offsets, groups, producers.
func TestScaleToZero(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	c := trio{cluster: cluster{etcd: "http://" + etcd.Address, bucket: "file://" + t.TempDir(), name: "zero"}}
	for range 3 {
		c.kafka, c.peers, c.http = append(c.kafka, freeAddress(t)), append(c.peers, freeAddress(t)), append(c.http, freeAddress(t))
	}
	folders := c.start(t)
	createTopic(t, c.kafka[0], "lake", spread)
	createTopic(t, c.kafka[0], "raw", 1)

	// The client of w lives through it all, as do its producer id and its sequences.
	w := newSpreader(t, c.kafka)
	w.produce(t, 600)
	w.flush(t)
	readers := c.reader(t)
	take(t, readers, 600)
	if err := readers.CommitUncommittedOffsets(within(t)); err != nil {
		t.Fatal(err)
	}
	readers.Close()
	w.produce(t, 600)
	w.flush(t)
	raw := newRawProducer(t, c.kafka[0])
	raw.want(t, 0, 0)
	raw.want(t, 3, 3)

	c.drain(t)
	for _, folder := range folders {
		if err := os.RemoveAll(folder); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, nil, "status", "--etcd", c.etcd, "--cluster", c.name, "--json")
	var told report
	if status := s.status(t); status != 1 {
		t.Errorf("status of a cluster without agents: exit status %d, want 1", status)
	}
	if err := json.Unmarshal([]byte(s.stdout.String()), &told); err != nil || len(told.Agents) != 0 || len(told.Logs) != 0 {
		t.Errorf("status %+v, %v; want no agent, and no log that is open", told, err)
	}
	w.produce(t, 600) // waits in the client
	c.start(t)
	w.flush(t)

	all := connect(t, c.kafka[1], kgo.ConsumeTopics("lake"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	for partition, n := range take(t, all, 1800) {
		if n != 1800/spread {
			t.Errorf("partition %d has %d records, want %d", partition, n, 1800/spread)
		}
	}
	groups, err := kadm.NewClient(connect(t, c.kafka[2])).DescribeGroups(within(t), "readers")
	if err != nil || groups["readers"].State != "Empty" {
		t.Errorf("group %+v, %v; want it to be there, empty", groups["readers"], err)
	}
	for partition, n := range take(t, c.reader(t), 1200) {
		if n != 1200/spread {
			t.Errorf("a member of the group reads %d records of partition %d after what was committed, want %d", n, partition, 1200/spread)
		}
	}
	// A producer that never saw the answers to its batches sends them again, and then the next.
	raw.want(t, 0, 0)
	raw.want(t, 3, 3)
	raw.want(t, 6, 6)
	if end, err := kadm.NewClient(raw.client).ListEndOffsets(within(t), "raw"); err != nil || end["raw"][0].Offset != 9 {
		t.Errorf("the idempotent producer's partition ends at %+v, %v; want 9", end["raw"][0], err)
	}
	c.drain(t)
}

// reader returns a member of a group, which commits only when it is told to.
func (c *trio) reader(t *testing.T) *kgo.Client {
	t.Helper()
	return connect(t, c.kafka[0], kgo.ConsumerGroup("readers"), kgo.ConsumeTopics("lake"), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
}

// spreader writes record i of the lake to partition i%spread, and wants it at offset i/spread.
type spreader struct {
	client *kgo.Client
	next   int64
}

func newSpreader(t *testing.T, kafka []string) *spreader {
	t.Helper()
	return &spreader{client: connect(t, kafka[0], kgo.SeedBrokers(kafka...), kgo.DefaultProduceTopic("lake"), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(100*time.Millisecond))}
}

// produce begins to write n records.
func (w *spreader) produce(t *testing.T, n int64) {
	t.Helper()
	for range n {
		i := w.next
		w.next++
		r := kgo.StringRecord(line(i))
		r.Partition = int32(i % spread)
		w.client.Produce(within(t), r, func(r *kgo.Record, err error) {
			if err != nil || r.Offset != i/spread {
				t.Errorf("record %d: offset %d, %v; want offset %d", i, r.Offset, err, i/spread)
			}
		})
	}
}

// flush waits until all records are acknowledged.
func (w *spreader) flush(t *testing.T) {
	t.Helper()
	if err := w.client.Flush(within(t)); err != nil {
		t.Fatal(err)
	}
}

// take reads n records of the lake, and wants those of each partition in order, each at its place. It returns how many there were of each.
func take(t *testing.T, client *kgo.Client, n int) map[int32]int {
	t.Helper()
	counts, next := make(map[int32]int), make(map[int32]int64)
	ctx := within(t)
	for n > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("%d records before the end: %v", n, err)
		}
		for r := range fetches.RecordsAll() {
			want := line(r.Offset*spread + int64(r.Partition))
			if at, ok := next[r.Partition]; string(r.Value) != want || ok && r.Offset != at {
				t.Fatalf("partition %d: read offset %d and %q, want offset %d and %q", r.Partition, r.Offset, r.Value, at, want)
			}
			next[r.Partition] = r.Offset + 1
			counts[r.Partition]++
			n--
		}
	}
	return counts
}

// rawProducer is an idempotent producer whose sequences the test chooses.
type rawProducer struct {
	client *kgo.Client
	id     protocol.ProducerID
}

func newRawProducer(t *testing.T, kafka string) *rawProducer {
	t.Helper()
	p := &rawProducer{client: connect(t, kafka)}
	answer, err := kmsg.NewPtrInitProducerIDRequest().RequestWith(within(t), p.client)
	if err != nil || answer.ErrorCode != 0 {
		t.Fatalf("InitProducerId: %+v, %v", answer, err)
	}
	p.id = protocol.ProducerID(answer.ProducerID)
	return p
}

// want sends a batch of three records of the partition "raw", until it is taken, and wants to be told that it is at that offset.
func (p *rawProducer) want(t *testing.T, sequence int32, offset int64) {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = p.id, 0, sequence
	for i := range int64(3) {
		b.Append(1_700_000_000_000, nil, fmt.Appendf(nil, "raw %d", int64(sequence)+i))
	}
	records, err := b.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	part := kmsg.NewProduceRequestTopicPartition()
	part.Records = records
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.Partitions = "raw", append(topic.Partitions, part)
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.TimeoutMillis, request.Topics = -1, 10_000, append(request.Topics, topic)
	ctx := within(t)
	for {
		name := kmsg.NewMetadataRequestTopic()
		name.Topic = &request.Topics[0].Topic
		ask := kmsg.NewPtrMetadataRequest()
		ask.Topics = append(ask.Topics, name)
		metadata, err := ask.RequestWith(ctx, p.client) // kadm may know it still from before the agents were others
		if err != nil || metadata.Topics[0].ErrorCode != 0 {
			t.Fatalf("metadata %+v, %v", metadata, err)
		}
		request.Topics[0].TopicID = metadata.Topics[0].TopicID
		answer, err := p.client.Broker(int(metadata.Topics[0].Partitions[0].Leader)).Request(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		told := answer.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		switch code := protocol.ErrorCode(told.ErrorCode); {
		case code == protocol.NotLeaderOrFollower: // it moves
		case code != 0 || told.BaseOffset != offset:
			t.Errorf("batch from sequence %d: offset %d, error %v; want offset %d", sequence, told.BaseOffset, code, offset)
			return
		default:
			return
		}
	}
}
