package compact_test

import (
	"math"
	"testing"

	"github.com/varve-io/varve/agent/compact"
	"github.com/varve-io/varve/protocol"
)

func TestRange(t *testing.T) {
	const now = 1_000_000
	never := compact.Policy{DirtyRatioMin: 0.5, LagMsMax: math.MaxInt64}
	pieces := []compact.Piece{ // 100 bytes each, with a gap, the newest 1 s old
		{First: 0, Next: 100, Bytes: 100, TimestampMs: now - 9000, MaxTimestampMs: now - 8000},
		{First: 100, Next: 200, Bytes: 100, TimestampMs: now - 7000, MaxTimestampMs: now - 6000},
		{First: 250, Next: 300, Bytes: 100, TimestampMs: now - 5000, MaxTimestampMs: now - 3000},
		{First: 300, Next: 400, Bytes: 100, TimestampMs: now - 4000, MaxTimestampMs: now - 1000},
	}
	for _, test := range []struct {
		name   string
		policy compact.Policy
		log    compact.Log
		want   compact.Range
	}{
		{"nothing", never, compact.Log{}, compact.Range{}},
		{"never cleaned", never, compact.Log{LastStable: 450, Pieces: pieces}, compact.Range{Bound: 400, DirtyBytes: 400, Due: true}},
		{"half is not enough", never, compact.Log{Cleaned: 200, LastStable: 450, Pieces: pieces}, compact.Range{Cleaned: 200, Bound: 400, DirtyBytes: 200, CleanBytes: 200}},
		{"a gap is not dirty", never, compact.Log{Cleaned: 220, LastStable: 250, Pieces: pieces}, compact.Range{Cleaned: 220, Bound: 250, CleanBytes: 200}},
		{"all clean", never, compact.Log{Cleaned: 400, LastStable: 450, Pieces: pieces}, compact.Range{Cleaned: 400, Bound: 400, CleanBytes: 400}},
		{
			"last stable offset", never,
			compact.Log{Cleaned: 50, LastStable: 150, Pieces: pieces},
			compact.Range{Cleaned: 50, Bound: 150, DirtyBytes: 100, CleanBytes: 50, Due: true},
		},
		{
			"nothing is stable", never,
			compact.Log{Cleaned: 200, LastStable: 180, Pieces: pieces},
			compact.Range{Cleaned: 200, Bound: 200, CleanBytes: 200},
		},
		{
			"young",
			compact.Policy{LagMsMin: 4000, LagMsMax: math.MaxInt64},
			compact.Log{LastStable: 450, Pieces: pieces},
			compact.Range{Bound: 250, DirtyBytes: 200, Due: true},
		},
		{
			"young once it is older than the lag, not when it is as old",
			compact.Policy{LagMsMin: 3000, LagMsMax: math.MaxInt64},
			compact.Log{LastStable: 450, Pieces: pieces},
			compact.Range{Bound: 300, DirtyBytes: 300, Due: true},
		},
		{
			"young within what is clean",
			compact.Policy{LagMsMin: 8500, LagMsMax: math.MaxInt64},
			compact.Log{Cleaned: 50, LastStable: 450, Pieces: pieces},
			compact.Range{Cleaned: 50, Bound: 50, CleanBytes: 50},
		},
		{
			"late",
			compact.Policy{DirtyRatioMin: 1, LagMsMax: 3500},
			compact.Log{Cleaned: 250, LastStable: 450, Pieces: pieces},
			compact.Range{Cleaned: 250, Bound: 400, DirtyBytes: 200, CleanBytes: 200, LateMs: 1500, Due: true},
		},
		{
			"late, but not stable",
			compact.Policy{DirtyRatioMin: 1, LagMsMax: 3500},
			compact.Log{Cleaned: 250, LastStable: 250, Pieces: pieces},
			compact.Range{Cleaned: 250, Bound: 250, CleanBytes: 200, LateMs: 1500},
		},
		{
			"not late yet",
			compact.Policy{DirtyRatioMin: 1, LagMsMax: 5000},
			compact.Log{Cleaned: 250, LastStable: 450, Pieces: pieces},
			compact.Range{Cleaned: 250, Bound: 400, DirtyBytes: 200, CleanBytes: 200},
		},
		{
			"the clean part was deleted", never,
			compact.Log{Start: 150, Cleaned: 100, LastStable: 450, Pieces: pieces},
			compact.Range{Cleaned: 150, Bound: 400, DirtyBytes: 250, Due: true},
		},
		{
			"part of the clean part was deleted", never,
			compact.Log{Start: 150, Cleaned: 200, LastStable: 450, Pieces: pieces},
			compact.Range{Cleaned: 200, Bound: 400, DirtyBytes: 200, CleanBytes: 50, Due: true},
		},
		{
			"the log ends before what was cleaned", never,
			compact.Log{Start: 100, Cleaned: 500, LastStable: 450, Pieces: pieces},
			compact.Range{Cleaned: 100, Bound: 400, DirtyBytes: 300, Due: true},
		},
		{
			"ratio 0",
			compact.Policy{LagMsMax: math.MaxInt64},
			compact.Log{Cleaned: 399, LastStable: 450, Pieces: pieces},
			compact.Range{Cleaned: 399, Bound: 400, DirtyBytes: 1, CleanBytes: 399, Due: true},
		},
	} {
		if got := test.policy.Range(test.log, now); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
	r := compact.Range{DirtyBytes: 1, CleanBytes: 3}
	if r.Ratio() != 0.25 || (&compact.Range{}).Ratio() != 0 {
		t.Error(r.Ratio())
	}
	// What was cleaned up to the bound is not due again.
	r = never.Range(compact.Log{LastStable: protocol.Offset(450), Pieces: pieces}, now)
	if again := never.Range(compact.Log{Cleaned: r.Bound, LastStable: 450, Pieces: pieces}, now+math.MaxInt32); again.Due {
		t.Errorf("due again: %+v", again)
	}
}
