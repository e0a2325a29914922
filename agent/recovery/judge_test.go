package recovery

import (
	"testing"

	"github.com/varve-io/varve/protocol"
)

// TestJudge: what becomes of a batch of offsets [10,20) in epoch 5.
func TestJudge(t *testing.T) {
	s := stretch{first: 10, next: 20, epoch: 5}
	type epochs = map[protocol.LeaderEpoch]reign
	for name, test := range map[string]struct {
		tip    tip
		epochs epochs
		want   verdict
	}{
		"it continues what is committed":                     {tip{10, 5}, nil, follows},
		"it continues what an earlier leader wrote":          {tip{10, 3}, epochs{3: {first: 2}}, follows},
		"nothing is committed, and it is not the first":      {tip{}, nil, apart},
		"it is committed":                                    {tip{20, 5}, nil, committed},
		"more is committed":                                  {tip{30, 6}, epochs{6: {first: 20}}, committed},
		"an earlier leader's is committed in its place":      {tip{20, 4}, nil, apart},
		"an earlier leader's is committed to behind it":      {tip{30, 4}, nil, apart},
		"so it is, and a later leader began before":          {tip{30, 4}, epochs{6: {first: 8}}, void},
		"what is committed is a later leader's":              {tip{10, 6}, nil, void},
		"a later leader's is committed in its midst":         {tip{15, 6}, nil, void},
		"a later leader began where it begins":               {tip{10, 5}, epochs{6: {first: 10}}, void},
		"a later leader began before, and wrote on":          {tip{10, 5}, epochs{7: {first: 8}}, void},
		"a later leader began in its midst":                  {tip{10, 5}, epochs{6: {first: 19}}, void},
		"a later leader began at its end":                    {tip{10, 5}, epochs{6: {first: 20}}, follows},
		"an earlier leader's entries lie there":              {tip{10, 4}, epochs{4: {first: 10}}, follows},
		"what comes before it is missing":                    {tip{5, 5}, nil, apart},
		"what comes before it is missing, and it is nothing": {tip{5, 5}, epochs{6: {first: 8}}, void},
		"part of it is committed in its own epoch":           {tip{15, 5}, nil, apart},
	} {
		if got := judge(s, test.tip, test.epochs); got != test.want {
			t.Errorf("%s: verdict %d, want %d", name, got, test.want)
		}
	}
}
