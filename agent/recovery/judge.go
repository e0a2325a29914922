package recovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/batch"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
)

// stretch is what a batch takes of its partition.
type stretch struct {
	first, next protocol.Offset
	epoch       protocol.LeaderEpoch
}

func stretchOf(b []byte) (stretch, error) {
	h, err := batch.Parse(b)
	return stretch{h.BaseOffset, h.NextOffset(), h.LeaderEpoch}, err
}

// reign is what a log has of a partition in one leader epoch.
type reign struct {
	first, next protocol.Offset // of all of its batches
	log         coordinator.LogID
}

// reigns are what logs have of partitions. The leader of an epoch began where what was committed ended, and nothing of a lower epoch could be committed any more.
type reigns map[partition.ID]map[protocol.LeaderEpoch]reign

func (all reigns) note(id partition.ID, epoch protocol.LeaderEpoch, x reign) {
	epochs := all[id]
	if epochs == nil {
		epochs = make(map[protocol.LeaderEpoch]reign)
		all[id] = epochs
	}
	if at, ok := epochs[epoch]; ok {
		x.first, x.next = min(x.first, at.first), max(x.next, at.next)
	}
	epochs[epoch] = x
}

// tip is how far a partition is committed. It is zero if nothing is.
type tip struct {
	end   protocol.Offset
	epoch protocol.LeaderEpoch // of the last batch
}

// verdict is what becomes of a batch of a log from before a restore.
type verdict uint8

const (
	follows   verdict = iota // it continues what is committed
	committed                // what is committed reaches to its end
	void                     // nobody ever counted it: a later leader began before its end
	apart                    // what comes before it is not committed, or an earlier leader's in its place, which nobody ever counted
)

// judge tells what becomes of a batch.
func judge(s stretch, at tip, epochs map[protocol.LeaderEpoch]reign) verdict {
	if s.next <= at.end && s.epoch <= at.epoch {
		return committed
	}
	if at.end > 0 && s.epoch < at.epoch {
		return void
	}
	for epoch, x := range epochs {
		if epoch > s.epoch && x.first < s.next {
			return void
		}
	}
	if s.first != at.end {
		return apart
	}
	return follows
}

// sieve leaves out what does not count of a log from before a restore: since the copy was made from which etcd was restored more of it may have been committed than its record says, and the log may have come to its
// end, so that later leaders wrote other batches where a store that was away holds some that nobody counted.
type sieve struct {
	recovery *Recovery
	lossy    bool
	others   reigns // of all other logs from before the restore
	tips     map[partition.ID]tip
	unread   map[coordinator.ShardID]string // names of manifests that are not in tips yet
	counts   [apart + 1]int                 // of batches, by verdicts
	unknown  map[protocol.TopicID]int       // batches of topics that etcd does not have
	known    *ids                           // nil before one is to be settled
}

// sieve reads what is committed.
func (r *Recovery) sieve(ctx context.Context, others reigns, lossy bool) (*sieve, error) {
	s := &sieve{recovery: r, lossy: lossy, others: others, tips: make(map[partition.ID]tip), unread: make(map[coordinator.ShardID]string), unknown: make(map[protocol.TopicID]int)}
	var items []coordinator.Item
	err := retry.Coordinator(ctx, r.Log, "read what is committed", func(ctx context.Context) (err error) {
		items, _, err = coordinator.ListAll(ctx, r.KV, coordinator.PrefixCommits, coordinator.PrefixShards)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		if strings.HasPrefix(it.Key, coordinator.PrefixCommits) {
			err = s.commit(ctx, it.Value)
		} else {
			err = s.shard(it)
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *sieve) shard(it coordinator.Item) error {
	id, err := coordinator.ParseKeyShard(it.Key)
	if err != nil {
		return err
	}
	record, err := coordinator.Decode[coordinator.Shard](it)
	if err == nil && record.Manifest != "" {
		s.unread[id] = record.Manifest
	}
	return err
}

func (s *sieve) commit(ctx context.Context, value []byte) error {
	c, err := coordinator.DecodeCommit(value)
	if err != nil {
		return err
	}
	if c.InFooter {
		b, err := s.get(ctx, c.Object, c.FooterPos, c.FooterSize)
		if err != nil {
			return err
		}
		footer, err := segment.ParseFooter(b)
		if err != nil {
			return fmt.Errorf("read the footer of %s: %w", c.Object, err)
		}
		c.Partitions = flush.CommitPartitions(footer)
	}
	for i := range c.Partitions {
		p := &c.Partitions[i]
		s.reach(partition.ID{Topic: p.Topic, Partition: p.Partition}, tip{p.NextOffset, p.LeaderEpoch})
	}
	return nil
}

func (s *sieve) get(ctx context.Context, name string, pos, size int64) ([]byte, error) {
	b := make([]byte, size)
	err := retry.Bucket(ctx, s.recovery.Log, "read what is committed", func() error {
		return s.recovery.Store.Get(ctx, name, pos, b)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// reach takes in that a partition is committed at least so far.
func (s *sieve) reach(id partition.ID, to tip) {
	if to.end > s.tips[id].end {
		s.tips[id] = to
	}
}

// merged takes in what a shard has merged.
func (s *sieve) merged(ctx context.Context, shard coordinator.ShardID) error {
	name, ok := s.unread[shard]
	if !ok {
		return nil
	}
	var info objectstore.Info
	err := retry.Bucket(ctx, s.recovery.Log, "read what a shard has merged", func() (err error) {
		info, err = s.recovery.Store.Stat(ctx, name)
		return err
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if info.Size > manifest.BytesMax {
		return fmt.Errorf("read %s: %w: %d bytes, want at most %d", name, manifest.ErrCorrupt, info.Size, manifest.BytesMax)
	}
	b, err := s.get(ctx, name, 0, info.Size)
	if err != nil {
		return err
	}
	m, err := manifest.Parse(b)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	for i := range m.Partitions {
		p := &m.Partitions[i]
		at := tip{end: p.End}
		if n := len(p.Epochs); n > 0 {
			at.epoch = p.Epochs[n-1].Epoch
		}
		s.reach(partition.ID{Topic: p.Topic, Partition: p.Partition}, at)
	}
	delete(s.unread, shard)
	return nil
}

// awaits returns the log that has what an earlier leader than a batch's wrote behind what is committed; 0 if none has.
func (s *sieve) awaits(id partition.ID, at stretch) coordinator.LogID {
	for _, epoch := range slices.Sorted(maps.Keys(s.others[id])) {
		if x := s.others[id][epoch]; epoch < at.epoch && x.next > s.tips[id].end {
			return x.log
		}
	}
	return 0
}

// takes reports whether an entry is to be committed. It fails if what comes before its batch is not committed, or something else in its place; by an operator's word such a batch is left out, as there may be no gap, and no
// offset that shows two things, unless another log has what comes before it.
func (s *sieve) takes(ctx context.Context, n wal.EntryID, h *ingest.EntryHeader, b []byte) (bool, error) {
	if err := s.merged(ctx, h.Shard); err != nil {
		return false, err
	}
	at, err := stretchOf(b)
	if err != nil {
		return false, fmt.Errorf("entry %d: %w", n, err)
	}
	id := partition.ID{Topic: h.Topic, Partition: h.Partition}
	known := s.tips[id]
	v := judge(at, known, s.others[id])
	s.counts[v]++
	switch {
	case v == follows:
		s.tips[id] = tip{at.next, at.epoch}
		return true, nil
	case v == apart && s.awaits(id, at) > 0:
		return false, &waitingError{s.awaits(id, at), fmt.Sprintf("entry %d has offsets [%d,%d) of %s/%d, in leader epoch %d; that is committed to %d", n, at.first, at.next, id.Topic, id.Partition, at.epoch, known.end)}
	case v == apart && !s.lossy:
		return false, fmt.Errorf("%w: entry %d has offsets [%d,%d) of %s/%d, in leader epoch %d; that is committed to %d, in epoch %d", ErrLacking, n, at.first, at.next, id.Topic, id.Partition, at.epoch, known.end, known.epoch)
	}
	return false, nil
}

// tell tells what was left out.
func (s *sieve) tell(log coordinator.LogID) {
	s.recovery.Log.Info("took what continues what is committed of a WAL log from before the restore", "log", log,
		"batches", s.counts[follows], "committed", s.counts[committed], "neverCounted", s.counts[void])
	if n := s.counts[apart]; n > 0 {
		s.recovery.Log.Error("loss accepted: batches of a WAL log are left out, since what comes before them is lost, or others are committed in their place", "log", log, "batches", n)
	}
	for topic, n := range s.unknown {
		s.recovery.Log.Error("batches of a WAL log are left out, since their topic is not known: it was deleted, or created after the copy was made that was restored, and nothing of it was in the bucket",
			"log", log, "topic", topic, "batches", n)
	}
}

// reigns reads what there is in the logs from before the restore that are open, other than id. All of them have to be there, since who led a shard last is not known; blind is an operator's word that this
// log is lost, and then the others count as far as they are in reach; else only that of which the word is does.
func (r *Recovery) reigns(ctx context.Context, id coordinator.LogID, blind bool, word coordinator.LogID) (reigns, error) {
	var logs coordinator.Logs
	err := retry.Coordinator(ctx, r.Log, "list WAL logs", func(ctx context.Context) (err error) {
		logs, err = coordinator.ListLogs(ctx, r.KV, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	all := make(reigns)
	for _, other := range logs.Records {
		if other.Closed || other.ID == id || other.ID >= r.Restored {
			continue
		}
		blind := blind || other.ID == word
		of, err := r.reignsOf(ctx, other, blind)
		if err != nil && blind {
			r.Log.Error("loss accepted: it is not known what another WAL log holds", "log", id, "other", other.ID, "err", err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("WAL log %s waits for log %s, which may have its partitions too: %w: %s", id, other.ID, ErrWaiting, err.Error()) // damage there is none here
		}
		for id, epochs := range of {
			for epoch, x := range epochs {
				all.note(id, epoch, x)
			}
		}
	}
	return all, nil
}

// reignsOf reads what one log has, once: it has no writer any more.
func (r *Recovery) reignsOf(ctx context.Context, record coordinator.Log, blind bool) (reigns, error) {
	r.mu.Lock()
	of := r.known[record.ID]
	r.mu.Unlock()
	if of != nil {
		return of, nil
	}
	for {
		of, err := r.readReigns(ctx, record, blind)
		if !errors.Is(err, disk.ErrFenced) {
			return of, err
		}
		newer, _, readErr := r.read(ctx, record.ID) // somebody may have claimed it meanwhile
		switch {
		case readErr != nil:
			return nil, readErr
		case newer.Closed: // what counted of it is committed
			return nil, nil
		case newer.Fence == record.Fence:
			return nil, err
		}
		record = newer
	}
}

func (r *Recovery) readReigns(ctx context.Context, record coordinator.Log, blind bool) (reigns, error) {
	parts, err := r.sealOld(ctx, record, blind)
	if err != nil {
		return nil, err
	}
	of := make(reigns)
	err = read(parts, func(n wal.EntryID, entry []byte) error {
		h, b, err := ingest.ParseEntry(entry)
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		at, err := stretchOf(b)
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		of.note(partition.ID{Topic: h.Topic, Partition: h.Partition}, at.epoch, reign{at.first, at.next, record.ID})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read WAL log %s: %w", record.ID, err)
	}
	if blind { // others may come into reach
		return of, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known == nil {
		r.known = make(map[coordinator.LogID]reigns)
	}
	r.known[record.ID] = of
	return of, nil
}
