package check

import (
	"fmt"
	"slices"
	"testing"
)

func sent(seq int64, floor int64, outcome Outcome, offset int64) Send {
	return Send{ID: ID{1, seq}, Content: uint64(seq), Floor: floor, Outcome: outcome, Offset: offset}
}

func read(offset, seq int64) Record {
	return Record{Offset: offset, ID: ID{1, seq}, Content: uint64(seq)}
}

// TestLog makes each anomaly in a history that has none.
func TestLog(t *testing.T) {
	// A log that begins at 10. Sends 0 to 3 are acknowledged, 4 timed out and is there, 5 timed out and is not, 6 failed.
	good := func() History {
		return History{
			Sends: []Send{
				sent(0, -1, Acked, 10), sent(1, -1, Acked, 11), sent(2, 10, Acked, 12), sent(3, 11, Acked, 13),
				sent(4, 12, Unknown, 0), sent(5, 12, Unknown, 0), sent(6, 13, Failed, 0),
			},
			Start: 10,
			Final: []Record{read(10, 0), read(11, 1), read(12, 2), read(13, 3), read(14, 4)},
			Seen:  []Record{read(10, 0), read(11, 1), read(14, 4), read(10, 0)},
		}
	}
	for name, c := range map[string]struct {
		change func(*History)
		want   []string
	}{
		"none":    {func(*History) {}, nil},
		"nothing": {func(h *History) { *h = History{} }, nil},
		"lost at the end": {
			func(h *History) { h.Final, h.Seen = h.Final[:3], nil },
			[]string{"lost 3 at 13"},
		},
		"lost at the start": {
			func(h *History) { h.Final, h.Seen = h.Final[1:], nil },
			[]string{"gap 1 at 11", "lost 0 at 10"},
		},
		"lost, and the next moved up": {
			func(h *History) {
				h.Final, h.Seen = []Record{read(10, 0), read(11, 2), read(12, 3), read(13, 4)}, nil
			},
			[]string{"wrong offset 2 at 11", "wrong offset 3 at 12", "lost 1 at 11"},
		},
		"all lost": {
			func(h *History) { h.Final, h.Seen = nil, nil },
			[]string{"lost 0 at 10", "lost 1 at 11", "lost 2 at 12", "lost 3 at 13"},
		},
		"duplicated": {
			func(h *History) { h.Final = append(h.Final, read(15, 2)) },
			[]string{"duplicate 2 at 15"},
		},
		"an unknown one duplicated": {
			func(h *History) { h.Final = append(h.Final, read(15, 4)) },
			[]string{"duplicate 4 at 15"},
		},
		"a late unknown one": {
			func(h *History) { h.Final = append(h.Final, read(15, 5)) },
			nil,
		},
		"reordered": {
			func(h *History) {
				h.Final[3], h.Final[4], h.Seen = read(13, 4), read(14, 3), nil
				h.Sends[3].Outcome = Unknown
			},
			[]string{"reordered 3 at 14"},
		},
		"order of other writers": {
			func(h *History) {
				h.Sends = append(h.Sends, Send{ID: ID{2, 0}, Floor: -1, Outcome: Acked, Offset: 15})
				h.Final = append(h.Final, Record{Offset: 15, ID: ID{2, 0}})
			},
			nil,
		},
		"swapped": {
			func(h *History) { h.Final[2], h.Final[3] = read(12, 3), read(13, 2) },
			[]string{"wrong offset 3 at 12", "wrong offset 2 at 13", "reordered 2 at 13"},
		},
		"acknowledged at a wrong offset": {
			func(h *History) { h.Sends[3].Offset = 20 },
			[]string{"wrong offset 3 at 13"},
		},
		"a spurious offset 0": {
			func(h *History) { h.Sends[3].Offset = 0 },
			[]string{"stale 3 at 0", "wrong offset 3 at 13"},
		},
		"one offset for two": {
			func(h *History) { h.Sends[3].Offset = 12 },
			[]string{"reused 3 at 12", "wrong offset 3 at 13"},
		},
		"a message that nobody sent": {
			func(h *History) { h.Final = append(h.Final, read(15, 99)) },
			[]string{"foreign 99 at 15"},
		},
		"other content": {
			func(h *History) { h.Final[1].Content = 7; h.Seen = nil },
			[]string{"changed 1 at 11"},
		},
		"a failed send that is there": {
			func(h *History) { h.Final = append(h.Final, read(15, 6)) },
			[]string{"undone 6 at 15"},
		},
		"an unknown one before its time": {
			func(h *History) { h.Sends[4].Floor = 14 },
			[]string{"stale 4 at 14"},
		},
		"a gap": {
			func(h *History) { h.Final[4].Offset = 15; h.Seen = nil },
			[]string{"gap 4 at 15"},
		},
		"an offset twice": {
			func(h *History) { h.Final = slices.Insert(h.Final, 4, read(13, 5)); h.Seen = nil },
			[]string{"disorder 5 at 13", "reordered 4 at 14"},
		},
		"read before it was safe": {
			func(h *History) { h.Seen = append(h.Seen, read(14, 5)) },
			[]string{"unstable 5 at 14"},
		},
		"read and then gone": {
			func(h *History) { h.Seen = append(h.Seen, read(15, 5)) },
			[]string{"unstable 5 at 15"},
		},
		"read with other content": {
			func(h *History) { h.Seen[0].Content = 7 },
			[]string{"unstable 0 at 10"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := good()
			c.change(&h)
			var found []string
			for _, f := range Log(h) {
				found = append(found, fmt.Sprintf("%s %d at %d", f.Kind, f.ID.Seq, f.Offset))
			}
			if !slices.Equal(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}

// TestCompactedLog makes each anomaly of a compacted log in a history that has none.
func TestCompactedLog(t *testing.T) {
	// Key 1 has the values 0, 2 and 5; key 2 has 1 and is deleted by 3, and key 3 has 4.
	good := func() History {
		h := History{
			Sends: []Send{
				sent(0, -1, Acked, 0), sent(1, -1, Acked, 1), sent(2, -1, Acked, 2), sent(3, -1, Acked, 3), sent(4, -1, Acked, 4), sent(5, -1, Acked, 5),
			},
			Compacted: true,
			Final:     []Record{read(3, 3), read(4, 4), read(5, 5)},
			Seen:      []Record{read(0, 0), read(3, 3), read(5, 5)},
		}
		for i, key := range []uint64{1, 2, 1, 2, 3, 1} {
			h.Sends[i].Key = key
		}
		h.Sends[3].Deletes = true
		return h
	}
	for name, c := range map[string]struct {
		change func(*History)
		want   []string
	}{
		"none": {func(*History) {}, nil},
		"nothing is compacted yet": {func(h *History) {
			h.Final = []Record{read(0, 0), read(1, 1), read(2, 2), read(3, 3), read(4, 4), read(5, 5)}
		}, nil},
		"the deletion is gone": {func(h *History) { h.Final = h.Final[1:] }, nil},
		"an unknown one supersedes": {
			func(h *History) {
				h.Sends = append(h.Sends, sent(6, -1, Unknown, 0))
				h.Sends[6].Key = 3
				h.Final = []Record{read(5, 5), read(6, 6)}
			}, nil,
		},
		"the newest is lost":           {func(h *History) { h.Final, h.Seen = h.Final[:2], nil }, []string{"lost 5 at 5"}},
		"an older one in place of it":  {func(h *History) { h.Final, h.Seen = []Record{read(2, 2), read(3, 3), read(4, 4)}, nil }, []string{"lost 5 at 5"}},
		"a key without a second value": {func(h *History) { h.Final = []Record{read(3, 3), read(5, 5)} }, []string{"lost 4 at 4"}},
		"a deleted key comes back":     {func(h *History) { h.Final = []Record{read(1, 1), read(4, 4), read(5, 5)} }, []string{"revived 1 at 1"}},
		"moved up":                     {func(h *History) { h.Final, h.Seen = []Record{read(0, 4), read(1, 5)}, nil }, []string{"wrong offset 4 at 0", "wrong offset 5 at 1", "lost 2 at 2"}},
		"other content":                {func(h *History) { h.Final[1].Content = 7 }, []string{"changed 4 at 4"}},
		"twice":                        {func(h *History) { h.Final = append(h.Final, read(6, 4)) }, []string{"duplicate 4 at 6"}},
		"out of order":                 {func(h *History) { h.Final[0], h.Final[1] = h.Final[1], h.Final[0] }, []string{"disorder 3 at 3", "reordered 3 at 3"}},
		"read with other content":      {func(h *History) { h.Seen[0].Content = 7 }, []string{"unstable 0 at 0"}},
		"read elsewhere":               {func(h *History) { h.Seen[0].Offset = 1 }, []string{"unstable 0 at 1"}},
		"read, and nobody sent it":     {func(h *History) { h.Seen[0] = read(0, 99) }, []string{"foreign 99 at 0"}},
		"read elsewhere than it stays": {func(h *History) { h.Seen[1].Offset = 4 }, []string{"unstable 3 at 4"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := good()
			c.change(&h)
			var found []string
			for _, f := range Log(h) {
				found = append(found, fmt.Sprintf("%s %d at %d", f.Kind, f.ID.Seq, f.Offset))
			}
			if !slices.Equal(found, c.want) {
				t.Errorf("found %q, want %q", found, c.want)
			}
		})
	}
}

// TestFindingSaysWhere shows what a finding looks like.
func TestFindingSaysWhere(t *testing.T) {
	f := Log(History{Sends: []Send{sent(0, -1, Acked, 3)}})
	if len(f) != 1 || f[0].String() != "lost: record 1/0, offset 3: acknowledged there" {
		t.Errorf("found %v", f)
	}
}

// TestLarge checks a history of the size that a crash test makes.
func TestLarge(t *testing.T) {
	const n = 300_000
	h := History{Sends: make([]Send, n), Final: make([]Record, n)}
	for i := range n {
		h.Sends[i] = sent(int64(i), int64(i)-1, Acked, int64(i))
		h.Final[i] = read(int64(i), int64(i))
	}
	if found := Log(h); len(found) > 0 {
		t.Errorf("found %v", found[0])
	}
	h.Final = h.Final[:n-1]
	if found := Log(h); len(found) != 1 || found[0].Kind != Lost {
		t.Errorf("found %v, want the last one lost", found)
	}
}
