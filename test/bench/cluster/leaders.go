package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// settleWithin bounds how long a cluster may take to place leaders.
	settleWithin = 2 * time.Minute
	// createWithin bounds how long many topics may take.
	createWithin = 10 * time.Minute
	// settledAfter is how long leaders must have stayed where they are to count as settled, and lookEvery how often that is asked.
	settledAfter = 3 * time.Second
	lookEvery    = 200 * time.Millisecond
)

// admin asks a cluster about a topic.
type admin struct {
	client *kgo.Client
	kadm   *kadm.Client
	topic  string
}

func newAdmin(n *nodes, topic string) (*admin, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(n.seeds()...), kgo.MetadataMinAge(lookEvery/2), kgo.AlwaysRetryEOF())
	if err != nil {
		return nil, fmt.Errorf("client of the cluster: %w", err)
	}
	return &admin{client: client, kadm: kadm.NewClient(client), topic: topic}, nil
}

func (a *admin) close() { a.client.Close() }

// create creates the topic and waits until each partition has a leader.
func (a *admin) create(ctx context.Context, partitions int) error {
	if _, err := a.kadm.CreateTopic(ctx, int32(partitions), -1, nil, a.topic); err != nil {
		return fmt.Errorf("create topic %s: %w", a.topic, err)
	}
	return a.awaitLeaders(ctx, partitions)
}

// awaitLeaders waits until each partition of the topic has a leader.
func (a *admin) awaitLeaders(ctx context.Context, partitions int) error {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	for {
		placed, err := a.leaders(ctx)
		if err == nil && total(placed) == partitions {
			return nil
		}
		if pauseErr := pause(ctx, lookEvery/10); pauseErr != nil {
			return fmt.Errorf("topic %s: %d of %d partitions have leaders: %w", a.topic, total(placed), partitions, errors.Join(err, pauseErr))
		}
	}
}

func total(placed map[string]int) (n int) {
	for _, partitions := range placed {
		n += partitions
	}
	return n
}

// leaders says how many partitions of the topic each broker leads, by its address.
func (a *admin) leaders(ctx context.Context) (map[string]int, error) {
	metadata, err := a.kadm.Metadata(ctx, a.topic)
	if err != nil {
		return nil, fmt.Errorf("ask for leaders: %w", err)
	}
	addresses := make(map[int32]string, len(metadata.Brokers))
	for _, b := range metadata.Brokers {
		addresses[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	placed := make(map[string]int)
	for _, p := range metadata.Topics[a.topic].Partitions {
		if address, ok := addresses[p.Leader]; ok && p.Err == nil {
			placed[address]++
		}
	}
	return placed, nil
}

// settled waits until each partition has a leader and nothing has moved for a while. It returns who leads how many.
func (a *admin) settled(ctx context.Context, partitions int) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	var before map[string]int
	since := time.Now()
	for {
		placed, err := a.leaders(ctx)
		if err != nil || !maps.Equal(placed, before) {
			before, since = placed, time.Now()
		}
		if time.Since(since) >= settledAfter && total(placed) == partitions {
			return placed, nil
		}
		if pauseErr := pause(ctx, lookEvery); pauseErr != nil {
			return nil, fmt.Errorf("wait until leaders of %s settle: %v: %w", a.topic, before, errors.Join(err, pauseErr))
		}
	}
}
