package rebuild

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/varve-io/varve/agent/flush"
	"github.com/varve-io/varve/agent/partition"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/segment"
	"github.com/varve-io/varve/protocol"
)

// Found is all from which a plan is made.
type Found struct {
	Cluster coordinator.Cluster
	// Topics, Shards, Logs, Past and Commits are as the copy has them. A log below Past without a record is over.
	Topics  map[protocol.TopicID]coordinator.Topic
	Shards  map[coordinator.ShardID]coordinator.Shard
	Logs    map[coordinator.LogID]coordinator.Log
	Past    coordinator.LogID
	Commits []Commit // by revision
	// Manifests are the newest of each shard all of whose segments are in the bucket.
	Manifests map[coordinator.ShardID]*manifest.Manifest
	// Segments are those of level 0 that may have been committed after the copy was made ([Found.MayBeNew]).
	Segments []Segment
	// Damaged tells of manifests that are newer than those in Manifests, and segments that may have been committed after the copy was made, that nobody can read.
	Damaged []string
}

// Segment is a segment of level 0 in the bucket.
type Segment struct {
	*segment.Footer
}

// Commit is a commit, as of the copy or made anew.
type Commit struct {
	coordinator.Commit
	Revision int64           // that wrote it; those that are made anew are numbered on
	Footer   *segment.Footer // nil if the segment is not in the bucket
}

// Plan is what the bucket says was committed.
type Plan struct {
	Topics  map[protocol.TopicID]coordinator.Topic
	Commits []Commit                         // in the order in which they are to be written
	Adopted int                              // how many of them, the last, the copy does not have
	Left    int                              // how many of the copy's are merged by all of their shards
	Merged  map[coordinator.ShardID]int64    // of each shard, in terms of the commits' revisions
	Ends    map[partition.ID]protocol.Offset // of all partitions that have records
	Logs    map[coordinator.LogID]Progress   // of logs that have commits which the copy does not have
	// Missing tells what was committed and is not in the bucket, and Notes what an operator should know besides.
	Missing, Notes []string
}

// Progress is how far a log was flushed. Of the numbers up to Commits some may never have been committed, or be missing in the bucket: uploads overtake each other. Flushed lies before the first of these, so that
// what disks have of it is recovered.
type Progress struct {
	Fence, Commits uint64
	Flushed        int64 // entry
	hole           bool  // a number is missing of which nothing tells that it was committed
}

// writerFence is the fence of a log's own writer. Whoever has claimed a log has a higher one.
const writerFence = 1

// with returns the progress of a log of which a segment is taken, or was merged: the next of its numbers that there is. A writer uploads several segments at once, so that one shows nothing of numbers before it. Whoever
// has claimed the log begins behind the last commit, and uploads one after the other.
func (at Progress) with(h *segment.Header) Progress {
	at.hole = h.ID.Fence == writerFence && (at.hole || h.ID.Commit != at.Commits+1)
	at.Fence, at.Commits = h.ID.Fence, h.ID.Commit
	if !at.hole {
		at.Flushed = h.LastEntry
	}
	return at
}

// progress returns how far a log was flushed, as far as it is known by now.
func (p *planner) progress(log coordinator.LogID) Progress {
	at, ok := p.plan.Logs[log]
	if !ok {
		l := p.Logs[log]
		at = Progress{Commits: l.Commits, Flushed: l.Flushed}
	}
	return at
}

// MayBeNew reports whether a segment of level 0 may have been committed after the copy was made: its log was not over then, it had fewer commits, and nobody had claimed it from the segment's writer.
func (f *Found) MayBeNew(id segment.ID) bool {
	log := coordinator.LogID(id.Log)
	record, ok := f.Logs[log]
	if !ok {
		return log >= f.Past
	}
	return !record.Closed && id.Commit > record.Commits && id.Fence >= record.Fence
}

// planner is a plan under way.
type planner struct {
	*Found
	plan   *Plan
	epochs map[partition.ID]protocol.LeaderEpoch // of the last record
	// begun are shards of which a commit was taken whose part of it is not merged: no merged one can come after it.
	begun map[coordinator.ShardID]bool
}

// NewPlan decides which commits there were. DESIGN.md has the rules, and why they are right.
func NewPlan(f *Found) *Plan {
	p := &planner{
		Found: f, epochs: make(map[partition.ID]protocol.LeaderEpoch), begun: make(map[coordinator.ShardID]bool),
		plan: &Plan{
			Topics: maps.Clone(f.Topics), Merged: make(map[coordinator.ShardID]int64), Ends: make(map[partition.ID]protocol.Offset),
			Logs: make(map[coordinator.LogID]Progress),
		},
	}
	for _, m := range f.Manifests {
		for i := range m.Partitions {
			at := &m.Partitions[i]
			id := partition.ID{Topic: at.Topic, Partition: at.Partition}
			p.plan.Ends[id] = at.End
			if n := len(at.Epochs); n > 0 {
				p.epochs[id] = at.Epochs[n-1].Epoch
			}
		}
	}
	p.damage()
	p.settleTopics()
	p.known()
	p.adopt(p.candidates())
	p.starts()
	return p.plan
}

// starts tells of partitions that start beyond what is left of them.
func (p *planner) starts() {
	for _, shard := range slices.Sorted(maps.Keys(p.Manifests)) {
		m := p.Manifests[shard]
		if m == nil {
			continue
		}
		for i := range m.Partitions {
			at := &m.Partitions[i]
			id := partition.ID{Topic: at.Topic, Partition: at.Partition}
			if _, ok := p.plan.Topics[id.Topic]; ok && at.LogStartOffset > p.plan.Ends[id] {
				p.missing("what %s had below %d, where it starts: only what is below %d is there, and shard %d will have no leader", p.name(id), at.LogStartOffset, p.plan.Ends[id], shard)
			}
		}
	}
}

// damage tells of what the bucket should have.
func (p *planner) damage() {
	for _, why := range p.Damaged {
		p.missing("%s: it may be newer than the copy", why)
	}
	for _, id := range slices.Sorted(maps.Keys(p.Shards)) {
		installed, m := p.Shards[id].Manifest, p.Manifests[id]
		switch {
		case installed == "" || m != nil && m.Name() >= installed:
		case m == nil:
			p.missing("all that was merged of shard %d: %s was in force, and neither it nor another is whole", id, installed)
		default:
			p.missing("what was merged of shard %d after %s: %s was in force, and is not whole", id, m.Name(), installed)
		}
	}
}

// section is what is said of a partition in a segment.
type section struct {
	id          partition.ID
	shard       coordinator.ShardID
	first, next protocol.Offset
	low, high   protocol.LeaderEpoch // of its first and last batch
}

func (c *Commit) sections() []section {
	all := make([]section, len(c.Partitions))
	for i := range c.Partitions {
		p := &c.Partitions[i]
		all[i] = section{partition.ID{Topic: p.Topic, Partition: p.Partition}, p.Shard, p.FirstOffset, p.NextOffset, p.LeaderEpoch, p.LeaderEpoch}
	}
	return all
}

func (s Segment) sections() []section {
	all := make([]section, len(s.Sections))
	for i := range s.Sections {
		p := &s.Sections[i]
		all[i] = section{partition.ID{Topic: p.Topic, Partition: p.Partition}, coordinator.ShardID(p.Shard), p.FirstOffset, p.NextOffset, p.LeaderEpoch, p.LeaderEpoch}
		for b, err := range p.All() {
			if err == nil {
				all[i].low = b.LeaderEpoch
			}
			break
		}
	}
	return all
}

// kind is how a section stands to what is known of its partition.
type kind uint8

const (
	foreign   kind = iota // of a topic that does not exist
	merged                // in the shard's manifest
	continues             // follows what is known
	early                 // what comes before it is not known
	broken                // contradicts what is known: it was never committed
)

func (p *planner) kind(s section) kind {
	end := p.plan.Ends[s.id]
	_, exists := p.plan.Topics[s.id.Topic]
	switch {
	case !exists:
		return foreign
	case s.next <= end:
		return merged
	case s.first < end || s.low < p.epochs[s.id]:
		return broken
	case s.first > end:
		return early
	}
	return continues
}

// look tells how a segment stands: whether all of its sections are merged, or of topics that are gone, and by shards that it has something of whether that is merged. bad is a section that is early, or broken if one
// is.
func (p *planner) look(all []section) (over bool, shards map[coordinator.ShardID]bool, bad *section) {
	over, shards = true, make(map[coordinator.ShardID]bool)
	for i, s := range all {
		k := p.kind(s)
		if k == foreign {
			continue
		}
		if k == broken || k == early && bad == nil {
			bad = &all[i]
		}
		if was, seen := shards[s.shard]; !seen || was {
			shards[s.shard] = k == merged
		}
		over = over && k == merged
	}
	return over, shards, bad
}

// take makes a commit part of the plan.
func (p *planner) take(c Commit, all []section, shards map[coordinator.ShardID]bool) {
	for _, s := range all {
		if p.kind(s) == continues {
			p.plan.Ends[s.id], p.epochs[s.id] = s.next, s.high
		}
	}
	for shard, isMerged := range shards {
		if isMerged {
			p.plan.Merged[shard] = c.Revision
		} else {
			p.begun[shard] = true
		}
	}
	p.plan.Commits = append(p.plan.Commits, c)
}

// late reports whether a commit comes too late: it has something merged of a shard of which something is taken that is not.
func (p *planner) late(shards map[coordinator.ShardID]bool) bool {
	for shard, isMerged := range shards {
		if isMerged && p.begun[shard] {
			return true
		}
	}
	return false
}

// known takes the copy's commits, in their order.
func (p *planner) known() {
	for _, c := range p.Commits {
		all := c.sections()
		over, shards, bad := p.look(all)
		switch {
		case c.InFooter && c.Footer == nil:
			p.missing("commit %d of log %s: %s is not in the bucket, or damaged, and nobody else knows what is in it", c.Number, c.Log, c.Object)
		case over:
			p.plan.Left++
		case bad != nil:
			p.missing("commit %d of log %s: offsets [%d,%d) of %s do not continue %d", c.Number, c.Log, bad.first, bad.next, p.name(bad.id), p.plan.Ends[bad.id])
		case c.Footer == nil:
			p.missing("commit %d of log %s: %s is not in the bucket, or damaged", c.Number, c.Log, c.Object)
		case p.late(shards):
			p.missing("commit %d of log %s: merged after one that is not", c.Number, c.Log)
		default:
			p.take(c, all, shards)
		}
	}
}

func (p *planner) missing(format string, args ...any) {
	p.plan.Missing = append(p.plan.Missing, fmt.Sprintf(format, args...))
}

func (p *planner) note(format string, args ...any) {
	p.plan.Notes = append(p.plan.Notes, fmt.Sprintf(format, args...))
}

func (p *planner) name(id partition.ID) string {
	if t, ok := p.plan.Topics[id.Topic]; ok {
		return fmt.Sprintf("%s/%d", t.Name, id.Partition)
	}
	return fmt.Sprintf("%s/%d", id.Topic, id.Partition)
}

// candidate is a segment that may have been committed.
type candidate struct {
	segment Segment
	all     []section
}

// candidates returns, by logs, in the order of commits, the segments of which nothing says that they were not committed.
func (p *planner) candidates() map[coordinator.LogID][]candidate {
	byLog := make(map[coordinator.LogID][]candidate)
	// begins are where leader epochs begin in partitions, as far as segments tell, committed or not: its leader began where what was committed ended.
	type begin struct {
		epoch protocol.LeaderEpoch
		first protocol.Offset
	}
	begins := make(map[partition.ID][]begin)
	for _, s := range p.Segments {
		c := candidate{s, s.sections()}
		log := coordinator.LogID(s.Header.ID.Log)
		byLog[log] = append(byLog[log], c)
		for _, x := range c.all {
			begins[x.id] = append(begins[x.id], begin{x.low, x.first})
		}
	}
	superseded := func(c candidate) bool {
		return slices.ContainsFunc(c.all, func(s section) bool {
			// All of a lower epoch was committed when the copy was made; unless it was made after a restore, which raises epochs, before the logs from before that were recovered.
			if int32(s.high) < p.Shards[s.shard].Epoch && coordinator.LogID(c.segment.Header.ID.Log) >= p.Cluster.Restored {
				return true
			}
			return slices.ContainsFunc(begins[s.id], func(b begin) bool { return b.epoch > s.high && b.first < s.next })
		})
	}
	for log, all := range byLog {
		slices.SortFunc(all, func(a, b candidate) int {
			x, y := a.segment.Header.ID, b.segment.Header.ID
			return cmp.Or(cmp.Compare(x.Commit, y.Commit), cmp.Compare(y.Fence, x.Fence), cmp.Compare(y.Attempt, x.Attempt))
		})
		var kept []candidate
		var fence, number uint64
		void, voided := uint64(0), false // a fence under which nothing was committed from here on
		for _, c := range all {
			id := c.segment.Header.ID
			if id.Fence < fence || id.Commit == number || voided && id.Fence <= void {
				continue // whoever had the higher fence began here or before; of one fence's attempts the last counts
			}
			if superseded(c) {
				void, voided = id.Fence, true // and those after it: they commit in order
				continue
			}
			fence, number = id.Fence, id.Commit
			kept = append(kept, c)
		}
		byLog[log] = kept
	}
	return byLog
}

// adopt takes, of each log in the order of its commits, what continues what is known, for as long as there is any.
func (p *planner) adopt(byLog map[coordinator.LogID][]candidate) {
	revision := int64(0)
	for _, c := range p.Commits {
		revision = max(revision, c.Revision)
	}
	logs := slices.Sorted(maps.Keys(byLog))
	for patient := true; ; {
		waiting := make(map[coordinator.ShardID]int) // candidates that have something merged of a shard
		for _, log := range logs {
			for _, c := range byLog[log] {
				for shard, isMerged := range p.mergedOf(c.all) {
					if isMerged {
						waiting[shard]++
					}
				}
			}
		}
		progress := false
		for _, log := range logs {
			for len(byLog[log]) > 0 {
				c := byLog[log][0]
				over, shards, bad := p.look(c.all)
				if rest := claimed(byLog[log]); bad != nil && p.kind(*bad) == broken && len(rest) > 0 {
					byLog[log], progress = rest, true // a rival was committed, and is merged
					continue
				}
				if bad != nil || p.late(shards) || patient && !over && p.behind(shards, waiting) {
					break
				}
				byLog[log] = byLog[log][1:]
				progress = true
				for shard, isMerged := range shards {
					if isMerged {
						waiting[shard]--
					}
				}
				p.plan.Logs[log] = p.progress(log).with(&c.segment.Header)
				if !over {
					revision++
					p.take(Commit{Commit: commitOf(c.segment.Footer), Revision: revision, Footer: c.segment.Footer}, c.all, shards)
					p.plan.Adopted++
				}
			}
		}
		switch {
		case progress:
			patient = true
		case patient:
			patient = false // what others wait for was never committed
		case p.skip(logs, byLog):
			patient = true
		default:
			p.leftOver(logs, byLog)
			return
		}
	}
}

// claimed returns those of a log's candidates that were written under a higher fence than the first. There being one shows that its number was committed before the log was claimed, by it or a rival.
func claimed(all []candidate) []candidate {
	at := slices.IndexFunc(all, func(c candidate) bool { return c.segment.Header.ID.Fence > all[0].segment.Header.ID.Fence })
	if at < 0 {
		return nil
	}
	return all[at:]
}

// skip leaves out what a log has of its owner, where what comes before it is not there and the log was claimed later. It reports whether there was such a log.
func (p *planner) skip(logs []coordinator.LogID, byLog map[coordinator.LogID][]candidate) bool {
	for _, log := range logs {
		all := byLog[log]
		if len(all) == 0 {
			continue
		}
		_, _, bad := p.look(all[0].all)
		if rest := claimed(all); bad != nil && len(rest) > 0 {
			p.missing("%d segments of log %s, from %s on: they or others in their place were committed, and what comes before them is not in the bucket", len(all)-len(rest), log, all[0].segment.Header.ID.Name())
			byLog[log] = rest
			return true
		}
	}
	return false
}

// behind reports whether a commit has to wait: of a shard of which it has something that is not merged, another has something that is.
func (p *planner) behind(shards map[coordinator.ShardID]bool, waiting map[coordinator.ShardID]int) bool {
	for shard, isMerged := range shards {
		if !isMerged && waiting[shard] > 0 {
			return true
		}
	}
	return false
}

// mergedOf tells of each shard whether all that a segment has of it is merged.
func (p *planner) mergedOf(all []section) map[coordinator.ShardID]bool {
	shards := make(map[coordinator.ShardID]bool)
	for _, s := range all {
		k := p.kind(s)
		if was, seen := shards[s.shard]; k != foreign && (!seen || was) {
			shards[s.shard] = k == merged
		}
	}
	return shards
}

// leftOver notes segments that were not taken.
func (p *planner) leftOver(logs []coordinator.LogID, byLog map[coordinator.LogID][]candidate) {
	for _, log := range logs {
		if n := len(byLog[log]); n > 0 {
			p.note("%d segments of log %s, from %s on, were never committed, or what came before them is gone: they are left out", n, log, byLog[log][0].segment.Header.ID.Name())
		}
	}
}

// commitOf describes a segment as its commit does.
func commitOf(f *segment.Footer) coordinator.Commit {
	h := &f.Header
	c := coordinator.Commit{
		Object: h.ID.Name(), ObjectSize: f.ObjectSize, FooterPos: f.Pos, FooterSize: f.ObjectSize - f.Pos, Log: coordinator.LogID(h.ID.Log), Fence: h.ID.Fence, Number: h.ID.Commit,
		FirstEntry: h.FirstEntry, LastEntry: h.LastEntry, CreatedMs: h.CreatedMs, Partitions: flush.CommitPartitions(f),
	}
	return c
}
