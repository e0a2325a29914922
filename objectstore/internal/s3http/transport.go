// Package s3http is what the two S3 clients (rooms s3 and minio) share: the HTTP transport, and the judgement what a
// failed request means.
//
// Both client libraries retry by themselves, and show only the last attempt's answer. But whether a write may have
// happened depends on all of its attempts: after a timeout and then a refused connection it may have. So each write has
// a [Trail], which the transport keeps, below the library:
//
//	ctx, trail := s3http.Follow(ctx)
//	err := library.Put(ctx, …)          // any number of attempts through Transport.RoundTrip
//	return trail.WriteError(ctx, "put", name, status, code, err)
package s3http

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of the connections to one store. The time of a whole call is its context's.
const (
	dialTimeout = 5 * time.Second
	// headerTimeout is how long a store may take for an answer after it got the whole request. What it answers by then
	// is 64 MiB synced to its disks, or the first byte of a range.
	headerTimeout = 30 * time.Second
	idleTimeout   = 90 * time.Second
	connsMax      = 128
	writeBuffer   = 64 << 10 // bytes per connection; the default of 4 KiB costs a system call for each
)

// How the client libraries retry. Callers that are in no hurry try again by themselves, with the same bytes.
const (
	Attempts   = 3                      // a request is sent so many times at most
	BackoffMax = 500 * time.Millisecond // between two of them
)

// Transport is an HTTP transport for S3 clients. It tells the [Trail] in a request's context about each attempt, and is
// done with a request's body when RoundTrip returns, which net/http's own is not: it may still read it then, while the
// library rewinds it for the next attempt, or while the caller reuses its memory.
type Transport struct {
	base *http.Transport
}

// NewTransport returns a transport with its own connections.
func NewTransport() *Transport {
	return &Transport{base: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: headerTimeout,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       idleTimeout,
		MaxConnsPerHost:       connsMax,
		MaxIdleConnsPerHost:   connsMax,
		WriteBufferSize:       writeBuffer,
		DisableCompression:    true, // objects are bytes, whatever their content
	}}
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	trail, followed := r.Context().Value(trailKey{}).(*Trail)
	if !followed {
		return t.base.RoundTrip(r)
	}
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	attempt := r.WithContext(traced)
	if r.Body != nil && r.Body != http.NoBody {
		body := &attemptBody{body: r.Body}
		defer body.detach()
		attempt.Body = body
		attempt.GetBody = nil // it would rewind the body behind the library's back
	}
	response, err := t.base.RoundTrip(attempt)
	if r.Method != http.MethodGet { // minio-go asks for the bucket's region first
		trail.note(connected.Load(), response, err)
	}
	return response, err
}

// CloseIdleConnections is for http.Client.CloseIdleConnections.
func (t *Transport) CloseIdleConnections() { t.base.CloseIdleConnections() }

// attemptBody is a request's body until it is detached. Net/http reads and closes it on a goroutine of its own.
type attemptBody struct {
	mu       sync.Mutex
	body     io.ReadCloser
	detached bool
}

var errDetached = errors.New("request is over")

// Read implements io.Reader. It fails after detach, so that the attempt cannot end with a body cut short.
func (b *attemptBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.detached {
		return 0, errDetached
	}
	return b.body.Read(p)
}

// Close implements io.Closer.
func (b *attemptBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.detached {
		return nil
	}
	return b.body.Close()
}

// detach waits for a Read under way and lets none begin after it.
func (b *attemptBody) detach() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.detached = true
}

// Trail gathers what is known about the attempts of one call.
type Trail struct {
	mu     sync.Mutex
	sent   bool // an attempt reached the store, or may have
	unsure bool // an attempt may have been carried out, or may yet be, for all that its answer says
	taken  bool // an attempt was answered with success, whatever its body says: S3 may tell an error of a completion there
}

type trailKey struct{}

// Follow returns a context whose requests leave a trail.
func Follow(ctx context.Context) (context.Context, *Trail) {
	trail := &Trail{}
	return context.WithValue(ctx, trailKey{}, trail), trail
}

// note records one attempt.
func (t *Trail) note(connected bool, response *http.Response, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !connected {
		return
	}
	t.sent = true
	if t.taken || err != nil || doubtful(response) { // nobody sends again what was done, unless the answer's body put it in doubt
		t.unsure = true
	} else if response.StatusCode < http.StatusMultipleChoices {
		t.taken = true
	}
}

// doubtful reports whether a store that answered so may have carried out the request. S3 says 503 (SlowDown) in XML and
// did nothing; a proxy that says 503 in other words may have lost the answer of the store behind it.
func doubtful(response *http.Response) bool {
	switch response.StatusCode {
	case http.StatusServiceUnavailable:
		return !strings.Contains(response.Header.Get("Content-Type"), "xml")
	case http.StatusNotImplemented:
		return false
	default:
		return response.StatusCode >= http.StatusInternalServerError
	}
}

func (t *Trail) outcome() (sent, unsure, taken bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sent, t.unsure, t.taken
}
