package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// leadShards has the agent lead the shards that are given to it, and hand over those that the controller wants elsewhere, until ctx ends. One goroutine does
// both, so that a shard is never taken and given at the same time.
func (a *Agent) leadShards(ctx context.Context) error {
	kick := a.members.subscribe()
	for {
		again, err := a.stepShards(ctx, kick)
		if err != nil {
			return err
		}
		if again {
			if err := retry.Pause(ctx); err != nil {
				return err
			}
			continue
		}
		var timer <-chan time.Time
		if at, ok := a.damaged.next(); ok {
			timer = time.After(at.Sub(a.deps.Now()))
		}
		select {
		case <-kick:
		case <-timer:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stepShards does what the view asks for now; again says that something has to be tried again without being told. kick says that the view shows something else.
func (a *Agent) stepShards(ctx context.Context, kick <-chan struct{}) (again bool, err error) {
	missing := false
	for id, s := range a.view.Shards() {
		epoch, leads := a.partitions.Leads(coordinator.ShardID(id))
		mine := s.Owner == a.id
		if leads && s.Epoch > epoch {
			a.resign(coordinator.ShardID(id))
			leads = false
		}
		if !mine || leads {
			a.damaged.remove(coordinator.ShardID(id)) // another agent has it, or this one has been given it anew since
			continue
		}
		missing = missing || !a.damaged.waits(a.deps.Now(), coordinator.ShardID(id), s.Epoch)
	}
	if missing {
		left, err := a.takeShards(ctx, kick)
		if err != nil {
			return false, err
		}
		a.members.tell() // whoever waits for shards to be led
		if len(left) > 0 {
			return a.passOn(ctx, left)
		}
	}
	wishes := make(map[coordinator.ShardID]coordinator.LogID)
	for id, m := range a.view.Moves() {
		if _, leads := a.partitions.Leads(id); (leads || a.damaged.has(id, 0)) && m.To != a.id {
			wishes[id] = m.To
		}
	}
	if len(wishes) == 0 {
		return false, nil
	}
	return a.giveShards(ctx, wishes)
}

// takeShards begins to lead every shard that belongs to this agent's log and that it does not lead yet. One of which the bucket has something damaged, or lacks something, or does not give it while it answers otherwise, stays
// without a leader, and is tried again later: it would be so on any other agent. If another agent should lead what could not be restored yet, it is left, and returned.
func (a *Agent) takeShards(ctx context.Context, kick <-chan struct{}) (left []lead.Given, err error) {
	var given []lead.Given
	var seen int64
	err = retry.Coordinator(ctx, a.log, "read which shards to lead", func(ctx context.Context) (err error) {
		given, seen, err = lead.GivenTo(ctx, a.deps.KV, a.cluster.Shards, a.id)
		return err
	})
	if err != nil {
		return nil, err
	}
	// The view must not be older than what made this agent the leader: the last commit of the one before could be missing.
	if err := a.view.Wait(ctx, seen); err != nil {
		return nil, err
	}
	if err := a.follower.Wait(ctx); err != nil {
		return nil, err
	}
	given = slices.DeleteFunc(given, func(g lead.Given) bool {
		_, leads := a.partitions.Leads(g.ID)
		return leads || a.damaged.waits(a.deps.Now(), g.ID, g.Shard.Epoch)
	})
	for _, g := range given {
		a.ledger.Adopt(g.ID, g.Write, g.Revision)
	}
	restoring, stop := a.untilSuccessors(ctx, kick)
	defer stop()
	if err := a.leadGiven(restoring, given); !errors.Is(context.Cause(restoring), errPassOn) {
		return nil, err
	}
	return slices.DeleteFunc(given, func(g lead.Given) bool {
		_, leads := a.partitions.Leads(g.ID)
		if !leads {
			a.manifests.Resign(g.ID)
		}
		known := a.damaged.has(g.ID, g.Shard.Epoch)
		if known && !leads { // and stays, so that it is tried again later, not at once
			a.damaged.add(a.deps.Now(), g)
		}
		return leads || known
	}), ctx.Err()
}

// leadGiven restores shards and leads them, but for damaged ones. What lacks an object that the bucket does not give at once is waited for when all others are led, and what was damaged before is tried then.
func (a *Agent) leadGiven(ctx context.Context, given []lead.Given) error {
	var fresh, before, away []lead.Given
	for _, g := range given {
		if a.damaged.has(g.ID, g.Shard.Epoch) {
			before = append(before, g)
		} else {
			fresh = append(fresh, g)
		}
	}
	failed, err := a.restore(ctx, fresh, firstTry)
	if err != nil {
		return err
	}
	for _, g := range fresh {
		switch err := failed[g.ID]; {
		case err == nil:
		case retry.Transient(err):
			away = append(away, g)
		default:
			a.cannotLead(g, err)
		}
	}
	if len(away)+len(before) > 0 {
		a.members.tell() // whoever waits for those that are led
	}
	if err := a.leadLate(ctx, away, patiently); err != nil {
		return err
	}
	return a.leadLate(ctx, before, tryAgain)
}

// leadLate restores shards and leads them; those that it cannot are damaged.
func (a *Agent) leadLate(ctx context.Context, given []lead.Given, how patience) error {
	failed, err := a.restore(ctx, given, how)
	if err != nil {
		return err
	}
	for _, g := range given {
		if err := failed[g.ID]; err != nil {
			a.cannotLead(g, err)
		}
	}
	return nil
}

// patience is how long an object is waited for that the bucket does not give though it answers.
type patience struct {
	manifest time.Duration // bounds one try to read a manifest
	tries    time.Duration // for how long it is tried
}

var (
	firstTry  = patience{manifest: 5 * time.Second}
	patiently = patience{manifest: 30 * time.Second, tries: retry.ObjectPatience}
	tryAgain  = patience{manifest: 30 * time.Second} // what was given up before
)

// manifestsAtOnce is how many manifests are read at once.
const manifestsAtOnce = 8

// adopt reads the manifests of shards, and returns why it could not. The error is that of ctx.
func (a *Agent) adopt(ctx context.Context, given []lead.Given, how patience) (failed map[coordinator.ShardID]error, err error) {
	errs := make([]error, len(given))
	var g errgroup.Group
	g.SetLimit(manifestsAtOnce)
	for i := range given {
		g.Go(func() error {
			errs[i] = a.adoptOne(ctx, given[i], how)
			return nil
		})
	}
	_ = g.Wait() // what failed is by shards
	failed = make(map[coordinator.ShardID]error)
	for i, err := range errs {
		if err != nil {
			failed[given[i].ID] = err
		}
	}
	return failed, ctx.Err()
}

func (a *Agent) adoptOne(ctx context.Context, g lead.Given, how patience) error {
	if err := a.follower.Unread(g.ID); err != nil {
		return err
	}
	return retry.Object(ctx, a.log, "read a manifest", a.bucketAnswers, how.tries, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, how.manifest)
		defer cancel()
		return a.manifests.Adopt(ctx, g.ID, g.Shard)
	})
}

// restore begins to lead shards, but for those that cannot be restored, of which it returns why: an object that the bucket does not give, though it answers, is waited for with that patience. The error is that of ctx.
func (a *Agent) restore(ctx context.Context, given []lead.Given, how patience) (failed map[coordinator.ShardID]error, err error) {
	if len(given) == 0 {
		return nil, nil
	}
	failed, err = a.adopt(ctx, given, how)
	if err != nil {
		return nil, err
	}
	settled := make(map[coordinator.ShardID]lead.Settled)
	for _, g := range given {
		if m := a.manifests.Of(g.ID); m != nil && failed[g.ID] == nil { // nor was it lost meanwhile
			settled[g.ID] = lead.Settled{Epoch: protocol.LeaderEpoch(g.Shard.Epoch), Manifest: m}
		}
	}
	r := &lead.Restorer{
		Index: a.index, Footers: a.footers, Now: a.deps.Now, Known: a.known, ProducerIdle: a.cfg.ProducerIdleMax, ProducersMax: producersMax,
		Retry: func(ctx context.Context, read func(context.Context) error) error {
			return retry.Object(ctx, a.log, "restore partitions", a.bucketAnswers, how.tries, read)
		},
	}
	logs, unread, err := r.Run(ctx, settled)
	if err != nil {
		return nil, err
	}
	maps.Copy(failed, unread)
	epochs := make(map[coordinator.ShardID]protocol.LeaderEpoch)
	for id, s := range settled {
		if unread[id] == nil {
			epochs[id] = s.Epoch
			a.damaged.remove(id)
		}
	}
	if len(epochs) == 0 {
		return failed, nil
	}
	a.partitions.adopt(epochs, logs)
	for id, epoch := range epochs {
		a.txns.Adopt(id, int32(epoch))
	}
	a.log.Info("leads shards", "shards", len(epochs), "partitions with records", len(logs))
	return failed, nil
}

// cannotLead leaves a shard that was given to this agent without a leader.
func (a *Agent) cannotLead(g lead.Given, err error) {
	a.manifests.Resign(g.ID)
	a.damaged.add(a.deps.Now(), g)
	a.log.Error("a shard has no leader: what the bucket has of it is damaged or missing, or cannot be read; it is tried again", "shard", g.ID, "in", damagedPause, "err", err)
}

// giveMax is how long it may take until what shards that are handed over have taken is in the bucket, once while they are still led and once while nobody leads them, and
// until their manifests are. If it takes longer, they stay.
const giveMax = 3 * time.Second

// giveShards hands shards over, all with one flush: writes to them are refused, and when everything that was taken is durable and committed, the
// shard's last write names its next owner. From sending that write on, the shard is not led here unless a later reading of the record says so; until then, it is led on
// as it was if the bucket takes too long.
func (a *Agent) giveShards(ctx context.Context, wishes map[coordinator.ShardID]coordinator.LogID) (again bool, err error) {
	nodes := make(map[coordinator.LogID]int32)
	for _, m := range coordinator.Takers(a.view.Agents()) {
		nodes[m.Log] = m.Node
	}
	maps.DeleteFunc(wishes, func(_ coordinator.ShardID, to coordinator.LogID) bool { return nodes[to] == 0 })
	if len(wishes) == 0 {
		return false, nil
	}
	start := a.deps.Now()
	// The long part comes first, while the shards are still led.
	if err := a.flushSoon(ctx); err != nil {
		return true, ctx.Err()
	}
	shards := slices.Sorted(maps.Keys(wishes))
	records, err := a.settleShards(ctx, shards)
	if err != nil {
		a.log.Warn("shards stay here for now: what they have taken does not get into the bucket", "shards", len(wishes), "after", a.deps.Now().Sub(start), "err", err)
		return true, ctx.Err()
	}
	for _, id := range shards {
		a.partitions.resign(id)
		a.groups.Resign(id) // their writes are the ledger's, which the last one follows
		a.txns.Resign(id)
		a.manifests.Resign(id)
		if given, ok := a.damaged.remove(id); ok { // it was never led here, so that nobody has changed its record
			records[id] = given.Shard
		}
	}
	for id, record := range records { // but for those that were lost meanwhile
		records[id] = record.Given(wishes[id], nodes[wishes[id]])
	}
	return a.handOver(ctx, records)
}

// handOver writes records of shards that name their next owners. From here on they are not led, unless a later reading of a record says so.
func (a *Agent) handOver(ctx context.Context, records map[coordinator.ShardID]coordinator.Shard) (again bool, err error) {
	results := make(chan error, len(records))
	for _, id := range slices.Sorted(maps.Keys(records)) {
		record := records[id]
		a.ledger.HandOver(id, coordinator.Write{Owner: record.Owner, Epoch: record.Epoch}, []coordinator.Op{
			{Key: coordinator.KeyShard(id), Value: coordinator.Encode(record)}, {Key: coordinator.KeyMove(id), Delete: true},
		}, func(err error) { results <- err })
	}
	for range records {
		select {
		case err := <-results:
			if err != nil && !errors.Is(err, coordinator.ErrFenced) {
				a.log.Warn("a shard could not be handed over; it is taken back", "err", err)
				again = true
			}
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	a.log.Info("handed shards over", "shards", len(records))
	return again, nil
}

// settleShards suspends shards, and returns the records of those that were not lost meanwhile, once everything that they have taken is in the bucket and no new manifest is
// under way, nor will be. After an error they are led on as they were.
func (a *Agent) settleShards(ctx context.Context, shards []coordinator.ShardID) (records map[coordinator.ShardID]coordinator.Shard, err error) {
	for _, id := range shards {
		a.partitions.suspend(id)
	}
	var back []func()
	defer func() {
		if err == nil {
			return
		}
		for _, release := range back {
			release()
		}
		for _, id := range shards {
			a.partitions.resume(id)
		}
	}()
	if err := a.flushSoon(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, giveMax)
	defer cancel()
	records = make(map[coordinator.ShardID]coordinator.Shard)
	for _, id := range shards {
		record, release, ok, err := a.manifests.Hold(ctx, id)
		if err != nil {
			return nil, err
		}
		if ok {
			records[id], back = record, append(back, release)
		}
	}
	return records, nil
}

// flushSoon waits, for a while, until everything that was taken is in the bucket.
func (a *Agent) flushSoon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, giveMax)
	defer cancel()
	return a.flush(ctx)
}

// flush returns once everything that was taken before the call is in the bucket, and committed.
func (a *Agent) flush(ctx context.Context) error {
	if err := a.wal.Prove(ctx); err != nil { // what is not delivered yet is not flushed
		return err
	}
	return a.flusher.Flush(ctx)
}

// resign stops leading a shard that another agent has taken.
func (a *Agent) resign(id coordinator.ShardID) {
	a.log.Warn("shard lost to another agent", "shard", id)
	a.partitions.resign(id)
	a.groups.Resign(id)
	a.txns.Resign(id)
	a.manifests.Resign(id)
}

// awaitLeaders waits until every shard has a leader that is registered, and those that are to be this agent's are led, unless they are damaged.
func (a *Agent) awaitLeaders(ctx context.Context) error {
	kick := a.members.subscribe()
	for !a.allLed() {
		select {
		case <-kick:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (a *Agent) allLed() bool {
	shards := a.view.Shards()
	if len(shards) < int(a.cluster.Shards) {
		return false
	}
	live := make(map[coordinator.LogID]bool)
	for _, m := range a.view.Agents() {
		live[m.Log] = m.State != coordinator.AgentStarting
	}
	for id, s := range shards {
		epoch, leads := a.partitions.Leads(coordinator.ShardID(id))
		led := leads && epoch == s.Epoch || a.damaged.has(coordinator.ShardID(id), s.Epoch)
		if !live[s.Owner] || s.Owner == a.id && !led {
			return false
		}
	}
	return true
}

// handOverAll waits until this agent, which drains, leads no shard any more, or nobody is there to take them.
func (a *Agent) handOverAll(ctx context.Context) error {
	kick := a.members.subscribe()
	for a.leadsAny() && a.others() {
		select {
		case <-kick:
		case <-ctx.Done():
			return fmt.Errorf("hand shards over: %w", ctx.Err())
		}
	}
	return nil
}

func (a *Agent) leadsAny() bool {
	return slices.ContainsFunc(a.view.Shards(), func(s coordinator.Shard) bool { return s.Owner == a.id })
}

// others reports whether another agent takes shards.
func (a *Agent) others() bool {
	return slices.ContainsFunc(coordinator.Takers(a.view.Agents()), func(m coordinator.Agent) bool { return m.Log != a.id })
}
