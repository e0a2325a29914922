package objectstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/mem"
)

func TestValidPrefix(t *testing.T) {
	part := strings.Repeat("n", objectstore.NamePartBytesMax)
	for prefix, want := range map[string]bool{
		"": true, "a": true, "a/": true, "a/b": true, ".": true, "a/..": true, part: true, part + "/" + part: true,
		"/": false, "a//": false, "../": false, "a/./": false, "a b": false, "ä": false, "~": false, part + "n": false,
		strings.Repeat("n/", 300): false,
	} {
		if got := objectstore.ValidPrefix(prefix); got != want {
			t.Errorf("ValidPrefix(%q) = %v, want %v", prefix, got, want)
		}
	}
}

func TestBodyReader(t *testing.T) {
	body := objectstore.Parts(nil, []byte("ab"), nil, nil, []byte("c"), []byte("defg"), nil)
	want := []byte("abcdefg")
	if body.Size != int64(len(want)) {
		t.Fatalf("size %d, want %d", body.Size, len(want))
	}
	if err := iotest.TestReader(body.Reader(), want); err != nil {
		t.Error(err)
	}
	for off := range want {
		r := body.Reader()
		if _, err := r.Seek(int64(off), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if n, err := r.WriteTo(&got); err != nil || n != int64(len(want)-off) || !bytes.Equal(got.Bytes(), want[off:]) {
			t.Errorf("write from %d gives %q (%d bytes), error %v; want %q", off, got.Bytes(), n, err, want[off:])
		}
	}
	for _, seek := range []struct {
		offset int64
		whence int
	}{{-1, io.SeekStart}, {8, io.SeekStart}, {1, io.SeekEnd}, {-8, io.SeekEnd}} {
		if _, err := body.Reader().Seek(seek.offset, seek.whence); err == nil {
			t.Errorf("seek to %d (whence %d) outside of the body succeeded", seek.offset, seek.whence)
		}
	}
}

func TestBodyRange(t *testing.T) {
	body := objectstore.Parts(nil, []byte("ab"), nil, nil, []byte("c"), []byte("defg"), nil)
	for off := range body.Size + 1 {
		for n := range body.Size - off + 1 {
			part := body.Range(off, n)
			got, err := io.ReadAll(part.Reader())
			if want := "abcdefg"[off : off+n]; err != nil || string(got) != want || part.Size != n {
				t.Errorf("%d bytes from %d: %q, size %d, error %v; want %q", n, off, got, part.Size, err, want)
			}
		}
	}
}

// broken is a store with one defect.
type broken struct {
	objectstore.Store
	overwrites, corrupts, hides, refusesAll bool
	deletes                                 []string
	modified                                map[string]time.Time
}

func (s *broken) Put(ctx context.Context, name string, body objectstore.Body) error {
	err := s.Store.Put(ctx, name, body)
	if s.overwrites {
		return nil
	}
	if s.corrupts && errors.Is(err, objectstore.ErrExists) {
		return errors.Join(s.Store.Delete(ctx, name), s.Store.Put(ctx, name, body), err)
	}
	if s.refusesAll {
		return objectstore.ErrUnavailable
	}
	return err
}

func (s *broken) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix, after) {
			if modified, ok := s.modified[info.Name]; ok {
				info.Modified = modified
			}
			if !s.hides && !yield(info, err) {
				return
			}
		}
	}
}

func (s *broken) Delete(ctx context.Context, name string) error {
	s.deletes = append(s.deletes, name)
	return s.Store.Delete(ctx, name)
}

func TestProbeFindsDefects(t *testing.T) {
	tests := []struct {
		name  string
		store *broken
		kind  error
		says  string
	}{
		{"overwrites", &broken{overwrites: true}, objectstore.ErrDenied, "ignores If-None-Match"},
		{"refuses and overwrites", &broken{corrupts: true}, objectstore.ErrDenied, `reads "second of two write`},
		{"hides", &broken{hides: true}, objectstore.ErrDenied, "missing from the list"},
		{"away", &broken{refusesAll: true}, objectstore.ErrUnavailable, "unavailable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.store.Store = mem.New()
			err := objectstore.Probe(t.Context(), test.store)
			if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("probe: %v, want %v that says %q", err, test.kind, test.says)
			}
			if left := names(t, test.store.Store); len(left) > 0 && !test.store.refusesAll {
				t.Errorf("probe left %q", left)
			}
		})
	}
}

// uploading is a store with multipart uploads that have one defect.
type uploading struct {
	*broken
	on bool
}

func (s *uploading) SetMultipart(on bool)                            { s.on = on }
func (s *uploading) PutRequests(int64) int64                         { return 1 }
func (s *uploading) Abort(context.Context, objectstore.Upload) error { return nil }
func (s *uploading) Uploads(context.Context) iter.Seq2[objectstore.Upload, error] {
	return func(func(objectstore.Upload, error) bool) {}
}

func (s *uploading) PutMultipart(ctx context.Context, name string, body objectstore.Body) error {
	return s.Put(ctx, name, body)
}

func TestProbeMultipart(t *testing.T) {
	tests := []struct {
		name  string
		store broken
		kind  error
		says  string
	}{
		{"as it should be", broken{}, nil, ""},
		{"overwrites", broken{overwrites: true}, objectstore.ErrDenied, "ignores If-None-Match"},
		{"refuses and overwrites", broken{corrupts: true}, objectstore.ErrDenied, `reads "second of two upload`},
		{"away", broken{refusesAll: true}, objectstore.ErrUnavailable, "unavailable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.store.Store = mem.New()
			store := &uploading{broken: &test.store, on: true}
			err := objectstore.ProbeMultipart(t.Context(), store)
			if !errors.Is(err, test.kind) || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("probe: %v, want %v that says %q", err, test.kind, test.says)
			}
			if store.on != (test.kind == nil) {
				t.Errorf("multipart uploads are in use: %v", store.on)
			}
			if left := names(t, test.store.Store); len(left) > 0 && !test.store.refusesAll {
				t.Errorf("probe left %q", left)
			}
		})
	}
	if err := objectstore.ProbeMultipart(t.Context(), mem.New()); err != nil {
		t.Errorf("probe of a store that knows no uploads: %v", err)
	}
}

func TestProbeDeletesOldProbes(t *testing.T) {
	store := &broken{Store: mem.New(), modified: map[string]time.Time{"probe/old": time.Now().Add(-2 * time.Hour)}}
	for _, name := range []string{"probe/old", "probe/new", "data"} {
		if err := store.Put(t.Context(), name, objectstore.Body{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := objectstore.Probe(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	if left := names(t, store.Store); !slices.Equal(left, []string{"data", "probe/new"}) {
		t.Errorf("probe left %q, want the data and the new probe", left)
	}
}

func TestProbeCleansUpAfterItsContextEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	store := &canceling{Store: mem.New(), cancel: cancel}
	if err := objectstore.Probe(ctx, store); !errors.Is(err, context.Canceled) {
		t.Errorf("probe: %v, want the context's error", err)
	}
	if left := names(t, store.Store); len(left) > 0 {
		t.Errorf("probe left %q", left)
	}
}

// canceling ends the caller's context after each Put.
type canceling struct {
	objectstore.Store
	cancel func()
}

func (s *canceling) Put(ctx context.Context, name string, body objectstore.Body) error {
	defer s.cancel()
	return s.Store.Put(ctx, name, body)
}

func names(t *testing.T, s objectstore.Store) []string {
	t.Helper()
	var names []string
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}
