package topics

import (
	"bytes"
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

const (
	// callTimeout bounds one call to the coordinator, which is then sent again: a request that was handed to a dying leader of etcd can
	// hang for seconds.
	callTimeout = 5 * time.Second
	// retryPause is the wait before that.
	retryPause = 50 * time.Millisecond
	// Bounds of the time that a request may ask for, and the time of those that cannot ask.
	timeoutLeast, timeoutDefault, timeoutMost = time.Second, 30 * time.Second, 5 * time.Minute
	// writesLive is how many topics of one request are written at the same time.
	writesLive = 16
)

// deadline gives a request the time that it asks for, within bounds; 0 asks for the default.
func deadline(ctx context.Context, timeoutMs int32) (context.Context, context.CancelFunc) {
	timeout := time.Duration(timeoutMs) * time.Millisecond
	if timeoutMs == 0 {
		timeout = timeoutDefault
	}
	return context.WithTimeout(ctx, min(max(timeout, timeoutLeast), timeoutMost))
}

// concurrently calls do for 0 to n-1, some at the same time, and returns when all have returned.
func concurrently(n int, do func(i int)) {
	var group errgroup.Group
	group.SetLimit(writesLive)
	for i := range n {
		group.Go(func() error {
			do(i)
			return nil
		})
	}
	_ = group.Wait() // no function fails
}

// send sends a transaction on one key until it is answered. write makes its operation, once for each time that it is sent. doubt tells that an
// earlier one may have been applied; a result that did not succeed then decides, because nothing of this call is left to come that
// its comparison would let pass.
//
// Errors are [*protocol.Error]: RequestTimedOut when ctx ends, with the outcome unknown.
func (t *Topics) send(ctx context.Context, compare coordinator.Compare, write func() coordinator.Op) (res coordinator.TxnResult, doubt bool, err error) {
	for {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		res, err = t.deps.KV.Txn(call, []coordinator.Compare{compare}, []coordinator.Op{write()})
		cancel()
		switch {
		case err == nil:
			return res, doubt, nil
		case ctx.Err() != nil:
			return res, doubt, protocol.RequestTimedOut.Errorf("write %s: %v", compare.Key, err)
		case errors.Is(err, coordinator.ErrNoSpace):
			return t.settle(ctx, compare, err, doubt || errors.Is(err, coordinator.ErrUnknownOutcome))
		case errors.Is(err, coordinator.ErrLimit):
			return res, doubt, protocol.InvalidRequest.Errorf("write %s: %v", compare.Key, err)
		case errors.Is(err, coordinator.ErrUnknownOutcome), errors.Is(err, context.DeadlineExceeded):
			doubt = true
		case errors.Is(err, coordinator.ErrUnavailable):
		default:
			return res, doubt, protocol.UnknownServerError.Errorf("write %s: %v", compare.Key, err)
		}
		select {
		case <-ctx.Done():
			return res, doubt, protocol.RequestTimedOut.Errorf("write %s: %v", compare.Key, err)
		case <-time.After(retryPause):
		}
	}
}

// settle reads what a transaction left behind that met the end of the coordinator's space: it may be the one that crossed it, which is
// applied, and every later one fails.
func (t *Topics) settle(ctx context.Context, compare coordinator.Compare, cause error, doubt bool) (coordinator.TxnResult, bool, error) {
	item, rev, err := t.deps.KV.Get(ctx, compare.Key)
	if err != nil || !doubt || item.ModRevision == compare.Revision {
		return coordinator.TxnResult{}, doubt, protocol.UnknownServerError.Errorf("write %s: %v", compare.Key, cause)
	}
	return coordinator.TxnResult{Revision: rev, Failed: []coordinator.Item{item}}, doubt, nil
}

// create writes the record of a new topic, with an id, and returns it with its revision.
//
// Each time that the record is sent it has another id: had an earlier one been applied and another agent deleted the topic since, the
// topic would come back under the id of the deleted one.
func (t *Topics) create(ctx context.Context, topic coordinator.Topic) (coordinator.Topic, int64, error) {
	key := coordinator.KeyTopic(topic.Name)
	tried := make(map[protocol.TopicID]bool)
	res, doubt, err := t.send(ctx, coordinator.Compare{Key: key}, func() coordinator.Op {
		topic.ID = t.newID()
		tried[topic.ID] = true
		return coordinator.Op{Key: key, Value: coordinator.Encode(topic)}
	})
	if err != nil {
		return topic, 0, err
	}
	if res.Succeeded {
		return topic, res.Revision, nil
	}
	there, err := coordinator.Decode[coordinator.Topic](res.Failed[0])
	if err != nil {
		return topic, 0, protocol.UnknownServerError.Errorf("%v", err)
	}
	if doubt && tried[there.ID] {
		return there, res.Failed[0].ModRevision, nil
	}
	return topic, res.Failed[0].ModRevision, alreadyExists(topic.Name)
}

func alreadyExists(name string) error {
	return protocol.TopicAlreadyExists.Errorf("Topic '%s' already exists.", name)
}

func (t *Topics) newID() protocol.TopicID {
	for {
		if id := t.deps.NewID(); !id.Reserved() {
			return id
		}
	}
}

// change writes the record of a topic that exists as edit makes it of the newest record, and returns the revision that has it. edit is called
// anew when the topic has changed since; doubt then tells that what it sees may be its own work, which it must leave as it is. It must
// not change the record's Configs in place.
func (t *Topics) change(ctx context.Context, name string, edit func(now coordinator.Topic, doubt bool) (coordinator.Topic, error)) (int64, error) {
	topic, revision, err := t.find(ctx, name)
	if err != nil {
		return 0, err
	}
	key, doubt := coordinator.KeyTopic(name), false
	for {
		next, err := edit(topic, doubt)
		if err != nil {
			return 0, err
		}
		value := coordinator.Encode(next)
		if bytes.Equal(value, coordinator.Encode(topic)) {
			return revision, nil
		}
		res, doubted, err := t.send(ctx, coordinator.Compare{Key: key, Revision: revision}, func() coordinator.Op {
			return coordinator.Op{Key: key, Value: value}
		})
		if err != nil {
			return 0, err
		}
		if res.Succeeded {
			return res.Revision, nil
		}
		item := res.Failed[0]
		if item.ModRevision == 0 {
			return 0, protocol.UnknownTopicOrPartition.Err()
		}
		doubt = doubt || doubted
		revision = item.ModRevision
		if topic, err = coordinator.Decode[coordinator.Topic](item); err != nil {
			return 0, protocol.UnknownServerError.Errorf("%v", err)
		}
	}
}

// remove deletes the record of a topic, of that id only, and returns the revision in which it is gone.
func (t *Topics) remove(ctx context.Context, topic coordinator.Topic, revision int64) (int64, error) {
	key, doubt := coordinator.KeyTopic(topic.Name), false
	for {
		res, doubted, err := t.send(ctx, coordinator.Compare{Key: key, Revision: revision}, func() coordinator.Op {
			return coordinator.Op{Key: key, Delete: true}
		})
		if err != nil {
			return 0, err
		}
		if res.Succeeded {
			return res.Revision, nil
		}
		doubt = doubt || doubted
		item := res.Failed[0]
		gone := item.ModRevision == 0
		if !gone {
			now, err := coordinator.Decode[coordinator.Topic](item)
			if err != nil {
				return 0, protocol.UnknownServerError.Errorf("%v", err)
			}
			gone = now.ID != topic.ID
		}
		switch {
		case !gone:
			revision = item.ModRevision // changed meanwhile
		case doubt:
			return res.Revision, nil
		default:
			return 0, protocol.UnknownTopicOrPartition.Err()
		}
	}
}

// find returns a topic as the view has it or, since the view may lag, as the coordinator has it.
func (t *Topics) find(ctx context.Context, name string) (coordinator.Topic, int64, error) {
	if topic, revision, ok := t.deps.View.Topic(name); ok {
		return topic, revision, nil
	}
	return t.read(ctx, name)
}

// read returns a topic as the coordinator has it. Errors are [*protocol.Error]: UnknownTopicOrPartition, or RequestTimedOut if the
// coordinator is away.
func (t *Topics) read(ctx context.Context, name string) (topic coordinator.Topic, revision int64, err error) {
	if err := protocol.ValidateTopicName(name); err != nil {
		return topic, 0, protocol.UnknownTopicOrPartition.Err()
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	item, _, err := t.deps.KV.Get(call, coordinator.KeyTopic(name))
	if err != nil {
		return topic, 0, protocol.RequestTimedOut.Errorf("read topic %s: %v", name, err)
	}
	if item.ModRevision == 0 {
		return topic, 0, protocol.UnknownTopicOrPartition.Err()
	}
	if topic, err = coordinator.Decode[coordinator.Topic](item); err != nil {
		return topic, 0, protocol.UnknownServerError.Errorf("%v", err)
	}
	return topic, item.ModRevision, nil
}

// seen returns once this agent's view shows a revision.
func (t *Topics) seen(ctx context.Context, revision int64) error {
	if err := t.deps.View.Wait(ctx, revision); err != nil {
		return protocol.RequestTimedOut.Errorf("%v", err)
	}
	return nil
}
