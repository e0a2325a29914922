package compact_test

import (
	"bytes"
	"fmt"
	"maps"
	"testing"

	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

// Whatever producers write and however often it is cleaned, readers see the newest of each key.
func TestModel(t *testing.T) {
	for seed := range uint64(40) {
		if err := run(seed, sound); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// The checks notice each breakage.
func TestModelNoticesBreakages(t *testing.T) {
	for broken := sound + 1; broken < breakages; broken++ {
		var noticed error
		for seed := uint64(0); seed < 50 && noticed == nil; seed++ {
			noticed = run(seed, broken)
		}
		if noticed == nil {
			t.Errorf("breakage %d goes unnoticed", broken)
		}
		t.Logf("breakage %d: %v", broken, noticed)
	}
}

// run lets producers write and cleans, by turns, and checks after each cleaning.
func run(seed uint64, broken breakage) error {
	w := newWorld(seed, broken)
	for round := range 12 {
		for range w.rng.IntN(40) {
			if err := w.step(); err != nil {
				return err
			}
		}
		w.nowMs += w.rng.Int64N(deleteRetentionMs)
		if err := w.clean(w.bound(), w.rng.IntN(4) == 0); err != nil {
			return fmt.Errorf("cleaning %d: %w", round, err)
		}
		if err := w.check(); err != nil {
			return fmt.Errorf("cleaning %d, up to %d of %d: %w", round, w.cleaned, w.end, err)
		}
	}
	for _, s := range w.senders {
		if s.first != protocol.NoOffset {
			if err := w.mark(s); err != nil {
				return err
			}
		}
	}
	if w.rng.IntN(2) == 0 {
		clear(w.newest) // all are forgotten
	}
	for w.cleaned < w.stable() {
		if err := w.clean(w.stable(), false); err != nil {
			return err
		}
	}
	for range 4 { // enough for markers: their transaction empty, its last batch gone, the horizon set, gone
		w.nowMs += deleteRetentionMs
		if err := w.clean(w.stable(), false); err != nil {
			return err
		}
		if err := w.check(); err != nil {
			return fmt.Errorf("at rest: %w", err)
		}
	}
	return w.checkRest()
}

// outcomes says of each batch of a transaction, by its base offset, how the transaction ended; those that are open are missing.
func outcomes(log []entry) (map[protocol.Offset]batch.Marker, error) {
	ended := make(map[protocol.Offset]batch.Marker)
	open := make(map[protocol.ProducerID][]protocol.Offset)
	for i := range log {
		e := &log[i]
		if e.h.Attributes.Control() {
			m, err := batch.ParseControl(&e.h, e.b)
			if err != nil {
				return nil, err
			}
			for _, at := range open[e.h.ProducerID] {
				ended[at] = m.Marker
			}
			delete(open, e.h.ProducerID)
		} else if e.h.Attributes.Transactional() {
			open[e.h.ProducerID] = append(open[e.h.ProducerID], e.h.BaseOffset)
		}
	}
	return ended, nil
}

// check holds the log against what was appended.
func (w *world) check() error {
	ended, err := outcomes(w.original)
	if err != nil {
		return err
	}
	for _, check := range []func(map[protocol.Offset]batch.Marker) error{w.checkBatches, w.checkReaders, w.checkClean, w.checkNewest, w.checkMarkers} {
		if err := check(ended); err != nil {
			return err
		}
	}
	return w.checkProducers()
}

// checkBatches: what is there is as it was appended, in the same place; from where the cleaning ended on it is the same bytes, and so is the last batch there.
func (w *world) checkBatches(map[protocol.Offset]batch.Marker) error {
	originals := make(map[protocol.Offset]*entry)
	for i := range w.original {
		originals[w.original[i].h.BaseOffset] = &w.original[i]
	}
	next := protocol.Offset(0)
	for i := range w.log {
		e := &w.log[i]
		was := originals[e.h.BaseOffset]
		if was == nil || e.h.BaseOffset < next || e.h.LastOffset() != was.h.LastOffset() {
			return fmt.Errorf("batch [%d,%d] after %d was never appended", e.h.BaseOffset, e.h.LastOffset(), next)
		}
		next = e.h.NextOffset()
		if e.h.BaseOffset >= w.touched && !bytes.Equal(e.b, was.b) {
			return fmt.Errorf("batch at %d has changed, beyond the end %d of any cleaning", e.h.BaseOffset, w.touched)
		}
		if e.h.ProducerID != was.h.ProducerID || e.h.ProducerEpoch != was.h.ProducerEpoch || e.h.BaseSequence != was.h.BaseSequence || e.h.LeaderEpoch != was.h.LeaderEpoch ||
			e.h.Attributes.Transactional() != was.h.Attributes.Transactional() || e.h.Attributes.Control() != was.h.Attributes.Control() {
			return fmt.Errorf("header of the batch at %d is %+v, was %+v", e.h.BaseOffset, e.h, was.h)
		}
		if err := compareRecords(e, was, w.touched); err != nil {
			return err
		}
	}
	if next != w.end {
		return fmt.Errorf("the log ends at %d, want %d", next, w.end)
	}
	return nil
}

func compareRecords(e, was *entry, touched protocol.Offset) error {
	texts := make(map[protocol.Offset]string)
	for _, r := range was.records {
		texts[r.offset] = r.text
	}
	largest := protocol.NoTimestamp
	for _, r := range e.records {
		if texts[r.offset] != r.text {
			return fmt.Errorf("record %s was %s", r.text, texts[r.offset])
		}
		largest = max(largest, r.timestamp)
		delete(texts, r.offset)
	}
	for offset := range texts {
		if offset >= touched {
			return fmt.Errorf("record %s is gone, beyond the end %d of any cleaning", texts[offset], touched)
		}
	}
	if len(e.records) > 0 && largest != e.h.MaxTimestamp {
		return fmt.Errorf("batch at %d has max timestamp %d, want %d", e.h.BaseOffset, e.h.MaxTimestamp, largest)
	}
	return nil
}

// replay returns the newest value of each key that has one.
func replay(log []entry, take func(e *entry, r *read) bool) map[string]string {
	state := make(map[string]string)
	for i := range log {
		if log[i].h.Attributes.Control() {
			continue
		}
		for _, r := range log[i].records {
			switch {
			case r.key == nil || !take(&log[i], &r):
			case r.value == nil:
				delete(state, string(r.key))
			default:
				state[string(r.key)] = string(r.value)
			}
		}
	}
	return state
}

// checkReaders: readers of what is committed, and of all but what a cleaning removes, end with the values of the log as it was appended.
func (w *world) checkReaders(ended map[protocol.Offset]batch.Marker) error {
	endedHere, err := outcomes(w.log)
	if err != nil {
		return err
	}
	committed := func(ended map[protocol.Offset]batch.Marker) func(*entry, *read) bool {
		return func(e *entry, r *read) bool {
			return r.offset < w.stable() && (!e.h.Attributes.Transactional() || ended[e.h.BaseOffset] == batch.Commit)
		}
	}
	for at, outcome := range endedHere {
		if ended[at] != outcome {
			return fmt.Errorf("the transaction of the batch at %d ends with %d, did with %d", at, outcome, ended[at])
		}
	}
	for i := range w.log {
		h := &w.log[i].h
		if _, ok := endedHere[h.BaseOffset]; !ok && h.Attributes.Transactional() && !h.Attributes.Control() && h.BaseOffset < w.stable() {
			return fmt.Errorf("the transaction of the batch at %d has no end", h.BaseOffset)
		}
	}
	if err := w.compare("committed", committed(endedHere), committed(ended)); err != nil {
		return err
	}
	there := make(map[protocol.Offset]bool)
	for i := range w.log {
		there[w.log[i].h.BaseOffset] = len(w.log[i].records) > 0
	}
	return w.compare("uncommitted", func(*entry, *read) bool { return true }, func(e *entry, _ *read) bool {
		outcome, ok := ended[e.h.BaseOffset]
		return there[e.h.BaseOffset] || !ok || outcome == batch.Commit
	})
}

func (w *world) compare(reader string, take, takeOriginal func(*entry, *read) bool) error {
	got, want := replay(w.log, take), replay(w.original, takeOriginal)
	if !maps.Equal(got, want) {
		return fmt.Errorf("a reader of what is %s sees %v, want %v", reader, got, want)
	}
	return nil
}

// checkClean: below the end of the cleaning is one record of each key, nothing that was aborted, and nothing without a key.
func (w *world) checkClean(ended map[protocol.Offset]batch.Marker) error {
	seen := make(map[string]protocol.Offset)
	for i := range w.log {
		e := &w.log[i]
		if e.h.Attributes.Control() || e.h.BaseOffset >= w.cleaned {
			continue
		}
		if len(e.records) > 0 && aborted(ended, e) {
			return fmt.Errorf("batch at %d was aborted", e.h.BaseOffset)
		}
		for _, r := range e.records {
			if r.offset >= w.cleaned {
				break
			}
			if before, ok := seen[string(r.key)]; ok || r.key == nil {
				return fmt.Errorf("key %q has a record at %d, and one at %d", r.key, before, r.offset)
			}
			seen[string(r.key)] = r.offset
		}
	}
	return nil
}

func aborted(ended map[protocol.Offset]batch.Marker, e *entry) bool {
	outcome, ok := ended[e.h.BaseOffset]
	return ok && outcome == batch.Abort
}

// newestBelow returns the newest record of each key below an offset, without those that were aborted.
func newestBelow(log []entry, below protocol.Offset, ended map[protocol.Offset]batch.Marker) map[string]read {
	newest := make(map[string]read)
	for i := range log {
		if log[i].h.Attributes.Control() || aborted(ended, &log[i]) {
			continue
		}
		for _, r := range log[i].records {
			if r.key != nil && r.offset < below {
				newest[string(r.key)] = r
			}
		}
	}
	return newest
}

// checkNewest: the newest record of each key is there, below where any cleaning ended, and be it a tombstone, unless that is old enough.
func (w *world) checkNewest(ended map[protocol.Offset]batch.Marker) error {
	expires := make(map[protocol.Offset]int64) // of tombstones
	for i := range w.original {
		e := &w.original[i]
		covered, ok := w.covered[e.h.LastOffset()]
		for _, r := range e.records {
			if ok && r.value == nil {
				expires[r.offset] = covered + deleteRetentionMs
			}
		}
	}
	got := newestBelow(w.log, w.touched, ended)
	for key, want := range newestBelow(w.original, w.touched, ended) {
		r, there := got[key]
		if at, ok := expires[want.offset]; !there && ok && w.nowMs >= at {
			continue
		}
		if !there || r.offset != want.offset {
			return fmt.Errorf("key %q has its newest record at %d (%t), want %d", key, r.offset, there, want.offset)
		}
	}
	return nil
}

// checkMarkers: a marker is there until its transaction has had no batch for long enough.
func (w *world) checkMarkers(map[protocol.Offset]batch.Marker) error {
	there := make(map[protocol.Offset]bool)
	for i := range w.log {
		there[w.log[i].h.BaseOffset] = true
	}
	for i := range w.original {
		h := &w.original[i].h
		since, vacant := w.vacant[h.BaseOffset]
		if h.Attributes.Control() && !there[h.BaseOffset] && (!vacant || w.nowMs < since+deleteRetentionMs) {
			return fmt.Errorf("the marker at %d is gone, at %d, where its transaction was found empty at %d (%t)", h.BaseOffset, w.nowMs, since, vacant)
		}
	}
	return nil
}

// checkProducers: a producer that is remembered can be restored from the log.
func (w *world) checkProducers() error {
	want, got := restore(w.original), restore(w.log)
	for id := range w.newest {
		if w, g := want[id], got[id]; g.Epoch != w.Epoch || g.LastSequence() != w.LastSequence() || g.TxnFirst != w.TxnFirst {
			return fmt.Errorf("producer %d is restored as %+v, was %+v", id, g, w)
		}
	}
	return nil
}

func restore(log []entry) map[protocol.ProducerID]partition.Producer {
	var producers partition.Producers
	for i := range log {
		h := &log[i].h
		if !h.Idempotent() {
			continue
		}
		producers.Append(0, partition.Batch{
			ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch, BaseSequence: h.BaseSequence, Records: h.LastOffsetDelta + 1,
			Transactional: h.Attributes.Transactional(), Marker: h.Attributes.Control(),
		}, h.BaseOffset)
	}
	all := make(map[protocol.ProducerID]partition.Producer)
	for _, p := range producers.All() {
		all[p.ID] = p
	}
	return all
}

// checkRest: when nothing is written any more, what has expired is gone in the end.
func (w *world) checkRest() error {
	for i := range w.log {
		e := &w.log[i]
		if e.h.NextOffset() >= w.cleaned {
			break // the last batch stays
		}
		newest, remembered := w.newest[e.h.ProducerID]
		if e.h.Attributes.Control() {
			continue
		}
		if len(e.records) == 0 && (!remembered || newest.Offset != e.h.LastOffset()) {
			return fmt.Errorf("the batch at %d is empty, and is nobody's newest", e.h.BaseOffset)
		}
		for _, r := range e.records {
			if r.value == nil {
				return fmt.Errorf("the tombstone at %d is still there", r.offset)
			}
		}
	}
	return w.checkMarkersAtRest()
}

// checkMarkersAtRest: a marker is there if its transaction has a batch, or if its producer needs it.
func (w *world) checkMarkersAtRest() error {
	present := make(map[protocol.ProducerID]bool)
	for i := range w.log {
		h := &w.log[i].h
		if h.NextOffset() >= w.cleaned {
			break
		}
		if !h.Attributes.Control() {
			present[h.ProducerID] = present[h.ProducerID] || h.Attributes.Transactional()
			continue
		}
		newest, remembered := w.newest[h.ProducerID]
		if !present[h.ProducerID] && (!remembered || newest.Offset != protocol.NoOffset || newest.Epoch != h.ProducerEpoch) {
			return fmt.Errorf("the marker at %d is still there, and nobody needs it", h.BaseOffset)
		}
		present[h.ProducerID] = false
	}
	return nil
}
