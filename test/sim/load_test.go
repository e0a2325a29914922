package sim

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/test/check"
)

// load is all clients: producers, readers, and consumers that commit offsets.
type load struct {
	w          *world
	producers  []*producer
	committers []*committer
	logs       [partitions]history
	txns       *transacting // nil for none
	healed     bool         // there is one leader, and it is the last
}

// history is what clients of one partition did and saw.
type history struct {
	sends []*send // in the order in which each producer made its own
	seen  []check.Record
	floor int64 // highest offset that anybody was told
}

// producer sends batches to one partition, and repeats them in order until they are acknowledged if it is idempotent.
type producer struct {
	id        protocol.ProducerID // NoProducerID: not idempotent
	writer    int32
	partition int32
	sequence  int32
	records   int64   // made so far
	waiting   []*send // not acknowledged, oldest first, at most inFlight
}

// inFlight is how many batches a producer has out at once.
const inFlight = 3

// send is one batch of a producer.
type send struct {
	writer  int32
	bytes   []byte
	header  batch.Header
	first   int64 // sequence of its first record
	floor   int64
	outcome check.Outcome
	base    int64 // if acknowledged
	attempt *attempt
}

// broker is an agent as clients see it.
type broker interface {
	life() *process
	// produce sends a batch to a partition. The answer is there once ok.
	produce(number int32, s *send) (answer func() (base protocol.Offset, err error, ok bool))
	// commit commits an offset for a group. The answer is there once ok.
	commit(c *committer, offset int64) (answer func() (err error, ok bool))
	// read reads some records of a partition, for the history.
	read(number int32)
}

// attempt is a request under way.
type attempt struct {
	at     broker
	answer func() (protocol.Offset, error, bool)
	since  int // step
}

// committer commits ever higher offsets for a group of its own.
type committer struct {
	group   string
	key     string
	shard   coordinator.ShardID
	last    int64 // tried
	acked   int64
	attempt *commitAttempt
}

type commitAttempt struct {
	at     broker
	offset int64
	since  int
	answer func() (error, bool)
}

func newLoad(w *world) *load {
	l := &load{w: w}
	for i := range l.logs {
		l.logs[i].floor = -1
	}
	for i := range int32(5) {
		p := &producer{id: protocol.ProducerID(100 + i), writer: i, partition: i % partitions}
		if i == 4 {
			p.id = protocol.NoProducerID
		}
		l.producers = append(l.producers, p)
	}
	for i := range 2 {
		group := fmt.Sprint("g", i)
		l.committers = append(l.committers, &committer{
			group: group, key: coordinator.KeyOffsets(group, "t", 0), shard: coordinator.ShardOfName(group, w.cluster.Shards),
		})
	}
	return l
}

// act lets one client do something.
func (l *load) act() {
	rng := l.w.rng
	switch n := rng.IntN(10); {
	case n < 5:
		l.produce(l.producers[rng.IntN(len(l.producers))])
	case n < 7:
		number := rng.Int32N(partitions)
		if b := l.w.choose(l.w.shardOf(number)); b != nil {
			b.read(number)
		}
	case n < 8:
		l.giveUp(l.producers[rng.IntN(len(l.producers))])
	default:
		c := l.committers[rng.IntN(len(l.committers))]
		if b := l.w.choose(c.shard); b != nil {
			l.commit(c, b)
		}
	}
}

// produce sends the producer's next batch, or the oldest one that is not under way.
func (l *load) produce(p *producer) {
	b := l.w.choose(l.w.shardOf(p.partition))
	if b == nil {
		return
	}
	for _, s := range p.waiting {
		if s.attempt == nil {
			l.attempt(p, s, b)
			return
		}
		b = s.attempt.at // behind a batch under way only to the same leader
	}
	if len(p.waiting) < inFlight {
		s := l.newSend(p)
		p.waiting = append(p.waiting, s)
		l.attempt(p, s, b)
	}
}

func (l *load) newSend(p *producer) *send {
	b := batch.NewBuilder(batch.None)
	n := 1 + l.w.rng.Int32N(3)
	log := &l.logs[p.partition]
	s := &send{writer: p.writer, first: p.records, floor: log.floor}
	for range n {
		l.append(b, p.writer, p.records, key(p.records))
		p.records++
	}
	if p.id != protocol.NoProducerID {
		b.ProducerID, b.ProducerEpoch, b.BaseSequence = p.id, 0, p.sequence
		p.sequence += n
	}
	bytes, err := b.AppendTo(nil)
	if err != nil {
		panic(err)
	}
	if s.header, err = batch.Parse(bytes); err != nil {
		panic(err)
	}
	s.bytes = bytes
	log.sends = append(log.sends, s)
	return s
}

// keysMax is how many keys there are; a topic may be compacted.
const keysMax = 7

// key is that of record n of any writer.
func key(n int64) []byte { return []byte{byte(n % keysMax)} }

// append adds record n of a writer to a batch. In a compacted topic some are tombstones, which say in a header whose they are.
func (l *load) append(b *batch.Builder, writer int32, n int64, key []byte) {
	value := l.value(writer, n)
	if l.w.compacted && tombstone(n) {
		b.Append(1000+n, key, nil, batch.HeaderField{Value: value})
		return
	}
	b.Append(1000+n, key, value)
}

// tombstone reports whether record n of a writer is one, in a compacted topic.
func tombstone(n int64) bool { return n%5 == 4 }

// value is what record n of a writer holds.
func (l *load) value(writer int32, n int64) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(writer))
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	return append(b, make([]byte, 30+(n*37+int64(writer))%400)...)
}

func (l *load) attempt(p *producer, s *send, b broker) {
	l.w.note("p%d sends %d to %s", p.writer, s.first, b.life().name)
	s.attempt = &attempt{at: b, answer: b.produce(p.partition, s), since: l.w.step}
}

// giveUp lets a producer, or a committer, stop waiting: it sends again, perhaps to another agent.
func (l *load) giveUp(p *producer) {
	for i, s := range p.waiting {
		if s.attempt != nil && l.w.step-s.attempt.since > 100 {
			l.w.note("p%d gives up %d", p.writer, s.first)
			l.retry(p, i)
			return
		}
	}
	for _, c := range l.committers {
		if c.attempt != nil && l.w.step-c.attempt.since > 100 {
			c.attempt = nil
		}
	}
}

// retry makes the batch and those behind it be sent again. Without idempotence nothing is: it may be there, or not.
func (l *load) retry(p *producer, from int) {
	for _, s := range p.waiting[from:] {
		s.attempt = nil
	}
	if p.id == protocol.NoProducerID {
		p.waiting = p.waiting[:from]
	}
}

// poll takes answers to those who wait for them.
func (l *load) poll() {
	for _, p := range l.producers {
		for i := 0; i < len(p.waiting); {
			acked := l.answer(p, p.waiting[i])
			switch {
			case acked == nil:
				i++
			case *acked:
				p.waiting = slices.Delete(p.waiting, i, i+1)
			default:
				l.retry(p, i)
				i++
			}
		}
	}
	for _, c := range l.committers {
		l.committed(c)
	}
}

// answer looks at the answer to a send; nil if it is not there yet.
func (l *load) answer(p *producer, s *send) *bool {
	if s.attempt == nil {
		return nil
	}
	acked := false
	if l.w.isDead(s.attempt.at.life()) {
		return &acked
	}
	base, err, ok := s.attempt.answer()
	if !ok {
		return nil
	}
	name := s.attempt.at.life().name
	if err != nil {
		code := protocol.CodeOf(err)
		l.w.note("p%d: %d refused by %s", p.writer, s.first, name)
		l.w.aside("%v", err) // of an agent that ends, any of several
		if l.healed && s == p.waiting[0] && code == protocol.OutOfOrderSequenceNumber && l.w.owns(s.attempt.at, l.w.shardOf(p.partition)) {
			l.w.check.report("1: the last leader does not have what p%d was told is there: %v", p.writer, err)
		}
		return &acked
	}
	l.w.note("p%d: %d acknowledged at %d by %s", p.writer, s.first, base, name)
	acked = true
	s.outcome, s.base, s.attempt = check.Acked, int64(base), nil
	log := &l.logs[p.partition]
	log.floor = max(log.floor, s.base+int64(s.header.Records)-1)
	return &acked
}

// commit commits the group's next offset.
func (l *load) commit(c *committer, b broker) {
	if c.attempt != nil {
		return
	}
	c.last++
	l.w.note("%s: commits %d at %s", c.key, c.last, b.life().name)
	c.attempt = &commitAttempt{at: b, offset: c.last, since: l.w.step, answer: b.commit(c, c.last)}
}

func (l *load) committed(c *committer) {
	if c.attempt == nil {
		return
	}
	dead := l.w.isDead(c.attempt.at.life())
	err, ok := c.attempt.answer()
	switch {
	case !dead && !ok:
		return
	case !dead && err == nil:
		l.w.note("%s: %d committed", c.key, c.attempt.offset)
		c.acked = c.attempt.offset
	}
	c.attempt = nil
}

// finish lets every idempotent producer get its answers from the leader of its partition, one request at a time, and reports whether all have them.
func (l *load) finish() bool {
	l.healed = true
	done := true
	for _, p := range l.producers {
		leader := l.w.leader(l.w.shardOf(p.partition))
		for i, s := range p.waiting {
			done = false
			if s.attempt != nil && s.attempt.at != leader {
				l.retry(p, i)
				break
			}
		}
		for _, s := range p.waiting {
			if s.attempt == nil && leader != nil {
				l.attempt(p, s, leader)
				return false
			}
		}
	}
	if l.txns != nil {
		done = l.txns.finish() && done
	}
	return done
}

// waiting describes what has no answer.
func (l *load) waiting() string {
	s := ""
	for _, p := range l.producers {
		for _, w := range p.waiting {
			s += fmt.Sprintf(" p%d/%d", p.writer, w.first)
		}
	}
	if l.txns != nil {
		s += l.txns.waiting()
	}
	return s
}

// markerWriter is who has sent the markers of transactions.
const markerWriter = -1

// parse gives the records of a batch as a reader sees them.
func parse(b []byte) ([]check.Record, error) {
	h, err := batch.Parse(b)
	if err != nil {
		return nil, err
	}
	if err := batch.Verify(b, &h); err != nil {
		return nil, err
	}
	if h.Attributes.Control() {
		m, err := batch.ParseControl(&h, b) // all of it that compaction must not change
		return []check.Record{{Offset: int64(h.BaseOffset), ID: check.ID{Writer: markerWriter, Seq: int64(h.BaseOffset)}, Content: content(fmt.Append(nil, m))}}, err
	}
	var d batch.Decompressor
	all, err := d.Records(&h, b)
	if err != nil {
		return nil, err
	}
	var records []check.Record
	var r batch.Record
	for all.Next(&r) {
		value := r.Value
		for _, v := range r.Headers() {
			value = v
		}
		if len(value) < 12 {
			return nil, fmt.Errorf("record of %d bytes", len(value))
		}
		records = append(records, check.Record{
			Offset:  int64(h.Offset(&r)),
			ID:      check.ID{Writer: int32(binary.BigEndian.Uint32(value)), Seq: int64(binary.BigEndian.Uint64(value[4:]))},
			Content: content(value),
		})
	}
	return records, all.Err()
}
