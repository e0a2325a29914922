package compact_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
)

const t0 = 1_700_000_000_000

// script makes a log of words: "a=1" and "a=" are batches of one record, a tombstone the latter, "a=1,b=2" of several, "=1" without key; "P" before it makes it one of transactional producer P, "p" of
// an idempotent one; "P+" and "P-" commit and abort.
func script(t testing.TB, words string) []entry {
	t.Helper()
	w := newWorld(0, sound)
	sequence := make(map[protocol.ProducerID]int32)
	for word := range strings.FieldsSeq(words) {
		b := batch.NewBuilder(batch.None)
		b.BaseOffset, b.LeaderEpoch = w.end, 1
		who, what, ok := strings.Cut(word, ":")
		if ok {
			b.ProducerID, b.ProducerEpoch, b.Transactional = protocol.ProducerID(who[0]), 0, who[0] < 'a'
			b.BaseSequence = sequence[b.ProducerID]
			sequence[b.ProducerID] += int32(strings.Count(what, "="))
		} else {
			what = who
		}
		if outcome := strings.Index("-+", what); outcome >= 0 {
			m := batch.EndMarker{Marker: batch.Marker(outcome), ProducerID: b.ProducerID, Timestamp: t0}
			if err := w.append(batch.AppendControlBatch(nil, w.end, 1, m)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for pair := range strings.SplitSeq(what, ",") {
			key, value, _ := strings.Cut(pair, "=")
			b.Append(t0, bytesOrNil(key), bytesOrNil(value))
		}
		if err := w.append(b.AppendTo(nil)); err != nil {
			t.Fatal(err)
		}
	}
	return w.log
}

func bytesOrNil(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// show prints a log in the notation of script, each batch with its base offset, and "!" behind one that has a delete horizon.
func show(log []entry) string {
	var words []string
	for _, e := range log {
		var pairs []string
		for _, r := range e.records {
			pairs = append(pairs, fmt.Sprintf("%s=%s", r.key, r.value))
		}
		word := strings.Join(pairs, ",")
		if e.h.Attributes.Control() {
			m, err := batch.ParseControl(&e.h, e.b)
			word = string("-+"[m.Marker])
			if err != nil {
				word = err.Error()
			}
		}
		if e.h.Idempotent() {
			word = string(rune(e.h.ProducerID)) + ":" + word
		}
		if e.h.Attributes.DeleteHorizon() {
			word += "!"
		}
		words = append(words, fmt.Sprintf("%d/%s", e.h.BaseOffset, word))
	}
	return strings.Join(words, " ")
}

func TestClean(t *testing.T) {
	const day = 86_400_000
	type round struct {
		nowMs   int64
		bound   protocol.Offset // 0: the end of the log
		newest  map[protocol.ProducerID]compact.Newest
		want    string
		cleaned protocol.Offset // 0: the bound
	}
	for _, test := range []struct {
		name   string
		log    string
		keys   int // room in the map; 0 is enough
		rounds []round
	}{
		{"the newest of each key stays", "a=1 b=2 a=3,c=4 b=5 d=6", 0, []round{
			{t0, 0, nil, "2/a=3,c=4 4/b=5 5/d=6", 0},
		}},
		{"within a batch", "a=1,b=2,a=3", 0, []round{
			{t0, 0, nil, "0/b=2,a=3", 0},
		}},
		{"a record without key goes", "=1,a=2 =3 b=4", 0, []round{
			{t0, 0, nil, "0/a=2 3/b=4", 0},
		}},
		{"nothing changes from the bound on", "a=1 a=2 a=3 =4", 0, []round{
			{t0, 2, nil, "1/a=2 2/a=3 3/=4", 0},
		}},
		{"the map is full within a batch", "a=1 b=2 a=3,c=4,d=5,a= e=6", 2, []round{
			{t0, 0, nil, "1/b=2 2/a=3,c=4,d=5,a= 6/e=6", 3},
			{t0, 3, nil, "1/b=2 2/a=3,c=4,d=5,a= 6/e=6", 3},
			{t0, 0, nil, "1/b=2 2/a=3,c=4,d=5,a= 6/e=6", 5},
			{t0, 0, nil, "1/b=2 2/c=4,d=5,a=! 6/e=6", 7},
		}},
		{"a tombstone stays for a day", "a=1,b=2 a= c=3", 0, []round{
			{t0, 0, nil, "0/b=2 2/a=! 3/c=3", 0},
			{t0 + day - 1, 0, nil, "0/b=2 2/a=! 3/c=3", 0},
			{t0 + day, 0, nil, "0/b=2 3/c=3", 0},
		}},
		{"a tombstone that is not the newest goes", "a= a=1", 0, []round{
			{t0, 0, nil, "1/a=1", 0},
		}},
		{"the last batch stays, without its record", "a=1 a=", 0, []round{
			{t0, 0, nil, "1/a=!", 0},
			{t0 + day, 0, nil, "1/", 0},
			{t0 + day, 0, nil, "1/", 0},
		}},
		{"an aborted transaction", "a=1 P:a=2 P:b=3 b=4 P:- c=5", 0, []round{
			{t0, 0, nil, "0/a=1 3/b=4 4/P:- 5/c=5", 0},   // its batches are gone,
			{t0, 0, nil, "0/a=1 3/b=4 4/P:-! 5/c=5", 0},  // the marker is found to end nothing,
			{t0 + day, 0, nil, "0/a=1 3/b=4 5/c=5", 0},   // and goes
			{t0 + 2*day, 0, nil, "0/a=1 3/b=4 5/c=5", 0}, //
		}},
		{"a committed transaction", "a=1 P:a=2 P:b=3 P:+ b=4 c=5", 0, []round{
			{t0, 0, nil, "1/P:a=2 3/P:+ 4/b=4 5/c=5", 0},
			{t0 + 9*day, 0, nil, "1/P:a=2 3/P:+ 4/b=4 5/c=5", 0}, // as long as there is a batch of it
		}},
		{"an open transaction", "a=1 a=2 P:a=3 a=4", 0, []round{
			{t0, 2, nil, "1/a=2 2/P:a=3 3/a=4", 0},
		}},
		{"a transaction that was aborted beyond the last stable offset", "a=1 P:a=2 Q:b=3 P:- c=5", 0, []round{
			{t0, 2, nil, "0/a=1 1/P: 2/Q:b=3 3/P:- 4/c=5", 0}, // the last below the bound
		}},
		{"one transaction after the other", "P:a=1 P:- P:a=2 P:+ P:a=3 P:- b=4", 0, []round{
			{t0, 0, nil, "1/P:- 2/P:a=2 3/P:+ 5/P:- 6/b=4", 0},
			{t0, 0, nil, "1/P:-! 2/P:a=2 3/P:+ 5/P:-! 6/b=4", 0},
			{t0 + day, 0, nil, "2/P:a=2 3/P:+ 6/b=4", 0},
		}},
		{"the newest batch of a producer stays", "p:a=1 q:b=1 a=2 b=2", 0, []round{
			{t0, 0, map[protocol.ProducerID]compact.Newest{'p': {Offset: 0}}, "0/p: 2/a=2 3/b=2", 0},
			{t0, 0, nil, "2/a=2 3/b=2", 0},
		}},
		{"that of an aborted transaction too, and its marker", "P:a=1 P:- c=2", 0, []round{
			{t0, 0, map[protocol.ProducerID]compact.Newest{'P': {Offset: 0}}, "0/P: 1/P:- 2/c=2", 0},
			{t0 + day, 0, map[protocol.ProducerID]compact.Newest{'P': {Offset: 0}}, "0/P: 1/P:- 2/c=2", 0},
			{t0 + 2*day, 0, nil, "1/P:- 2/c=2", 0},
			{t0 + 3*day, 0, nil, "1/P:-! 2/c=2", 0},
			{t0 + 4*day, 0, nil, "2/c=2", 0},
		}},
		{"the marker of a producer without batches stays", "P:a=1 P:- c=2", 0, []round{
			{t0, 0, map[protocol.ProducerID]compact.Newest{'P': {Offset: protocol.NoOffset}}, "1/P:- 2/c=2", 0},
			{t0, 0, map[protocol.ProducerID]compact.Newest{'P': {Offset: protocol.NoOffset}}, "1/P:-! 2/c=2", 0},
			{t0 + day, 0, map[protocol.ProducerID]compact.Newest{'P': {Offset: protocol.NoOffset}}, "1/P:-! 2/c=2", 0},
			{t0 + day, 0, map[protocol.ProducerID]compact.Newest{'P': {Offset: protocol.NoOffset, Epoch: 1}}, "2/c=2", 0},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(0, sound)
			w.log = script(t, test.log)
			w.end = w.log[len(w.log)-1].h.NextOffset()
			w.offsets = compact.NewOffsetMap(1 << 10)
			if test.keys > 0 {
				w.offsets = compact.NewOffsetMap(24 * (test.keys + 1))
			}
			w.deleteRetentionMs = day
			for i, r := range test.rounds {
				w.nowMs, w.newest = r.nowMs, r.newest
				bound := r.bound
				if bound == 0 {
					bound = w.end
				}
				if err := w.clean(bound, false); err != nil {
					t.Fatal(err)
				}
				if got := show(w.log); got != r.want {
					t.Errorf("cleaning %d leaves %s\nwant               %s", i, got, r.want)
				}
				if r.cleaned == 0 {
					r.cleaned = bound
				}
				if w.cleaned != r.cleaned {
					t.Errorf("cleaning %d ends at %d, want %d", i, w.cleaned, r.cleaned)
				}
			}
		})
	}
}

// With a retention that has no end nothing ever expires.
func TestCleanForEver(t *testing.T) {
	w := newWorld(0, sound)
	w.log = script(t, "a=1 a= c=3")
	w.end, w.deleteRetentionMs = 3, math.MaxInt64
	for range 2 {
		if err := w.clean(3, false); err != nil {
			t.Fatal(err)
		}
		if got := show(w.log); got != "1/a= 2/c=3" {
			t.Error(got)
		}
	}
}

func TestCleanCounts(t *testing.T) {
	offsets, d := compact.NewOffsetMap(1<<10), batch.NewDecompressor(plainBytesMax)
	log := script(t, "a=1 b=2,a=3 c=4")
	keys := compact.NewKeys(offsets, d, 0, 4, nil)
	for i := range log {
		if full, err := keys.Add(&log[i].h, log[i].b); full || err != nil {
			t.Fatal(full, err)
		}
	}
	c := compact.NewCleaner(offsets, batch.NewFilter(d), compact.Cleaning{End: keys.End(), Bound: 4, NowMs: t0})
	var left int64
	for i := range log {
		out, err := c.Clean(&log[i].h, log[i].b)
		if err != nil {
			t.Fatal(err)
		}
		left += int64(len(out))
		if i > 0 && &out[0] != &log[i].b[0] {
			t.Errorf("batch %d has not changed, and is not the same bytes", i)
		}
	}
	if got, want := c.Stats(), (compact.Stats{Bytes: left + int64(len(log[0].b)), BytesKept: left, Records: 4, RecordsKept: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A batch that cannot be read ends either pass.
func TestUnreadable(t *testing.T) {
	offsets, d := compact.NewOffsetMap(1<<10), batch.NewDecompressor(plainBytesMax)
	e := script(t, "a=1,b=2")[0]
	b := slices.Clone(e.b)
	b[batch.HeaderBytes]++
	if _, err := compact.NewKeys(offsets, d, 0, 2, nil).Add(&e.h, b); protocol.CodeOf(err) != protocol.InvalidRecord {
		t.Error(err)
	}
	c := compact.NewCleaner(offsets, batch.NewFilter(d), compact.Cleaning{End: 2, Bound: 2})
	if _, err := c.Clean(&e.h, b); protocol.CodeOf(err) != protocol.InvalidRecord {
		t.Error(err)
	}
}
