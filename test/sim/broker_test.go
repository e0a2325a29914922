package sim

import (
	"slices"
	"sync/atomic"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/wal"
)

// life implements broker.
func (a *agent) life() *process { return &a.process }

// produce implements broker.
func (a *agent) produce(number int32, s *send) func() (protocol.Offset, error, bool) {
	r := ingest.NewRequest(1, ingest.AcksAll)
	r.Batches[0] = ingest.Batch{Partition: a.partition(number), Header: s.header, Bytes: slices.Clone(s.bytes)}
	a.ingest.Produce(a.w.ctx, r)
	return func() (protocol.Offset, error, bool) {
		select {
		case <-r.Done():
			return r.Batches[0].Result.Base, r.Batches[0].Result.Err, true
		default:
			return 0, nil, false
		}
	}
}

// commit implements broker.
func (a *agent) commit(c *committer, offset int64) func() (error, bool) {
	var done atomic.Pointer[error]
	a.ledger.Write(c.shard, []coordinator.Op{{Key: c.key, Value: coordinator.Encode(offset)}}, func(err error) { done.Store(&err) })
	return func() (error, bool) {
		if err := done.Load(); err != nil {
			return *err, true
		}
		return nil, false
	}
}

// read implements broker, from what an agent holds, memory first, below its high watermark.
func (a *agent) read(number int32) {
	l := a.w.load
	p := a.partition(number)
	state, err := p.State()
	if err != nil || state.HighWatermark == 0 {
		return
	}
	if old := a.high[p.ID]; state.HighWatermark < old {
		l.w.check.report("3: high watermark of %d fell from %d to %d on %s", number, old, state.HighWatermark, a.name)
	}
	a.high[p.ID] = state.HighWatermark
	from := protocol.Offset(l.w.rng.Int64N(int64(state.HighWatermark)))
	l.w.note("%s: read %d from %d, high watermark %d", a.name, number, from, state.HighWatermark)
	var bufs [][]byte
	var held []*wal.Chunk
	bufs, held, _, _, ok := p.Read(from, state.HighWatermark, 2000, bufs, held, true)
	defer func() {
		for _, c := range held {
			c.Release()
		}
	}()
	if !ok {
		bufs, ok = a.fetch(p.ID, from)
	}
	if !ok {
		l.w.check.report("1: offset %d of partition %d is below the high watermark %d of %s and nowhere", from, number, state.HighWatermark, a.name)
		return
	}
	for _, b := range bufs {
		records, err := parse(b)
		if err != nil {
			l.w.check.report("8: %s serves a batch that cannot be read: %v", a.name, err)
		}
		l.logs[number].seen = append(l.logs[number].seen, records...)
	}
}

// fetch reads the batch of an offset from the bucket, as the agent's index says.
func (a *agent) fetch(id partition.ID, offset protocol.Offset) ([][]byte, bool) {
	e, ok := a.index.Find(id, offset)
	if !ok {
		return nil, false
	}
	object, footer := a.w.check.object(e.Object.Name)
	if footer == nil {
		return nil, false
	}
	section := footer.Find(segment.Key{Shard: e.Shard, Topic: id.Topic, Partition: id.Partition})
	if section == nil {
		return nil, false
	}
	pos, n, _, err := section.Range(nil, offset, 0)
	if err != nil {
		return nil, false
	}
	return [][]byte{object[pos : pos+n]}, true
}
