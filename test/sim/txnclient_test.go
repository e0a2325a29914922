package sim

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/test/check"
)

// instance is a producer of a transactional id, with one request under way at most.
type instance struct {
	x         *transacting
	of        *transactional
	client    string
	writer    int32
	claim     claim
	needsID   bool // it must be initialized before anything else
	dirty     bool // a request was given up that may yet be served: the epoch must be raised before the next transaction (only version 1)
	fencedAt  int  // step at which another instance was told its epoch; 0 for not yet
	silent    bool // its transaction is left to its timeout
	sequences [partitions]int32
	records   int64
	txn       *transaction // open, as far as it knows
	unsent    *send        // not acknowledged
	sendsTo   int32        // the partition of unsent
	doing     *doing
}

var noClaim = claim{protocol.NoProducerID, protocol.NoProducerEpoch}

// doing is a request under way.
type doing struct {
	at       *node
	exchange *exchange
	since    int // step
	answer   func(kmsg.Response) protocol.ErrorCode
}

// patience is after how many steps an instance gives up a request.
const patience = 400

// act lets the instance do its next step.
func (i *instance) act() {
	rng := i.x.c.rng
	switch t := i.txn; {
	case i.doing != nil:
		if i.x.c.step-i.doing.since > patience {
			i.giveUp()
		}
	case i.needsID:
		i.init()
	case i.silent:
		if i.x.finishes || rng.IntN(20) == 0 {
			i.leave()
		}
	case t == nil && i.x.finishes:
	case t == nil && i.dirty:
		i.init()
	case t == nil:
		i.txn = &transaction{by: i, claim: i.claim}
		i.x.all = append(i.x.all, i.txn)
	case t.asked != undecided:
		i.end(t.asked)
	case i.unsent != nil:
		i.produce()
	case i.x.finishes && len(t.sends) == 0 && t.offset == 0:
		i.txn = nil
	case i.x.finishes:
		i.end([]outcome{committed, aborted}[rng.IntN(2)])
	default:
		i.choose()
	}
}

// choose goes on with an open transaction.
func (i *instance) choose() {
	rng, t := i.x.c.rng, i.txn
	switch n := rng.IntN(40); {
	case n < 20:
		i.sendsTo = rng.Int32N(partitions)
		i.unsent = i.newSend()
		i.produce()
	case n < 25 && t.offset == 0:
		i.of.offset++
		t.offset = i.of.offset
		i.sendOffset()
	case n < 25 && !t.offsetSent:
		i.sendOffset()
	case n < 36 && (len(t.sends) > 0 || t.offset > 0):
		i.end(committed)
	case n < 38 && (i.of.version2 && rng.IntN(4) == 0 || len(t.sends) > 0 || t.addsGroup || t.added != [partitions]bool{}):
		i.end(aborted)
	case n < 39 && rng.IntN(4) == 0:
		i.silent = true
		i.x.c.note("%s is silent", i.client)
	}
}

// leave ends an instance. What it has open is left to its timeout, or to the next instance.
func (i *instance) leave() {
	i.x.c.note("%s goes", i.client)
	i.of.instances = without(i.of.instances, i)
	i.txn, i.doing = nil, nil
}

func without(all []*instance, i *instance) []*instance {
	var left []*instance
	for _, o := range all {
		if o != i {
			left = append(left, o)
		}
	}
	return left
}

// ask sends a request to who seems to lead a shard.
func (i *instance) ask(shard coordinator.ShardID, what string, r kmsg.Request, answer func(kmsg.Response) protocol.ErrorCode) {
	n := i.x.leader(shard)
	if n == nil {
		return
	}
	i.x.c.note("%s %d/%d %s at %s", i.client, i.claim.id, i.claim.epoch, what, n.name)
	if change := i.x.c.broken.asks; change != nil {
		change(i.x.c, r)
	}
	i.doing = &doing{at: n, exchange: n.connection(i.client).ask(r), since: i.x.c.step, answer: answer}
}

// giveUp ends the wait for an answer. The request may be served yet.
func (i *instance) giveUp() {
	i.x.c.note("%s gives up", i.client)
	i.doing.at.clients[i.client].end()
	i.doing, i.dirty = nil, true
}

// poll takes an answer.
func (i *instance) poll() {
	if i.doing == nil || !i.doing.exchange.answered() {
		return
	}
	d := i.doing
	i.doing = nil
	if d.exchange.response == nil {
		i.dirty = true
		return
	}
	code := d.answer(d.exchange.response)
	i.x.c.note("%s is answered %v by %s", i.client, code, d.at.name)
	i.x.counts[code.String()]++
	switch code {
	case protocol.None, protocol.NotCoordinator, protocol.NotLeaderOrFollower, protocol.CoordinatorLoadInProgress, protocol.CoordinatorNotAvailable, protocol.ConcurrentTransactions,
		protocol.NotEnoughReplicas, protocol.NotEnoughReplicasAfterAppend, protocol.RequestTimedOut, protocol.UnknownTopicOrPartition,
		protocol.KafkaStorageError, protocol.LeaderNotAvailable, protocol.NetworkException:
	default: // its transaction is lost, or was never there: it comes anew, if it may (KIP-360, KIP-588)
		i.txn, i.unsent, i.needsID = nil, nil, true
	}
}

// fenced reports a success that a fenced instance must not have. since is the step at which it asked.
func (i *instance) fenced(since int, what string) {
	if i.fencedAt > 0 && since > i.fencedAt {
		i.x.c.check.report("6: %s %s in epoch %d/%d at step %d, a newer instance was there from step %d on", i.client, what, i.claim.id, i.claim.epoch, since, i.fencedAt)
	}
}

// init gives the instance a producer id and an epoch of its own. One that had some before says so.
func (i *instance) init() {
	r := kmsg.NewPtrInitProducerIDRequest()
	r.Version, r.TransactionalID, r.TransactionTimeoutMillis = 4, &i.of.name, int32(i.of.timeout.Milliseconds())
	r.ProducerID, r.ProducerEpoch = int64(i.claim.id), int16(i.claim.epoch)
	if i.of.version2 {
		r.Version = 5
	}
	i.ask(i.of.shard, "is initialized", r, func(response kmsg.Response) protocol.ErrorCode {
		a := response.(*kmsg.InitProducerIDResponse)
		code := protocol.ErrorCode(a.ErrorCode)
		switch {
		case code == protocol.None:
			i.initialized(claim{protocol.ProducerID(a.ProducerID), protocol.ProducerEpoch(a.ProducerEpoch)})
		case i.claim != noClaim && (code == protocol.ProducerFenced || code == protocol.InvalidProducerEpoch || code == protocol.InvalidProducerIDMapping):
			i.leave()
		}
		return code
	})
}

func (i *instance) initialized(got claim) {
	x := i.x
	x.c.note("%s has producer id %d, epoch %d", i.client, got.id, got.epoch)
	if by := x.handed[got]; by != nil && by != i {
		x.c.check.report("5: producer id %d with epoch %d is handed out to %s and to %s", got.id, got.epoch, by.client, i.client)
	}
	if x.c.ids[int64(got.id)] {
		x.c.check.report("5: producer id %d is handed out twice", got.id)
	}
	x.take(i, got)
	i.needsID, i.dirty, i.txn, i.unsent = false, false, nil, nil
	for _, o := range i.of.instances {
		if o.fencedAt == 0 && o.claim.id == got.id && o.claim.epoch < got.epoch {
			o.fencedAt = x.c.step
		}
	}
}

// take gives an instance its next claim, with which sequences begin anew.
func (x *transacting) take(i *instance, next claim) {
	if next != i.claim {
		i.sequences, i.fencedAt = [partitions]int32{}, 0
	}
	i.claim = next
	x.handed[next] = i
}

// newSend makes a batch of a transaction.
func (i *instance) newSend() *send {
	b := batch.NewBuilder(batch.None)
	n := 1 + i.x.c.rng.Int32N(3)
	log := &i.x.c.load.logs[i.sendsTo]
	s := &send{writer: i.writer, first: i.records, floor: log.floor}
	for range n {
		var k []byte
		if i.x.c.compacted {
			k = key(i.records)
		}
		i.x.c.load.append(b, i.writer, i.records, k)
		i.x.of[recordID{i.writer, i.records}] = i.txn
		i.records++
	}
	b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = i.claim.id, i.claim.epoch, i.sequences[i.sendsTo], true
	i.sequences[i.sendsTo] += n
	bytes, err := b.AppendTo(nil)
	if err != nil {
		panic(err)
	}
	if s.header, err = batch.Parse(bytes); err != nil {
		panic(err)
	}
	s.bytes = bytes
	log.sends = append(log.sends, s)
	i.txn.sends = append(i.txn.sends, s)
	return s
}

// produce sends what is not acknowledged, and before that, in version 1, adds its partition.
func (i *instance) produce() {
	t, s, number := i.txn, i.unsent, i.sendsTo
	if !i.of.version2 && !t.added[number] {
		i.addPartition(number)
		return
	}
	p := kmsg.NewProduceRequestTopicPartition()
	p.Partition, p.Records = number, s.bytes
	topic := kmsg.NewProduceRequestTopic()
	topic.Topic, topic.Partitions = i.x.c.topic.Name, []kmsg.ProduceRequestTopicPartition{p}
	r := kmsg.NewPtrProduceRequest()
	r.Version, r.TransactionID, r.Acks, r.TimeoutMillis, r.Topics = 11, &i.of.name, -1, 30_000, []kmsg.ProduceRequestTopic{topic}
	if i.of.version2 {
		r.Version = 12
	}
	since := i.x.c.step
	i.ask(i.x.c.shardOf(number), fmt.Sprintf("sends %d to %d", s.first, number), r, func(response kmsg.Response) protocol.ErrorCode {
		a := response.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		code := protocol.ErrorCode(a.ErrorCode)
		if code == protocol.None {
			i.fenced(since, "has written")
			s.outcome, s.base = check.Acked, a.BaseOffset
			log := &i.x.c.load.logs[number]
			log.floor = max(log.floor, s.base+int64(s.header.Records)-1)
			i.unsent = nil
		}
		return code
	})
}

func (i *instance) addPartition(number int32) {
	t := i.txn
	topic := kmsg.NewAddPartitionsToTxnRequestTopic()
	topic.Topic, topic.Partitions = i.x.c.topic.Name, []int32{number}
	r := kmsg.NewPtrAddPartitionsToTxnRequest()
	r.Version, r.TransactionalID, r.ProducerID, r.ProducerEpoch, r.Topics = 3, i.of.name, int64(i.claim.id), int16(i.claim.epoch), []kmsg.AddPartitionsToTxnRequestTopic{topic}
	i.ask(i.of.shard, fmt.Sprintf("adds %d", number), r, func(response kmsg.Response) protocol.ErrorCode {
		code := protocol.ErrorCode(response.(*kmsg.AddPartitionsToTxnResponse).Topics[0].Partitions[0].ErrorCode)
		t.added[number] = t.added[number] || code == protocol.None
		return code
	})
}

// sendOffset sends the transaction's offset to the group, and before that, in version 1, adds the group.
func (i *instance) sendOffset() {
	t := i.txn
	if !i.of.version2 && !t.addsGroup {
		r := kmsg.NewPtrAddOffsetsToTxnRequest()
		r.Version, r.TransactionalID, r.ProducerID, r.ProducerEpoch, r.Group = 3, i.of.name, int64(i.claim.id), int16(i.claim.epoch), i.of.group
		i.ask(i.of.shard, "adds the group", r, func(response kmsg.Response) protocol.ErrorCode {
			code := protocol.ErrorCode(response.(*kmsg.AddOffsetsToTxnResponse).ErrorCode)
			t.addsGroup = t.addsGroup || code == protocol.None
			return code
		})
		return
	}
	p := kmsg.NewTxnOffsetCommitRequestTopicPartition()
	p.Offset = t.offset
	topic := kmsg.NewTxnOffsetCommitRequestTopic()
	topic.Topic, topic.Partitions = i.x.c.topic.Name, []kmsg.TxnOffsetCommitRequestTopicPartition{p}
	r := kmsg.NewPtrTxnOffsetCommitRequest()
	r.Version, r.TransactionalID, r.Group, r.ProducerID, r.ProducerEpoch = 4, i.of.name, i.of.group, int64(i.claim.id), int16(i.claim.epoch)
	r.Generation, r.Topics = -1, []kmsg.TxnOffsetCommitRequestTopic{topic}
	if i.of.version2 {
		r.Version = 5
	}
	since := i.x.c.step
	i.ask(i.of.groupShard, fmt.Sprintf("sends offset %d", t.offset), r, func(response kmsg.Response) protocol.ErrorCode {
		code := protocol.ErrorCode(response.(*kmsg.TxnOffsetCommitResponse).Topics[0].Partitions[0].ErrorCode)
		if code == protocol.None {
			i.fenced(since, "has sent offsets")
			t.offsetSent = true
		}
		return code
	})
}

// end asks for the end of the transaction.
func (i *instance) end(how outcome) {
	t := i.txn
	if how == committed && t.offset > 0 && !t.offsetSent {
		i.sendOffset()
		return
	}
	t.asked = how
	r := kmsg.NewPtrEndTxnRequest()
	r.Version, r.TransactionalID, r.ProducerID, r.ProducerEpoch, r.Commit = 4, i.of.name, int64(i.claim.id), int16(i.claim.epoch), how == committed
	if i.of.version2 {
		r.Version = 5
	}
	since := i.x.c.step
	i.ask(i.of.shard, "is to be "+how.String(), r, func(response kmsg.Response) protocol.ErrorCode {
		a := response.(*kmsg.EndTxnResponse)
		code := protocol.ErrorCode(a.ErrorCode)
		if code == protocol.None {
			i.fenced(since, "has ended a transaction")
			i.ended(t, a)
		}
		return code
	})
}

// ended takes in that the transaction has ended as it was asked to.
func (i *instance) ended(t *transaction, a *kmsg.EndTxnResponse) {
	if t.decided != t.asked && (t.asked == committed || t.decided != undecided) {
		i.x.c.check.report("6: %s is told that its transaction in epoch %d/%d is %v, etcd has it %v", i.client, t.claim.id, t.claim.epoch, t.asked, t.decided)
	}
	i.x.counts[t.asked.String()]++
	i.txn, i.unsent = nil, nil
	if i.of.version2 {
		next := claim{protocol.ProducerID(a.ProducerID), protocol.ProducerEpoch(a.ProducerEpoch)}
		if by := i.x.handed[next]; by != nil && by != i {
			i.x.c.check.report("5: producer id %d with epoch %d is handed out to %s and to %s", next.id, next.epoch, by.client, i.client)
		}
		i.x.take(i, next)
		i.dirty = false
	}
}
