package peer_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/peer"
)

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	r := serve(t, disktest.New(1), func(_ *disk.Config, sc *peer.ServerConfig) { sc.Metrics = reg })
	s := r.dial(t, nil)
	a := create(t, s, segment)
	must(t, a.Append(nil), a.Append([][]byte{framed(segment, 1, 10), framed(segment, 2, 10)}))
	must(t, a.Close())
	checkRead(t, s, segment, 1, 2)
	must(t, r.stop())
	families, err := reg.Gather()
	must(t, err)
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"varve_peer_appends_total":        2,
		"varve_peer_appended_bytes_total": 2 * frame.BlockBytes,
		"varve_peer_read_bytes_total":     12 + 8 + 2*(4+8+10),
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s is %v, want %v", name, value, want)
		}
	}
}
