package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/coordinator"
)

// keysRow is a row of the table in KEYS.md that says how many keys there are, and how large: sums of numbers and of multiples of letters.
type keysRow struct{ keys, many, bytes string }

// keysTable returns the table, and the formula for the number of all keys.
func keysTable(t *testing.T) (rows []keysRow, formula string) {
	t.Helper()
	text, err := os.ReadFile("../coordinator/KEYS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## How many, and how large\n")
	_, formula, _ = strings.Cut(table, "**keys = ")
	formula, _, _ = strings.Cut(formula, "**")
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) == 6 && strings.HasPrefix(cells[1], " `") {
			rows = append(rows, keysRow{strings.Trim(cells[1], " `"), strings.TrimSpace(cells[2]), strings.TrimSpace(cells[3])})
		}
	}
	return rows, formula
}

// evaluate returns what a sum of the table is with those letters.
func evaluate(t *testing.T, sum string, letters map[string]int) int {
	t.Helper()
	total := 0
	for term := range strings.SplitSeq(sum, "+") {
		factor := 1
		for word := range strings.FieldsSeq(term) {
			if n, err := strconv.Atoi(strings.ReplaceAll(word, ",", "")); err == nil {
				factor *= n
			} else if n, ok := letters[word]; ok {
				factor *= n
			} else {
				t.Fatalf("KEYS.md: %q in %q is not known", word, sum)
			}
		}
		total += factor
	}
	return total
}

// partsOf counts what the table's small letters stand for in a key.
func partsOf(t *testing.T, item coordinator.Item) map[string]int {
	t.Helper()
	if strings.HasPrefix(item.Key, coordinator.PrefixCommits) {
		c, err := coordinator.DecodeCommit(item.Value)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]int{"p": len(c.Partitions)}
	}
	var r struct {
		Shards, Configs, Offsets, Topics map[string]json.RawMessage
		Damaged                          []int
		Segments, Members                []json.RawMessage
		Partitions                       []json.RawMessage
	}
	_ = json.Unmarshal(item.Value, &r) // not all are objects, and in some a name means something else
	parts := map[string]int{"s": len(r.Shards), "c": len(r.Configs), "d": len(r.Damaged), "w": len(r.Segments), "m": len(r.Members), "p": len(r.Partitions), "t": len(r.Topics)}
	offsets := make(map[string]json.RawMessage)
	if strings.HasPrefix(item.Key, coordinator.PrefixOffsets) {
		_ = json.Unmarshal(item.Value, &offsets)
	}
	for _, topic := range r.Offsets {
		_ = json.Unmarshal(topic, &offsets)
	}
	parts["o"] = len(offsets)
	return parts
}

// TestKeys holds the formula of KEYS.md: the keys of a cluster that was written to, whose consumers have committed, and that has a transaction open.
func TestKeys(t *testing.T) {
	c := newCluster(t, func(cfg *agent.Config) {
		quickly(cfg)
		cfg.GroupDelay = 0
	}, "a", "b", "c")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const large = 130 // partitions, in three blocks of offsets
	c.create(t, "large", large)
	c.create(t, "small", 1)
	c.produce(t, "large", large, 0, 2, "")
	c.produce(t, "small", 1, 0, 2, "")
	c.awaitCommits(t, "large", 2)
	admin := kadm.NewClient(c.client(t))
	for _, group := range []string{"everything", "little"} {
		var offsets kadm.Offsets
		for n := range int32(large) {
			if group == "everything" || n == 64 {
				offsets.AddOffset("large", n, 2, -1)
			}
		}
		offsets.AddOffset("small", 0, 1_000_000, 7)
		if err := admin.CommitAllOffsets(ctx, group, offsets); err != nil {
			t.Fatal(err)
		}
	}
	member := c.client(t, kgo.ConsumerGroup("members"), kgo.ConsumeTopics("small"), kgo.DisableAutoCommit())
	for read := 0; read < 2; {
		fetches := member.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		read += fetches.NumRecords()
	}
	if err := member.CommitUncommittedOffsets(ctx); err != nil {
		t.Fatal(err)
	}
	c.beginTransaction(ctx, t, "large", large, "everything")

	letters := map[string]int{
		"A": 3, "D": 3, "T": 2, "S": 12, "M": 0, "L": 3, "G": 3, "N": 1, "X": 1,
		"B": 3 + 1 + 1 + 1 + 1, // everything has read both topics, little one partition of each, members the small one
	}
	rows, formula := keysTable(t)
	for { // shards may still be on their way
		items, _, err := c.kv.List(ctx, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		letters["C"] = 0
		wrong := c.checkKeys(t, rows, formula, letters, items)
		if wrong == "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(wrong)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// beginTransaction opens a transaction of "writer" with a record in each partition of a topic and the offsets of a group in them.
func (c *cluster) beginTransaction(ctx context.Context, t *testing.T, topic string, partitions int32, group string) {
	t.Helper()
	p := c.client(t, kgo.TransactionalID("writer"), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionTimeout(10*time.Minute))
	if err := p.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	var records []*kgo.Record
	for n := range partitions {
		records = append(records, &kgo.Record{Topic: topic, Partition: n, Value: []byte("v")})
	}
	if err := p.ProduceSync(ctx, records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	id, epoch, err := p.ProducerID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	add := kmsg.NewPtrAddOffsetsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = "writer", id, epoch, group
	added, err := add.RequestWith(ctx, p)
	if err != nil || added.ErrorCode != 0 {
		t.Fatal(err, kerr.ErrorForCode(added.ErrorCode))
	}
	commit := kmsg.NewPtrTxnOffsetCommitRequest()
	commit.TransactionalID, commit.ProducerID, commit.ProducerEpoch, commit.Group = "writer", id, epoch, group
	offsets := kmsg.NewTxnOffsetCommitRequestTopic()
	offsets.Topic = topic
	for n := range partitions {
		offset := kmsg.NewTxnOffsetCommitRequestTopicPartition()
		offset.Partition, offset.Offset = n, 2
		offsets.Partitions = append(offsets.Partitions, offset)
	}
	commit.Topics = append(commit.Topics, offsets)
	committed, err := commit.RequestWith(ctx, p)
	if err != nil || committed.Topics[0].Partitions[0].ErrorCode != 0 {
		t.Fatal(err, committed)
	}
}

// checkKeys compares the keys that there are with the table, and says what is not as it says. Nothing was merged, so that there are as many commits as logs have counted.
func (c *cluster) checkKeys(t *testing.T, rows []keysRow, formula string, letters map[string]int, items []coordinator.Item) (wrong string) {
	t.Helper()
	count, bytes, allowed := make(map[string]int), 0, 0
	for _, item := range items {
		var row keysRow
		for _, r := range rows {
			if strings.HasPrefix(item.Key, r.keys) && len(r.keys) > len(row.keys) {
				row = r
			}
		}
		if row.keys == "" {
			t.Fatalf("KEYS.md has no row for %s", item.Key)
		}
		count[row.keys]++
		size, limit := len(item.Key)+len(item.Value), evaluate(t, row.bytes, partsOf(t, item))
		bytes += size
		allowed += limit
		if size > limit {
			t.Fatalf("%s has %d bytes, want at most %s = %d: %s", item.Key, size, row.bytes, limit, item.Value)
		}
		if row.keys == coordinator.PrefixLogs {
			l, err := coordinator.Decode[coordinator.Log](item)
			if err != nil {
				t.Fatal(err)
			}
			letters["C"] += int(l.Commits)
		}
	}
	want := make(map[string]int)
	for _, r := range rows {
		if n := evaluate(t, r.many, letters); n > 0 && r.keys != coordinator.KeyPastLog { // no log is over for as long
			want[r.keys] = n
		}
	}
	if !maps.Equal(count, want) {
		wrong = fmt.Sprintf("keys\n%v\nwant\n%v", count, want)
	}
	if n := evaluate(t, formula, letters) - 1; wrong == "" && n != len(items) {
		t.Fatalf("%d keys, want %d by the formula without %s", len(items), n, coordinator.KeyPastLog)
	}
	if bytes < allowed/3 {
		t.Fatalf("%d bytes of keys and values, of %d that KEYS.md allows: it says too much", bytes, allowed)
	}
	return wrong
}
