package wal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
	"github.com/varve-io/varve/wal/frame"
	"github.com/varve-io/varve/wal/quorum"
)

// host is an agent's disk, as a test's ensembles use it.
type host struct {
	name  string
	disk  *disktest.Disk
	store *disk.Store
}

func newHosts(tb testing.TB, seed uint64, n int) []*host {
	tb.Helper()
	hosts := make([]*host, n)
	for i := range hosts {
		d := disktest.New(seed*100 + uint64(i))
		s, err := disk.Open(disk.Config{FS: d, FileBytes: 256 << 10})
		if err != nil {
			tb.Fatal(err)
		}
		hosts[i] = &host{name: fmt.Sprint("store ", i), disk: d, store: s}
	}
	return hosts
}

// away is a store behind a network: it has the frames in memory of its own.
type away struct {
	*disk.Appender
	segment wal.SegmentID
	memory  []byte
}

func (a *away) Append(bufs [][]byte) error {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	if len(a.memory) < n {
		a.memory = disk.Aligned(n)
	}
	at := 0
	for _, b := range bufs {
		for len(b) > 0 {
			length := frame.Readdress(a.memory[at:], b, a.segment)
			at, b = at+length, b[length:]
		}
	}
	return a.Appender.Append([][]byte{a.memory[:at]})
}

// ensemble creates a segment on hosts, of which the first is the writer's.
func ensemble(id wal.SegmentID, first wal.EntryID, hosts []*host) ([]wal.Copy, error) {
	var copies []wal.Copy
	for i, h := range hosts {
		a, err := h.store.Create(id, 1, first)
		if err != nil {
			for _, c := range copies {
				err = errors.Join(err, c.Store.Close())
			}
			return nil, err
		}
		c := wal.Copy{Name: h.name, Store: a}
		if i > 0 {
			c.Store = &away{Appender: a, segment: id}
		}
		copies = append(copies, c)
	}
	return copies, nil
}

// record is what etcd would have of a log.
type record struct {
	mu       sync.Mutex
	segments []listedSegment
}

type listedSegment struct {
	id          wal.SegmentID
	first, last wal.EntryID
	over        bool // it was rolled away; last is valid
	size        quorum.Size
	hosts       []*host
}

// roll rolls to other hosts.
type roll struct {
	record *record
	size   quorum.Size
	hosts  []*host
	id     wal.SegmentID
	// opened, if not nil, runs when the segment is open on all stores, and the log does not know it yet.
	opened func()
	// during, if not nil, runs before the transaction applies; an error of it ends the writer, and applied says whether the transaction applies all the same.
	during  func() error
	applied bool
}

func (r *roll) Open(id wal.SegmentID, first wal.EntryID) ([]wal.Copy, error) {
	r.id = id
	copies, err := ensemble(id, first, r.hosts)
	if r.opened != nil && err == nil {
		r.opened()
	}
	return copies, err
}

func (r *roll) List(first wal.EntryID) error {
	err := error(nil)
	if r.during != nil {
		err = r.during()
	}
	if err != nil && !r.applied {
		return err
	}
	r.record.mu.Lock()
	defer r.record.mu.Unlock()
	before := &r.record.segments[len(r.record.segments)-1]
	before.last, before.over = first-1, true
	r.record.segments = append(r.record.segments, listedSegment{id: r.id, first: first, size: r.size, hosts: r.hosts})
	return err
}

// replicated opens a log on hosts.
func replicated(tb testing.TB, cfg wal.Config, hosts []*host, q int) (*wal.Log, *record) {
	tb.Helper()
	cfg.Segment, cfg.Fence, cfg.First, cfg.Quorum = segment, 1, 1, q
	copies, err := ensemble(segment, 1, hosts)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := wal.New(cfg, copies...)
	if err != nil {
		tb.Fatal(err)
	}
	size := quorum.Size{Copies: len(hosts), Quorum: q}
	return l, &record{segments: []listedSegment{{id: segment, first: 1, size: size, hosts: hosts}}}
}

// recovered reads everything that a log has, as recovery does: from segments that were rolled away what was listed of them, from the open one what a
// seal answers. reachable says which hosts answer.
func recovered(rec *record, reachable func(*host) bool) (map[wal.EntryID][]byte, error) {
	found := make(map[wal.EntryID][]byte)
	visit := func(id wal.EntryID, b []byte) error {
		found[id] = bytes.Clone(b)
		return nil
	}
	for _, s := range rec.segments {
		if s.over && s.last < s.first {
			continue // empty, and perhaps dropped already
		}
		sealers := make([]wal.Sealer, len(s.hosts))
		for i, h := range s.hosts {
			if reachable(h) {
				sealers[i] = h.store
			}
		}
		sealed, err := wal.Seal(s.id, 2, s.size, sealers)
		if err != nil {
			return nil, err
		}
		if s.over {
			if sealed.Last < s.last {
				return nil, fmt.Errorf("segment %s ends with %d, listed is %d", s.id, sealed.Last, s.last)
			}
			sealed.Last = s.last
		}
		if err := sealed.Read(max(s.first, sealed.First), visit); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func everywhere(*host) bool { return true }

// appendEntries appends n entries and returns a channel that gets nil when all are durable, or the first failure.
func appendEntries(tb testing.TB, l *wal.Log, n int) <-chan error {
	tb.Helper()
	o := newOrder(n)
	for i := range n {
		if _, err := l.Append(nil, make([]byte, 100), crc32c.Tail{}, &ordered{order: o, n: i + 1}); err != nil {
			tb.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		<-o.all
		done <- errors.Join(o.errs...)
	}()
	return done
}

// TestSlowStoreCostsNothing: with a quorum of two of three, entries are acknowledged while one store's disk hangs, be it the writer's own.
func TestSlowStoreCostsNothing(t *testing.T) {
	for slow := range 3 {
		hosts := newHosts(t, 1, 3)
		l, rec := replicated(t, wal.Config{}, hosts, 2)
		if err := <-appendEntries(t, l, 1); err != nil {
			t.Fatal(err)
		}
		hosts[slow].disk.Hold()
		for range 5 {
			if err := <-appendEntries(t, l, 10); err != nil {
				t.Fatal(err)
			}
		}
		hosts[slow].disk.Go()
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		for gone := range 3 {
			found, err := recovered(rec, func(h *host) bool { return h != hosts[gone] })
			if err != nil || len(found) != 51 {
				t.Errorf("slow %d, gone %d: %d entries, %v", slow, gone, len(found), err)
			}
		}
	}
}

// TestBelowQuorumNothingIsAcknowledged: two of three disks hang.
func TestBelowQuorumNothingIsAcknowledged(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	l, _ := replicated(t, wal.Config{}, hosts, 2)
	if err := l.Prove(t.Context()); err != nil {
		t.Fatal(err)
	}
	hosts[1].disk.Hold()
	hosts[2].disk.Hold()
	done := appendEntries(t, l, 1)
	hosts[1].disk.AwaitHeld(1)
	hosts[2].disk.AwaitHeld(1)
	select {
	case err := <-done:
		t.Fatalf("acknowledged by the writer's own store alone: %v", err)
	default:
	}
	hosts[2].disk.Go()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	hosts[1].disk.Go()
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestFencedByOne: a single store that was sealed tells the writer that its log is another's, even while the others would make a quorum.
func TestFencedByOne(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	l, _ := replicated(t, wal.Config{}, hosts, 2)
	if err := <-appendEntries(t, l, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := hosts[2].store.Seal(segment, 2); err != nil {
		t.Fatal(err)
	}
	_, _ = l.Append(nil, make([]byte, 100), crc32c.Tail{}, nil) // the store may have been sent the first entry only now, and refused it
	<-l.Failed()
	if err := l.Err(); !errors.Is(err, disk.ErrFenced) {
		t.Errorf("the log failed with %v, want ErrFenced", err)
	}
}

// TestRoll: a store fails, the log goes on and rolls to another, and what was appended before, during and after is found without any one of the stores.
func TestRoll(t *testing.T) {
	hosts := newHosts(t, 1, 4)
	lost := make(chan string, 4)
	l, rec := replicated(t, wal.Config{OnLost: func(_ uint32, name string, _ error) { lost <- name }}, hosts[:3], 2)
	if err := <-appendEntries(t, l, 10); err != nil {
		t.Fatal(err)
	}
	hosts[2].disk.Inject(disktest.Fault{Op: disktest.OpSync, Always: true, Err: syscall.EIO})
	if err := <-appendEntries(t, l, 10); err != nil {
		t.Fatal(err)
	}
	if name := <-lost; name != hosts[2].name {
		t.Fatalf("lost %s", name)
	}
	size := quorum.Size{Copies: 3, Quorum: 2}
	var during <-chan error
	next := []*host{hosts[0], hosts[1], hosts[3]}
	err := l.Roll(2, size, &roll{record: rec, size: size, hosts: next, during: func() error {
		during = appendEntries(t, l, 10)
		return <-during // both ensembles have a quorum
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-appendEntries(t, l, 10); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []int{0, 1, 3} {
		found, err := recovered(rec, func(h *host) bool { return h != hosts[gone] && (h != hosts[2] || gone == 3) })
		if gone == 0 || gone == 1 {
			// Segment 1 has lost hosts[2], too: two of three are gone, and what it holds is found by those who still have it.
			if err == nil {
				t.Errorf("store %d gone: sealed by one store", gone)
			}
			continue
		}
		if err != nil || len(found) != 40 {
			t.Errorf("store %d gone: %d entries, %v", gone, len(found), err)
		}
	}
}

// TestRollInDoubt: while it is not known which ensemble is listed, what one of them lacks is not acknowledged.
func TestRollInDoubt(t *testing.T) {
	for _, slow := range []int{1, 2} { // of the first ensemble, of the next one
		hosts := newHosts(t, 1, 3)
		l, rec := replicated(t, wal.Config{}, hosts[:2], 2)
		size := quorum.Size{Copies: 2, Quorum: 2}
		err := l.Roll(2, size, &roll{record: rec, size: size, hosts: []*host{hosts[0], hosts[2]}, during: func() error {
			hosts[slow].disk.Hold()
			done := appendEntries(t, l, 3)
			hosts[slow].disk.AwaitHeld(1)
			select {
			case err := <-done:
				t.Errorf("store %d has it not, and it was acknowledged: %v", slow, err)
			default:
			}
			hosts[slow].disk.Go()
			return <-done
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		found, err := recovered(rec, everywhere)
		if err != nil || len(found) != 3 {
			t.Errorf("%d entries, %v", len(found), err)
		}
	}
}

// TestRollFails: what cannot be opened, or never catches up, leaves the log as it was.
func TestRollFails(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	l, rec := replicated(t, wal.Config{}, hosts[:1], 1)
	size := quorum.Size{Copies: 2, Quorum: 2}
	next := []*host{hosts[0], hosts[1]}
	if _, err := hosts[1].store.Create(wal.SegmentID{Log: 1, Number: 2}, 1, 1); err != nil {
		t.Fatal(err)
	}
	if err := l.Roll(2, size, &roll{record: rec, size: size, hosts: next}); !errors.Is(err, wal.ErrNotRolled) || !errors.Is(err, disk.ErrExists) {
		t.Errorf("roll to a segment that exists: %v", err)
	}
	if err := l.Roll(1, size, &roll{record: rec, size: size, hosts: next}); !errors.Is(err, wal.ErrNotRolled) {
		t.Errorf("roll to the open segment: %v", err)
	}
	err := l.Roll(3, size, &roll{record: rec, size: size, hosts: next, opened: func() {
		if err := <-appendEntries(t, l, 1); err != nil { // with which the next ensemble has to catch up
			t.Error(err)
		}
		hosts[1].disk.Inject(disktest.Fault{Op: disktest.OpSync, Always: true, Err: syscall.EIO})
	}})
	if !errors.Is(err, wal.ErrNotRolled) {
		t.Errorf("roll to a store that fails: %v", err)
	}
	if err := <-appendEntries(t, l, 5); err != nil {
		t.Fatal(err)
	}
	if err := l.Roll(4, quorum.Size{Copies: 2, Quorum: 1}, &roll{
		record: rec, size: quorum.Size{Copies: 2, Quorum: 1}, hosts: []*host{hosts[0], hosts[2]},
	}); err != nil {
		t.Errorf("roll after all: %v", err)
	}
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestLeftBehind: past segments are dropped from their stores once they are trimmed.
func TestLeftBehind(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	l, rec := replicated(t, wal.Config{}, hosts[:2], 2)
	if err := <-appendEntries(t, l, 10); err != nil {
		t.Fatal(err)
	}
	size := quorum.Size{Copies: 2, Quorum: 2}
	if err := l.Roll(2, size, &roll{record: rec, size: size, hosts: []*host{hosts[0], hosts[2]}}); err != nil {
		t.Fatal(err)
	}
	holds := func(h *host) []wal.SegmentID {
		var ids []wal.SegmentID
		for _, s := range h.store.Segments() {
			ids = append(ids, s.ID)
		}
		return ids
	}
	if got := holds(hosts[1]); !slices.Equal(got, []wal.SegmentID{segment}) {
		t.Fatalf("before the trim: %v", got)
	}
	l.Trim(10)
	if err := <-appendEntries(t, l, 1); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(t.Context()); err != nil { // the recycler has done what was to be done
		t.Fatal(err)
	}
	if got := holds(hosts[1]); len(got) > 0 {
		t.Errorf("after the trim: %v", got)
	}
}

// TestRollsAndCrashes: writers append while stores fail and hang and the log rolls from ensemble to ensemble; then the writer dies, with a roll's outcome unknown to it or
// not, and one store is lost. Every acknowledged entry is found.
func TestRollsAndCrashes(t *testing.T) {
	for seed := range uint64(60) {
		rollsAndCrash(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

var errWriterDied = errors.New("the writer dies")

func rollsAndCrash(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	hosts := newHosts(t, seed, 5)
	l, rec := replicated(t, wal.Config{BytesMax: 1 << 20}, hosts[:3], 2)
	told := &acks{acked: make(map[wal.EntryID]uint64)}
	var writers sync.WaitGroup
	for w := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 100+w))
		writers.Go(func() {
			for n := w << 32; ; n++ {
				a := &ack{acks: told, mark: n, entry: make(chan wal.EntryID, 1), done: make(chan struct{})}
				ref, err := l.Append(binary.LittleEndian.AppendUint64(nil, n), make([]byte, rng.IntN(5000)), crc32c.Tail{}, a)
				if err != nil {
					return
				}
				a.entry <- ref.Entry
				<-a.done
			}
		})
	}
	size := quorum.Size{Copies: 3, Quorum: 2}
	number := uint32(1)
	for range 1 + rng.IntN(4) {
		// Once in a while, a store other than the writer's fails.
		if rng.IntN(2) == 0 {
			hosts[1+rng.IntN(4)].disk.Inject(disktest.Fault{Op: disktest.OpSync, Err: syscall.EIO})
		}
		number++
		perm := rng.Perm(4)
		r := &roll{record: rec, size: size, hosts: []*host{hosts[0], hosts[1+perm[0]], hosts[1+perm[1]]}}
		if rng.IntN(3) == 0 {
			r.during = func() error { return errWriterDied }
			r.applied = rng.IntN(2) == 0
		}
		if err := l.Roll(number, size, r); err != nil && !errors.Is(err, wal.ErrNotRolled) {
			break
		}
	}
	// The power of the writer's machine goes, unless the writer has died before. What is acknowledged later, by a process that is none, does not count.
	var acked map[wal.EntryID]uint64
	hosts[0].disk.CrashAt(1+rng.IntN(20), func() {
		told.mu.Lock()
		defer told.mu.Unlock()
		acked = maps.Clone(told.acked)
	})
	select {
	case <-hosts[0].disk.Crashed():
	case <-l.Failed():
	}
	_ = l.Close(t.Context())
	writers.Wait()
	for _, h := range hosts {
		_ = h.store.Close() // from here on nothing can reach the moment of the crash
	}
	crashed := acked != nil
	if !crashed {
		acked = told.acked
	}

	gone := hosts[rng.IntN(len(hosts))]
	for i, h := range hosts {
		d := h.disk.Kill()
		if i == 0 && crashed {
			d = h.disk.Crash()
		}
		s, err := disk.Open(disk.Config{FS: d, FileBytes: 256 << 10})
		if err != nil {
			t.Fatal(err)
		}
		h.store = s
		defer func() { _ = s.Close() }()
	}
	found, err := recovered(rec, func(h *host) bool { return h != gone })
	if err != nil {
		t.Error(err)
		return
	}
	for id, mark := range acked {
		if b, ok := found[id]; !ok || binary.LittleEndian.Uint64(b) != mark {
			t.Errorf("entry %d, acknowledged with %x, is %x (%v); segments %+v", id, mark, b, ok, rec.segments)
		}
	}
}

// stuck is a store that hangs in its first append with entries, and looks whether the frames stay as they were.
type stuck struct {
	wal.Store
	hangs, goes chan struct{}
	once        sync.Once
	changed     bool
}

func (s *stuck) Append(bufs [][]byte) error {
	s.once.Do(func() {
		body := func() (all []byte) {
			for _, b := range bufs {
				all = append(all, b[frame.HeaderBytes:]...) // without what the writer's own store stamps, in the first frame
			}
			return all
		}
		before := body()
		close(s.hangs)
		<-s.goes
		s.changed = !bytes.Equal(before, body())
	})
	return s.Store.Append(bufs)
}

// TestFramesStayWhileSent: what a store is being sent is not overwritten, though it was flushed and trimmed long ago, and memory is scarce.
func TestFramesStayWhileSent(t *testing.T) {
	hosts := newHosts(t, 1, 3)
	copies, err := ensemble(segment, 1, hosts)
	if err != nil {
		t.Fatal(err)
	}
	slow := &stuck{Store: copies[2].Store, hangs: make(chan struct{}), goes: make(chan struct{})}
	copies[2].Store = slow
	l, err := wal.New(wal.Config{Segment: segment, Fence: 1, First: 1, Quorum: 2, BytesMax: 1 << 20, CacheBytes: 128 << 10}, copies...)
	if err != nil {
		t.Fatal(err)
	}
	add := func(fill byte) {
		t.Helper()
		if _, err := l.Append(nil, bytes.Repeat([]byte{fill}, 60<<10), crc32c.Tail{}, nil); err != nil {
			t.Fatal(err)
		}
		if err := l.Prove(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Trim(l.Durable())
	}
	add(1)
	<-slow.hangs
	for i := range 100 {
		adm, err := l.Admit(t.Context(), 60<<10)
		if err != nil {
			t.Fatal(err)
		}
		add(byte(2 + i))
		adm.Done()
	}
	close(slow.goes)
	if err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if slow.changed {
		t.Error("frames changed while they were sent")
	}
}
