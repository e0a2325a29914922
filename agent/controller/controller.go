// Package controller has one agent of the cluster plan who leads which shard.
//
//	agents, shards, wishes, logs, loads -> placement.Balancer -> assignments, wishes
//
// The agent that has put its name into the coordinator under its lease is the controller; when the lease ends, another one is. It is a matter of economy, not of
// safety: two controllers at once, which a lease cannot rule out, compare the shards' guards and the controller's key, and one of them fails.
//
// A plan is made when agents, shards or wishes change, at intervals because of the loads, which agents measure and tell, and while a shard's owner is not registered, drains, or has lost its log: until the log is closed, which does not
// show in what agents follow.
package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/varve-io/varve/agent/index"
	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/placement"
)

const (
	// movesMax is how many shards move for balance at once: each move ends with a flush of its owner's log.
	movesMax = 16
	// absentPause is how often the logs are looked at while one of them is about to be closed whose agent owns shards; restPause is how often after nothing has
	// changed for restAfter, as when too few stores are there to recover it.
	absentPause = 100 * time.Millisecond
	restPause   = time.Second
	restAfter   = 5 * time.Second
	// loadPause is how often loads are read.
	loadPause = 10 * time.Second
	// shardLoad is what a shard weighs without a byte, and partitionLoad what each of its partitions adds, in bytes per second: groups, and what may come. They
	// are such that a cluster which is hardly used is balanced by counts. The planner moves the heaviest shards first; one that has a partition more than others is not
	// to be among them, or a newcomer would get all of a small topic.
	shardLoad     = 256 << 10
	partitionLoad = 64 << 10
	// retryPause is the wait after a plan that could not be carried out.
	retryPause = 200 * time.Millisecond
	// roomPause is the wait if the coordinator has no room, for which an operator is needed.
	roomPause = 3 * time.Second
)

// Deps is what a [Controller] works with.
type Deps struct {
	KV    coordinator.KV
	View  *coordinator.View
	Tails *index.Tails // of the commits that the view has shown
	Node  int32
	Log   coordinator.LogID
	Lease func() int64    // of this agent's registration
	Kick  <-chan struct{} // something that the view shows has changed; has capacity 1
	// Willing reports whether this agent may become the controller.
	Willing func() bool
	Logger  *slog.Logger
}

// Controller is this agent's part in the election, and its planning while it is elected.
type Controller struct {
	deps    Deps
	elected bool
	closed  map[coordinator.LogID]time.Time // logs that are, and since when that has been seen, as [Controller.forget] reckons
	moved   int64                           // revision of the last change to the log of an owner that is absent
	since   time.Time                       // when moved was seen first, or the view last told of something

	balancer placement.Balancer
	rates    map[coordinator.ShardID]int64 // bytes per second of shards, as their owners told last
	rated    time.Time                     // when rates were read
	old      []coordinator.LogID           // that are from before a restore, and open, as far as that was said
	history  history
}

// New returns a controller; [Controller.Run] makes it work.
func New(deps Deps) *Controller { return &Controller{deps: deps} }

// Run takes part until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	for {
		again, err := c.step(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if !errors.Is(err, coordinator.ErrFenced) && !errors.Is(err, lead.ErrLed) {
				c.deps.Logger.Warn("the plan of who leads which shard could not be carried out; trying again", "err", err)
			}
			again = retryPause
			if errors.Is(err, coordinator.ErrNoSpace) {
				again = roomPause
			}
		}
		var timer <-chan time.Time
		if again > 0 {
			timer = time.After(again)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.deps.Kick:
			c.since = time.Now()
		case <-timer:
		}
	}
}

// step takes the office if it is free, and plans if it is this agent's. It returns after how long to look again without being told; 0 for never.
func (c *Controller) step(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, retry.CallTimeout)
	defer cancel()
	holder, revision := c.deps.View.Controller()
	if !c.registered(holder.Log) && c.deps.Willing() {
		return 0, c.elect(ctx, revision)
	}
	elected := revision != 0 && holder.Log == c.deps.Log
	if elected != c.elected {
		c.elected = elected
		c.deps.Logger.Info("controller of the cluster", "elected", elected, "controller", holder.Node)
	}
	if !elected {
		c.balancer, c.rates, c.rated, c.old, c.history = placement.Balancer{}, nil, time.Time{}, nil, history{}
		return 0, nil
	}
	return c.plan(ctx, revision)
}

// registered reports whether an incarnation is. A controller that started anew need not wait for the end of its former lease.
func (c *Controller) registered(log coordinator.LogID) bool {
	return slices.ContainsFunc(c.deps.View.Agents(), func(a coordinator.Agent) bool { return a.Log == log })
}

// elect tries to become the controller instead of the one of that revision; the view tells who is.
func (c *Controller) elect(ctx context.Context, revision int64) error {
	me := coordinator.Controller{Log: c.deps.Log, Node: c.deps.Node}
	_, err := c.deps.KV.Txn(ctx, []coordinator.Compare{{Key: coordinator.KeyController, Revision: revision}}, []coordinator.Op{{
		Key: coordinator.KeyController, Value: coordinator.Encode(me), Lease: c.deps.Lease(),
	}})
	if err != nil {
		return fmt.Errorf("become controller: %w", err)
	}
	return nil
}

// plan makes a plan of what the view shows and carries it out.
func (c *Controller) plan(ctx context.Context, revision int64) (time.Duration, error) {
	if err := c.reap(ctx); err != nil { // first, since it makes room, and what follows may need some
		return 0, err
	}
	c.compact(ctx)
	logs, err := coordinator.ListLogs(ctx, c.deps.KV, 0)
	if err != nil {
		return 0, err
	}
	if old := logs.Old(c.deps.View.Cluster()); c.waits(old) {
		moved := int64(0)
		for _, id := range old {
			moved = max(moved, logs.Revision(id))
		}
		return c.absentWait(moved), nil
	}
	if err := c.readLoads(ctx); err != nil {
		return 0, err
	}
	now := c.survey(logs)
	plan := c.balancer.Plan(time.Now(), now.cluster)
	if !plan.Empty() {
		c.deps.Logger.Info("shards to lead", "assigned", len(plan.Assign), "to move", len(plan.Wish), "to stay", len(plan.Withdraw))
	}
	var assign []lead.Assignment
	for _, m := range plan.Assign {
		to := coordinator.LogID(m.To)
		assign = append(assign, lead.Assignment{Shard: coordinator.ShardID(m.Shard), From: coordinator.LogID(m.From), To: to, Node: now.nodes[to]})
	}
	if len(assign) > 0 {
		if err := lead.Assign(ctx, c.deps.KV, c.deps.View.Cluster(), assign); err != nil {
			return 0, err
		}
	}
	if err := c.wish(ctx, revision, plan); err != nil {
		return 0, err
	}
	wait := c.forget(ctx, logs)
	if now.absent {
		return c.absentWait(now.moved), nil
	}
	if wait == 0 || wait > loadPause {
		wait = loadPause
	}
	return wait, nil
}

// waits reports whether logs from before a restore keep all shards from getting a leader, and says so when they become other ones.
func (c *Controller) waits(old []coordinator.LogID) bool {
	if !slices.Equal(old, c.old) && len(old) > 0 {
		c.deps.Logger.Warn("no shard gets a leader until the WAL logs from before the restore are recovered", "logs", old,
			"hint", "if what a log has cannot be had any more, start an agent with --accept-loss and its number")
	}
	c.old = old
	return len(old) > 0
}

// readLoads reads what agents tell of the load of their shards, from time to time. A shard whose owner has not measured it yet keeps the load that it had.
func (c *Controller) readLoads(ctx context.Context) error {
	now := time.Now()
	if now.Sub(c.rated) < loadPause {
		return nil
	}
	items, _, err := c.deps.KV.List(ctx, coordinator.PrefixLoads, 0)
	if err != nil {
		return fmt.Errorf("read the load of shards: %w", err)
	}
	if c.rates == nil {
		c.rates = make(map[coordinator.ShardID]int64)
	}
	shards := c.deps.View.Shards()
	for _, item := range items {
		load, err := coordinator.Decode[coordinator.Load](item)
		if err != nil {
			return err
		}
		for id, rate := range load.Shards {
			if int(id) < len(shards) && shards[id].Owner == load.Log {
				c.rates[id] = rate
			}
		}
	}
	c.rated = now
	return nil
}

// absentWait returns after how long to look again whether an absent owner's log is closed. moved is the revision of the last change to such a log.
func (c *Controller) absentWait(moved int64) time.Duration {
	now := time.Now()
	if moved != c.moved {
		c.moved, c.since = moved, now
	}
	if now.Sub(c.since) < restAfter {
		return absentPause
	}
	return restPause
}

// wish writes what owners are to do.
func (c *Controller) wish(ctx context.Context, revision int64, plan placement.Plan) error {
	var ops []coordinator.Op
	for _, m := range plan.Wish {
		ops = append(ops, coordinator.Op{
			Key: coordinator.KeyMove(coordinator.ShardID(m.Shard)), Value: coordinator.Encode(coordinator.Move{To: coordinator.LogID(m.To)}),
		})
	}
	for _, s := range plan.Withdraw {
		ops = append(ops, coordinator.Op{Key: coordinator.KeyMove(coordinator.ShardID(s)), Delete: true})
	}
	for len(ops) > 0 {
		n := min(len(ops), coordinator.TxnOpsMax)
		_, err := c.deps.KV.Txn(ctx, []coordinator.Compare{{Key: coordinator.KeyController, Revision: revision}}, ops[:n])
		if err != nil {
			return fmt.Errorf("write which shards are to move: %w", err)
		}
		ops = ops[n:]
	}
	return nil
}

// survey is what there is to plan for.
type survey struct {
	cluster placement.Cluster
	nodes   map[coordinator.LogID]int32
	absent  bool  // some shard's owner is not registered, or leaves: then its log will be closed, which nobody tells
	moved   int64 // revision of the last change to the log of such an owner
}

func (c *Controller) survey(logs coordinator.Logs) survey {
	v := c.deps.View
	s := survey{nodes: make(map[coordinator.LogID]int32)}
	s.cluster = placement.Cluster{
		Closed: make(map[placement.LogID]bool), Shards: make([]placement.Shard, v.Cluster().Shards), MovesMax: movesMax,
	}
	agents := v.Agents()
	takers := coordinator.Takers(agents)
	for _, a := range agents {
		s.nodes[a.Log] = a.Node
		s.cluster.Closed[placement.LogID(a.Log)] = logs.Closed(a.Log)
		l := logs.Record(a.Log)
		claimed, draining := l != nil && l.Claimer != 0, a.State == coordinator.AgentDraining
		if !claimed && (draining || slices.ContainsFunc(takers, func(t coordinator.Agent) bool { return t.Log == a.Log })) {
			s.cluster.Agents = append(s.cluster.Agents, placement.Agent{Log: placement.LogID(a.Log), Draining: draining})
		}
	}
	keeps := make(map[coordinator.LogID]bool)
	for _, a := range s.cluster.Agents {
		keeps[coordinator.LogID(a.Log)] = !a.Draining
	}
	moves := v.Moves()
	for id, shard := range v.Shards() {
		p := &s.cluster.Shards[id]
		p.Load = shardLoad + c.rates[coordinator.ShardID(id)]
		p.Owner, p.Wish = placement.LogID(shard.Owner), placement.LogID(moves[coordinator.ShardID(id)].To)
		s.cluster.Closed[p.Owner] = logs.Closed(shard.Owner)
		if !keeps[shard.Owner] {
			s.absent = true
			s.moved = max(s.moved, logs.Revision(shard.Owner))
		}
	}
	for _, t := range v.Topics() {
		for n := range t.Partitions {
			s.cluster.Shards[t.ShardOf(n, v.Cluster().Shards)].Load += partitionLoad
		}
	}
	return s
}
