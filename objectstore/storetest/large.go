package storetest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/objectstore"
)

// largeBytes is what a [objectstore.Multipart] store puts in two parts, the last of which is the smaller one.
const largeBytes = objectstore.PartBytesMax + 12345

// large makes the store put large bodies in parts, if it can do that.
func large(t *testing.T, s objectstore.Store) {
	t.Helper()
	if err := objectstore.ProbeMultipart(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if m, ok := s.(objectstore.Multipart); ok {
		if got := m.PutRequests(largeBytes); got != 4 {
			t.Fatalf("a put of %d bytes takes %d requests, want 4: two parts, a beginning and an end", int64(largeBytes), got)
		}
	}
	wantNames(t, s, "", "")
}

func testLargeBody(t *testing.T, s objectstore.Store) {
	large(t, s)
	want := content(4, largeBytes)
	half := (largeBytes + 1) / 2
	// What stands in memory apart is not apart where parts are.
	if err := s.Put(t.Context(), "x/large", objectstore.Parts(want[:100], want[100:half+7], nil, want[half+7:])); err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ off, n int }{{0, largeBytes}, {0, 1}, {half - 1, 2}, {half - 100_000, 200_000}, {largeBytes - 7, 7}} {
		if got := mustGet(t, s, "x/large", int64(r.off), r.n); !bytes.Equal(got, want[r.off:r.off+r.n]) {
			t.Errorf("range of %d bytes from %d reads other bytes than were put", r.n, r.off)
		}
	}
	if info, err := s.Stat(t.Context(), "x/large"); err != nil || info.Size != largeBytes {
		t.Errorf("stat: %d bytes, error %v; want %d", info.Size, err, int64(largeBytes))
	}
	wantKind(t, "get of a byte too much", s.Get(t.Context(), "x/large", largeBytes, make([]byte, 1)), objectstore.ErrDenied)

	other := content(5, largeBytes)
	wantKind(t, "second put", s.Put(t.Context(), "x/large", objectstore.Bytes(other)), objectstore.ErrExists)
	wantKind(t, "put of a small body", s.Put(t.Context(), "x/large", objectstore.Bytes(other[:10])), objectstore.ErrExists)
	if got := mustGet(t, s, "x/large", 0, largeBytes); !bytes.Equal(got, want) {
		t.Error("a refused put changed the object")
	}
	mustPut(t, s, "x/small", other[:10])
	wantKind(t, "put over a small object", s.Put(t.Context(), "x/small", objectstore.Bytes(other)), objectstore.ErrExists)
	wantNames(t, s, "", "", "x/large", "x/small")
	wantNoUploads(t, s)
}

func testLargeBodyRaces(t *testing.T, s objectstore.Store) {
	large(t, s)
	bodies := [][]byte{content(6, largeBytes), content(7, largeBytes)}
	errs := make([]error, len(bodies))
	var wg sync.WaitGroup
	for i, body := range bodies {
		wg.Go(func() { errs[i] = s.Put(t.Context(), "race", objectstore.Bytes(body)) })
	}
	wg.Wait()
	winner := 0
	if errs[0] != nil {
		winner = 1
	}
	if errs[winner] != nil {
		t.Fatalf("none of two won: %v", errs)
	}
	wantKind(t, "put of the loser", errs[1-winner], objectstore.ErrExists)
	if got := mustGet(t, s, "race", 0, largeBytes); !bytes.Equal(got, bodies[winner]) {
		t.Error("the object has other bytes than those of the winner")
	}
	wantNoUploads(t, s)
}

// testLargeBodyContextEnds ends the context of a put while it is under way, if the store can be seen at it: once the upload
// is listed.
func testLargeBodyContextEnds(t *testing.T, s objectstore.Store) {
	large(t, s)
	want := content(8, largeBytes)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- s.Put(ctx, "a", objectstore.Bytes(want)) }()
	var err error
	for ended := false; !ended; {
		select {
		case err = <-result:
			ended = true
		default:
			if uploads := uploadsOf(t, s); uploads == nil || len(uploads) > 0 {
				cancel()
				err = <-result
				ended = true
			}
		}
	}
	t.Logf("put: %v", err)
	switch {
	case err == nil, errors.Is(err, objectstore.ErrUnknownOutcome):
		if err := s.Delete(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	case !errors.Is(err, context.Canceled):
		t.Fatalf("put: %v, want the context's error", err)
	default:
		wantNames(t, s, "", "")
		// An upload is left if the answer to its beginning was not waited for, or a part came after its abort.
		if m, ok := s.(objectstore.Multipart); ok {
			for left := uploadsOf(t, s); len(left) > 0; left = uploadsOf(t, s) {
				t.Logf("left: %v", left)
				for _, upload := range left {
					if err := m.Abort(t.Context(), upload); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
	}
	mustPut(t, s, "b", want)
	wantNames(t, s, "b", "", "b")
}

// uploadsOf returns the uploads that a store lists; nil if it has no such list.
func uploadsOf(t *testing.T, s objectstore.Store) []objectstore.Upload {
	t.Helper()
	m, ok := s.(objectstore.Multipart)
	if !ok {
		return nil
	}
	uploads := []objectstore.Upload{}
	for upload, err := range m.Uploads(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		uploads = append(uploads, upload)
	}
	return uploads
}

func wantNoUploads(t *testing.T, s objectstore.Store) {
	t.Helper()
	if left := uploadsOf(t, s); len(left) > 0 {
		t.Errorf("uploads are left: %v", left)
	}
}

// Uploads checks that uploads which were begun and left are listed, and gone when they are aborted. Begin begins one in
// the store by other means.
func Uploads(t *testing.T, s objectstore.Multipart, begin func(name string)) {
	for _, name := range []string{"merged/1", "x", "merged/1"} {
		begin(name)
	}
	uploads := uploadsOf(t, s)
	names := make(map[string]int)
	for _, u := range uploads {
		names[u.Name]++
		if age := time.Since(u.Began).Abs(); age > time.Hour {
			t.Errorf("the upload of %s was begun %v ago, want just now", u.Name, age)
		}
	}
	if len(uploads) != 3 || names["merged/1"] != 2 || names["x"] != 1 {
		t.Errorf("listed %v, want two of merged/1 and one of x", uploads)
	}
	for range 2 { // the second time they are not there
		for _, u := range uploads {
			if err := s.Abort(t.Context(), u); err != nil {
				t.Error(err)
			}
		}
		wantNoUploads(t, s)
	}
}
