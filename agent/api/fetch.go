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

// fetch serves Fetch, versions 4 to 18, with fetch sessions (KIP-227).
func (b *Broker) fetch(ctx context.Context, r *server.Request, req *kmsg.FetchRequest) server.Answer {
	s, code := b.sessions.open(req)
	if code != protocol.None {
		return &fetched{resp: wire.FetchResponse{CorrelationID: r.CorrelationID, Version: req.Version, ErrorCode: code}}
	}
	asked := s.asked()
	wants := make([]fetch.Want, len(asked))
	for i := range asked {
		wants[i] = b.want(req.Version, &asked[i])
	}
	limits := fetch.Limits{
		BytesMin: int(req.MinBytes), BytesMax: min(int(req.MaxBytes), fetchBytesMax),
		Wait: min(time.Duration(req.MaxWaitMillis)*time.Millisecond, fetchWaitMax), ReadCommitted: req.IsolationLevel == 1,
		Leave: r.Leave,
	}
	result := b.deps.Fetcher.Fetch(ctx, wants, limits)
	a := &fetched{result: result}
	a.resp = wire.FetchResponse{CorrelationID: r.CorrelationID, Version: req.Version, SessionID: s.id}
	s.answer(&a.resp, asked, result, limits.ReadCommitted)
	return a
}

// want finds the partition that the client asks for.
func (b *Broker) want(version int16, a *askedPartition) fetch.Want {
	w := fetch.Want{
		Offset: a.offset, BytesMax: int(a.bytesMax), CurrentEpoch: a.currentEpoch, LastEpoch: a.lastEpoch,
	}
	t, err := b.topic(version >= 13, a.key.name, a.key.id)
	if err == nil {
		w.Partition, err = b.deps.Partitions.Get(t, a.key.partition)
	}
	w.Err = err
	return w
}

// fetched is the answer to Fetch. It holds the records until it is written.
type fetched struct {
	resp   wire.FetchResponse
	result *fetch.Result // nil if the session was refused
}

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
