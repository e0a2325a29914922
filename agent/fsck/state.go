package fsck

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/coordinator/txn"
	"github.com/varve-io/varve/protocol"
)

// state is what etcd holds, as of one revision, as far as objects hang on it.
type state struct {
	cluster coordinator.Cluster
	id      [16]byte
	topics  map[protocol.TopicID]coordinator.Topic
	shards  map[coordinator.ShardID]shardRecord
	commits []commitRecord // by key, and so by log and number
	logs    coordinator.Logs
	writes  map[coordinator.ShardID]coordinator.Write
	bad     map[commitNumber]bool // commits that cannot be read
}

// commitNumber names a commit.
type commitNumber struct {
	log    coordinator.LogID
	number uint64
}

type shardRecord struct {
	coordinator.Shard
	revision int64 // that wrote it
}

type commitRecord struct {
	coordinator.Commit
	key      string
	revision int64 // that wrote it
}

// keyKind is a kind of key.
type keyKind struct {
	prefix string // or the whole key
	check  func(s *state, item coordinator.Item) error
}

// keyKinds are those that KEYS.md lists. The first that matches counts.
var keyKinds = []keyKind{
	{coordinator.KeyCluster, func(s *state, item coordinator.Item) (err error) {
		if s.cluster, err = coordinator.Decode[coordinator.Cluster](item); err != nil {
			return err
		}
		id, err := protocol.ParseTopicID(s.cluster.ID) // another UUID in the same form
		s.id = id
		return err
	}},
	{coordinator.KeyController, decodes[coordinator.Controller]},
	{coordinator.PrefixAgents, decodes[coordinator.Agent]},
	{coordinator.PrefixTopics, func(s *state, item coordinator.Item) error {
		t, err := coordinator.Decode[coordinator.Topic](item)
		if err == nil && (coordinator.KeyTopic(t.Name) != item.Key || t.Partitions <= 0 || t.ID.IsZero()) {
			err = fmt.Errorf("topic %q of %d partitions, with id %s", t.Name, t.Partitions, t.ID)
		}
		if err == nil {
			s.topics[t.ID] = t
		}
		return err
	}},
	{coordinator.PrefixShards, func(s *state, item coordinator.Item) error {
		id, err := shardOf(item.Key, coordinator.PrefixShards)
		if err != nil {
			return err
		}
		record, err := coordinator.Decode[coordinator.Shard](item)
		if err == nil {
			s.shards[id] = shardRecord{record, item.ModRevision}
		}
		return err
	}},
	{coordinator.PrefixMoves, decodes[coordinator.Move]},
	{coordinator.PrefixCommits, readCommit},
	{coordinator.KeyPastLog, decodes[coordinator.LogID]},
	{coordinator.PrefixLogs, func(_ *state, item coordinator.Item) error {
		l, err := coordinator.Decode[coordinator.Log](item)
		if err == nil && coordinator.KeyLog(l.ID) != item.Key {
			err = fmt.Errorf("record of log %s", l.ID)
		}
		return err
	}},
	{coordinator.PrefixUnflushed, decodes[coordinator.Unflushed]},
	{coordinator.PrefixLoads, decodes[coordinator.Load]},
	{coordinator.PrefixUsage, decodes[coordinator.Usage]},
	{coordinator.PrefixStores, decodes[int32]},
	{coordinator.PrefixWrites, func(s *state, item coordinator.Item) error {
		id, err := shardOf(item.Key, coordinator.PrefixWrites)
		if err != nil {
			return err
		}
		s.writes[id], err = coordinator.Decode[coordinator.Write](item)
		return err
	}},
	{coordinator.PrefixGroups, func(_ *state, item coordinator.Item) error {
		_, err := coordinator.ParseKeyGroup(item.Key)
		return errors.Join(err, decodes[group.Snapshot](nil, item))
	}},
	{coordinator.PrefixOffsets, func(_ *state, item coordinator.Item) error {
		_, _, _, err := coordinator.ParseKeyOffsets(item.Key)
		return errors.Join(err, decodes[coordinator.GroupOffsets](nil, item))
	}},
	{coordinator.PrefixPending, func(_ *state, item coordinator.Item) error {
		_, _, err := coordinator.ParseKeyPending(item.Key)
		return errors.Join(err, decodes[coordinator.PendingOffsets](nil, item))
	}},
	{coordinator.PrefixTxns, func(_ *state, item coordinator.Item) error {
		_, err := coordinator.ParseKeyTxn(item.Key)
		return errors.Join(err, decodes[txn.Snapshot](nil, item))
	}},
	{coordinator.KeyNextNode, decodes[int64]},
	{coordinator.KeyNextLog, decodes[int64]},
	{coordinator.KeyNextPID, decodes[int64]},
	{coordinator.KeyLastCopy, decodes[coordinator.LastCopy]},
}

// decodes checks that a value can be decoded.
func decodes[T any](_ *state, item coordinator.Item) error {
	_, err := coordinator.Decode[T](item)
	return err
}

func shardOf(key, prefix string) (coordinator.ShardID, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(key, prefix), 10, 32)
	return coordinator.ShardID(n), err
}

func readCommit(s *state, item coordinator.Item) error {
	log, number, err := coordinator.ParseKeyCommit(item.Key)
	if err != nil {
		return err
	}
	c, err := coordinator.DecodeCommit(item.Value)
	if err == nil && (c.Log != log || c.Number != number) {
		err = fmt.Errorf("it holds %s", coordinator.KeyCommit(c.Log, c.Number))
	}
	if err != nil {
		s.bad[commitNumber{log, number}] = true
		return err
	}
	s.commits = append(s.commits, commitRecord{c, item.Key, item.ModRevision})
	return nil
}

// read reads etcd.
func (c *checker) read(ctx context.Context) error {
	s := &c.state
	s.topics, s.shards = make(map[protocol.TopicID]coordinator.Topic), make(map[coordinator.ShardID]shardRecord)
	s.writes, s.bad = make(map[coordinator.ShardID]coordinator.Write), make(map[commitNumber]bool)
	items, revision, err := coordinator.ListAll(ctx, c.kv,
		coordinator.PrefixMeta, coordinator.PrefixLogs, coordinator.PrefixUnflushed, coordinator.PrefixLoads, coordinator.PrefixUsage, coordinator.PrefixStores, coordinator.PrefixWrites,
		coordinator.PrefixGroups, coordinator.PrefixOffsets, coordinator.PrefixPending, coordinator.PrefixTxns, "next/")
	if err != nil {
		return err
	}
	c.report.Revision = revision
	var logs []coordinator.Item
	for _, item := range items {
		c.key(item)
		if strings.HasPrefix(item.Key, coordinator.PrefixLogs) {
			logs = append(logs, item)
		}
	}
	if s.cluster.ID == "" {
		return ErrNoCluster
	}
	c.report.Cluster = s.cluster.ID
	if s.logs, err = coordinator.MakeLogs(logs, revision); err != nil {
		return err
	}
	c.agree()
	return nil
}

// key takes a key in.
func (c *checker) key(item coordinator.Item) {
	for _, k := range keyKinds {
		if item.Key != k.prefix && (!strings.HasSuffix(k.prefix, "/") || !strings.HasPrefix(item.Key, k.prefix)) {
			continue
		}
		c.report.key(k.prefix, item)
		if err := k.check(&c.state, item); err != nil {
			c.report.problem(BadKey, item.Key, "revision %d: %v", item.ModRevision, err)
		}
		return
	}
	c.report.key("unknown", item)
	c.report.problem(BadKey, item.Key, "there is no such kind of key")
}

// agree compares keys that say the same.
func (c *checker) agree() {
	s := &c.state
	for _, id := range slices.Sorted(maps.Keys(s.shards)) {
		record, key := s.shards[id], coordinator.KeyShard(id)
		if uint32(id) >= s.cluster.Shards {
			c.report.problem(BadKey, key, "the cluster has %d shards", s.cluster.Shards)
		}
		if w, ok := s.writes[id]; ok && (w.Owner != record.Owner || w.Epoch != record.Epoch) {
			c.report.problem(BadKey, key, "led by log %s in epoch %d; by its guard, by log %s in epoch %d", record.Owner, record.Epoch, w.Owner, w.Epoch)
		}
	}
	for i := range s.commits {
		commit := &s.commits[i]
		log := s.logs.Record(commit.Log)
		switch {
		case log == nil && !s.logs.Closed(commit.Log):
			c.report.problem(BadKey, commit.key, "nobody knows its log")
		case log != nil && commit.Number > log.Commits:
			c.report.problem(BadKey, commit.key, "its log has %d commits", log.Commits)
		case log != nil && commit.Number == log.Commits && commit.LastEntry != log.Flushed && (commit.LastEntry < log.Flushed || commit.Log >= s.cluster.Restored): // a restore leaves that before what it does not find
			c.report.problem(BadKey, commit.key, "it ends with entry %d, and its log is flushed to %d", commit.LastEntry, log.Flushed)
		}
	}
}
