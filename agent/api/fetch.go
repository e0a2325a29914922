package api

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/fetch"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// fetchBytesMax bounds one answer (fetch.max.bytes of the broker).
const fetchBytesMax = 55 << 20

// fetchWaitMax bounds a long poll. Kafka has no such bound, but then a client that asks for weeks and goes away leaves its connection
// behind for weeks: nobody reads from it meanwhile. A client that gets an empty answer early asks again.
const fetchWaitMax = 30 * time.Second

// fetch serves Fetch, versions 4 to 18, with fetch sessions (KIP-227), and consumers of other zones as followers.go tells.
func (b *Broker) fetch(ctx context.Context, r *server.Request, req *kmsg.FetchRequest) server.Answer {
	s, code := b.sessions.open(req)
	if code != protocol.None {
		return &fetched{resp: wire.FetchResponse{CorrelationID: r.CorrelationID, Version: req.Version, ErrorCode: code}}
	}
	asked := s.asked()
	wants := make([]fetch.Want, len(asked))
	from := consumer{rack: req.Rack, readCommitted: req.IsolationLevel == 1}
	for i := range asked {
		wants[i] = b.want(ctx, req.Version, &from, &asked[i])
	}
	limits := fetch.Limits{
		BytesMin: int(req.MinBytes), BytesMax: min(int(req.MaxBytes), fetchBytesMax),
		Wait: min(time.Duration(req.MaxWaitMillis)*time.Millisecond, fetchWaitMax), ReadCommitted: from.readCommitted,
		Leave: r.Leave,
	}
	result := b.deps.Fetcher.Fetch(ctx, wants, limits)
	for i := range wants {
		if p := wants[i].Partition; p != nil {
			p.Consumed(result.Parts[i].Bytes)
		}
	}
	b.proveRanges(ctx, wants, result)
	a := &fetched{result: result}
	a.resp = wire.FetchResponse{CorrelationID: r.CorrelationID, Version: req.Version, SessionID: s.id}
	s.answer(&a.resp, asked, result, limits.ReadCommitted)
	if req.Version >= 16 {
		b.hintLeaders(&a.resp)
	}
	return a
}

// proveRanges holds back OFFSET_OUT_OF_RANGE, which makes consumers reset their offsets, until it is certain that this agent led the partition when
// it was asked: one that has lost it, and does not know, would answer from the past.
func (b *Broker) proveRanges(ctx context.Context, wants []fetch.Want, result *fetch.Result) {
	var proved error
	asked := false
	for i := range result.Parts {
		part := &result.Parts[i]
		if part.Err == nil || wants[i].Partition == nil || protocol.CodeOf(part.Err) != protocol.OffsetOutOfRange {
			continue
		}
		if !asked {
			asked, proved = true, b.prove(ctx)
		}
		if proved != nil {
			part.Err = proved
		}
	}
}

// prove returns once it is certain that this agent led what it leads after the call began, or NOT_LEADER_OR_FOLLOWER, which clients try again elsewhere.
func (b *Broker) prove(ctx context.Context) error {
	if err := b.deps.Prove(ctx); err != nil {
		return protocol.NotLeaderOrFollower.Errorf("it is not certain who leads: %v", err)
	}
	return nil
}

// want finds the partition that the client asks for.
func (b *Broker) want(ctx context.Context, version int16, from *consumer, a *askedPartition) fetch.Want {
	w := fetch.Want{
		Offset: a.offset, BytesMax: int(a.bytesMax), CurrentEpoch: a.currentEpoch, LastEpoch: a.lastEpoch,
	}
	t, err := b.topic(version >= 13, a.key.name, a.key.id)
	if err == nil {
		w.Partition, err = b.deps.Partitions.Get(t, a.key.partition)
		switch {
		case err == nil:
			w.Replica = b.replica(from, t, w.Partition.ID, a.offset)
		case from.rack != "" && protocol.CodeOf(err) == protocol.NotLeaderOrFollower:
			w.Followed, err = b.followed(ctx, t, a.key.partition, err)
		}
	}
	w.Err = err
	return w
}

// fetched is the answer to Fetch. It holds the records until it is written.
type fetched struct {
	resp   wire.FetchResponse
	result *fetch.Result // nil if the session was refused
}

// Response returns the answer, which refers to records until Release.
func (a *fetched) Response() *wire.FetchResponse { return &a.resp }

// Ready implements [server.Answer].
func (a *fetched) Ready() <-chan struct{} { return nil }

// AppendTo implements [server.Answer].
func (a *fetched) AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte) {
	return a.resp.AppendTo(bufs, scratch)
}

// Release implements [server.Answer].
func (a *fetched) Release() {
	if a.result != nil {
		a.result.Release()
	}
}
