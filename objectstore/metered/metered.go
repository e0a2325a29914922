// Package metered counts and times the requests to an object store: for those who watch over an agent, as metrics, and for those who pay, as [Stats].
package metered

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-io/varve/objectstore"
)

// Store implements [objectstore.Store] on top of another, and [prometheus.Collector]. It implements [objectstore.Uploads]
// too; there are none if the other has none.
type Store struct {
	inner       objectstore.Store
	requests    *prometheus.CounterVec
	seconds     *prometheus.HistogramVec
	putRequests prometheus.Counter
	putBytes    prometheus.Counter
	getBytes    prometheus.Counter

	puts, gets, stats, pages, deletes, put, got atomic.Int64
}

var (
	_ objectstore.Store    = (*Store)(nil)
	_ objectstore.Uploads  = (*Store)(nil)
	_ prometheus.Collector = (*Store)(nil)
)

// Stats are what a store was asked since it was made, whatever came of it. They are what providers ask money for.
type Stats struct {
	Puts     int64 // of which several are for an object that goes in parts
	Gets     int64
	Stats    int64
	Deletes  int64 // and aborts of uploads
	Lists    int64 // pages of lists, of up to [ListPage] objects or uploads
	PutBytes int64 // of objects that were put
	GetBytes int64 // of ranges that were read
}

// ListPage is how many objects a page of a list has, which is one request: the most that S3 gives.
const ListPage = 1000

// New returns a store that counts what it passes on to inner.
func New(inner objectstore.Store) *Store {
	return &Store{
		inner: inner,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "varve_objectstore_requests_total",
			Help: "Calls to the object store, by operation and by result: ok, the kind of the error, or canceled if the caller gave up. Such a call is one request, but for a put in parts and a list of many pages. The client library's own retries within a call are not counted.",
		}, []string{"op", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "varve_objectstore_request_seconds",
			Help:    "Time from call to answer, retries included, by operation. A list's time includes what its reader does in between.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // 0.5 ms to 16 s
		}, []string{"op"}),
		putRequests: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_objectstore_put_requests_total",
			Help: "Requests of puts: one for an object that goes whole; for one that goes in parts, one for each part and two for the upload.",
		}),
		putBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_objectstore_put_bytes_total",
			Help: "Bytes of objects that were put. Refused and failed puts do not count.",
		}),
		getBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_objectstore_get_bytes_total",
			Help: "Bytes of ranges that were read. Failed reads do not count.",
		}),
	}
}

// Describe implements [prometheus.Collector].
func (s *Store) Describe(to chan<- *prometheus.Desc) {
	for _, c := range s.collectors() {
		c.Describe(to)
	}
}

// Collect implements [prometheus.Collector].
func (s *Store) Collect(to chan<- prometheus.Metric) {
	for _, c := range s.collectors() {
		c.Collect(to)
	}
}

func (s *Store) collectors() []prometheus.Collector {
	return []prometheus.Collector{s.requests, s.seconds, s.putRequests, s.putBytes, s.getBytes}
}

// Stats returns what was asked until now.
func (s *Store) Stats() Stats {
	return Stats{
		Puts: s.puts.Load(), Gets: s.gets.Load(), Stats: s.stats.Load(), Lists: s.pages.Load(), Deletes: s.deletes.Load(),
		PutBytes: s.put.Load(), GetBytes: s.got.Load(),
	}
}

// String implements [objectstore.Store].
func (s *Store) String() string { return s.inner.String() }

// Put implements [objectstore.Store].
func (s *Store) Put(ctx context.Context, name string, body objectstore.Body) error {
	start := time.Now()
	err := s.inner.Put(ctx, name, body)
	s.note("put", start, err)
	requests := int64(1)
	if m, ok := s.inner.(objectstore.Multipart); ok {
		requests = m.PutRequests(body.Size)
	}
	s.puts.Add(requests)
	s.putRequests.Add(float64(requests))
	if err == nil {
		s.put.Add(body.Size)
		s.putBytes.Add(float64(body.Size))
	}
	return err
}

// Get implements [objectstore.Store].
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	start := time.Now()
	err := s.inner.Get(ctx, name, off, p)
	s.note("get", start, err)
	s.gets.Add(1)
	if err == nil {
		s.got.Add(int64(len(p)))
		s.getBytes.Add(float64(len(p)))
	}
	return err
}

// Stat implements [objectstore.Store].
func (s *Store) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	start := time.Now()
	info, err := s.inner.Stat(ctx, name)
	s.note("stat", start, err)
	s.stats.Add(1)
	return info, err
}

// List implements [objectstore.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return paged(s, "list", s.inner.List(ctx, prefix, after))
}

// Uploads implements [objectstore.Uploads].
func (s *Store) Uploads(ctx context.Context) iter.Seq2[objectstore.Upload, error] {
	if inner, ok := s.inner.(objectstore.Uploads); ok {
		return paged(s, "list_uploads", inner.Uploads(ctx))
	}
	return func(func(objectstore.Upload, error) bool) {}
}

// paged counts and times a list. It is a request for each page, and for an empty one.
func paged[Item any](s *Store, op string, list iter.Seq2[Item, error]) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		start := time.Now()
		var failure error
		items := 0
		list(func(item Item, err error) bool {
			if failure = err; err == nil && items > 0 && items%ListPage == 0 {
				s.pages.Add(1)
			}
			items++
			return yield(item, err)
		})
		s.note(op, start, failure)
		s.pages.Add(1)
	}
}

// Abort implements [objectstore.Uploads].
func (s *Store) Abort(ctx context.Context, upload objectstore.Upload) error {
	inner, ok := s.inner.(objectstore.Uploads)
	if !ok {
		return nil
	}
	start := time.Now()
	err := inner.Abort(ctx, upload)
	s.note("abort_upload", start, err)
	s.deletes.Add(1)
	return err
}

// Delete implements [objectstore.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	start := time.Now()
	err := s.inner.Delete(ctx, name)
	s.note("delete", start, err)
	s.deletes.Add(1)
	return err
}

func (s *Store) note(op string, start time.Time, err error) {
	s.requests.WithLabelValues(op, result(err)).Inc()
	s.seconds.WithLabelValues(op).Observe(time.Since(start).Seconds())
}

// result is the label of an outcome.
func result(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, objectstore.ErrNotFound):
		return "not_found"
	case errors.Is(err, objectstore.ErrExists):
		return "exists"
	case errors.Is(err, objectstore.ErrUnknownOutcome):
		return "unknown_outcome"
	case errors.Is(err, objectstore.ErrDenied):
		return "denied"
	case errors.Is(err, objectstore.ErrUnavailable):
		return "unavailable"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "canceled"
	default:
		return "other"
	}
}
