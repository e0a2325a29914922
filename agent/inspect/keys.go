package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

// ErrNoKey says that the coordinator has no such key, nor one that begins like it.
var ErrNoKey = errors.New("no such key")

// Keys prints the key of that name, or, if there is none, all that begin with it, as of one revision. All of them are in memory meanwhile. The secret by which agents know each other is not shown.
func Keys(ctx context.Context, p *Printer, kv coordinator.KV, key string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if key != "" {
		item, _, err := kv.Get(ctx, key)
		if err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		if item.ModRevision > 0 {
			p.key(item)
			return nil
		}
	}
	items, _, err := kv.List(ctx, key, 0)
	if err != nil {
		return fmt.Errorf("read what begins with %q: %w", key, err)
	}
	if len(items) == 0 {
		return fmt.Errorf("%q: %w", key, ErrNoKey)
	}
	for _, item := range items {
		p.key(item)
	}
	return nil
}

// keyLine is a key. It is no row: for people its value is on lines of its own.
type keyLine struct {
	Key            string `json:"key"`
	CreateRevision int64  `json:"create_revision"`
	ModRevision    int64  `json:"mod_revision"`
	Lease          int64  `json:"lease,omitempty"`
	Bytes          int    `json:"bytes"`           // of the value
	Value          any    `json:"value,omitempty"` // decoded; none if it is damaged
}

// key prints a key and its value.
func (p *Printer) key(item coordinator.Item) {
	line := keyLine{Key: item.Key, CreateRevision: item.CreateRevision, ModRevision: item.ModRevision, Lease: item.Lease, Bytes: len(item.Value)}
	commit, value, err := decodeValue(item)
	switch {
	case err != nil:
	case commit != nil:
		line.Value = commit
	default:
		line.Value = value
	}
	if p.machine != nil {
		p.encode("key", &line)
	} else {
		p.text("key", line.head())
		switch {
		case err != nil:
		case commit != nil:
			commit.show(p)
		default:
			p.write(p.out, indented(value))
		}
	}
	if err != nil {
		p.damaged(-1, fmt.Errorf("%s at revision %d: %w", item.Key, item.ModRevision, err))
	}
}

func (k *keyLine) head() string {
	head := fmt.Sprintf("%s  (%d bytes, revision %d", k.Key, k.Bytes, k.ModRevision)
	if k.CreateRevision != k.ModRevision {
		head += fmt.Sprintf(", created at %d", k.CreateRevision)
	}
	if k.Lease != 0 {
		head += fmt.Sprintf(", lease %x", k.Lease)
	}
	return head + ")\n"
}

// decodeValue decodes a value: a commit, or JSON.
func decodeValue(item coordinator.Item) (*commitFacts, json.RawMessage, error) {
	if strings.HasPrefix(item.Key, coordinator.PrefixCommits) {
		c, err := coordinator.DecodeCommit(item.Value)
		if err != nil {
			return nil, nil, err
		}
		return newCommit(&c), nil, nil
	}
	if !json.Valid(item.Value) {
		return nil, nil, fmt.Errorf("no JSON: %.60q", item.Value)
	}
	if item.Key != coordinator.KeyCluster {
		return nil, item.Value, nil
	}
	var cluster map[string]json.RawMessage
	if err := json.Unmarshal(item.Value, &cluster); err != nil {
		return nil, nil, err
	}
	if _, ok := cluster["secret"]; ok {
		cluster["secret"] = json.RawMessage(`"not shown"`)
	}
	value, err := json.Marshal(cluster)
	return nil, value, err
}

// jsonWidth is up to how many bytes a value is printed in one line.
const jsonWidth = 160

func indented(value json.RawMessage) string {
	var b bytes.Buffer
	if err := json.Compact(&b, value); err == nil && b.Len() > jsonWidth {
		b.Reset()
		_ = json.Indent(&b, value, "  ", "  ") // it is valid
	}
	return "  " + b.String() + "\n"
}

// commitFacts is a commit.
type commitFacts struct {
	Object     string                `json:"object"`
	ObjectSize int64                 `json:"object_size"`
	FooterPos  int64                 `json:"footer_pos"`
	FooterSize int64                 `json:"footer_size"`
	Log        string                `json:"log"`
	Fence      uint64                `json:"fence"`
	Number     uint64                `json:"number"`
	FirstEntry int64                 `json:"first_entry"`
	LastEntry  int64                 `json:"last_entry"`
	CreatedMs  int64                 `json:"created_ms"`
	Shards     []coordinator.ShardID `json:"shards"`
	InFooter   bool                  `json:"in_footer"` // the partitions are in the segment's footer alone
	Partitions []commitPartition     `json:"partitions,omitempty"`
}

func newCommit(c *coordinator.Commit) *commitFacts {
	f := &commitFacts{
		Object: c.Object, ObjectSize: c.ObjectSize, FooterPos: c.FooterPos, FooterSize: c.FooterSize, Log: c.Log.String(), Fence: c.Fence, Number: c.Number,
		FirstEntry: c.FirstEntry, LastEntry: c.LastEntry, CreatedMs: c.CreatedMs, Shards: c.Shards, InFooter: c.InFooter,
	}
	for _, p := range c.Partitions {
		f.Partitions = append(f.Partitions, commitPartition{
			Shard: p.Shard, TopicID: p.Topic, Partition: p.Partition, First: p.FirstOffset, Next: p.NextOffset, LastStable: p.LastStable, Pos: p.Pos, Size: p.Size,
			MaxTimestampMs: p.MaxTimestamp, LeaderEpoch: p.LeaderEpoch,
		})
	}
	return f
}

// show prints a commit for people.
func (f *commitFacts) show(p *Printer) {
	p.emit(f)
	for i := range f.Partitions {
		p.emit(&f.Partitions[i])
	}
}

func (*commitFacts) form() form { return form{kind: "commit", indent: "  ", facts: true} }

func (f *commitFacts) cells() []cell {
	cells := []cell{
		{"segment", f.Object},
		{"size", number(f.ObjectSize)},
		{"footer", fmt.Sprintf("%d bytes at %d", f.FooterSize, f.FooterPos)},
		{"WAL log", f.Log},
		{"fence", number(f.Fence)},
		{"commit", number(f.Number)},
		{"WAL entries", fmt.Sprintf("%d-%d", f.FirstEntry, f.LastEntry)},
		{"created", moment(f.CreatedMs)},
	}
	if f.InFooter {
		cells = append(cells, cell{"partitions", "in the segment's footer"}, cell{"shards", fmt.Sprint(f.Shards)})
	}
	return cells
}

type commitPartition struct {
	Shard          coordinator.ShardID  `json:"shard"`
	TopicID        protocol.TopicID     `json:"topic_id"`
	Partition      int32                `json:"partition"`
	First          protocol.Offset      `json:"first"`
	Next           protocol.Offset      `json:"next"` // one past the last
	LastStable     protocol.Offset      `json:"last_stable"`
	Pos            int64                `json:"pos"`
	Size           int64                `json:"size"`
	MaxTimestampMs int64                `json:"max_timestamp_ms"`
	LeaderEpoch    protocol.LeaderEpoch `json:"leader_epoch"`
}

func (*commitPartition) form() form { return form{kind: "commit_partition", indent: "  "} }

func (c *commitPartition) cells() []cell {
	return []cell{
		{"SHARD", number(c.Shard)},
		{"TOPIC ID", c.TopicID.String()},
		{"PARTITION", number(c.Partition)},
		{"OFFSETS", span(c.First, c.Next)},
		{"STABLE", number(c.LastStable)},
		{"AT BYTE", number(c.Pos)},
		{"SIZE", number(c.Size)},
		{"NEWEST", moment(c.MaxTimestampMs)},
		{"EPOCH", number(c.LeaderEpoch)},
	}
}
