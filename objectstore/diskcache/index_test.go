package diskcache

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// block is a key that is told by a letter.
func block(name string) key { return key{name: name, n: 1} }

// String lists the index's slots from the one that goes first: what is in them, a dot for nothing; behind a bar those that are being written.
func (x *index) String() string {
	var listed, written []string
	for at := x.oldest; at != none; at = x.slots[at].newer {
		listed = append(listed, x.slots[at].name())
	}
	for i := range x.slots {
		if x.slots[i].writing {
			written = append(written, x.slots[i].name())
		}
	}
	slices.Sort(written)
	return strings.Join(listed, "") + "|" + strings.Join(written, "")
}

func (sl *slot) name() string {
	if sl.turn == 0 {
		return "."
	}
	return sl.key.name
}

// check holds that the index is consistent in itself.
func (x *index) check(t *testing.T) {
	t.Helper()
	if len(x.slots) > x.slotsMax {
		t.Fatalf("%d slots, want %d at most", len(x.slots), x.slotsMax)
	}
	listed, ready := 0, false
	for at, older := x.oldest, none; at != none; older, at = at, x.slots[at].newer {
		sl := &x.slots[at]
		if sl.writing || sl.older != older || (sl.turn == 0 && ready) {
			t.Fatalf("slot %d is wrong in the list: %+v in %v", at, *sl, x)
		}
		ready = sl.turn != 0
		listed++
	}
	blocks := 0
	for i := range x.slots {
		sl := &x.slots[i]
		if sl.writing {
			listed++
		}
		if sl.turn == 0 {
			continue
		}
		if at, ok := x.at[sl.key]; !ok || at != int32(i) {
			t.Fatalf("slot %d has %v, which is to be at %d", i, sl.key, at)
		}
		blocks++
	}
	if listed != len(x.slots) || blocks != len(x.at) {
		t.Fatalf("%d slots and %d blocks are somewhere, want %d and %d", listed, blocks, len(x.slots), len(x.at))
	}
}

// TestIndex runs scripts: +a begins to write a block, =a ends that, !a ends it without the block, ?ab finds blocks, -a forgets one, and a number grants room, of which there is plenty at the start.
func TestIndex(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"in the order of their being written", "+a =a +b =b +c =c", "abc|"},
		{"the oldest goes", "+a =a +b =b +c =c +d =d", "bcd|"},
		{"what is found is young", "+a =a +b =b +c =c ?a +d =d", "cad|"},
		{"all or nothing is found", "+a =a +b =b +c =c ?ax +d =d", "bcd|"},
		{"what is being written is not found", "+a =a +b +c ?ab =b =c", "abc|"},
		{"what is being written does not go", "+a +b +c +d =a =b =c", "abc|"},
		{"what failed leaves a slot that is next", "+a =a +b !b +c =c", "ac|"},
		{"what is forgotten leaves one too", "+a =a +b =b -b +c +d", "a|cd"},
		{"forgotten while being written", "+a =a +b -b =b", ".a|"},
		{"and written anew meanwhile", "+a =a +b -b +b =b", ".ab|"},
		{"no room", "0 +a =a", "|"},
		{"some room", "2 +a =a +b =b +c =c", "bc|"},
		{"room is granted anew", "2 +a =a +b =b 1 +c =c +d =d", "bcd|"},
		{"room is given back from the end", "+a =a +b =b +c =c ?a -2", "a|"},
		{"and taken again", "+a =a +b =b +c =c -2 1 +d =d +e =e", "de|"},
		{"all of it", "+a =a +b =b -9", "|"},
		{"but for what is being written", "+a =a +b +c =c -9", "a|b"},
		{"which goes later", "+a =a +b +c =c -9 !b -9", "|"},
		{"no more than is lacking", "+a =a +b =b +c =c -1 -1", "a|"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newIndex(3)
			x.grant(100)
			under := make(map[string]place)
			for word := range strings.FieldsSeq(c.script) {
				op, rest := word[0], word[1:]
				var slots int64
				if _, err := fmt.Sscan(word, &slots); err == nil {
					x.grant(slots)
					x.check(t)
					continue
				}
				switch op {
				case '+':
					if p, ok := x.take(block(rest)); ok {
						if _, again := under[rest]; again {
							rest += "'"
						}
						under[rest] = p
					}
				case '=', '!':
					for _, name := range []string{rest, rest + "'"} {
						if p, ok := under[name]; ok {
							x.settle(p, 1, op == '=')
							delete(under, name)
						}
					}
				case '-':
					x.forget(block(rest))
				case '?':
					var keys []key
					for name := range strings.SplitSeq(rest, "") {
						keys = append(keys, block(name))
					}
					x.find(keys)
				}
				x.check(t)
			}
			if got := x.String(); got != c.want {
				t.Errorf("%s: %s, want %s", c.script, got, c.want)
			}
		})
	}
}

// TestIndexHolds: a place is good until something else was begun in its slot, however often the file was cut and has grown.
func TestIndexHolds(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	x := newIndex(5)
	x.grant(5)
	type found struct {
		key   key
		place place
	}
	var writing []place
	var seen []found
	gone := make(map[place]bool)
	for range 20_000 {
		k := block(string(rune('a' + random.IntN(12))))
		switch random.IntN(6) {
		case 0, 1:
			if x.has(k) {
				continue
			}
			if p, ok := x.take(k); ok {
				writing = append(writing, p)
			}
		case 2:
			if len(writing) > 0 {
				i := random.IntN(len(writing))
				x.settle(writing[i], 7, random.IntN(4) > 0)
				writing = slices.Delete(writing, i, i+1)
			}
		case 3:
			if p := x.find([]key{k}); p != nil {
				seen = append(seen, found{k, p[0]})
			}
		case 4:
			x.forget(k)
		default:
			x.grant(int64(random.IntN(6) - 2))
		}
		x.check(t)
		for _, f := range seen {
			at, there := x.at[f.key]
			holds := x.holds(f.place)
			if holds && (gone[f.place] || !there || at != f.place.slot || x.slots[at].turn != f.place.turn) {
				t.Fatalf("%v is to be at %+v still, in %v", f.key, f.place, &x)
			}
			gone[f.place] = !holds
		}
		seen = seen[max(0, len(seen)-20):]
	}
}

// BenchmarkIndex tells what the index takes of memory for a block, with names as long as those of segments.
func BenchmarkIndex(b *testing.B) {
	const blocks, piece = 1 << 18, 4
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		x := newIndex(blocks)
		x.grant(blocks)
		for i := 0; i < blocks; i += piece {
			name := fmt.Sprintf("shard/0000000000000042/segment/%016x-%016x", i, i)
			for j := range piece {
				p, _ := x.take(key{name: name, off: int64(j) * slotBytes, n: slotBytes})
				x.settle(p, 1, true)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(&x)
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/blocks, "B/block")
}
