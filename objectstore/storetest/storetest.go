// Package storetest is the contract of [objectstore.Store] as tests. Every implementation and every wrapper passes
// it:
//
//	func TestContract(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) objectstore.Store { return mem.New() })
//	}
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varve-io/varve/objectstore"
)

const (
	racers       = 32
	putsMax      = 20             // of one object, where the store may be unavailable for a moment
	bigBodyBytes = 20<<20 + 12345 // neither a whole number of sectors nor of blocks
)

// Run runs the suite. Open is called once for each test and returns a store that is empty, at least under its prefix,
// and used by nobody else; it cleans up with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) objectstore.Store) {
	tests := []struct {
		name string
		test func(t *testing.T, s objectstore.Store)
	}{
		{"PutGet", testPutGet},
		{"GetRanges", testGetRanges},
		{"GetPastEnd", testGetPastEnd},
		{"NotFound", testNotFound},
		{"EmptyObject", testEmptyObject},
		{"ManyParts", testManyParts},
		{"BigBody", testBigBody},
		{"LargeBody", testLargeBody},
		{"LargeBodyRaces", testLargeBodyRaces},
		{"LargeBodyContextEnds", testLargeBodyContextEnds},
		{"BodyIsChecked", testBodyIsChecked},
		{"Stat", testStat},
		{"PutRefusesExisting", testPutRefusesExisting},
		{"PutRaces", testPutRaces},
		{"Delete", testDelete},
		{"PutAfterDelete", testPutAfterDelete},
		{"List", testList},
		{"ListManyPages", testListManyPages},
		{"ListStops", testListStops},
		{"Names", testNames},
		{"ContextEnded", testContextEnded},
		{"ConcurrentUse", testConcurrentUse},
		{"Probe", testProbe},
		{"String", testString},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.test(t, open(t)) })
	}
}

func testPutGet(t *testing.T, s objectstore.Store) {
	for _, size := range []int{1, 4095, 4096, 4097, 64<<10 - 1, 64 << 10, 64<<10 + 1, 1 << 20, 1<<20 + 1, 3<<20 - 1} {
		name := fmt.Sprintf("sizes/%d", size)
		want := content(uint64(size), size)
		mustPut(t, s, name, want)
		if got := mustGet(t, s, name, 0, size); !bytes.Equal(got, want) {
			t.Errorf("object of %d bytes reads other bytes than were put", size)
		}
		if info, err := s.Stat(t.Context(), name); err != nil || info.Size != int64(size) {
			t.Errorf("stat of an object of %d bytes gives %d, error %v", size, info.Size, err)
		}
		wantKind(t, "get of a byte too much", s.Get(t.Context(), name, 0, make([]byte, size+1)), objectstore.ErrDenied)
	}
}

func testGetRanges(t *testing.T, s objectstore.Store) {
	const size = 300_000
	want := content(1, size)
	mustPut(t, s, "a", want)
	for _, r := range []struct{ off, n int }{{0, 1}, {0, size}, {size - 1, 1}, {1, size - 1}, {4096, 4096}, {4095, 2}, {123_456, 100_000}} {
		if got := mustGet(t, s, "a", int64(r.off), r.n); !bytes.Equal(got, want[r.off:r.off+r.n]) {
			t.Errorf("range of %d bytes from %d reads other bytes than were put", r.n, r.off)
		}
	}
	if err := s.Get(t.Context(), "a", 5, nil); err != nil {
		t.Errorf("get of no bytes: %v", err)
	}
}

func testGetPastEnd(t *testing.T, s objectstore.Store) {
	mustPut(t, s, "a", content(1, 100))
	for _, r := range []struct {
		off int64
		n   int
	}{{0, 101}, {99, 2}, {100, 1}, {101, 1}, {1 << 40, 1}, {50, 1 << 20}, {-1, 1}} {
		err := s.Get(t.Context(), "a", r.off, make([]byte, r.n))
		wantKind(t, fmt.Sprintf("get of %d bytes from %d of an object of 100", r.n, r.off), err, objectstore.ErrDenied)
	}
}

func testNotFound(t *testing.T, s objectstore.Store) {
	mustPut(t, s, "folder/a", content(1, 10))
	for _, name := range []string{"b", "folder", "folder/b", "folder/b/c", "other/a", "folder/a/b"} {
		wantKind(t, "get "+name, s.Get(t.Context(), name, 0, make([]byte, 1)), objectstore.ErrNotFound)
		_, err := s.Stat(t.Context(), name)
		wantKind(t, "stat "+name, err, objectstore.ErrNotFound)
	}
}

func testEmptyObject(t *testing.T, s objectstore.Store) {
	if err := s.Put(t.Context(), "empty", objectstore.Body{}); err != nil {
		t.Fatal(err)
	}
	info, err := s.Stat(t.Context(), "empty")
	if err != nil || info.Size != 0 {
		t.Errorf("stat: %d bytes, error %v; want 0 bytes", info.Size, err)
	}
	wantKind(t, "get of a byte of an empty object", s.Get(t.Context(), "empty", 0, make([]byte, 1)), objectstore.ErrDenied)
	wantKind(t, "second put", s.Put(t.Context(), "empty", objectstore.Body{}), objectstore.ErrExists)
	wantNames(t, s, "", "", "empty")
}

func testManyParts(t *testing.T, s objectstore.Store) {
	random := rand.New(rand.NewPCG(1, 2))
	want := content(2, 5<<20+17)
	var parts [][]byte
	for rest := want; len(rest) > 0; {
		n := min(random.IntN(20_000), len(rest)) // some are empty
		parts = append(parts, rest[:n])
		rest = rest[n:]
	}
	parts = append(parts, nil)
	if err := s.Put(t.Context(), "parts", objectstore.Parts(parts...)); err != nil {
		t.Fatal(err)
	}
	if got := mustGet(t, s, "parts", 0, len(want)); !bytes.Equal(got, want) {
		t.Errorf("object of %d parts reads other bytes than were put", len(parts))
	}
}

func testBigBody(t *testing.T, s objectstore.Store) {
	want := content(3, bigBodyBytes)
	mustPut(t, s, "big", want)
	if got := mustGet(t, s, "big", 0, bigBodyBytes); !bytes.Equal(got, want) {
		t.Error("big object reads other bytes than were put")
	}
	if got := mustGet(t, s, "big", bigBodyBytes-7, 7); !bytes.Equal(got, want[bigBodyBytes-7:]) {
		t.Error("end of the big object reads other bytes than were put")
	}
}

func testBodyIsChecked(t *testing.T, s objectstore.Store) {
	body := objectstore.Body{Parts: [][]byte{content(1, 10)}, Size: 11}
	wantKind(t, "put with a wrong size", s.Put(t.Context(), "a", body), objectstore.ErrDenied)
	part := content(1, 1<<20)
	var parts [][]byte
	for range objectstore.ObjectBytesMax>>20 + 1 {
		parts = append(parts, part)
	}
	wantKind(t, "put over the limit", s.Put(t.Context(), "a", objectstore.Parts(parts...)), objectstore.ErrDenied)
	wantNames(t, s, "", "")
}

func testStat(t *testing.T, s objectstore.Store) {
	mustPut(t, s, "x/a", content(1, 1234))
	info, err := s.Stat(t.Context(), "x/a")
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != "x/a" || info.Size != 1234 {
		t.Errorf("stat is %+v, want x/a with 1234 bytes", info)
	}
	if age := time.Since(info.Modified).Abs(); age > time.Hour {
		t.Errorf("modified %v ago, want just now", age)
	}
}

func testPutRefusesExisting(t *testing.T, s objectstore.Store) {
	first, second := content(1, 100), content(2, 200_000)
	mustPut(t, s, "a/b", first)
	wantKind(t, "second put", s.Put(t.Context(), "a/b", objectstore.Bytes(second)), objectstore.ErrExists)
	wantKind(t, "put of the same bytes", s.Put(t.Context(), "a/b", objectstore.Bytes(first)), objectstore.ErrExists)
	if got := mustGet(t, s, "a/b", 0, len(first)); !bytes.Equal(got, first) {
		t.Error("a refused put changed the object")
	}
	if info, err := s.Stat(t.Context(), "a/b"); err != nil || info.Size != 100 {
		t.Errorf("stat after a refused put: %d bytes, error %v; want 100 bytes", info.Size, err)
	}
}

func testPutRaces(t *testing.T, s objectstore.Store) {
	for _, size := range []int{100, 200_000} { // dir writes them in different ways
		name := fmt.Sprintf("race/%d", size)
		errs := make([]error, racers)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range racers {
			body := objectstore.Bytes(content(uint64(i), size))
			wg.Go(func() {
				<-start
				errs[i] = s.Put(t.Context(), name, body)
			})
		}
		close(start)
		wg.Wait()

		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Errorf("racers %d and %d both won", winner, i)
			case err == nil:
				winner = i
			default:
				wantKind(t, fmt.Sprintf("put of loser %d", i), err, objectstore.ErrExists)
			}
		}
		if winner < 0 {
			t.Fatalf("none of %d racers won", racers)
		}
		if got := mustGet(t, s, name, 0, size); !bytes.Equal(got, content(uint64(winner), size)) {
			t.Errorf("the object has other bytes than those of the winner, %d", winner)
		}
	}
}

func testDelete(t *testing.T, s objectstore.Store) {
	mustPut(t, s, "x/a", content(1, 10))
	mustPut(t, s, "x/b", content(1, 10))
	for range 2 {
		if err := s.Delete(t.Context(), "x/a"); err != nil {
			t.Fatalf("delete: %v", err)
		}
		wantKind(t, "get of what was deleted", s.Get(t.Context(), "x/a", 0, make([]byte, 1)), objectstore.ErrNotFound)
		wantNames(t, s, "", "", "x/b")
	}
	for _, name := range []string{"x", "x/c", "y/z", "x/b/c"} {
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("delete of %s, which is not there: %v", name, err)
		}
	}
	wantNames(t, s, "", "", "x/b")
}

func testPutAfterDelete(t *testing.T, s objectstore.Store) {
	mustPut(t, s, "x/y/a", content(1, 10))
	if err := s.Delete(t.Context(), "x/y/a"); err != nil {
		t.Fatal(err)
	}
	want := content(2, 10)
	mustPut(t, s, "x/y/a", want)
	if got := mustGet(t, s, "x/y/a", 0, 10); !bytes.Equal(got, want) {
		t.Error("reads other bytes than were put after the deletion")
	}
}

func testList(t *testing.T, s objectstore.Store) {
	// In the order of bytes: '-' and '.' stand before the slash, digits and '=' after it.
	names := []string{"A/z", "a-b/c", "a-b/d/e", "a.b", "a/a/a", "a/b", "a/b-c", "a0", "a=1/x", "a_b", "aa/b", "b", "b1"}
	if !slices.IsSorted(names) {
		t.Fatal("the test's own list is not sorted")
	}
	shuffled := slices.Clone(names)
	rand.New(rand.NewPCG(3, 4)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for i, name := range shuffled {
		mustPut(t, s, name, content(1, i))
	}
	prefixes := []string{"", "a", "a/", "a/b", "a-", "a-b/", "a-b/d/", "a-b/d/e", "b", "b/", "c", "A", "a/../", "../", "/", "a//", "a/a/a/a"}
	afters := append([]string{"", "a", "a.", "a-b/d", "a/b0", "a/b/c", "zz", "a/c"}, names...)
	for _, prefix := range prefixes {
		for _, after := range afters {
			var want []string
			for _, name := range names {
				if strings.HasPrefix(name, prefix) && name > after {
					want = append(want, name)
				}
			}
			wantNames(t, s, prefix, after, want...)
		}
	}
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		if want := int64(slices.Index(shuffled, info.Name)); info.Size != want {
			t.Errorf("list says that %s has %d bytes, want %d", info.Name, info.Size, want)
		}
		if age := time.Since(info.Modified).Abs(); age > time.Hour {
			t.Errorf("list says that %s was modified %v ago, want just now", info.Name, age)
		}
	}
}

// testListManyPages puts more objects than S3 lists in one answer (1,000).
func testListManyPages(t *testing.T, s objectstore.Store) {
	const objects, writers = 1100, 8
	var want []string
	for i := range objects {
		want = append(want, fmt.Sprintf("many/%05d", i))
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := w; i < objects; i += writers {
				if err := s.Put(t.Context(), want[i], objectstore.Bytes([]byte{1})); err != nil {
					t.Errorf("put: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantNames(t, s, "many/", "", want...)
	wantNames(t, s, "many/", want[1050], want[1051:]...)
}

func testListStops(t *testing.T, s objectstore.Store) {
	for _, name := range []string{"x/a", "x/b", "y/c"} {
		mustPut(t, s, name, content(1, 1))
	}
	var got []string
	for info, err := range s.List(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Name)
		if len(got) == 2 {
			break
		}
	}
	if want := []string{"x/a", "x/b"}; !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
}

func testNames(t *testing.T, s objectstore.Store) {
	deep := strings.Repeat("d/", 20) + "x"
	long := strings.Repeat(strings.Repeat("n", 200)+"/", 2) + strings.Repeat("m", 110)
	for _, name := range []string{"a", "A-Z_a.z=0", "...", "..a", "-", "=", deep, long} {
		want := content(uint64(len(name)), 33)
		mustPut(t, s, name, want)
		if got := mustGet(t, s, name, 0, 33); !bytes.Equal(got, want) {
			t.Errorf("%s reads other bytes than were put", name)
		}
	}
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "a/./b", "../a", "a b", "ä", "a\\b", "a\x00", "~put/1", "a%2fb",
		strings.Repeat("n", objectstore.NamePartBytesMax+1), strings.Repeat("n/", objectstore.NameBytesMax/2) + "x",
	} {
		wantKind(t, "put of "+name, s.Put(t.Context(), name, objectstore.Body{}), objectstore.ErrDenied)
		wantKind(t, "get of "+name, s.Get(t.Context(), name, 0, nil), objectstore.ErrDenied)
		_, err := s.Stat(t.Context(), name)
		wantKind(t, "stat of "+name, err, objectstore.ErrDenied)
		wantKind(t, "delete of "+name, s.Delete(t.Context(), name), objectstore.ErrDenied)
	}
}

func testContextEnded(t *testing.T, s objectstore.Store) {
	mustPut(t, s, "a", content(1, 100))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, statErr := s.Stat(ctx, "a")
	for op, err := range map[string]error{
		"put":    s.Put(ctx, "b", objectstore.Bytes(content(1, 200_000))),
		"get":    s.Get(ctx, "a", 0, make([]byte, 10)),
		"stat":   statErr,
		"list":   firstError(s.List(ctx, "", "")),
		"delete": s.Delete(ctx, "a"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with an ended context: %v, want the context's error", op, err)
		}
		if errors.Is(err, objectstore.ErrUnknownOutcome) {
			t.Errorf("%s with an ended context: %v, want no doubt about its outcome", op, err)
		}
	}
	wantNames(t, s, "", "", "a")
}

func testConcurrentUse(t *testing.T, s objectstore.Store) {
	const workers, rounds = 8, 6
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for r := range rounds {
				if err := useOnce(t.Context(), s, fmt.Sprintf("worker/%d/%d", w, r), uint64(w*rounds+r)); err != nil {
					t.Errorf("worker %d, round %d: %v", w, r, err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantNames(t, s, "worker/", "")
}

// useOnce puts, reads, lists and deletes one object.
func useOnce(ctx context.Context, s objectstore.Store, name string, seed uint64) error {
	want := content(seed, 50_000+int(seed)*1000)
	var err error
	for range putsMax {
		// A store may say at any time that it did nothing. Versitygw does when a folder is emptied at that moment.
		if err = s.Put(ctx, name, objectstore.Bytes(want)); !errors.Is(err, objectstore.ErrUnavailable) {
			break
		}
	}
	if err != nil {
		return err
	}
	got := make([]byte, len(want)-1)
	if err := s.Get(ctx, name, 1, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want[1:]) {
		return errors.New("reads other bytes than were put")
	}
	var listed []string
	for info, err := range s.List(ctx, name, "") {
		if err != nil {
			return err
		}
		listed = append(listed, info.Name)
	}
	if !slices.Equal(listed, []string{name}) {
		return fmt.Errorf("listed %q, want %q alone", listed, name)
	}
	return s.Delete(ctx, name)
}

func testProbe(t *testing.T, s objectstore.Store) {
	if err := objectstore.Probe(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	wantNames(t, s, "", "")
}

func testString(t *testing.T, s objectstore.Store) {
	if !strings.Contains(s.String(), "://") {
		t.Errorf("store is called %q, want a URL", s)
	}
}

// content returns n bytes that the seed determines.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	_, _ = rand.NewChaCha8(key).Read(b) // never fails
	return b
}

func mustPut(t *testing.T, s objectstore.Store, name string, b []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, objectstore.Bytes(b)); err != nil {
		t.Fatalf("put: %v", err)
	}
}

func mustGet(t *testing.T, s objectstore.Store, name string, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := s.Get(t.Context(), name, off, p); err != nil {
		t.Fatalf("get: %v", err)
	}
	return p
}

// kinds are all kinds of errors, of which an error has exactly one.
var kinds = []error{
	objectstore.ErrNotFound, objectstore.ErrExists, objectstore.ErrUnavailable,
	objectstore.ErrUnknownOutcome, objectstore.ErrDenied,
}

func wantKind(t *testing.T, what string, err, want error) {
	t.Helper()
	for _, kind := range kinds {
		if is := errors.Is(err, kind); is != (kind == want) { //nolint:errorlint // compares sentinels
			t.Errorf("%s: %v, want %v and no other kind", what, err, want)
			return
		}
	}
}

func wantNames(t *testing.T, s objectstore.Store, prefix, after string, want ...string) {
	t.Helper()
	var got []string
	for info, err := range s.List(t.Context(), prefix, after) {
		if err != nil {
			t.Fatalf("list: %v", err)
		}
		got = append(got, info.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("list of %q after %q gives %q, want %q", prefix, after, got, want)
	}
}

func firstError(list iter.Seq2[objectstore.Info, error]) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

// Missing checks that every call says [objectstore.ErrDenied] on a store whose bucket does not exist, and that none
// mistakes it for a missing object or for an empty list.
func Missing(t *testing.T, s objectstore.Store) {
	ctx := t.Context()
	wantKind(t, "put", s.Put(ctx, "a", objectstore.Bytes([]byte{1})), objectstore.ErrDenied)
	wantKind(t, "get", s.Get(ctx, "a", 0, make([]byte, 1)), objectstore.ErrDenied)
	_, err := s.Stat(ctx, "a")
	wantKind(t, "stat", err, objectstore.ErrDenied)
	wantKind(t, "list", firstError(s.List(ctx, "", "")), objectstore.ErrDenied)
	wantKind(t, "delete", s.Delete(ctx, "a"), objectstore.ErrDenied)
	wantKind(t, "probe", objectstore.Probe(ctx, s), objectstore.ErrDenied)
}
