package load

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	readyTimeout        = 30 * time.Second
	readyInterval       = 50 * time.Millisecond
	topicDeleteTimeout  = 10 * time.Second
	replicationOfBroker = -1 // the broker's default
)

// topic is one phase's own topic: name, id, and who leads its partitions. The
// administration goes through franz-go, since it costs nothing that is
// measured.
type topic struct {
	client  *kgo.Client
	admin   *kadm.Client
	name    string
	id      [16]byte
	leaders []string // the leader's address, by partition
}

// createTopic makes a topic with a new name and waits until each of its
// partitions has a leader.
func createTopic(ctx context.Context, bootstrap string, partitions int) (*topic, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(bootstrap), kgo.ClientID(clientID))
	if err != nil {
		return nil, fmt.Errorf("client for %s: %w", bootstrap, err)
	}
	t := &topic{client: client, admin: kadm.NewClient(client), name: "varve-bench-" + rand.Text()[:10]}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if _, err := t.admin.CreateTopic(ctx, int32(partitions), replicationOfBroker, nil, t.name); err != nil {
		client.Close()
		return nil, fmt.Errorf("create topic %s: %w", t.name, err)
	}
	if err := t.await(ctx, partitions); err != nil {
		return nil, errors.Join(err, t.delete(ctx))
	}
	return t, nil
}

// await asks for metadata until all partitions have leaders and answer for
// their offsets: creation is asynchronous in Kafka.
func (t *topic) await(ctx context.Context, partitions int) error {
	ticker := time.NewTicker(readyInterval)
	defer ticker.Stop()
	for {
		err := t.locate(ctx, partitions)
		if err == nil {
			_, err = t.ends(ctx)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for topic %s: %w", t.name, err)
		case <-ticker.C:
		}
	}
}

// locate fills id and leaders.
func (t *topic) locate(ctx context.Context, partitions int) error {
	metadata, err := t.admin.Metadata(ctx, t.name)
	if err != nil {
		return fmt.Errorf("metadata: %w", err)
	}
	detail := metadata.Topics[t.name]
	if detail.Err != nil {
		return fmt.Errorf("metadata: %w", detail.Err)
	}
	if len(detail.Partitions) != partitions {
		return fmt.Errorf("metadata: %d partitions, want %d", len(detail.Partitions), partitions)
	}
	addresses := make(map[int32]string, len(metadata.Brokers))
	for _, broker := range metadata.Brokers {
		addresses[broker.NodeID] = net.JoinHostPort(broker.Host, strconv.Itoa(int(broker.Port)))
	}
	leaders := make([]string, partitions)
	for p := range leaders {
		address, ok := addresses[detail.Partitions[int32(p)].Leader]
		if !ok {
			return fmt.Errorf("metadata: partition %d has no leader", p)
		}
		leaders[p] = address
	}
	t.id, t.leaders = detail.ID, leaders
	return nil
}

// ends returns the high watermarks by partition.
func (t *topic) ends(ctx context.Context) ([]int64, error) {
	listed, err := t.admin.ListEndOffsets(ctx, t.name)
	if err != nil {
		return nil, fmt.Errorf("list end offsets: %w", err)
	}
	ends := make([]int64, len(t.leaders))
	for p := range ends {
		offset, ok := listed.Lookup(t.name, int32(p))
		if !ok {
			return nil, fmt.Errorf("list end offsets: partition %d is missing", p)
		}
		if offset.Err != nil {
			return nil, fmt.Errorf("list end offsets of partition %d: %w", p, offset.Err)
		}
		ends[p] = offset.Offset
	}
	return ends, nil
}

// delete removes the topic, also when ctx has ended, and closes the client.
func (t *topic) delete(ctx context.Context) error {
	defer t.client.Close()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), topicDeleteTimeout)
	defer cancel()
	if _, err := t.admin.DeleteTopic(ctx, t.name); err != nil {
		return fmt.Errorf("delete topic %s: %w", t.name, err)
	}
	return nil
}

// share is what one connection works on: some partitions of one leader.
type share struct {
	address    string
	partitions []int32
}

// shares spreads the partitions over connections. Connections go round the
// leaders; those of one leader split its partitions, or, when there are more
// connections than partitions, use them together.
func (t *topic) shares(connections int) []share {
	byLeader := make(map[string][]int32)
	for p, address := range t.leaders {
		byLeader[address] = append(byLeader[address], int32(p))
	}
	addresses := make([]string, 0, len(byLeader))
	for address := range byLeader {
		addresses = append(addresses, address)
	}
	slices.Sort(addresses)
	connections = max(connections, len(addresses))

	shares := make([]share, connections)
	for i := range shares {
		address := addresses[i%len(addresses)]
		owned := byLeader[address]
		rank := i / len(addresses) // among the connections to this leader
		peers := (connections - i%len(addresses) + len(addresses) - 1) / len(addresses)
		shares[i].address = address
		if rank >= len(owned) {
			shares[i].partitions = []int32{owned[rank%len(owned)]}
			continue
		}
		for j := rank; j < len(owned); j += peers {
			shares[i].partitions = append(shares[i].partitions, owned[j])
		}
	}
	return shares
}
