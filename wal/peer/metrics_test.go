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
	gathered := func() map[string]float64 {
		families, err := reg.Gather()
		must(t, err)
		values := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				values[f.GetName()] += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
		return values
	}
	_, err := r.dial(t, func(cfg *peer.Config) { cfg.Credentials.Secret = []byte("another secret of the same kind") }).Segments()
	wants(t, "list", err, peer.ErrDenied)
	r.log.await("WAL peer refused") // after it was counted
	s := r.dial(t, nil)
	a := create(t, s, segment)
	must(t, a.Append(nil), a.Append([][]byte{framed(segment, 1, 10), framed(segment, 2, 10)}))
	if got := gathered()["varve_peer_connections"]; got != 1 {
		t.Errorf("%v connections", got)
	}
	must(t, a.Close())
	checkRead(t, s, segment, 1, 2)
	must(t, r.stop())
	got := gathered()
	for name, want := range map[string]float64{
		"varve_peer_connections":               0,
		"varve_peer_connections_refused_total": 1,
		"varve_peer_appends_total":             2,
		"varve_peer_appended_bytes_total":      2 * frame.BlockBytes,
		"varve_peer_read_bytes_total":          12 + 8 + 2*(4+8+10),
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s is %v, want %v", name, value, want)
		}
	}
}
