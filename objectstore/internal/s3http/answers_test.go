package s3http_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
)

// stubServer answers requests for objects by script: the nth with the nth handler, and the last one for all that
// follow.
type stubServer struct {
	t       *testing.T
	mu      sync.Mutex
	script  []http.HandlerFunc
	bodies  [][]byte // of the requests that were read to their end
	address string
}

func newStubServer(t *testing.T, script ...http.HandlerFunc) *stubServer {
	s := &stubServer{t: t, script: script}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.address = strings.TrimPrefix(server.URL, "http://")
	return s
}

func (s *stubServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("location") { // minio-go asks for the bucket's region first
		say(w, `<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></LocationConstraint>`)
		return
	}
	s.mu.Lock()
	handle := s.script[0]
	if len(s.script) > 1 {
		s.script = s.script[1:]
	}
	s.mu.Unlock()
	handle(w, r)
}

// read keeps the request's body and passes it on to next.
func (s *stubServer) read(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			s.t.Errorf("read body: %v", err)
		}
		s.mu.Lock()
		s.bodies = append(s.bodies, body)
		s.mu.Unlock()
		next(w, r)
	}
}

// answer answers with a status and an S3 error.
func answer(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			say(w, "<Error><Code>"+code+"</Code><Message>scripted</Message></Error>")
		}
	}
}

// say writes a body. Whether the client still wants it is not the server's concern.
func say(w io.Writer, text string) { _, _ = io.WriteString(w, text) }

func ok(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("ETag", `"x"`)
	if r.Method == http.MethodDelete {
		w.WriteHeader(http.StatusNoContent)
	}
}

// plain503 is what a proxy says.
func plain503(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	http.Error(w, "upstream connect error", http.StatusServiceUnavailable)
}

// hangUp reads the request and closes the connection without an answer.
func hangUp(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

// hangUpEarly closes the connection in the middle of the request.
func hangUpEarly(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.CopyN(io.Discard, r.Body, 100_000)
	panic(http.ErrAbortHandler)
}

// refuseEarly answers 503 in the middle of the request.
func refuseEarly(w http.ResponseWriter, r *http.Request) {
	_, _ = io.CopyN(io.Discard, r.Body, 100_000)
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(http.StatusServiceUnavailable)
	say(w, "<Error><Code>SlowDown</Code></Error>")
}

var clients = map[string]string{
	"s3":    "s3://lake/p?endpoint=http://%s",
	"minio": "minio://%s/lake/p?secure=false",
}

// TestMain gives the clients credentials. Not with t.Setenv, because the tests run in parallel: most of their time is
// pauses between attempts.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// eachClient runs the test with each client, in parallel.
func eachClient(t *testing.T, test func(t *testing.T, open func(address string) objectstore.Store)) {
	for client, url := range clients {
		t.Run(client, func(t *testing.T) {
			t.Parallel()
			test(t, func(address string) objectstore.Store { return open(t, url, address) })
		})
	}
}

func open(t *testing.T, url, address string) objectstore.Store {
	t.Helper()
	store, err := bucket.Open(t.Context(), fmt.Sprintf(url, address))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestAnswersToWrites(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		script      []http.HandlerFunc
		put, remove error // kinds
	}{
		{"ok", []http.HandlerFunc{ok}, nil, nil},
		{"precondition failed", []http.HandlerFunc{answer(412, "PreconditionFailed")}, objectstore.ErrExists, objectstore.ErrExists},
		{"conflict", []http.HandlerFunc{answer(409, "ConditionalRequestConflict")}, objectstore.ErrExists, objectstore.ErrExists},
		{"name in the way", []http.HandlerFunc{answer(409, "ObjectParentIsFile")}, objectstore.ErrDenied, objectstore.ErrDenied},
		{"access denied", []http.HandlerFunc{answer(403, "AccessDenied")}, objectstore.ErrDenied, objectstore.ErrDenied},
		{"no bucket", []http.HandlerFunc{answer(404, "NoSuchBucket")}, objectstore.ErrDenied, objectstore.ErrDenied},
		{"no key", []http.HandlerFunc{answer(404, "NoSuchKey")}, objectstore.ErrDenied, nil},
		{"redirect", []http.HandlerFunc{answer(301, "PermanentRedirect")}, objectstore.ErrDenied, objectstore.ErrDenied},
		{"slow down", []http.HandlerFunc{answer(503, "SlowDown")}, objectstore.ErrUnavailable, objectstore.ErrUnavailable},
		{"slow down, then ok", []http.HandlerFunc{answer(503, "SlowDown"), ok}, nil, nil},
		{"not implemented", []http.HandlerFunc{answer(501, "NotImplemented")}, objectstore.ErrDenied, objectstore.ErrDenied},
		{"internal error", []http.HandlerFunc{answer(500, "InternalError")}, objectstore.ErrUnknownOutcome, objectstore.ErrUnknownOutcome},
		{"503 of a proxy", []http.HandlerFunc{plain503}, objectstore.ErrUnknownOutcome, objectstore.ErrUnknownOutcome},
		{"no answer", []http.HandlerFunc{hangUp}, objectstore.ErrUnknownOutcome, objectstore.ErrUnknownOutcome},
		{"no answer, then slow down", []http.HandlerFunc{hangUp, answer(503, "SlowDown")}, objectstore.ErrUnknownOutcome, objectstore.ErrUnknownOutcome},
		{"no answer, then denied", []http.HandlerFunc{hangUp, answer(403, "AccessDenied")}, objectstore.ErrUnknownOutcome, objectstore.ErrUnknownOutcome},
		{"no answer, then exists", []http.HandlerFunc{hangUp, answer(412, "PreconditionFailed")}, objectstore.ErrExists, objectstore.ErrExists},
		{"internal error, then ok", []http.HandlerFunc{answer(500, "InternalError"), ok}, nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
				body := objectstore.Parts(bytes.Repeat([]byte("ab"), 1000), bytes.Repeat([]byte("c"), 300_000))
				err := open(newStubServer(t, test.script...).address).Put(t.Context(), "a", body)
				wantKind(t, "put", err, test.put)
				err = open(newStubServer(t, test.script...).address).Delete(t.Context(), "a")
				wantKind(t, "delete", err, test.remove)
			})
		})
	}
}

func TestAnswersToReads(t *testing.T) {
	t.Parallel()
	full := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Last-Modified", "Sun, 22 Nov 2026 18:00:00 GMT")
		say(w, "0123456789")
	}
	short := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Last-Modified", "Sun, 22 Nov 2026 18:00:00 GMT")
		w.Header().Set("Content-Range", "bytes 5-14/100")
		w.Header().Set("Content-Length", "10")
		w.WriteHeader(http.StatusPartialContent)
		say(w, "01234") // and closes the connection
	}
	tests := []struct {
		name   string
		script []http.HandlerFunc
		want   error
	}{
		{"no key", []http.HandlerFunc{answer(404, "NoSuchKey")}, objectstore.ErrNotFound},
		{"no bucket", []http.HandlerFunc{answer(404, "NoSuchBucket")}, objectstore.ErrDenied},
		{"range past the end", []http.HandlerFunc{answer(416, "InvalidRange")}, objectstore.ErrDenied},
		{"access denied", []http.HandlerFunc{answer(403, "AccessDenied")}, objectstore.ErrDenied},
		{"slow down", []http.HandlerFunc{answer(503, "SlowDown")}, objectstore.ErrUnavailable},
		{"internal error", []http.HandlerFunc{answer(500, "InternalError")}, objectstore.ErrUnavailable},
		{"no answer", []http.HandlerFunc{hangUp}, objectstore.ErrUnavailable},
		{"range ignored", []http.HandlerFunc{full}, objectstore.ErrDenied},
		{"body cut short", []http.HandlerFunc{short}, objectstore.ErrUnavailable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
				err := open(newStubServer(t, test.script...).address).Get(t.Context(), "a", 5, make([]byte, 10))
				wantKind(t, "get", err, test.want)
			})
		})
	}
}

// TestRetriesSendTheWholeBody fails attempts at several points of the body and expects the last to be whole.
func TestRetriesSendTheWholeBody(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]http.HandlerFunc{
		"hang up": hangUp, "hang up early": hangUpEarly, "refuse early": refuseEarly, "slow down": answer(503, "SlowDown"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
				want := make([]byte, 5<<20)
				for i := range want {
					want[i] = byte(i * 7 >> 3)
				}
				server := newStubServer(t, failure)
				server.script = append(server.script, failure, server.read(ok))
				err := open(server.address).Put(t.Context(), "a", objectstore.Parts(want[:1000], want[1000:]))
				if err != nil {
					t.Fatal(err)
				}
				if len(server.bodies) != 1 || !bytes.Equal(server.bodies[0], want) {
					t.Errorf("the server got %d whole bodies, want one, that was put", len(server.bodies))
				}
			})
		})
	}
}

// TestBodyIsFreeAfterPut cancels a Put in the middle of its body and writes to the body's memory at once: the race
// detector and the server must see nothing of it.
func TestBodyIsFreeAfterPut(t *testing.T) {
	t.Parallel()
	eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan struct{})
		server := newStubServer(t, func(_ http.ResponseWriter, r *http.Request) {
			defer close(done)
			head := make([]byte, 100_000)
			if _, err := io.ReadFull(r.Body, head); err != nil {
				t.Errorf("read the body's head: %v", err)
			}
			cancel()
			rest, _ := io.ReadAll(r.Body) // fails, as the client hangs up
			if i := bytes.IndexByte(rest, 1); i >= 0 {
				t.Errorf("byte %d is of what was written after the Put", i+len(head))
			}
		})
		body := make([]byte, 32<<20)
		err := open(server.address).Put(ctx, "a", objectstore.Bytes(body))
		for i := range body {
			body[i] = 1
		}
		wantKind(t, "cancelled put", err, objectstore.ErrUnknownOutcome)
		<-done
	})
}

// TestDeadline checks that a store that does not answer takes no more than the caller's time, and what it means then.
func TestDeadline(t *testing.T) {
	t.Parallel()
	eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
		release := make(chan struct{})
		server := newStubServer(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-release
		})
		defer close(release)
		store := open(server.address)

		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // in which it must have been sent, or its outcome is known
		defer cancel()
		wantKind(t, "put", store.Put(ctx, "a", objectstore.Bytes([]byte{1})), objectstore.ErrUnknownOutcome)

		ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := store.Get(ctx, "a", 0, make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("get: %v, want the context's error", err)
		}
	})
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
		store := open("127.0.0.1:1")
		wantKind(t, "put", store.Put(t.Context(), "a", objectstore.Bytes([]byte{1})), objectstore.ErrUnavailable)
		wantKind(t, "get", store.Get(t.Context(), "a", 0, make([]byte, 1)), objectstore.ErrUnavailable)
	})
}

func wantKind(t *testing.T, what string, err, want error) {
	t.Helper()
	if want == nil && err != nil || !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}
