package chaos

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/check"
)

// target is the brokers that a load runs against, and the topics that it uses. Their partitions are its logs, numbered from those of the
// first topic on.
type target struct {
	seeds  []string // addresses of brokers
	topics []string // of partitions partitions each
}

// size is how many logs there are.
func (t target) size() int { return len(t.topics) * partitions }

// names returns the topics.
func (t target) names() []string { return t.topics }

// place tells the topic and the partition of a log.
func (t target) place(log int) (string, int32) {
	return t.topics[log/partitions], int32(log % partitions)
}

// name gives topic/partition.
func (t target) name(log int) string {
	topic, partition := t.place(log)
	return fmt.Sprintf("%s/%d", topic, partition)
}

// find is the reverse of place.
func (t target) find(topic string, partition int32) int {
	for i, name := range t.topics {
		if name == topic {
			return i*partitions + int(partition)
		}
	}
	panic("a topic that nobody asked for: " + topic)
}

// client returns a client. See options.
func (t target) client(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(t.options(opts...)...)
}

// options make a client that finds out soon when a broker does not answer, reconnects soon and never gives up.
func (t target) options(opts ...kgo.Opt) []kgo.Opt {
	return append([]kgo.Opt{
		kgo.SeedBrokers(t.seeds...),
		kgo.MetadataMinAge(20 * time.Millisecond),
		kgo.RetryBackoffFn(func(int) time.Duration { return 20 * time.Millisecond }),
		kgo.DialTimeout(2 * time.Second),
		kgo.ProduceRequestTimeout(3 * time.Second), kgo.RequestTimeoutOverhead(2 * time.Second),
		kgo.UnknownTopicRetries(-1),
		kgo.AlwaysRetryEOF(), // a broker that is killed before its first answer looks like one that wants TLS
	}, opts...)
}

// reader returns a client that reads every partition from its start on.
func (t target) reader(opts ...kgo.Opt) (*kgo.Client, error) {
	starts := make(map[string]map[int32]kgo.Offset)
	for i := range t.size() {
		topic, partition := t.place(i)
		if starts[topic] == nil {
			starts[topic] = make(map[int32]kgo.Offset)
		}
		starts[topic][partition] = kgo.NewOffset().At(0)
	}
	return t.client(append(opts, kgo.ConsumePartitions(starts), kgo.FetchMaxWait(200*time.Millisecond))...)
}

// createTopics creates the topics, with configs if there are any.
func createTopics(t *testing.T, target target, configs map[string]string) {
	t.Helper()
	client, err := target.client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	values := make(map[string]*string)
	for name, value := range configs {
		values[name] = &value
	}
	responses, err := kadm.NewClient(client).CreateTopics(t.Context(), partitions, -1, values, target.topics...)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func appendID(dst []byte, id check.ID) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(dst, uint32(id.Writer)), uint64(id.Seq))
}

// idOf is the reverse of appendID; a key that it did not make gives an ID that nobody used.
func idOf(key []byte) check.ID {
	if len(key) != 12 {
		return check.ID{Writer: -1}
	}
	return check.ID{Writer: int32(binary.BigEndian.Uint32(key)), Seq: int64(binary.BigEndian.Uint64(key[4:]))}
}
