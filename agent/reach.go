package agent

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/varve-io/varve/agent/lead"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/objectstore"
)

const (
	// silentMax is how long the bucket may answer nothing of what it is asked before this agent asks once more, to see whether it is in reach.
	silentMax = 2 * time.Second
	// lookMax bounds that question, and lookPause is the wait before the next one while there is no answer.
	lookMax   = time.Second
	lookPause = time.Second
	// lookName is what it asks for, and need not exist.
	lookName = "probe/reach"
)

// reach is the bucket, and knows since when it has answered nothing. It may be used concurrently.
type reach struct {
	objectstore.Store

	asked chan struct{} // something was asked, for the first time since the last answer; has capacity 1

	mu    sync.Mutex
	calls int       // under way
	since time.Time // since when nothing that was asked was answered; zero if nothing was asked
}

func newReach(store objectstore.Store) *reach {
	return &reach{Store: store, asked: make(chan struct{}, 1)}
}

func (r *reach) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	if r.since.IsZero() {
		r.wait()
	}
}

func (r *reach) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls--
	if !answered(err) {
		return
	}
	r.since = time.Time{}
	if r.calls > 0 {
		r.wait()
	}
}

func (r *reach) wait() {
	r.since = time.Now()
	select {
	case r.asked <- struct{}{}:
	default:
	}
}

// silent returns since when the bucket has answered nothing; zero if nothing was asked.
func (r *reach) silent() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}

// answered reports whether what came of a call shows that the bucket can be used.
func answered(err error) bool {
	return err == nil || errors.Is(err, objectstore.ErrNotFound) || errors.Is(err, objectstore.ErrExists)
}

// Put implements [objectstore.Store].
func (r *reach) Put(ctx context.Context, name string, body objectstore.Body) error {
	r.begin()
	err := r.Store.Put(ctx, name, body)
	r.end(err)
	return err
}

// Get implements [objectstore.Store].
func (r *reach) Get(ctx context.Context, name string, off int64, p []byte) error {
	r.begin()
	err := r.Store.Get(ctx, name, off, p)
	r.end(err)
	return err
}

// Stat implements [objectstore.Store].
func (r *reach) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	r.begin()
	info, err := r.Store.Stat(ctx, name)
	r.end(err)
	return info, err
}

// List implements [objectstore.Store].
func (r *reach) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		r.begin()
		var failure error
		r.Store.List(ctx, prefix, after)(func(info objectstore.Info, err error) bool {
			failure = err
			return yield(info, err)
		})
		r.end(failure)
	}
}

// Delete implements [objectstore.Store].
func (r *reach) Delete(ctx context.Context, name string) error {
	r.begin()
	err := r.Store.Delete(ctx, name)
	r.end(err)
	return err
}

// watchBucket tells the others, by this agent's registration, when the bucket is out of its reach, and when it is back, until ctx ends. While nothing is asked, nothing is noticed: an agent that
// does nothing costs no requests.
func (a *Agent) watchBucket(ctx context.Context) error {
	out := false
	for {
		var again <-chan time.Time
		since := a.bucket.silent()
		switch {
		case out:
			again = time.After(lookPause)
		case !since.IsZero():
			again = time.After(time.Until(since.Add(silentMax)))
		}
		select {
		case <-again:
		case <-a.bucket.asked:
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		if since = a.bucket.silent(); !out && (since.IsZero() || time.Since(since) < silentMax) {
			continue
		}
		err := a.lookForBucket(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if now := !answered(err); now != out {
			out = now
			if out {
				a.log.Warn("the bucket is out of reach: other agents, if they reach it, are given what this one would have been", "err", err)
			} else {
				a.log.Info("the bucket is in reach again")
			}
			change := func(me *coordinator.Agent) { me.Bucketless = out }
			if err := a.registration.change(ctx, "tell whether the bucket is in reach", change); err != nil {
				return err
			}
		}
	}
}

// lookForBucket asks the bucket for something, to see whether it answers.
func (a *Agent) lookForBucket(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookMax)
	defer cancel()
	_, err := a.bucket.Stat(ctx, lookName)
	return err
}

// bucketAnswers reports whether the bucket answers at all, for who has asked it in vain for one object.
func (a *Agent) bucketAnswers(ctx context.Context) bool { return answered(a.lookForBucket(ctx)) }

// errPassOn: another agent should lead what this one has not begun to lead.
var errPassOn = errors.New("another agent is to lead it")

// successors are the agents that should lead what this one was given and has not begun to lead, as it drains, or as they reach the bucket and it does not. There are none if
// it should do so itself.
func (a *Agent) successors() []coordinator.Agent {
	agents := a.view.Agents()
	takers := coordinator.Takers(agents)
	for _, m := range agents {
		draining := m.State == coordinator.AgentDraining
		if m.Log == a.id && (draining || m.Bucketless && len(takers) > 0 && !takers[0].Bucketless) {
			return takers
		}
	}
	return nil
}

// untilSuccessors returns a context that ends with ctx, or by errPassOn as soon as there are successors. kick says when to look; stop must be called.
func (a *Agent) untilSuccessors(ctx context.Context, kick <-chan struct{}) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var looking sync.WaitGroup
	looking.Go(func() {
		for len(a.successors()) == 0 {
			select {
			case <-kick:
			case <-ctx.Done():
				return
			}
		}
		cancel(errPassOn)
	})
	return ctx, func() {
		cancel(nil)
		looking.Wait()
	}
}

// passOn hands shards that were given to this agent, and that it has not begun to lead, to others at once: nothing of them is here.
func (a *Agent) passOn(ctx context.Context, given []lead.Given) (again bool, err error) {
	to := a.successors()
	if len(to) == 0 {
		return true, nil
	}
	records := make(map[coordinator.ShardID]coordinator.Shard)
	for i, g := range given {
		next := to[i%len(to)]
		records[g.ID] = g.Shard.Given(next.Log, next.Node)
	}
	return a.handOver(ctx, records)
}
