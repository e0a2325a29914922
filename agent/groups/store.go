package groups

import (
	"context"
	"fmt"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// load reads the group, its offsets, and those of open transactions. The reads are linearizable and begin after the agent's epoch did, so they
// see all that earlier leaders of the shard wrote.
func (o *owner) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, o.c.cfg.LoadTimeout)
	defer cancel()
	item, _, err := o.c.deps.KV.Get(ctx, coordinator.KeyGroup(o.name))
	if err != nil {
		return fmt.Errorf("read group: %w", err)
	}
	items, _, err := o.c.deps.KV.List(ctx, coordinator.PrefixGroupOffsets(o.name), 0)
	if err != nil {
		return fmt.Errorf("read offsets: %w", err)
	}
	pending, _, err := o.c.deps.KV.List(ctx, coordinator.PrefixGroupPending(o.shard, o.name), 0)
	if err != nil {
		return fmt.Errorf("read pending offsets: %w", err)
	}
	if err := o.loadPending(pending); err != nil {
		return err
	}
	for _, it := range items {
		_, topic, number, err := coordinator.ParseKeyOffsets(it.Key)
		if err != nil {
			return err
		}
		stored, err := coordinator.Decode[coordinator.GroupOffsets](it)
		if err != nil {
			return err
		}
		o.offsets[blockKey{topic, number}] = &block{durable: stored, latest: stored}
	}
	if item.ModRevision == 0 {
		o.machine = group.New(o.c.machineConfig(), o.c.deps.Now())
		return nil
	}
	snapshot, err := coordinator.Decode[group.Snapshot](item)
	if err != nil {
		return err
	}
	o.recorded = true
	o.machine, err = group.Load(o.c.machineConfig(), o.c.deps.Now(), snapshot)
	return err
}

func (c *Coordinator) machineConfig() group.Config {
	return group.Config{
		InitialDelay: c.cfg.InitialDelay, MembersMax: c.cfg.MembersMax, PayloadBytesMax: c.cfg.PayloadBytesMax,
	}
}

// persist carries out the machine's wish to store a snapshot.
func (o *owner) persist(p group.Persist) {
	op := coordinator.Op{Key: coordinator.KeyGroup(o.name), Value: o.encode(p.Snapshot)}
	o.write([]coordinator.Op{op}, func(code protocol.ErrorCode) {
		if code == protocol.None {
			o.nowRecorded()
		}
		o.step(group.Persisted{Write: p.Write, Code: code})
	})
}

// encode fits a snapshot into one value of the coordinator. A group whose payloads are too large is stored without
// them, and one with too many members without those: after a change of coordinator its members join again.
func (o *owner) encode(s group.Snapshot) []byte {
	value := coordinator.Encode(s)
	if len(value) <= coordinator.ValueBytesMax {
		return value
	}
	o.c.log.Warn("group is too large to be stored with its payloads", "group", o.name, "bytes", len(value))
	if value = coordinator.Encode(s.WithoutPayloads()); len(value) <= coordinator.ValueBytesMax {
		return value
	}
	return coordinator.Encode(s.WithoutMembers())
}

// nowRecorded notes that the group's record is durable.
func (o *owner) nowRecorded() {
	o.recorded = true
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	o.reindex()
}
