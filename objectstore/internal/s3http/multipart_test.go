package s3http_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/varve-io/varve/objectstore"
)

// uploadServer answers the requests of multipart uploads, each kind by a script as that of [stubServer]; without a script
// it carries them out.
type uploadServer struct {
	t                     *testing.T
	begin, send, complete []http.HandlerFunc
	http                  *httptest.Server
	address               string

	mu     sync.Mutex
	parts  map[string][]byte // by number, those that were carried out
	sends  map[string]int    // attempts of each part
	wholes int               // bodies that were put in one request
	aborts int
	order  string // the request that completed an upload
}

func newUploadServer(t *testing.T) *uploadServer {
	s := &uploadServer{t: t, parts: make(map[string][]byte), sends: make(map[string]int)}
	s.http = httptest.NewServer(s)
	t.Cleanup(s.http.Close)
	s.address = strings.TrimPrefix(s.http.URL, "http://")
	return s
}

func (s *uploadServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	number := query.Get("partNumber")
	switch {
	case query.Has("location"):
		say(w, `<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></LocationConstraint>`)
	case query.Has("uploads"):
		s.next(&s.begin, func(w http.ResponseWriter, _ *http.Request) {
			say(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
		})(w, r)
	case number != "":
		s.mu.Lock()
		s.sends[number]++
		s.mu.Unlock()
		s.next(&s.send, s.keep)(w, r)
	case r.Method == http.MethodPost:
		s.next(&s.complete, s.finish)(w, r)
	case r.Method == http.MethodDelete:
		s.mu.Lock()
		s.aborts++
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	default:
		s.mu.Lock()
		s.wholes++
		s.mu.Unlock()
		ok(w, r)
	}
}

// next takes the next handler of a script.
func (s *uploadServer) next(script *[]http.HandlerFunc, otherwise http.HandlerFunc) http.HandlerFunc {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(*script) == 0 {
		return otherwise
	}
	handle := (*script)[0]
	*script = (*script)[1:]
	return handle
}

func (s *uploadServer) keep(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Errorf("read part: %v", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	number := r.URL.Query().Get("partNumber")
	s.parts[number] = body
	w.Header().Set("ETag", `"etag-`+number+`"`)
}

func (s *uploadServer) finish(w http.ResponseWriter, r *http.Request) {
	order, err := io.ReadAll(r.Body)
	if err != nil || r.Header.Get("If-None-Match") != "*" {
		s.t.Errorf("completion with If-None-Match %q, error %v; want *", r.Header.Get("If-None-Match"), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = string(order)
	say(w, "<CompleteMultipartUploadResult><Bucket>lake</Bucket><Key>p/a</Key></CompleteMultipartUploadResult>")
}

// errorInSuccess is how S3 tells an error that came after it had begun to answer.
func errorInSuccess(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/xml")
	say(w, "<Error><Code>InternalError</Code><Message>scripted</Message></Error>")
}

// multipart returns the store with multipart uploads in use.
func multipart(store objectstore.Store) objectstore.Multipart {
	m := store.(objectstore.Multipart) //nolint:forcetypeassert // both clients are
	m.SetMultipart(true)
	return m
}

func TestAnswersToUploads(t *testing.T) {
	t.Parallel()
	type script = []http.HandlerFunc
	tests := []struct {
		name                  string
		begin, send, complete script
		want                  error // kind
		aborts                int
	}{
		{name: "ok"},
		{name: "no bucket", begin: script{answer(404, "NoSuchBucket")}, want: objectstore.ErrDenied},
		{name: "not implemented", begin: script{answer(501, "NotImplemented")}, want: objectstore.ErrDenied},
		{name: "begun at the second attempt", begin: script{answer(503, "SlowDown")}},
		{name: "never begun", begin: script{hangUp, hangUp, hangUp}, want: objectstore.ErrUnavailable},
		{name: "part at the second attempt", send: script{hangUp}},
		{name: "part refused", send: script{answer(403, "AccessDenied")}, want: objectstore.ErrDenied, aborts: 1},
		{name: "part never sent", send: script{hangUp, hangUpEarly, hangUp}, want: objectstore.ErrUnavailable, aborts: 1},
		{name: "part of an upload that is gone", send: script{answer(404, "NoSuchUpload")}, want: objectstore.ErrUnavailable, aborts: 1},
		{name: "precondition failed", complete: script{answer(412, "PreconditionFailed")}, want: objectstore.ErrExists, aborts: 1},
		{name: "conflict", complete: script{answer(409, "ConditionalRequestConflict")}, want: objectstore.ErrExists, aborts: 1},
		{name: "complete at the second attempt", complete: script{answer(503, "SlowDown")}},
		{name: "store away at completion", complete: script{answer(503, "SlowDown"), answer(503, "SlowDown"), answer(503, "SlowDown")}, want: objectstore.ErrUnavailable, aborts: 1},
		{name: "upload gone at completion", complete: script{answer(404, "NoSuchUpload")}, want: objectstore.ErrUnavailable, aborts: 1},
		{name: "answer lost", complete: script{hangUp, hangUp, hangUp}, want: objectstore.ErrUnknownOutcome},
		{name: "answer lost, then the upload is gone", complete: script{hangUp, answer(404, "NoSuchUpload")}, want: objectstore.ErrUnknownOutcome},
		{name: "answer lost, then success", complete: script{hangUp}, want: objectstore.ErrUnknownOutcome},
		{name: "answer lost, then refused", complete: script{hangUp, answer(412, "PreconditionFailed")}, want: objectstore.ErrExists},
		{name: "error within a success", complete: script{errorInSuccess, errorInSuccess, errorInSuccess}, want: objectstore.ErrUnknownOutcome},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
				server := newUploadServer(t)
				server.begin, server.send, server.complete = test.begin, test.send, test.complete
				body := objectstore.Bytes(bytes.Repeat([]byte("c"), 300_000))
				wantKind(t, "put", multipart(open(server.address)).PutMultipart(t.Context(), "a", body), test.want)
				if server.aborts != test.aborts {
					t.Errorf("%d aborts, want %d", server.aborts, test.aborts)
				}
			})
		})
	}
}

// TestPartsAreSentAgainAlone fails one attempt of the first part that comes.
func TestPartsAreSentAgainAlone(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]http.HandlerFunc{
		"hang up": hangUp, "hang up early": hangUpEarly, "refuse early": refuseEarly, "slow down": answer(503, "SlowDown"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
				want := make([]byte, objectstore.PartBytesMax+999)
				for i := range want {
					want[i] = byte(i * 7 >> 3)
				}
				server := newUploadServer(t)
				server.send = []http.HandlerFunc{failure}
				if err := multipart(open(server.address)).Put(t.Context(), "a", objectstore.Parts(want[:1000], want[1000:])); err != nil {
					t.Fatal(err)
				}
				if got := append(server.parts["1"], server.parts["2"]...); len(server.parts) != 2 || !bytes.Equal(got, want) {
					t.Errorf("the server got %d parts of %d bytes, want two that are what was put", len(server.parts), len(got))
				}
				if sends := server.sends; sends["1"]+sends["2"] != 3 {
					t.Errorf("parts were sent %v times, want one of them twice", sends)
				}
				if first, second := strings.Index(server.order, "etag-1"), strings.Index(server.order, "etag-2"); first < 0 || second < first {
					t.Errorf("completed with %s, want what the server said to both parts", server.order)
				}
			})
		})
	}
}

// TestMultipartIsForLargeBodies checks that a body goes in one request if it is small, or if it is not known that the
// store does it right.
func TestMultipartIsForLargeBodies(t *testing.T) {
	t.Parallel()
	eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
		server := newUploadServer(t)
		body := make([]byte, objectstore.PartBytesMax+1)
		store := multipart(open(server.address))
		for i, put := range []struct {
			bytes    int
			on       bool
			requests int64
		}{{objectstore.PartBytesMax, true, 1}, {objectstore.PartBytesMax + 1, false, 1}, {objectstore.PartBytesMax + 1, true, 4}} {
			store.SetMultipart(put.on)
			if got := store.PutRequests(int64(put.bytes)); got != put.requests {
				t.Errorf("a put of %d bytes takes %d requests, want %d", put.bytes, got, put.requests)
			}
			if err := store.Put(t.Context(), "a", objectstore.Bytes(body[:put.bytes])); err != nil {
				t.Fatal(err)
			}
			if want := min(i+1, 2); server.wholes != want {
				t.Errorf("%d objects went whole, want %d", server.wholes, want)
			}
		}
	})
}

// TestBodyIsFreeAfterUpload cancels a Put in the middle of its parts and writes to the body's memory at once.
func TestBodyIsFreeAfterUpload(t *testing.T) {
	t.Parallel()
	eachClient(t, func(t *testing.T, open func(string) objectstore.Store) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		middle := func(_ http.ResponseWriter, r *http.Request) {
			head := make([]byte, 100_000)
			if _, err := io.ReadFull(r.Body, head); err != nil {
				return // the other part was faster
			}
			cancel()
			rest, _ := io.ReadAll(r.Body) // fails, as the client hangs up
			if i := bytes.IndexByte(rest, 1); i >= 0 {
				t.Errorf("byte %d is of what was written after the Put", i+len(head))
			}
		}
		server := newUploadServer(t)
		server.send = []http.HandlerFunc{middle, middle}
		body := make([]byte, 2*objectstore.PartBytesMax)
		err := multipart(open(server.address)).Put(ctx, "a", objectstore.Bytes(body))
		for i := range body {
			body[i] = 1
		}
		if !errors.Is(err, context.Canceled) || errors.Is(err, objectstore.ErrUnknownOutcome) {
			t.Errorf("cancelled put: %v, want the context's error alone, as nothing can have happened", err)
		}
		server.http.Close() // waits for the handlers
		if server.aborts != 1 {
			t.Errorf("%d aborts, want 1", server.aborts)
		}
	})
}

// TestPartsAreNotCopied checks that an upload allocates much less than it sends. It runs alone, as it measures the process.
func TestPartsAreNotCopied(t *testing.T) {
	for client, url := range clients {
		t.Run(client, func(t *testing.T) {
			server := newUploadServer(t)
			server.send = []http.HandlerFunc{ok, ok}
			store := multipart(open(t, url, server.address))
			body := objectstore.Bytes(make([]byte, 2*objectstore.PartBytesMax))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := store.Put(t.Context(), "a", body); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			if got, most := int64(after.TotalAlloc-before.TotalAlloc), body.Size/8; got > most {
				t.Errorf("an upload of %d bytes allocates %d, want %d at most", body.Size, got, most)
			}
		})
	}
}
