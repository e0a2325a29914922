package groups

import (
	"maps"
	"slices"
	"strings"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// blockKey names the offsets of a block of a topic's partitions, which share a key of the coordinator.
type blockKey struct {
	topic string
	block int32 // partition / coordinator.OffsetsPerKey
}

// block holds a block's offsets twice: as they are durable, and as they will be once all writes under way are. The maps are
// replaced, never changed.
type block struct {
	durable  coordinator.GroupOffsets
	latest   coordinator.GroupOffsets
	inFlight int  // writes of this block
	failed   bool // one of those since inFlight was last 0 has failed
}

// change sets a partition's offset, or deletes it if offset is nil.
type change struct {
	topic     string
	partition int32
	offset    *coordinator.GroupOffset
}

func (ch change) block() blockKey { return blockOf(ch.topic, ch.partition) }

// blockOf returns the block that a partition's offset is in.
func blockOf(topic string, partition int32) blockKey {
	return blockKey{topic, partition / coordinator.OffsetsPerKey}
}

// blockWrite is a block's content on its way to the coordinator.
type blockWrite struct {
	key     blockKey
	content coordinator.GroupOffsets
	value   []byte // nil deletes the block's key
}

// Limits of one call of the ledger, well within those of a transaction so that it can gather several.
const (
	writeOpsMax   = coordinator.TxnOpsMax / 4
	writeBytesMax = coordinator.ValueBytesMax
)

// offset returns the durable offset of a partition.
func (o *owner) offset(topic string, partition int32) (coordinator.GroupOffset, bool) {
	b := o.offsets[blockOf(topic, partition)]
	if b == nil {
		return coordinator.GroupOffset{}, false
	}
	offset, ok := b.durable[partition]
	return offset, ok
}

// change writes offsets. done gets None once all are durable; refused, which is called before, the blocks that do not
// fit into a value, of which nothing is written. Changes of one partition take effect in their order.
func (o *owner) change(changes []change, refused func(blockKey), done func(protocol.ErrorCode)) {
	contents := map[blockKey]coordinator.GroupOffsets{}
	for _, ch := range changes {
		key := ch.block()
		content := contents[key]
		if content == nil {
			content = coordinator.GroupOffsets{}
			if b := o.offsets[key]; b != nil {
				maps.Copy(content, b.latest)
			}
			contents[key] = content
		}
		if ch.offset == nil {
			delete(content, ch.partition)
		} else {
			offset := *ch.offset
			offset.CommitMs = o.stamp(ch.topic, ch.partition, offset.CommitMs)
			content[ch.partition] = offset
		}
	}
	var writes []blockWrite
	for _, key := range sortedBlocks(contents) {
		w := blockWrite{key: key, content: contents[key]}
		if len(w.content) > 0 {
			w.value = coordinator.Encode(w.content)
		}
		if len(w.value) > coordinator.ValueBytesMax {
			refused(key)
			continue
		}
		writes = append(writes, w)
	}
	o.writeBlocks(writes, done)
}

// writeBlocks hands blocks to the ledger, in as many calls as its limits ask for; all at once, since a later commit
// builds upon their contents.
func (o *owner) writeBlocks(writes []blockWrite, done func(protocol.ErrorCode)) {
	if len(writes) == 0 {
		done(protocol.None)
		return
	}
	parts := split(writes)
	missing, worst := len(parts), protocol.None
	for _, part := range parts {
		o.writePart(part, nil, func(code protocol.ErrorCode) {
			if worst == protocol.None {
				worst = code
			}
			if missing--; missing == 0 {
				done(worst)
			}
		})
	}
}

// writePart hands blocks to the ledger in one call, with other operations.
func (o *owner) writePart(part []blockWrite, ops []coordinator.Op, done func(protocol.ErrorCode)) {
	for _, w := range part {
		ops = append(ops, coordinator.Op{
			Key: coordinator.KeyOffsets(o.name, w.key.topic, w.key.block), Value: w.value, Delete: w.value == nil,
		})
		o.begin(w)
	}
	record := !o.recorded
	if record { // a group with offsets has a record, by which it is found
		ops = append(ops, o.simpleRecord())
	}
	o.write(ops, func(code protocol.ErrorCode) {
		for _, w := range part {
			o.finish(w, code)
		}
		if record && code == protocol.None {
			o.nowRecorded()
		}
		done(code)
	})
}

// simpleRecord is the record of a group of which no generation was worked in yet.
func (o *owner) simpleRecord() coordinator.Op {
	return coordinator.Op{Key: coordinator.KeyGroup(o.name), Value: coordinator.Encode(o.machine.Snapshot().WithoutMembers())}
}

func (o *owner) begin(w blockWrite) {
	b := o.offsets[w.key]
	if b == nil {
		b = &block{}
		o.offsets[w.key] = b
	}
	b.latest = w.content
	b.inFlight++
}

// finish takes the outcome of a block's write. After a failure, and once nothing is under way any more, the next commit
// builds upon what is known to be durable. (Should the failed write have been applied nevertheless, the next one undoes it.)
func (o *owner) finish(w blockWrite, code protocol.ErrorCode) {
	b := o.offsets[w.key]
	b.inFlight--
	if code == protocol.None {
		b.durable = w.content
	} else {
		b.failed = true
	}
	if b.inFlight > 0 {
		return
	}
	if b.failed {
		b.failed, b.latest = false, b.durable
	}
	if len(b.latest) == 0 {
		delete(o.offsets, w.key)
	}
}

// split cuts writes into parts that one call of the ledger takes.
func split(writes []blockWrite) [][]blockWrite {
	var parts [][]blockWrite
	first, bytes := 0, 0
	for i, w := range writes {
		if i > first && (i-first >= writeOpsMax || bytes+len(w.value) > writeBytesMax) {
			parts = append(parts, writes[first:i])
			first, bytes = i, 0
		}
		bytes += len(w.value)
	}
	return append(parts, writes[first:])
}

func compareBlocks(a, b blockKey) int {
	if c := strings.Compare(a.topic, b.topic); c != 0 {
		return c
	}
	return int(a.block) - int(b.block)
}

func sortedBlocks[V any](blocks map[blockKey]V) []blockKey {
	return slices.SortedFunc(maps.Keys(blocks), compareBlocks)
}
