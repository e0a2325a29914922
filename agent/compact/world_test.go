package compact_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

const (
	deleteRetentionMs = 10_000
	plainBytesMax     = 1 << 20
)

// entry is a batch in a log.
type entry struct {
	h       batch.Header
	b       []byte
	records []read
}

// read is a record as a reader sees it.
type read struct {
	offset     protocol.Offset
	timestamp  int64
	key, value []byte
	text       string // all of it
}

// read reads a batch, and checks it.
func (w *world) read(b []byte) (entry, error) {
	h, err := batch.Parse(b)
	if err != nil {
		return entry{}, err
	}
	if err := batch.Verify(b, &h); err != nil {
		return entry{}, err
	}
	rs, err := w.decompressor.Records(&h, b)
	if err != nil {
		return entry{}, err
	}
	e := entry{h: h, b: b}
	var r batch.Record
	for rs.Next(&r) {
		one := read{offset: h.Offset(&r), timestamp: h.Timestamp(&r), key: bytes.Clone(r.Key), value: bytes.Clone(r.Value)}
		one.text = fmt.Sprintf("%d %d %q %q %t %t", one.offset, one.timestamp, r.Key, r.Value, r.Key == nil, r.Value == nil)
		for key, value := range r.Headers() {
			one.text += fmt.Sprintf(" %q=%q", key, value)
		}
		e.records = append(e.records, one)
	}
	return e, rs.Err()
}

// sender is a producer, or nobody in particular.
type sender struct {
	id            protocol.ProducerID
	epoch         protocol.ProducerEpoch
	sequence      int32
	transactional bool
	raises        bool            // its markers raise the epoch (KIP-890)
	first         protocol.Offset // of its open transaction; NoOffset without
}

// world is a partition as producers write it and cleanings leave it.
type world struct {
	rng      *rand.Rand
	nowMs    int64
	original []entry // all that was ever appended
	log      []entry // what cleanings left of it
	end      protocol.Offset
	cleaned  protocol.Offset
	touched  protocol.Offset // how far any cleaning went, be it that not all of it was put in place
	senders  []*sender
	newest   map[protocol.ProducerID]compact.Newest // of producers that are remembered

	covered           map[protocol.Offset]int64 // when a cleaning first went beyond the batch with that last offset
	vacant            map[protocol.Offset]int64 // when a cleaning first found that a marker's transaction has no batch left
	broken            breakage
	deleteRetentionMs int64

	decompressor *batch.Decompressor
	filter       *batch.Filter
	builders     map[batch.Codec]*batch.Builder
	offsets      *compact.OffsetMap
}

// breakage is a mistake in how a cleaning is done, which the checks must notice.
type breakage int

const (
	sound              breakage = iota
	keysOfAborted               // the first pass does not know what was aborted
	recordsOfAborted            // the second pass does not
	transactionsCut             // who tells transactions stops at the bound
	producersForgotten          // the second pass does not know the producers
	retentionForgotten          // tombstones and markers go at once
	endTooHigh                  // the map is taken for complete although it was full
	beyondStable                // the bound is beyond the last stable offset
	fromCleaned                 // the second pass begins where the first does
	breakages                   // how many there are
)

func newWorld(seed uint64, broken breakage) *world {
	d := batch.NewDecompressor(plainBytesMax)
	w := &world{
		broken: broken, deleteRetentionMs: deleteRetentionMs, decompressor: d, filter: batch.NewFilter(d), builders: make(map[batch.Codec]*batch.Builder),
		rng: rand.New(rand.NewPCG(seed, 1)), nowMs: 1_700_000_000_000,
		newest: make(map[protocol.ProducerID]compact.Newest), covered: make(map[protocol.Offset]int64), vacant: make(map[protocol.Offset]int64),
	}
	w.senders = []*sender{{id: protocol.NoProducerID, epoch: protocol.NoProducerEpoch, sequence: protocol.NoSequence, first: protocol.NoOffset}}
	for i := range 6 {
		w.hire(i%3 > 0, i%3 > 1)
	}
	for codec := batch.None; codec <= batch.Zstd; codec++ {
		w.builders[codec] = batch.NewBuilder(codec)
	}
	w.offsets = compact.NewOffsetMap(24 * (2 + w.rng.IntN(25)))
	return w
}

// hire lets a new producer begin.
func (w *world) hire(transactional, raises bool) {
	w.senders = append(w.senders, &sender{
		id: protocol.ProducerID(1000 + len(w.newest) + w.rng.IntN(1_000_000)), transactional: transactional, raises: raises, first: protocol.NoOffset,
	})
}

// step lets one producer do something.
func (w *world) step() error {
	i := w.rng.IntN(len(w.senders))
	s := w.senders[i]
	switch {
	case s.first != protocol.NoOffset && w.rng.IntN(3) == 0:
		return w.mark(s)
	case s.id != protocol.NoProducerID && s.first == protocol.NoOffset && w.rng.IntN(40) == 0: // it is never heard of again, and forgotten
		delete(w.newest, s.id)
		w.senders = slices.Delete(w.senders, i, i+1)
		w.hire(s.transactional, s.raises)
		return nil
	case s.id != protocol.NoProducerID && !s.transactional && w.rng.IntN(20) == 0:
		s.epoch, s.sequence = s.epoch+1, 0
	}
	return w.send(s)
}

// send appends a batch of a producer.
func (w *world) send(s *sender) error {
	b := w.builders[batch.Codec(w.rng.IntN(len(w.builders)))]
	b.Reset()
	b.BaseOffset, b.LeaderEpoch = w.end, protocol.LeaderEpoch(w.end/100)
	b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Transactional = s.id, s.epoch, s.sequence, s.transactional
	n := 1 + w.rng.IntN(5)
	for i := range n {
		key, value := fmt.Appendf(nil, "key-%d", w.rng.IntN(14)), fmt.Appendf(nil, "%d", w.end+protocol.Offset(i))
		switch w.rng.IntN(40) {
		case 0:
			key = nil
		case 1, 2, 3, 4, 5, 6, 7, 8:
			value = nil
		case 9:
			value = []byte{}
		}
		b.Append(w.nowMs-w.rng.Int64N(100), key, value, batch.HeaderField{Key: "h", Value: key})
	}
	if s.transactional && s.first == protocol.NoOffset {
		s.first = w.end
	}
	if s.id != protocol.NoProducerID {
		s.sequence += int32(n)
		w.newest[s.id] = compact.Newest{Offset: w.end + protocol.Offset(n) - 1, Epoch: s.epoch}
	}
	raw, err := b.AppendTo(nil)
	return w.append(raw, err)
}

// mark ends a producer's transaction.
func (w *world) mark(s *sender) error {
	if s.raises {
		s.epoch, s.sequence = s.epoch+1, 0
		w.newest[s.id] = compact.Newest{Offset: protocol.NoOffset, Epoch: s.epoch}
	}
	s.first = protocol.NoOffset
	m := batch.EndMarker{Marker: batch.Marker(w.rng.IntN(2)), ProducerID: s.id, ProducerEpoch: s.epoch, Timestamp: w.nowMs}
	return w.append(batch.AppendControlBatch(nil, w.end, protocol.LeaderEpoch(w.end/100), m))
}

func (w *world) append(raw []byte, err error) error {
	if err != nil {
		return err
	}
	e, err := w.read(raw)
	w.original, w.log = append(w.original, e), append(w.log, e)
	w.end = e.h.NextOffset()
	return err
}

// stable is the last stable offset.
func (w *world) stable() protocol.Offset {
	stable := w.end
	for _, s := range w.senders {
		if s.first != protocol.NoOffset {
			stable = min(stable, s.first)
		}
	}
	return stable
}

// bound is how far a cleaning may go: to the last stable offset, or some batch before.
func (w *world) bound() protocol.Offset {
	bound := w.stable()
	if w.broken == beyondStable {
		return w.end
	}
	if w.rng.IntN(2) == 0 {
		for i := range w.log {
			if at := w.log[i].h.BaseOffset; at <= bound && w.rng.IntN(len(w.log)-i) == 0 {
				bound = at
			}
		}
	}
	return max(bound, w.cleaned)
}

// clean does one cleaning, as the package comment has it. If it is cut, only a prefix of what it leaves is put in place.
func (w *world) clean(bound protocol.Offset, cut bool) error {
	aborted, err := w.aborted(bound)
	if err != nil {
		return err
	}
	keys := compact.NewKeys(w.offsets, w.decompressor, w.cleaned, bound, unless(w.broken == keysOfAborted, aborted))
	for i := range w.log {
		if full, err := keys.Add(&w.log[i].h, w.log[i].b); err != nil {
			return err
		} else if full {
			break
		}
	}
	end := keys.End()
	if w.broken == endTooHigh {
		end = bound
	}
	until := end
	if cut && len(w.log) > 0 {
		until = min(end, w.log[w.rng.IntN(len(w.log))].h.BaseOffset)
	}
	w.note(until)
	w.touched = max(w.touched, end)
	cleaning := compact.Cleaning{
		End: end, Bound: bound, Aborted: unless(w.broken == recordsOfAborted, aborted), Newest: w.newest, NowMs: w.nowMs, DeleteRetentionMs: w.deleteRetentionMs,
	}
	if w.broken == producersForgotten {
		cleaning.Newest = nil
	}
	if w.broken == retentionForgotten {
		cleaning.DeleteRetentionMs = 0
	}
	if err := w.rewrite(compact.NewCleaner(w.offsets, w.filter, cleaning), until); err != nil {
		return err
	}
	if !cut {
		w.cleaned = end
	}
	return nil
}

func unless(broken bool, aborted []compact.Aborted) []compact.Aborted {
	if broken {
		return nil
	}
	return aborted
}

// aborted finds the aborted transactions of the log.
func (w *world) aborted(bound protocol.Offset) ([]compact.Aborted, error) {
	transactions := compact.NewTransactions(bound)
	for i := range w.log {
		e := &w.log[i]
		if transactions.Complete(e.h.BaseOffset) || w.broken == transactionsCut && e.h.BaseOffset >= bound {
			return transactions.Aborted(), nil
		}
		switch {
		case e.h.Attributes.Control():
			m, err := batch.ParseControl(&e.h, e.b)
			if err != nil {
				return nil, err
			}
			transactions.Marker(e.h.ProducerID, m.Marker, e.h.BaseOffset)
		case e.h.Attributes.Transactional():
			transactions.Data(e.h.ProducerID, e.h.BaseOffset)
		}
	}
	if !transactions.Complete(w.end) && w.broken == sound {
		return nil, fmt.Errorf("transactions that began below %d have no end", bound)
	}
	return transactions.Aborted(), nil
}

// rewrite does a second pass, and puts in place what it leaves of the batches below an offset.
func (w *world) rewrite(cleaner *compact.Cleaner, until protocol.Offset) error {
	var left []entry
	for i := range w.log {
		e := w.log[i]
		if e.h.BaseOffset >= until || w.broken == fromCleaned && e.h.NextOffset() <= w.cleaned {
			left = append(left, e)
			continue
		}
		out, err := cleaner.Clean(&e.h, e.b)
		if err != nil {
			return err
		}
		if len(out) == 0 {
			continue
		}
		if &out[0] != &e.b[0] {
			if e, err = w.read(slices.Clone(out)); err != nil {
				return err
			}
		}
		left = append(left, e)
	}
	w.log = left
	return nil
}

// note keeps for the checks what a cleaning up to end finds there.
func (w *world) note(end protocol.Offset) {
	present := make(map[protocol.ProducerID]bool)
	for i := range w.log {
		h := &w.log[i].h
		if h.NextOffset() > end {
			break
		}
		if _, ok := w.covered[h.LastOffset()]; !ok {
			w.covered[h.LastOffset()] = w.nowMs
		}
		switch {
		case h.Attributes.Control():
			if _, ok := w.vacant[h.BaseOffset]; !ok && !present[h.ProducerID] {
				w.vacant[h.BaseOffset] = w.nowMs
			}
			delete(present, h.ProducerID)
		case h.Attributes.Transactional():
			present[h.ProducerID] = true
		}
	}
}
