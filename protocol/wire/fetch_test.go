package wire_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// randomFetch returns a response with everything that may occur in one, and
// what kmsg must make of it.
func randomFetch(r *rand.Rand, version int16) (*wire.FetchResponse, *kmsg.FetchResponse) {
	got := &wire.FetchResponse{
		CorrelationID: r.Int32(), Version: version, ThrottleMillis: r.Int32(),
		ErrorCode: protocol.ErrorCode(r.IntN(100)), SessionID: r.Int32(),
	}
	want := kmsg.NewPtrFetchResponse()
	want.Version = version
	want.ThrottleMillis = got.ThrottleMillis
	if version >= 7 {
		want.ErrorCode, want.SessionID = int16(got.ErrorCode), got.SessionID
	}
	for range r.IntN(4) {
		topic := wire.FetchTopic{Name: strings.Repeat("n", r.IntN(250)), ID: protocol.TopicID{byte(r.IntN(256)), 15: 7}}
		wantTopic := kmsg.NewFetchResponseTopic()
		if version >= 13 {
			wantTopic.TopicID = topic.ID
		} else {
			wantTopic.Topic = topic.Name
		}
		for range r.IntN(5) {
			p, wantP := randomPartition(r, version)
			topic.Partitions = append(topic.Partitions, p)
			wantTopic.Partitions = append(wantTopic.Partitions, wantP)
		}
		got.Topics = append(got.Topics, topic)
		want.Topics = append(want.Topics, wantTopic)
	}
	for range r.IntN(3) {
		n := wire.NodeEndpoint{NodeID: r.Int32(), Host: strings.Repeat("h", r.IntN(300)), Port: r.Int32()}
		wantN := kmsg.FetchResponseBroker{NodeID: n.NodeID, Host: n.Host, Port: n.Port}
		if r.IntN(2) == 0 {
			n.Rack = strings.Repeat("r", 1+r.IntN(200))
			wantN.Rack = &n.Rack
		}
		got.NodeEndpoints = append(got.NodeEndpoints, n)
		if version >= 16 {
			want.Brokers = append(want.Brokers, wantN)
		}
	}
	return got, want
}

func randomPartition(r *rand.Rand, version int16) (wire.FetchPartition, kmsg.FetchResponseTopicPartition) {
	p := wire.FetchPartition{
		Partition: r.Int32(), ErrorCode: protocol.ErrorCode(r.IntN(100)), HighWatermark: protocol.Offset(r.Int64()),
		LastStableOffset: protocol.Offset(r.Int64()), LogStartOffset: protocol.Offset(r.Int64()), PreferredReadReplica: r.Int32(),
	}
	want := kmsg.NewFetchResponseTopicPartition()
	want.Partition, want.ErrorCode, want.HighWatermark = p.Partition, int16(p.ErrorCode), int64(p.HighWatermark)
	want.LastStableOffset = int64(p.LastStableOffset)
	if version >= 5 {
		want.LogStartOffset = int64(p.LogStartOffset)
	}
	if version >= 11 {
		want.PreferredReadReplica = p.PreferredReadReplica
	}
	if r.IntN(2) == 0 {
		p.Aborted = []wire.AbortedTransaction{}
		want.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{}
	}
	for range r.IntN(3) {
		a := wire.AbortedTransaction{ProducerID: protocol.ProducerID(r.Int64()), FirstOffset: protocol.Offset(r.Int64())}
		p.Aborted = append(p.Aborted, a)
		want.AbortedTransactions = append(want.AbortedTransactions, kmsg.FetchResponseTopicPartitionAbortedTransaction{
			ProducerID: int64(a.ProducerID), FirstOffset: int64(a.FirstOffset),
		})
	}
	if r.IntN(3) == 0 {
		p.Diverging = &wire.EpochEnd{Epoch: 3, EndOffset: protocol.Offset(r.Int64())}
		if version >= 12 {
			want.DivergingEpoch.Epoch, want.DivergingEpoch.EndOffset = 3, int64(p.Diverging.EndOffset)
		}
	}
	if r.IntN(3) == 0 {
		p.CurrentLeader = &wire.LeaderEpoch{LeaderID: r.Int32(), Epoch: 9}
		if version >= 12 {
			want.CurrentLeader.LeaderID, want.CurrentLeader.LeaderEpoch = p.CurrentLeader.LeaderID, 9
		}
	}
	want.RecordBatches = []byte{}
	for range r.IntN(4) {
		records := make([]byte, []int{0, 1, 511, 512, 5000}[r.IntN(5)])
		for i := range records {
			records[i] = byte(r.Uint32())
		}
		p.Records = append(p.Records, records)
		want.RecordBatches = append(want.RecordBatches, records...)
	}
	return p, want
}

// TestFetchResponseEveryVersion compares the encoding with kmsg's, byte by byte.
func TestFetchResponseEveryVersion(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	api, _ := protocol.Lookup(protocol.KeyFetch)
	for version := api.ServedMin; version <= api.Max; version++ {
		for range 200 {
			got, want := randomFetch(r, version)
			// Buffers of the caller's, of any size, with something in them.
			bufs, scratch := got.AppendTo([][]byte{[]byte("before")}, append(make([]byte, 0, r.IntN(3000)), "before"...))
			if string(bufs[0]) != "before" || string(scratch[:6]) != "before" {
				t.Fatalf("version %d: touched what was there", version)
			}
			frame := bytes.Join(bufs[1:], nil)
			if wantFrame := wire.AppendResponse(nil, got.CorrelationID, want); !bytes.Equal(frame, wantFrame) {
				t.Fatalf("version %d: %d bytes differ from kmsg's %d\n got %+v", version, len(frame), len(wantFrame), got)
			}
		}
	}
}

// TestFetchResponseRefersToRecords counts the buffers: large records are not
// copied, small ones are.
func TestFetchResponseRefersToRecords(t *testing.T) {
	large, small := make([]byte, 512), make([]byte, 511)
	p := wire.NewFetchPartition(0, protocol.None)
	p.Records = [][]byte{large, small, small, large, large}
	response := wire.FetchResponse{Version: 12, Topics: []wire.FetchTopic{{Name: "t", Partitions: []wire.FetchPartition{p, p}}}}
	bufs, _ := response.AppendTo(nil, nil)
	var referred int
	for _, b := range bufs {
		if &b[0] == &large[0] {
			referred++
		}
	}
	// fields, large, small small, large, large, fields, ... fields
	if referred != 6 || len(bufs) != 11 {
		t.Errorf("%d of %d buffers are the records", referred, len(bufs))
	}
}

func TestFetchResponseDoesNotAllocate(t *testing.T) {
	response := benchmarkFetch()
	bufs, scratch := response.AppendTo(nil, nil)
	if allocations := testing.AllocsPerRun(100, func() {
		bufs, scratch = response.AppendTo(bufs[:0], scratch[:0])
	}); allocations != 0 {
		t.Errorf("%v allocations", allocations)
	}
}

func benchmarkFetch() *wire.FetchResponse {
	response := &wire.FetchResponse{Version: 16, Topics: make([]wire.FetchTopic, 1)}
	for i := range int32(10) {
		p := wire.NewFetchPartition(i, protocol.None)
		for range 10 {
			p.Records = append(p.Records, make([]byte, 100<<10))
		}
		response.Topics[0].Partitions = append(response.Topics[0].Partitions, p)
	}
	return response
}

func BenchmarkFetchResponse(b *testing.B) {
	response := benchmarkFetch()
	bufs, scratch := response.AppendTo(nil, nil)
	b.SetBytes(int64(binary.BigEndian.Uint32(bufs[0])) + 4)
	b.ReportAllocs()
	for b.Loop() {
		bufs, scratch = response.AppendTo(bufs[:0], scratch[:0])
	}
}

func BenchmarkDecodeProduce(b *testing.B) {
	request := kmsg.NewPtrProduceRequest()
	request.Version = 9
	request.Topics = make([]kmsg.ProduceRequestTopic, 1)
	request.Topics[0].Topic = "benchmark"
	for i := range int32(10) {
		request.Topics[0].Partitions = append(request.Topics[0].Partitions, kmsg.ProduceRequestTopicPartition{Partition: i, Records: make([]byte, 100<<10)})
	}
	frame := frameOf(request, 1, "client")
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		h, body, err := wire.ParseHeader(frame)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := wire.DecodeRequest(h, body); err != nil {
			b.Fatal(err)
		}
	}
}
