package forward

import (
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// byPartition is a request about partitions, which stand in topics in the request and, in the same order, in the answer. QT and QP are topic and partition in the
// request, AT and AP in the answer.
type byPartition[QT, QP, AT, AP any] struct {
	topics []QT
	name   func(*QT) string
	parts  func(*QT) *[]QP
	number func(QP) int32

	answers []AT
	newly   func(QT) AT
	results func(*AT) *[]AP
	code    func(*AP) int16

	request  func([]QT) kmsg.Request
	got      func(kmsg.Response) []AT
	response func([]AT) kmsg.Response

	at []position
}

// position is where an item stands: topic and partition, by index.
type position struct{ topic, part int }

// ready numbers the items and makes room for their answers.
func (b *byPartition[QT, QP, AT, AP]) ready() *byPartition[QT, QP, AT, AP] {
	for i := range b.topics {
		t := b.newly(b.topics[i])
		parts := *b.parts(&b.topics[i])
		*b.results(&t) = make([]AP, len(parts))
		for j := range parts {
			b.at = append(b.at, position{i, j})
		}
		b.answers = append(b.answers, t)
	}
	return b
}

func (b *byPartition[QT, QP, AT, AP]) places(r *route) []place {
	all := make([]place, 0, len(b.at))
	for i := range b.topics {
		t, found := r.topic(false, b.name(&b.topics[i]), protocol.TopicID{})
		for _, p := range *b.parts(&b.topics[i]) {
			all = append(all, r.partition(t, found, b.number(p)))
		}
	}
	return all
}

func (b *byPartition[QT, QP, AT, AP]) part(of []int) kmsg.Request {
	return b.request(some(b.topics, b.parts, b.at, of))
}

// some returns those topics and partitions of all that stand at the given items.
func some[T, P any](all []T, parts func(*T) *[]P, at []position, of []int) []T {
	var topics []T
	last := -1
	for _, i := range of {
		from := at[i]
		if from.topic != last {
			t := all[from.topic]
			*parts(&t) = nil
			topics = append(topics, t)
			last = from.topic
		}
		to := parts(&topics[len(topics)-1])
		*to = append(*to, (*parts(&all[from.topic]))[from.part])
	}
	return topics
}

func (b *byPartition[QT, QP, AT, AP]) take(of []int, answer kmsg.Response) bool {
	var got []AP
	topics := b.got(answer)
	for i := range topics {
		got = append(got, *b.results(&topics[i])...)
	}
	if len(got) != len(of) {
		return false
	}
	for n, i := range of {
		(*b.results(&b.answers[b.at[i].topic]))[b.at[i].part] = got[n]
	}
	return true
}

func (b *byPartition[QT, QP, AT, AP]) again(i int, at place) bool {
	return notLed(protocol.ErrorCode(b.code(&(*b.results(&b.answers[b.at[i].topic]))[b.at[i].part])), at)
}

func (b *byPartition[QT, QP, AT, AP]) answer() kmsg.Response { return b.response(b.answers) }

func (b *byPartition[QT, QP, AT, AP]) long() bool { return false }

func listOffsets(req *kmsg.ListOffsetsRequest) divisible {
	return (&byPartition[kmsg.ListOffsetsRequestTopic, kmsg.ListOffsetsRequestTopicPartition,
		kmsg.ListOffsetsResponseTopic, kmsg.ListOffsetsResponseTopicPartition]{
		topics: req.Topics,
		name:   func(t *kmsg.ListOffsetsRequestTopic) string { return t.Topic },
		parts: func(t *kmsg.ListOffsetsRequestTopic) *[]kmsg.ListOffsetsRequestTopicPartition {
			return &t.Partitions
		},
		number: func(p kmsg.ListOffsetsRequestTopicPartition) int32 { return p.Partition },
		newly: func(t kmsg.ListOffsetsRequestTopic) kmsg.ListOffsetsResponseTopic {
			return kmsg.ListOffsetsResponseTopic{Topic: t.Topic}
		},
		results: func(t *kmsg.ListOffsetsResponseTopic) *[]kmsg.ListOffsetsResponseTopicPartition { return &t.Partitions },
		code:    func(p *kmsg.ListOffsetsResponseTopicPartition) int16 { return p.ErrorCode },
		request: func(topics []kmsg.ListOffsetsRequestTopic) kmsg.Request {
			for i := range topics {
				for j := range topics[i].Partitions {
					topics[i].Partitions[j].CurrentLeaderEpoch = int32(protocol.NoLeaderEpoch)
				}
			}
			part := *req
			part.Topics = topics
			return &part
		},
		got: func(r kmsg.Response) []kmsg.ListOffsetsResponseTopic { return r.(*kmsg.ListOffsetsResponse).Topics },
		response: func(topics []kmsg.ListOffsetsResponseTopic) kmsg.Response {
			return &kmsg.ListOffsetsResponse{Version: req.Version, Topics: topics}
		},
	}).ready()
}

func offsetForLeaderEpoch(req *kmsg.OffsetForLeaderEpochRequest) divisible {
	return (&byPartition[kmsg.OffsetForLeaderEpochRequestTopic, kmsg.OffsetForLeaderEpochRequestTopicPartition,
		kmsg.OffsetForLeaderEpochResponseTopic, kmsg.OffsetForLeaderEpochResponseTopicPartition]{
		topics: req.Topics,
		name:   func(t *kmsg.OffsetForLeaderEpochRequestTopic) string { return t.Topic },
		parts: func(t *kmsg.OffsetForLeaderEpochRequestTopic) *[]kmsg.OffsetForLeaderEpochRequestTopicPartition {
			return &t.Partitions
		},
		number: func(p kmsg.OffsetForLeaderEpochRequestTopicPartition) int32 { return p.Partition },
		newly: func(t kmsg.OffsetForLeaderEpochRequestTopic) kmsg.OffsetForLeaderEpochResponseTopic {
			return kmsg.OffsetForLeaderEpochResponseTopic{Topic: t.Topic}
		},
		results: func(t *kmsg.OffsetForLeaderEpochResponseTopic) *[]kmsg.OffsetForLeaderEpochResponseTopicPartition {
			return &t.Partitions
		},
		code: func(p *kmsg.OffsetForLeaderEpochResponseTopicPartition) int16 { return p.ErrorCode },
		request: func(topics []kmsg.OffsetForLeaderEpochRequestTopic) kmsg.Request {
			for i := range topics {
				for j := range topics[i].Partitions {
					topics[i].Partitions[j].CurrentLeaderEpoch = int32(protocol.NoLeaderEpoch)
				}
			}
			part := *req
			part.Topics = topics
			return &part
		},
		got: func(r kmsg.Response) []kmsg.OffsetForLeaderEpochResponseTopic {
			return r.(*kmsg.OffsetForLeaderEpochResponse).Topics
		},
		response: func(topics []kmsg.OffsetForLeaderEpochResponseTopic) kmsg.Response {
			return &kmsg.OffsetForLeaderEpochResponse{Version: req.Version, Topics: topics}
		},
	}).ready()
}

func deleteRecords(req *kmsg.DeleteRecordsRequest) divisible {
	return (&byPartition[kmsg.DeleteRecordsRequestTopic, kmsg.DeleteRecordsRequestTopicPartition,
		kmsg.DeleteRecordsResponseTopic, kmsg.DeleteRecordsResponseTopicPartition]{
		topics: req.Topics,
		name:   func(t *kmsg.DeleteRecordsRequestTopic) string { return t.Topic },
		parts: func(t *kmsg.DeleteRecordsRequestTopic) *[]kmsg.DeleteRecordsRequestTopicPartition {
			return &t.Partitions
		},
		number: func(p kmsg.DeleteRecordsRequestTopicPartition) int32 { return p.Partition },
		newly: func(t kmsg.DeleteRecordsRequestTopic) kmsg.DeleteRecordsResponseTopic {
			return kmsg.DeleteRecordsResponseTopic{Topic: t.Topic}
		},
		results: func(t *kmsg.DeleteRecordsResponseTopic) *[]kmsg.DeleteRecordsResponseTopicPartition {
			return &t.Partitions
		},
		code: func(p *kmsg.DeleteRecordsResponseTopicPartition) int16 { return p.ErrorCode },
		request: func(topics []kmsg.DeleteRecordsRequestTopic) kmsg.Request {
			part := *req
			part.Topics = topics
			return &part
		},
		got: func(r kmsg.Response) []kmsg.DeleteRecordsResponseTopic { return r.(*kmsg.DeleteRecordsResponse).Topics },
		response: func(topics []kmsg.DeleteRecordsResponseTopic) kmsg.Response {
			return &kmsg.DeleteRecordsResponse{Version: req.Version, Topics: topics}
		},
	}).ready()
}

func describeProducers(req *kmsg.DescribeProducersRequest) divisible {
	return (&byPartition[kmsg.DescribeProducersRequestTopic, int32,
		kmsg.DescribeProducersResponseTopic, kmsg.DescribeProducersResponseTopicPartition]{
		topics: req.Topics,
		name:   func(t *kmsg.DescribeProducersRequestTopic) string { return t.Topic },
		parts:  func(t *kmsg.DescribeProducersRequestTopic) *[]int32 { return &t.Partitions },
		number: func(p int32) int32 { return p },
		newly: func(t kmsg.DescribeProducersRequestTopic) kmsg.DescribeProducersResponseTopic {
			return kmsg.DescribeProducersResponseTopic{Topic: t.Topic}
		},
		results: func(t *kmsg.DescribeProducersResponseTopic) *[]kmsg.DescribeProducersResponseTopicPartition {
			return &t.Partitions
		},
		code: func(p *kmsg.DescribeProducersResponseTopicPartition) int16 { return p.ErrorCode },
		request: func(topics []kmsg.DescribeProducersRequestTopic) kmsg.Request {
			part := *req
			part.Topics = topics
			return &part
		},
		got: func(r kmsg.Response) []kmsg.DescribeProducersResponseTopic {
			return r.(*kmsg.DescribeProducersResponse).Topics
		},
		response: func(topics []kmsg.DescribeProducersResponseTopic) kmsg.Response {
			return &kmsg.DescribeProducersResponse{Version: req.Version, Topics: topics}
		},
	}).ready()
}
