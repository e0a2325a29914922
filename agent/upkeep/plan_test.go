package upkeep

import (
	"slices"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// parts are commits of so many bytes each, a revision and a second apart.
func parts(bytes ...int64) []index.Part {
	all := make([]index.Part, len(bytes))
	for i, b := range bytes {
		all[i] = index.Part{Commit: &index.Commit{Revision: int64(i + 1), CreatedMs: int64(i) * 1000}, Bytes: b}
	}
	return all
}

func TestDue(t *testing.T) {
	c := MergeConfig{DataBytes: 100, AgeMax: time.Minute}
	for _, test := range []struct {
		name    string
		parts   []index.Part
		surplus int64
		now     int64 // ms
		want    bool
	}{
		{"nothing", nil, 9, 100_000, false},
		{"little", parts(10, 20), 0, 1000, false},
		{"enough", parts(50, 50), 0, 1000, true},
		{"too many commits", parts(1), 1, 1000, true},
		{"too many commits, all of them others'", parts(1, 1)[1:], 1, 1000, false},
		{"old", parts(1, 1), 0, 60_000, true},
		{"nearly old", parts(1, 1), 0, 59_999, false},
		{"of deleted topics alone", parts(0), 1, 0, true},
	} {
		if got := c.due(test.parts, test.surplus, time.UnixMilli(test.now)); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// TestClogs: a shard takes no writes when its merges have failed again and again, and it keeps half of the commits that are too many.
func TestClogs(t *testing.T) {
	for _, test := range []struct {
		name     string
		failures int
		unread   bool
		oldest   int64
		half     int64
		want     bool
	}{
		{"merges work", 0, false, 1, 2, false},
		{"the last two failed", 2, false, 1, 2, false},
		{"the last three failed", 3, false, 1, 1, true},
		{"it has nothing old", 3, false, 2, 1, false},
		{"few commits are there", 30, false, 1, 0, false},
		{"it is unread", 0, true, 1, 1, true},
		{"it is unread, and new", 0, true, 2, 1, false},
	} {
		oldest := index.Part{Commit: &index.Commit{Revision: test.oldest}, Unread: test.unread}
		if got := clogs(test.failures, oldest, test.half); got != test.want {
			t.Errorf("%s: %v", test.name, got)
		}
	}
}

// candidates are segments that may all be joined.
func candidates(live []int64) []candidate {
	var all []candidate
	for i, bytes := range slices.Backward(live) {
		all = append(all, candidate{i, bytes, int64(i)})
	}
	return all
}

// TestJoinable holds that of each partition the end is joined, and never what a cleaning has left, or what somebody else rewrites.
func TestJoinable(t *testing.T) {
	type extent = [2]int64 // segment, first; of 10 offsets and bytes each
	for _, test := range []struct {
		name       string
		partitions [][]extent
		cleaned    protocol.Offset
		claimed    int // segment; -1 for none
		want       []int
	}{
		{"all in order", [][]extent{{{0, 0}, {1, 10}, {2, 20}}}, 0, -1, []int{2, 1, 0}},
		{"two of one segment", [][]extent{{{0, 0}, {0, 10}, {1, 20}}}, 0, -1, []int{1, 0}},
		{"cleaned ones stay", [][]extent{{{1, 0}, {0, 10}, {2, 20}}}, 10, -1, []int{2, 0}},
		{"partly cleaned", [][]extent{{{0, 0}, {1, 10}, {2, 20}}}, 11, -1, []int{2}},
		{"what is before a claimed one stays", [][]extent{{{0, 0}, {1, 10}, {2, 20}}}, 0, 1, []int{2}},
		{"other partitions' do not", [][]extent{{{0, 0}, {3, 10}}, {{1, 0}}, {{2, 0}}}, 0, 3, []int{2, 1}},
		{"out of order", [][]extent{{{1, 0}, {0, 10}}}, 0, -1, []int{0}},
	} {
		m := &manifest.Manifest{}
		for i := range 4 {
			m.Segments = append(m.Segments, manifest.Segment{Number: uint64(i)})
		}
		used := 0
		for _, extents := range test.partitions {
			p := manifest.Partition{Cleaned: test.cleaned}
			for _, e := range extents {
				p.Extents = append(p.Extents, manifest.Extent{Segment: int32(e[0]), First: protocol.Offset(e[1]), Next: protocol.Offset(e[1] + 10), Size: 10})
				used = max(used, int(e[0])+1)
			}
			m.Partitions = append(m.Partitions, p)
		}
		m.Segments = m.Segments[:used]
		claimed := make(map[manifest.Segment]bool)
		if test.claimed >= 0 {
			claimed[m.Segments[test.claimed]] = true
		}
		var got []int
		for _, c := range joinable(m, claimed) {
			got = append(got, c.place)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %d may be joined, want %d", test.name, got, test.want)
		}
	}
}

// TestSparse holds which segments are written anew because little of them is left: in order, of each partition what follows one another, with small ones before it.
func TestSparse(t *testing.T) {
	type extent = [3]int64 // segment, first, size; of 10 offsets each
	for _, test := range []struct {
		name       string
		segments   []int64 // bytes
		partitions [][]extent
		cleaned    protocol.Offset
		claimed    int // segment; -1 for none
		want       []int
	}{
		{"nothing", nil, nil, 0, -1, nil},
		{"all is there", []int64{100}, [][]extent{{{0, 0, 100}}}, 0, -1, nil},
		{"half is there", []int64{100}, [][]extent{{{0, 0, 50}}}, 0, -1, nil},
		{"less than half", []int64{100}, [][]extent{{{0, 0, 49}}}, 0, -1, []int{0}},
		{"not worth it", []int64{9}, [][]extent{{{0, 0, 4}}}, 0, -1, nil},
		{"two that follow one another", []int64{60, 60}, [][]extent{{{0, 0, 20}, {1, 10, 20}}}, 0, -1, []int{1, 0}},
		{"no more than is merged at once", []int64{100, 100, 100}, [][]extent{{{0, 0, 40}, {1, 10, 40}, {2, 20, 40}}}, 0, -1, []int{2, 1}},
		{"a full one between", []int64{60, 60, 60}, [][]extent{{{0, 0, 20}, {1, 10, 60}, {2, 20, 20}}}, 0, -1, []int{2}},
		{"a full one between, of others", []int64{60, 60, 60}, [][]extent{{{0, 0, 20}, {2, 20, 20}}, {{1, 0, 60}}}, 0, -1, []int{2, 0}},
		{"a small one before", []int64{20, 60}, [][]extent{{{0, 0, 20}, {1, 10, 20}}}, 0, -1, []int{1, 0}},
		{"a larger one before", []int64{21, 60}, [][]extent{{{0, 0, 21}, {1, 10, 20}}}, 0, -1, []int{1}},
		{"a small one behind", []int64{60, 20}, [][]extent{{{0, 0, 20}, {1, 10, 20}}}, 0, -1, []int{0}},
		{"the one from which more goes", []int64{60, 60, 5}, [][]extent{{{0, 0, 20}, {1, 10, 60}, {2, 20, 2}}}, 0, -1, []int{0}},
		{"little each, worth it together", []int64{5, 60, 5}, [][]extent{{{0, 0, 2}, {1, 10, 60}, {2, 20, 1}}}, 0, -1, []int{2}},
		{"cleaned", []int64{100}, [][]extent{{{0, 0, 10}}}, 1, -1, nil},
		{"claimed", []int64{60, 60, 60}, [][]extent{{{0, 0, 20}, {1, 10, 20}, {2, 20, 20}}}, 0, 1, []int{2}},
		{"beside a partition that goes on", []int64{60, 60}, [][]extent{{{0, 0, 20}, {1, 10, 50}}, {{0, 0, 5}}}, 0, -1, []int{0}},
	} {
		m := &manifest.Manifest{}
		for i, bytes := range test.segments {
			m.Segments = append(m.Segments, manifest.Segment{Number: uint64(i), FooterPos: bytes, CreatedMs: int64(i)})
		}
		for _, extents := range test.partitions {
			p := manifest.Partition{Cleaned: test.cleaned}
			for _, e := range extents {
				p.Extents = append(p.Extents, manifest.Extent{Segment: int32(e[0]), First: protocol.Offset(e[1]), Next: protocol.Offset(e[1] + 10), Size: e[2]})
			}
			m.Partitions = append(m.Partitions, p)
		}
		claimed := make(map[manifest.Segment]bool)
		if test.claimed >= 0 {
			claimed[m.Segments[test.claimed]] = true
		}
		if got := (MergeConfig{DataBytes: 100}).sparse(m, claimed).join; !slices.Equal(got, test.want) {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}

func TestPlan(t *testing.T) {
	c := MergeConfig{DataBytes: 100}
	for _, test := range []struct {
		name  string
		parts []int64
		live  []int64
		n     int // of the parts
		join  int
	}{
		{"the first", []int64{10}, nil, 1, 0},
		{"up to what is merged at once", []int64{60, 40, 1}, nil, 2, 0},
		{"one that is larger", []int64{150, 1}, nil, 1, 0},
		{"a smaller one joins", []int64{10}, []int64{100, 10}, 1, 1},
		{"a larger one does not", []int64{10}, []int64{11}, 1, 1},
		{"small ones double", []int64{1}, []int64{16, 8, 4, 2, 1}, 1, 0},
		{"not past a large one", []int64{10}, []int64{1, 50, 5}, 1, 2},
		{"not beyond what is merged at once", []int64{40}, []int64{40, 40}, 1, 1},
		{"what is deleted", []int64{10}, []int64{0, 0}, 1, 0},
	} {
		p := c.plan(parts(test.parts...), candidates(test.live))
		if from := len(test.live) - len(p.join); len(p.parts) != test.n || from != test.join {
			t.Errorf("%s: %d commits and the segments from %d on, want %d and from %d", test.name, len(p.parts), from, test.n, test.join)
		}
	}
}

// TestSegmentsAreFew holds that many small merges leave a logarithmic number of segments, and that a byte is written a logarithmic number of times.
func TestSegmentsAreFew(t *testing.T) {
	c := MergeConfig{DataBytes: 1024}
	var live []int64
	written, most := int64(0), 0
	const merges = 10_000
	for range merges {
		p := c.plan(parts(1), candidates(live))
		bytes := int64(1)
		for _, at := range p.join {
			bytes += live[at]
		}
		live = append(live[:len(live)-len(p.join)], bytes)
		written += bytes
		full := 0
		for _, b := range live {
			if b > c.DataBytes/2 {
				full++
			}
		}
		most = max(most, len(live)-full)
	}
	if most > 11 {
		t.Errorf("%d small segments", most)
	}
	if per := float64(written) / merges; per > 11 {
		t.Errorf("each byte was written %.1f times", per)
	}
	if len(live) > 2*merges/1024+11 {
		t.Errorf("%d segments of %d bytes", len(live), merges)
	}
}

// TestSpans holds that what was written in different spans of time is not merged into one, be it new, or sparse.
func TestSpans(t *testing.T) {
	c := MergeConfig{DataBytes: 100, Span: time.Second}
	of := func(n int64) []candidate { return []candidate{{0, 1, n * 1000}} }
	if p := c.plan(parts(0, 1)[1:], of(1)); len(p.join) != 1 {
		t.Errorf("of one: %+v", p)
	}
	if p := c.plan(parts(0, 1)[1:], of(0)); len(p.join) != 0 {
		t.Errorf("of the one before: %+v", p)
	}
	if p := c.plan(parts(1, 1), nil); len(p.parts) != 1 {
		t.Errorf("of two: %+v", p)
	}
	m := &manifest.Manifest{Partitions: []manifest.Partition{{}}}
	for i, createdMs := range []int64{999, 1000, 1999} {
		m.Segments = append(m.Segments, manifest.Segment{Number: uint64(i), FooterPos: 30, CreatedMs: createdMs})
		m.Partitions[0].Extents = append(m.Partitions[0].Extents, manifest.Extent{Segment: int32(i), First: protocol.Offset(i), Next: protocol.Offset(i + 1), Size: 10})
	}
	if got := c.sparse(m, nil).join; !slices.Equal(got, []int{2, 1}) {
		t.Errorf("sparse: %d", got)
	}
}

func TestCrowded(t *testing.T) {
	c := MergeConfig{CommitsMax: 10, KeyBytesMax: 1000}
	for _, test := range []struct {
		commits, bytes int
		want           bool
	}{{0, 0, false}, {11, 1001, false}, {160, 16000, false}, {161, 0, true}, {1, 16001, true}} {
		if got := c.Crowded(test.commits, test.bytes); got != test.want {
			t.Errorf("%d commits of %d bytes: %v", test.commits, test.bytes, got)
		}
	}
}
