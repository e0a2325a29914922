package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/varve-io/varve/protocol"
)

// View is an agent's picture of what every agent must know: the keys under meta/, followed by one watch. It lags
// behind etcd by a round trip; [View.Wait] waits until it has caught up with a revision. All methods may be called concurrently.
type View struct {
	kv       KV
	log      *slog.Logger
	onCommit func(CommitItem)
	onTopic  func(topic Topic, deleted bool)
	onMember func()

	mu       sync.RWMutex
	revision int64
	advanced chan struct{} // closed and replaced when revision grows
	cluster  Cluster
	topics   map[string]Versioned[Topic]
	ids      map[protocol.TopicID]string
	agents   map[int32]Versioned[Agent]
	shards   []Versioned[Shard]
	moves    map[ShardID]Move
	// controller is absent with a zero revision.
	controller Versioned[Controller]
	commits    map[string]string // names of their segments, by key
}

// Versioned is a decoded value with the revision that wrote it, for later comparisons.
type Versioned[T any] struct {
	Value    T
	Revision int64
}

// CommitItem is a commit that appeared in, or left, etcd.
type CommitItem struct {
	Log      LogID
	Number   uint64
	Revision int64  // that wrote it; zero if Deleted
	Bytes    int    // that it takes in etcd; zero if Deleted
	Commit   Commit // zero if Deleted
	Deleted  bool
}

// ViewConfig says who is told of changes. The functions run one at a time, in order of revisions, before the view
// counts as having reached the revision, and must not block or call the view.
type ViewConfig struct {
	OnCommit func(CommitItem)
	OnTopic  func(topic Topic, deleted bool) // created, changed or deleted
	// OnMember tells that something changed about agents, shards, moves or the controller. nil for nobody.
	OnMember func()
	Log      *slog.Logger
}

// NewView returns an empty view; [View.Run] fills it.
func NewView(kv KV, cfg ViewConfig) *View {
	v := &View{kv: kv, log: cfg.Log, onCommit: cfg.OnCommit, onTopic: cfg.OnTopic, onMember: cfg.OnMember, advanced: make(chan struct{})}
	v.clear()
	return v
}

func (v *View) clear() {
	v.topics = make(map[string]Versioned[Topic])
	v.ids = make(map[protocol.TopicID]string)
	v.agents = make(map[int32]Versioned[Agent])
	v.shards = nil
	v.moves = make(map[ShardID]Move)
	v.controller = Versioned[Controller]{}
	v.commits = make(map[string]string)
}

// Run keeps the view up to date until ctx ends; it returns ctx's error, or the error of a record that cannot be
// read, after which the agent must not go on.
func (v *View) Run(ctx context.Context) error {
	rev, err := v.load(ctx)
	for err == nil {
		err = v.watch(ctx, rev)
		if errors.Is(err, ErrCompacted) {
			v.log.Warn("etcd history was compacted under the watch; reading anew", "revision", v.Revision())
			rev, err = v.load(ctx)
		}
	}
	return err
}

func (v *View) watch(ctx context.Context, rev int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := v.kv.Watch(ctx, PrefixMeta, rev, func(b Batch) {
		if err := v.apply(b); err != nil {
			cancel(err)
		}
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// load reads everything under meta/, waiting for etcd if it is away, and tells of what differs from before.
func (v *View) load(ctx context.Context) (int64, error) {
	for {
		items, rev, err := v.kv.List(ctx, PrefixMeta, 0)
		switch {
		case err == nil:
			return rev, v.replace(items, rev)
		case ctx.Err() != nil:
			return 0, ctx.Err()
		}
		v.log.Warn("waiting for etcd", "err", err)
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// replace makes the view equal to items: what is gone is told as deleted, what is new or changed as usual, in the order in which it was written. A
// younger log may have committed before an older one, so that the order of keys would show the commits of a partition with gaps.
func (v *View) replace(items []Item, rev int64) error {
	seen := make(map[string]struct{}, len(items))
	for _, it := range items {
		seen[it.Key] = struct{}{}
	}
	b := Batch{Revision: rev}
	v.mu.RLock()
	for _, key := range v.keys() {
		if _, ok := seen[key]; !ok {
			b.Events = append(b.Events, Event{Item: Item{Key: key, ModRevision: rev}, Deleted: true})
		}
	}
	v.mu.RUnlock()
	slices.SortStableFunc(items, func(a, b Item) int { return cmp.Compare(a.ModRevision, b.ModRevision) })
	for _, it := range items {
		b.Events = append(b.Events, Event{Item: it})
	}
	return v.apply(b)
}

// keys lists the keys that can be deleted and are in the view, sorted.
func (v *View) keys() []string {
	var keys []string
	for name := range v.topics {
		keys = append(keys, KeyTopic(name))
	}
	for node := range v.agents {
		keys = append(keys, KeyAgent(node))
	}
	for shard := range v.moves {
		keys = append(keys, KeyMove(shard))
	}
	if v.controller.Revision != 0 {
		keys = append(keys, KeyController)
	}
	for key := range v.commits {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func (v *View) apply(b Batch) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	member := false
	for _, e := range b.Events {
		if err := v.applyEvent(e); err != nil {
			return fmt.Errorf("follow coordinator: %w", err)
		}
		member = member || !strings.HasPrefix(e.Key, PrefixCommits) && !strings.HasPrefix(e.Key, PrefixTopics)
	}
	if b.Revision > v.revision {
		v.revision = b.Revision
		close(v.advanced)
		v.advanced = make(chan struct{})
	}
	if member && v.onMember != nil {
		v.onMember()
	}
	return nil
}

func (v *View) applyEvent(e Event) error {
	switch {
	case strings.HasPrefix(e.Key, PrefixCommits):
		return v.applyCommit(e)
	case strings.HasPrefix(e.Key, PrefixTopics):
		return v.applyTopic(e)
	case strings.HasPrefix(e.Key, PrefixAgents):
		return v.applyAgent(e)
	case strings.HasPrefix(e.Key, PrefixShards):
		return v.applyShard(e)
	case strings.HasPrefix(e.Key, PrefixMoves):
		return v.applyMove(e)
	case e.Key == KeyController:
		return v.applyController(e)
	case e.Key == KeyCluster && !e.Deleted:
		c, err := Decode[Cluster](e.Item)
		v.cluster = c
		return err
	}
	return nil
}

func (v *View) applyCommit(e Event) error {
	log, number, err := ParseKeyCommit(e.Key)
	if err != nil {
		return err
	}
	item := CommitItem{Log: log, Number: number, Deleted: e.Deleted}
	if e.Deleted {
		delete(v.commits, e.Key)
	} else {
		if _, known := v.commits[e.Key]; known {
			return nil // a commit never changes
		}
		item.Revision, item.Bytes = e.ModRevision, len(e.Key)+len(e.Value)
		if item.Commit, err = DecodeCommit(e.Value); err != nil {
			return fmt.Errorf("decode %s: %w", e.Key, err)
		}
		v.commits[e.Key] = item.Commit.Object
	}
	if v.onCommit != nil {
		v.onCommit(item)
	}
	return nil
}

func (v *View) applyTopic(e Event) error {
	name := strings.TrimPrefix(e.Key, PrefixTopics)
	old, had := v.topics[name]
	if e.Deleted {
		v.dropTopic(old.Value, had)
		return nil
	}
	t, err := Decode[Topic](e.Item)
	if err != nil {
		return err
	}
	if had && old.Value.ID != t.ID { // deleted and created again between two reads
		v.dropTopic(old.Value, true)
	}
	if had && old.Revision == e.ModRevision {
		return nil
	}
	v.topics[name] = Versioned[Topic]{Value: t, Revision: e.ModRevision}
	v.ids[t.ID] = name
	if v.onTopic != nil {
		v.onTopic(t, false)
	}
	return nil
}

func (v *View) dropTopic(t Topic, had bool) {
	if !had {
		return
	}
	delete(v.topics, t.Name)
	delete(v.ids, t.ID)
	if v.onTopic != nil {
		v.onTopic(t, true)
	}
}

func (v *View) applyAgent(e Event) error {
	if e.Deleted {
		for node := range v.agents {
			if KeyAgent(node) == e.Key {
				delete(v.agents, node)
			}
		}
		return nil
	}
	a, err := Decode[Agent](e.Item)
	v.agents[a.Node] = Versioned[Agent]{Value: a, Revision: e.ModRevision}
	return err
}

func (v *View) applyShard(e Event) error {
	id, err := parseShard(e.Key, PrefixShards)
	if err != nil {
		return err
	}
	if e.Deleted {
		return fmt.Errorf("shard key %q was deleted", e.Key)
	}
	s, err := Decode[Shard](e.Item)
	for int(id) >= len(v.shards) {
		v.shards = append(v.shards, Versioned[Shard]{})
	}
	v.shards[id] = Versioned[Shard]{Value: s, Revision: e.ModRevision}
	return err
}

func (v *View) applyMove(e Event) error {
	id, err := parseShard(e.Key, PrefixMoves)
	if err != nil {
		return err
	}
	if e.Deleted {
		delete(v.moves, id)
		return nil
	}
	v.moves[id], err = Decode[Move](e.Item)
	return err
}

func (v *View) applyController(e Event) error {
	if e.Deleted {
		v.controller = Versioned[Controller]{}
		return nil
	}
	c, err := Decode[Controller](e.Item)
	v.controller = Versioned[Controller]{Value: c, Revision: e.ModRevision}
	return err
}

// Wait returns once the view has seen everything up to rev.
func (v *View) Wait(ctx context.Context, rev int64) error {
	for {
		v.mu.RLock()
		reached, advanced := v.revision >= rev, v.advanced
		v.mu.RUnlock()
		if reached {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d: %w", rev, ctx.Err())
		}
	}
}

// Revision returns how far the view has come.
func (v *View) Revision() int64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.revision
}

// Cluster returns the cluster's record.
func (v *View) Cluster() Cluster {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.cluster
}

// Topic returns a topic by name with the revision of its record. Its Configs must not be changed.
func (v *View) Topic(name string) (Topic, int64, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	t, ok := v.topics[name]
	return t.Value, t.Revision, ok
}

// TopicByID returns a topic by id.
func (v *View) TopicByID(id protocol.TopicID) (Topic, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	name, ok := v.ids[id]
	return v.topics[name].Value, ok
}

// Topics returns all topics, ordered by name.
func (v *View) Topics() []Topic {
	v.mu.RLock()
	all := make([]Topic, 0, len(v.topics))
	for _, t := range v.topics {
		all = append(all, t.Value)
	}
	v.mu.RUnlock()
	slices.SortFunc(all, func(a, b Topic) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Agents returns the live agents, ordered by node id.
func (v *View) Agents() []Agent {
	v.mu.RLock()
	all := make([]Agent, 0, len(v.agents))
	for _, a := range v.agents {
		all = append(all, a.Value)
	}
	v.mu.RUnlock()
	slices.SortFunc(all, func(a, b Agent) int { return int(a.Node) - int(b.Node) })
	return all
}

// Shard returns the record of a shard and its revision; a zero record if there is none yet.
func (v *View) Shard(id ShardID) (Shard, int64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if int(id) >= len(v.shards) {
		return Shard{}, 0
	}
	return v.shards[id].Value, v.shards[id].Revision
}

// Shards returns the records of all shards that have one, by id.
func (v *View) Shards() []Shard {
	v.mu.RLock()
	defer v.mu.RUnlock()
	all := make([]Shard, len(v.shards))
	for i := range v.shards {
		all[i] = v.shards[i].Value
	}
	return all
}

// Segments returns the names of the segments of all commits that are there.
func (v *View) Segments() map[string]bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	names := make(map[string]bool, len(v.commits))
	for _, name := range v.commits {
		names[name] = true
	}
	return names
}

// Moves returns where shards should be moved.
func (v *View) Moves() map[ShardID]Move {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return maps.Clone(v.moves)
}

// Controller returns the controller and the revision of its record, which is 0 if there is none.
func (v *View) Controller() (Controller, int64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.controller.Value, v.controller.Revision
}
