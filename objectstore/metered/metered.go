// Package metered counts and times the requests to an object store.
package metered

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/varve-io/varve/objectstore"
)

// Store implements [objectstore.Store] on top of another.
type Store struct {
	inner    objectstore.Store
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	putBytes prometheus.Counter
	getBytes prometheus.Counter
}

var _ objectstore.Store = (*Store)(nil)

// New returns a store that counts what it passes on to inner, and registers its metrics, which fails if they are
// registered already.
func New(inner objectstore.Store, registerer prometheus.Registerer) (*Store, error) {
	s := &Store{
		inner: inner,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "varve_objectstore_requests_total",
			Help: "Calls to the object store, by operation and by result: ok, the kind of the error, or canceled if the caller gave up. The client library's own retries within a call are not counted.",
		}, []string{"op", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "varve_objectstore_request_seconds",
			Help:    "Time from call to answer, retries included, by operation. A list's time includes what its reader does in between.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // 0.5 ms to 16 s
		}, []string{"op"}),
		putBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_objectstore_put_bytes_total",
			Help: "Bytes of objects that were put. Refused and failed puts do not count.",
		}),
		getBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "varve_objectstore_get_bytes_total",
			Help: "Bytes of ranges that were read. Failed reads do not count.",
		}),
	}
	for _, collector := range []prometheus.Collector{s.requests, s.seconds, s.putBytes, s.getBytes} {
		if err := registerer.Register(collector); err != nil {
			return nil, fmt.Errorf("register metrics of object store: %w", err)
		}
	}
	return s, nil
}

// String implements [objectstore.Store].
func (s *Store) String() string { return s.inner.String() }

// Put implements [objectstore.Store].
func (s *Store) Put(ctx context.Context, name string, body objectstore.Body) error {
	start := time.Now()
	err := s.inner.Put(ctx, name, body)
	s.note("put", start, err)
	if err == nil {
		s.putBytes.Add(float64(body.Size))
	}
	return err
}

// Get implements [objectstore.Store].
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	start := time.Now()
	err := s.inner.Get(ctx, name, off, p)
	s.note("get", start, err)
	if err == nil {
		s.getBytes.Add(float64(len(p)))
	}
	return err
}

// Stat implements [objectstore.Store].
func (s *Store) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	start := time.Now()
	info, err := s.inner.Stat(ctx, name)
	s.note("stat", start, err)
	return info, err
}

// List implements [objectstore.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		start := time.Now()
		var failure error
		s.inner.List(ctx, prefix, after)(func(info objectstore.Info, err error) bool {
			failure = err
			return yield(info, err)
		})
		s.note("list", start, failure)
	}
}

// Delete implements [objectstore.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	start := time.Now()
	err := s.inner.Delete(ctx, name)
	s.note("delete", start, err)
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
