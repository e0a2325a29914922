package metered_test

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/objectstore/metered"
	"github.com/varve-io/varve/objectstore/storetest"
)

func TestContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objectstore.Store { return wrap(t, mem.New(), prometheus.NewRegistry()) })
}

func wrap(t *testing.T, inner objectstore.Store, registry *prometheus.Registry) *metered.Store {
	t.Helper()
	s := metered.New(inner)
	if err := registry.Register(s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := wrap(t, fault.New(mem.New(),
		fault.Rule{Op: fault.Put, Nth: 3, Effect: fault.UnknownApplied},
		fault.Rule{Op: fault.List, Effect: fault.Unavailable}), registry)
	ctx := t.Context()
	body := objectstore.Bytes(make([]byte, 100))
	_ = s.Put(ctx, "a", body)
	_ = s.Put(ctx, "a", body)
	_ = s.Put(ctx, "b", body)
	_ = s.Get(ctx, "a", 0, make([]byte, 30))
	_ = s.Get(ctx, "a", 90, make([]byte, 30))
	_, _ = s.Stat(ctx, "none")
	for range 2 {
		s.List(ctx, "", "")(func(objectstore.Info, error) bool { return true })
	}
	_ = s.Delete(ctx, "a")

	want := map[string]float64{
		"varve_objectstore_get_bytes_total":                    30,
		"varve_objectstore_put_bytes_total":                    100,
		"varve_objectstore_put_requests_total":                 3,
		"varve_objectstore_requests_total delete ok":           1,
		"varve_objectstore_requests_total get denied":          1,
		"varve_objectstore_requests_total get ok":              1,
		"varve_objectstore_requests_total list ok":             1,
		"varve_objectstore_requests_total list unavailable":    1,
		"varve_objectstore_requests_total put exists":          1,
		"varve_objectstore_requests_total put ok":              1,
		"varve_objectstore_requests_total put unknown_outcome": 1,
		"varve_objectstore_requests_total stat not_found":      1,
		"varve_objectstore_request_seconds delete":             1,
		"varve_objectstore_request_seconds get":                2,
		"varve_objectstore_request_seconds list":               2,
		"varve_objectstore_request_seconds put":                3,
		"varve_objectstore_request_seconds stat":               1,
	}
	if got := gather(t, registry); !maps.Equal(got, want) {
		t.Errorf("metrics are %v, want %v", got, want)
	}
	if got, want := s.Stats(), (metered.Stats{Puts: 3, Gets: 2, Stats: 1, Lists: 2, Deletes: 1, PutBytes: 100, GetBytes: 30}); got != want {
		t.Errorf("stats are %+v, want %+v", got, want)
	}
}

// TestPages: a list is a request for each page.
func TestPages(t *testing.T) {
	s := metered.New(mem.New())
	objects := 0
	for _, step := range []struct {
		objects int
		want    int64
	}{{0, 1}, {metered.ListPage, 1}, {metered.ListPage + 1, 2}} {
		for ; objects < step.objects; objects++ {
			if err := s.Put(t.Context(), strconv.Itoa(objects), objectstore.Bytes(nil)); err != nil {
				t.Fatal(err)
			}
		}
		before := s.Stats().Lists
		for _, err := range s.List(t.Context(), "", "") {
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := s.Stats().Lists - before; got != step.want {
			t.Errorf("a list of %d objects: %d requests, want %d", objects, got, step.want)
		}
	}
}

// uploading is a store that puts everything in parts, and has left uploads.
type uploading struct {
	objectstore.Store
	left []objectstore.Upload
}

func (s *uploading) SetMultipart(bool)       {}
func (s *uploading) PutRequests(int64) int64 { return 5 }
func (s *uploading) PutMultipart(ctx context.Context, name string, body objectstore.Body) error {
	return s.Put(ctx, name, body)
}

func (s *uploading) Uploads(context.Context) iter.Seq2[objectstore.Upload, error] {
	return func(yield func(objectstore.Upload, error) bool) {
		for _, u := range s.left {
			if !yield(u, nil) {
				return
			}
		}
	}
}

func (s *uploading) Abort(_ context.Context, upload objectstore.Upload) error {
	s.left = slices.DeleteFunc(s.left, func(u objectstore.Upload) bool { return u == upload })
	return nil
}

// TestUploads: what the requests of multipart uploads are is what the store says, and what is left of them is passed on.
func TestUploads(t *testing.T) {
	inner := &uploading{Store: mem.New(), left: []objectstore.Upload{{Name: "a", ID: "1"}, {Name: "b", ID: "2"}}}
	s := metered.New(inner)
	for range 2 { // the second is refused
		_ = s.Put(t.Context(), "a", objectstore.Bytes(make([]byte, 100)))
	}
	for upload, err := range s.Uploads(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if upload.Name == "a" {
			if err := s.Abort(t.Context(), upload); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	if len(inner.left) != 1 || inner.left[0].Name != "b" {
		t.Errorf("uploads left are %v, want that of b", inner.left)
	}
	if got, want := s.Stats(), (metered.Stats{Puts: 10, Lists: 1, Deletes: 1, PutBytes: 100}); got != want {
		t.Errorf("stats are %+v, want %+v", got, want)
	}

	none := metered.New(mem.New())
	for upload, err := range none.Uploads(t.Context()) {
		t.Errorf("memory has the upload %v, error %v", upload, err)
	}
	if err := none.Abort(t.Context(), objectstore.Upload{Name: "a", ID: "1"}); err != nil || none.Stats() != (metered.Stats{}) {
		t.Errorf("abort in memory: %v, %+v", err, none.Stats())
	}
}

// gather returns all metrics: counters by their value, histograms by their count.
func gather(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				name += " " + label.GetValue()
			}
			got[name] = metric.GetCounter().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return got
}
