package txn

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/varve-io/varve/protocol"
)

// Partition is a partition that takes part in a transaction. The zero Topic stands for Kafka's __consumer_offsets, and
// its partitions for shards: the groups of such a shard have been sent offsets.
type Partition struct {
	Topic     protocol.TopicID
	Partition int32
}

// Set is a set of partitions: sorted by topic and partition, each once. Its methods change nothing.
type Set []Partition

// NewSet returns the set of partitions that may repeat and be in any order. The argument stays as it is.
func NewSet(partitions ...Partition) Set {
	s := slices.Clone(partitions)
	slices.SortFunc(s, comparePartitions)
	return slices.Compact(s)
}

// Missing returns those of other that are not in the set, in their order; nil if all are.
func (s Set) Missing(other Set) Set {
	var missing Set
	for _, p := range other {
		if _, ok := slices.BinarySearchFunc(s, p, comparePartitions); !ok {
			missing = append(missing, p)
		}
	}
	return missing
}

// Union returns the set of all that are in one of both.
func (s Set) Union(other Set) Set {
	return NewSet(slices.Concat(s, other)...)
}

// ofTopics is how many are partitions of topics, not shards of groups.
func (s Set) ofTopics() int {
	first, _ := slices.BinarySearchFunc(s, Partition{Partition: math.MaxInt32}, comparePartitions) // the zero topic comes first
	return len(s) - first
}

func comparePartitions(a, b Partition) int {
	return cmp.Or(bytes.Compare(a.Topic[:], b.Topic[:]), cmp.Compare(a.Partition, b.Partition))
}

// setPartitionsMax bounds what a text may stand for, which could be far more than its length.
const setPartitionsMax = 1 << 20

// MarshalText implements encoding.TextMarshaler: topics between spaces, each as its id, a colon, and its partitions and
// spans of partitions between commas, such as "AAAAAAAAAAAAAAAAAAAAAA:7 t2PeJbCRQWGb0IpDLZ3lMA:0-63,70".
func (s Set) MarshalText() ([]byte, error) {
	var b []byte
	for begin := 0; begin < len(s); {
		first, end := s[begin], begin+1
		for end < len(s) && s[end] == (Partition{first.Topic, s[end-1].Partition + 1}) {
			end++
		}
		switch {
		case begin > 0 && s[begin-1].Topic == first.Topic:
			b = append(b, ',')
		case begin > 0:
			b = append(b, ' ')
			fallthrough
		default:
			b = append(append(b, first.Topic.String()...), ':')
		}
		b = strconv.AppendInt(b, int64(first.Partition), 10)
		if last := s[end-1]; last != first {
			b = strconv.AppendInt(append(b, '-'), int64(last.Partition), 10)
		}
		begin = end
	}
	return b, nil
}

// UnmarshalText implements encoding.TextUnmarshaler; see [Set.MarshalText].
func (s *Set) UnmarshalText(text []byte) error {
	var partitions Set
	for topic := range strings.FieldsSeq(string(text)) {
		name, spans, ok := strings.Cut(topic, ":")
		id, err := protocol.ParseTopicID(name)
		if !ok || err != nil {
			return fmt.Errorf("parse set of partitions: %q, want TOPIC:PARTITIONS", topic)
		}
		for span := range strings.SplitSeq(spans, ",") {
			first, last, err := parseSpan(span)
			if err != nil {
				return err
			}
			if last-first >= setPartitionsMax-int64(len(partitions)) {
				return fmt.Errorf("parse set of partitions: more than %d", setPartitionsMax)
			}
			for p := first; p <= last; p++ {
				partitions = append(partitions, Partition{id, int32(p)})
			}
		}
	}
	*s = NewSet(partitions...)
	return nil
}

func parseSpan(span string) (first, last int64, err error) {
	from, to, isSpan := strings.Cut(span, "-")
	if !isSpan {
		to = from
	}
	first, errFirst := strconv.ParseInt(from, 10, 32)
	last, errLast := strconv.ParseInt(to, 10, 32)
	if errFirst != nil || errLast != nil || first > last {
		return 0, 0, fmt.Errorf("parse set of partitions: %q, want PARTITION or FIRST-LAST", span)
	}
	return first, last, nil
}
