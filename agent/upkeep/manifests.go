// Package upkeep is what a shard's leader does to its committed data besides serving it: it moves log start offsets, for DeleteRecords and for retention, merges
// segments, and compacts partitions.
//
//	commits' segments (level 0, many shards)                    manifest
//	  [ A | B | C ] [ A | C ] [ A | B ]   -- Merger of A -->   segment (level 1): [ A: partition 0 | partition 1 | ... ]
//
// All of it ends in a new manifest of the shard, which is written into the bucket, then made the shard's newest by a guarded write, and only then do readers see it
// ([Manifests]). A manifest, or a merged segment, that was written and not installed is garbage. What may have happened twice, or half, has done no harm.
package upkeep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/protocol"
)

// Ledger writes to the coordinator under the guards of shards; done is called once.
type Ledger interface {
	Write(shard coordinator.ShardID, ops []coordinator.Op, done func(error))
}

// Deps is what [Manifests] work with.
type Deps struct {
	Store   objectstore.Store
	Ledger  Ledger
	Index   *index.Index
	Cluster [16]byte
	Known   func(id [16]byte) bool // whether the topic exists
	// ProducerIdle is how long a producer may have been idle to be remembered (producer.id.expiration.ms).
	ProducerIdle time.Duration
	// Broken is told that what is installed contradicts what is committed: the agent must not go on.
	Broken func(error)
	Now    func() time.Time
}

// Manifests are the newest manifests of shards: of those that this agent leads, which it writes, and of those that other agents lead, once somebody has asked for them. What they
// say is in the index. They may be used concurrently.
type Manifests struct {
	deps    Deps
	flights singleflight.Group // by name of the manifest

	garbage garbage

	mu      sync.Mutex
	shards  map[coordinator.ShardID]*shard
	numbers map[coordinator.ShardID]number // of the segment that was tried last
}

// shard is the newest manifest of a shard.
type shard struct {
	turn chan struct{} // of capacity 1: whoever installs a manifest has put a token in; the record is theirs
	gone chan struct{} // closed when the shard is not led any more

	record coordinator.Shard

	mu       sync.Mutex // only who has the turn changes what follows while the shard is led
	led      bool
	manifest *manifest.Manifest // the newest, of a shard that is led; is never changed
	shown    uint64             // its generation; of a shard that is followed, that of the newest that the index knows
	tried    uint64             // the last generation that was used
	claims   map[manifest.Segment]bool
}

// NewManifests returns the manifests of no shard.
func NewManifests(deps Deps) *Manifests {
	return &Manifests{deps: deps, shards: make(map[coordinator.ShardID]*shard), numbers: make(map[coordinator.ShardID]number)}
}

func newShard() *shard {
	return &shard{turn: make(chan struct{}, 1), gone: make(chan struct{}), claims: make(map[manifest.Segment]bool)}
}

// Adopt loads the newest manifest of a shard that was given to this agent. Until the shard is restored and led nobody may install another: if it cannot be restored, it is given on with the record that
// was adopted.
func (s *Manifests) Adopt(ctx context.Context, id coordinator.ShardID, record coordinator.Shard) error {
	m := &manifest.Manifest{Cluster: s.deps.Cluster, Shard: uint32(id)}
	if record.Manifest != "" {
		var err error
		if m, err = s.read(ctx, record.Manifest); err != nil {
			return fmt.Errorf("adopt shard %d: %w", id, err)
		}
	}
	sh := newShard()
	sh.record, sh.led = record, true
	s.mu.Lock()
	if s.shards[id] != nil { // a flight that is under way has the old one
		s.shards[id].resign()
	}
	s.shards[id] = sh
	s.mu.Unlock()
	return s.show(sh, m)
}

// resign has nothing that is still under way for the shard show up in the index, and nobody wait for a turn. It is called once.
func (sh *shard) resign() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.led, sh.tried = false, ^uint64(0)
	close(sh.gone)
}

// take waits for the turn to install a manifest. It fails if the shard is not led any more.
func (sh *shard) take(ctx context.Context) error {
	select {
	case sh.turn <- struct{}{}:
	case <-sh.gone:
		return protocol.NotLeaderOrFollower.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-sh.gone:
		<-sh.turn
		return protocol.NotLeaderOrFollower.Err()
	default:
		return nil
	}
}

// Resign forgets a shard that another agent leads now. What the index knows of it stays good.
func (s *Manifests) Resign(id coordinator.ShardID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sh := s.shards[id]; sh != nil {
		sh.resign()
		delete(s.shards, id)
	}
}

// Hold waits until no new manifest of a shard is under way, and returns the shard's record. It stays as it is until release is called, or for ever if Resign is: the
// shard is to be handed over. ok is false if the shard was not adopted.
func (s *Manifests) Hold(ctx context.Context, id coordinator.ShardID) (record coordinator.Shard, release func(), ok bool, err error) {
	sh := s.led(id)
	if sh == nil {
		return coordinator.Shard{}, nil, false, nil
	}
	if err := sh.take(ctx); err != nil {
		return coordinator.Shard{}, nil, false, fmt.Errorf("wait for the manifest of shard %d: %w", id, err)
	}
	return sh.record, func() { <-sh.turn }, true, nil
}

// Of returns the newest manifest of a shard that was adopted; nil if it was not. It must not be changed.
func (s *Manifests) Of(id coordinator.ShardID) *manifest.Manifest {
	sh := s.led(id)
	if sh == nil {
		return nil
	}
	return sh.newest()
}

// Record returns the record of a shard that was adopted, as of its newest manifest.
func (s *Manifests) Record(id coordinator.ShardID) (record coordinator.Shard, ok bool) {
	sh := s.led(id)
	if sh == nil {
		return coordinator.Shard{}, false
	}
	return sh.newestRecord(), true
}

// led returns a shard that was adopted, or nil.
func (s *Manifests) led(id coordinator.ShardID) *shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[id]
	if sh == nil {
		return nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if !sh.led {
		return nil
	}
	return sh
}

// flightTime bounds the read of a manifest: nobody's context does.
const flightTime = 30 * time.Second

// Follow has the index know what the manifest of that name says, or a newer one, of a shard that another agent leads. An empty name stands for none.
func (s *Manifests) Follow(ctx context.Context, id coordinator.ShardID, name string) error {
	if name == "" || s.follows(id, name) {
		return nil
	}
	flight := s.flights.DoChan(name, func() (any, error) {
		// The flight serves others too, so that the end of this caller must not end it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flightTime)
		defer cancel()
		if s.follows(id, name) { // another flight has landed meanwhile
			return nil, nil
		}
		sh := s.following(id)
		m, err := s.read(ctx, name)
		if err != nil {
			return nil, err
		}
		return nil, s.show(sh, m)
	})
	select {
	case res := <-flight:
		if res.Err != nil {
			return fmt.Errorf("follow shard %d: %w", id, res.Err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("follow shard %d: %w", id, ctx.Err())
	}
}

// follows reports whether the manifest of that name, or a newer one, is there.
func (s *Manifests) follows(id coordinator.ShardID, name string) bool {
	s.mu.Lock()
	sh := s.shards[id]
	s.mu.Unlock()
	if sh == nil {
		return false
	}
	_, _, generation, err := manifest.ParseName(name)
	if err != nil {
		return false // reading it tells
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.shown >= generation
}

// following returns the place of a shard that another agent leads.
func (s *Manifests) following(id coordinator.ShardID) *shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[id]
	if sh == nil {
		sh = newShard()
		s.shards[id] = sh
	}
	return sh
}

// show takes a manifest into the index, unless a newer one is there.
func (s *Manifests) show(sh *shard, m *manifest.Manifest) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.tried > m.Generation || sh.shown > m.Generation {
		return nil
	}
	objects := make([]*index.Object, len(m.Segments))
	for i := range m.Segments {
		objects[i] = objectOf(m, &m.Segments[i])
	}
	for i := range m.Partitions {
		p := &m.Partitions[i]
		if !s.deps.Known(p.Topic) {
			continue // deleted since
		}
		if err := s.deps.Index.Replace(partition.ID{Topic: p.Topic, Partition: p.Partition}, shown(m, p, objects)); err != nil {
			return fmt.Errorf("%s: %w", m.Name(), err)
		}
	}
	sh.shown, sh.tried = m.Generation, m.Generation
	if sh.led {
		sh.manifest = m
	}
	return nil
}

// objectOf is the object of a segment.
func objectOf(m *manifest.Manifest, g *manifest.Segment) *index.Object {
	return &index.Object{Name: g.Name(m.Shard), Size: g.Size, FooterPos: g.FooterPos, CreatedMs: g.CreatedMs}
}

// shown is what the index is told of a partition.
func shown(m *manifest.Manifest, p *manifest.Partition, objects []*index.Object) index.Merged {
	list := make([]index.Extent, len(p.Extents))
	for i := range p.Extents {
		e := &p.Extents[i]
		list[i] = index.Extent{
			First: e.First, Next: e.Next, LastStable: min(e.Next, p.LastStable), Pos: e.Pos, Size: e.Size, MaxTimestamp: e.MaxTimestamp, Epoch: e.Epoch,
			Shard: m.Shard, Object: objects[e.Segment],
		}
	}
	return index.Merged{Start: p.LogStartOffset, End: p.End, LastStable: p.LastStable, Cleaned: p.Cleaned, Extents: list}
}

// read reads the manifest of that name.
func (s *Manifests) read(ctx context.Context, name string) (*manifest.Manifest, error) {
	info, err := s.deps.Store.Stat(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", name, err)
	}
	if info.Size > manifest.BytesMax {
		return nil, fmt.Errorf("read manifest %s: %d bytes, want at most %d", name, info.Size, manifest.BytesMax)
	}
	b := make([]byte, info.Size)
	if err := s.deps.Store.Get(ctx, name, 0, b); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", name, err)
	}
	m, err := manifest.Parse(b)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", name, err)
	}
	if m.Name() != name {
		return nil, fmt.Errorf("read manifest %s: %w: it is %s", name, manifest.ErrCorrupt, m.Name())
	}
	return m, nil
}

// DeleteBefore makes the log start offset of each partition at least the one given, and returns once that is durable and visible.
// An offset past what is committed is an error, and then nothing is moved. Each shard is one write; if one fails, the others may have succeeded, and trying again does no harm.
func (s *Manifests) DeleteBefore(ctx context.Context, starts map[*ingest.Partition]protocol.Offset) error {
	byShard := make(map[coordinator.ShardID][]*ingest.Partition)
	for p, start := range starts {
		if end := s.deps.Index.End(p.ID); start > end {
			return fmt.Errorf("delete records of %s/%d before %d: only those below %d are committed", p.Name, p.ID.Partition, start, end)
		}
		byShard[p.Shard] = append(byShard[p.Shard], p)
	}
	var errs []error
	for id, partitions := range byShard {
		c := change{
			edit: func(next *manifest.Manifest) {
				for _, p := range partitions {
					at := place(next, p.ID, p.Name) // an entry of next's own
					at.LogStartOffset = max(at.LogStartOffset, starts[p])
				}
			},
			installed: func(m *manifest.Manifest) error {
				for _, p := range partitions {
					if err := p.SetStart(m.LogStart(p.ID.Topic, p.ID.Partition)); err != nil {
						return err
					}
				}
				return nil
			},
		}
		if err := s.install(ctx, id, s.led(id), c); err != nil {
			errs = append(errs, fmt.Errorf("delete records of shard %d: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// place returns a partition's entry in a manifest that is being made, which may be changed until the next call.
func place(m *manifest.Manifest, id partition.ID, topic string) *manifest.Partition {
	at, ok := m.Find(id.Topic, id.Partition)
	if !ok {
		m.Set(manifest.Partition{Topic: id.Topic, TopicName: topic, Partition: id.Partition})
		at, _ = m.Find(id.Topic, id.Partition)
	}
	return at
}

// change is what makes a shard's next manifest of its newest.
type change struct {
	edit      func(next *manifest.Manifest)            // may replace what next refers to, and must not change it
	merged    int64                                    // of the record, from then on; 0 to leave it
	installed func(installed *manifest.Manifest) error // is told when it is the newest; nil for nobody
}

// errNotWritten says that a manifest was not installed, and never will be.
var errNotWritten = errors.New("not written")

// install has the next manifest of a shard, as [Manifests.led] gave it, written and waits until it is the newest, or ctx ends; it is brought to its end then all the same, since
// whether it applied must be known before the next one.
func (s *Manifests) install(ctx context.Context, id coordinator.ShardID, sh *shard, c change) error {
	if sh == nil {
		return protocol.NotLeaderOrFollower.Err()
	}
	if err := sh.take(ctx); err != nil {
		return fmt.Errorf("%w: %w", errNotWritten, err)
	}
	next := *sh.newest()
	next.Partitions = slices.Clone(next.Partitions)
	next.Epoch, next.CreatedMs = protocol.LeaderEpoch(sh.record.Epoch), s.deps.Now().UnixMilli()
	c.edit(&next)
	s.prune(&next)
	if err := s.put(ctx, sh, &next); err != nil {
		<-sh.turn
		return fmt.Errorf("%w: %w", errNotWritten, err)
	}
	record := sh.record
	record.Manifest, record.Merged = next.Name(), max(record.Merged, c.merged)
	done := make(chan error, 1)
	old := sh.newest()
	s.deps.Ledger.Write(id, []coordinator.Op{{Key: coordinator.KeyShard(id), Value: coordinator.Encode(record)}}, func(err error) {
		if err == nil {
			sh.mu.Lock()
			sh.record = record
			sh.mu.Unlock()
			s.garbage.add(s.deps.Now(), discards(old, &next)...)
			if err = s.show(sh, &next); err != nil {
				s.deps.Broken(err)
			}
		}
		if err == nil && c.installed != nil {
			err = c.installed(&next)
		}
		<-sh.turn
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newestRecord returns the record of a shard as of its newest manifest.
func (sh *shard) newestRecord() coordinator.Shard {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.record
}

// newest returns the newest manifest of a shard that is led.
func (sh *shard) newest() *manifest.Manifest {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.manifest
}

// discards returns the objects that nothing refers to once next has been installed over old. Of a generation that was tried and not installed nothing is left, or something that the next leader finds.
func discards(old, next *manifest.Manifest) []string {
	var names []string
	if old.Generation > 0 {
		names = append(names, old.Name())
	}
	kept := make(map[manifest.Segment]bool, len(next.Segments))
	for _, g := range next.Segments {
		kept[g] = true
	}
	for _, g := range old.Segments {
		if !kept[g] {
			names = append(names, g.Name(old.Shard))
		}
	}
	return names
}

// records returns the records of the shards that are led.
func (s *Manifests) records() map[coordinator.ShardID]coordinator.Shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[coordinator.ShardID]coordinator.Shard, len(s.shards))
	for id, sh := range s.shards {
		sh.mu.Lock()
		if sh.led {
			all[id] = sh.record
		}
		sh.mu.Unlock()
	}
	return all
}

// prune takes out of a manifest that is being made what nobody may read any more, and has its segments in order.
func (s *Manifests) prune(m *manifest.Manifest) {
	m.Partitions = slices.DeleteFunc(m.Partitions, func(p manifest.Partition) bool { return !s.deps.Known(p.Topic) })
	forget(m, s.deps.Now(), s.deps.ProducerIdle, manifest.ProducersMax)
	used := make([]bool, len(m.Segments))
	for i := range m.Partitions {
		p := &m.Partitions[i]
		for len(p.Extents) > 0 && p.Extents[0].Next <= p.LogStartOffset {
			p.Extents = p.Extents[1:]
		}
		for j := range p.Extents {
			used[p.Extents[j].Segment] = true
		}
	}
	order := make([]int32, 0, len(used))
	for i, u := range used {
		if u {
			order = append(order, int32(i))
		}
	}
	older := func(a, b int32) int {
		return cmp.Or(cmp.Compare(m.Segments[a].Epoch, m.Segments[b].Epoch), cmp.Compare(m.Segments[a].Number, m.Segments[b].Number))
	}
	if len(order) == len(used) && slices.IsSortedFunc(order, older) {
		return
	}
	slices.SortFunc(order, older)
	moved, kept := make([]int32, len(used)), make([]manifest.Segment, 0, len(order))
	for _, i := range order {
		moved[i] = int32(len(kept))
		kept = append(kept, m.Segments[i])
	}
	m.Segments = kept
	for i := range m.Partitions {
		p := &m.Partitions[i]
		p.Extents = slices.Clone(p.Extents)
		for j := range p.Extents {
			p.Extents[j].Segment = moved[p.Extents[j].Segment]
		}
	}
}

// forget takes out of a manifest that is being made the producers that have been idle for so long, of all partitions, also of those in which nothing happens any more. Those with an open transaction stay. If more than most are left, which no manifest takes,
// the time is halved until they are not. A leader that restores forgets the idle ones too.
func forget(m *manifest.Manifest, now time.Time, idle time.Duration, most int) {
	for ; ; idle /= 2 {
		left, before := 0, now.Add(-idle).UnixMilli()
		gone := func(p manifest.Producer) bool { return p.UpdatedMs < before && p.TxnFirst == protocol.NoOffset }
		for i := range m.Partitions {
			p := &m.Partitions[i]
			if slices.ContainsFunc(p.Producers, gone) {
				p.Producers = slices.DeleteFunc(slices.Clone(p.Producers), gone)
			}
			left += len(p.Producers)
		}
		if left <= most || idle <= 0 {
			return
		}
	}
}

// dropDeleted installs manifests without the topics that were deleted, for shards whose newest has some. One that was adopted and is not led yet is left alone: it may be given on as it was taken.
func (s *Manifests) dropDeleted(ctx context.Context, leads func(coordinator.ShardID) bool) error {
	ctx, cancel := context.WithTimeout(ctx, listMax)
	defer cancel()
	var errs []error
	for id := range s.records() {
		if ctx.Err() != nil {
			break
		}
		sh := s.led(id) // before it is asked whether the shard is led: what was adopted anew since is another one
		if sh == nil || !leads(id) || !slices.ContainsFunc(sh.newest().Partitions, func(p manifest.Partition) bool { return !s.deps.Known(p.Topic) }) {
			continue
		}
		if err := s.install(ctx, id, sh, change{edit: func(*manifest.Manifest) {}}); err != nil && protocol.CodeOf(err) != protocol.NotLeaderOrFollower {
			errs = append(errs, fmt.Errorf("leave deleted topics out of the manifest of shard %d: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// putPause is the wait between two tries to write a manifest.
const putPause = 200 * time.Millisecond

// put writes the manifest under the next free generation; it tries until ctx ends. A generation whose outcome is unknown is not used again, so that a
// name stands for fixed bytes.
func (s *Manifests) put(ctx context.Context, sh *shard, next *manifest.Manifest) error {
	for {
		sh.mu.Lock()
		if !sh.led {
			sh.mu.Unlock()
			return protocol.NotLeaderOrFollower.Err()
		}
		sh.tried++
		next.Generation = sh.tried
		sh.mu.Unlock()
		b, err := next.Encode()
		if err != nil {
			return err
		}
		err = s.putOnce(ctx, next.Name(), b)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, objectstore.ErrExists):
			continue
		}
		select {
		case <-time.After(putPause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		}
	}
}

// putOnce tries once, for as long as a manifest may take: a connection whose other end is gone may be silent for ever.
func (s *Manifests) putOnce(ctx context.Context, name string, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, flightTime)
	defer cancel()
	return s.deps.Store.Put(ctx, name, objectstore.Bytes(b))
}
