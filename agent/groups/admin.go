package groups

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/group"
	"github.com/varve-io/varve/protocol"
)

// consumerType is the protocol type of consumers, the only one whose subscriptions can be read here.
const consumerType = "consumer"

// classicType is the name of the group type in ListGroups (KIP-848).
const classicType = "Classic"

// entry is a group in the index of all groups in the led shards.
type entry struct {
	shard        coordinator.ShardID
	protocolType string
	state        group.State
	due          time.Time // not live: when the upkeep must look at it; zero for at once
}

// reindex enters the group into the index as it is, or takes it out. The caller holds Coordinator.mu.
func (o *owner) reindex() {
	if !o.recorded {
		delete(o.c.index, o.name)
		return
	}
	o.c.index[o.name] = entry{
		shard: o.shard, protocolType: o.machine.ProtocolType(), state: o.machine.State(), due: o.due(),
	}
}

// beginScan waits until no index is being completed. endScan must follow, unless it fails.
func (c *Coordinator) beginScan(ctx context.Context) error {
	select {
	case c.scan <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait to list groups: %w", ctx.Err())
	}
}

func (c *Coordinator) endScan() { <-c.scan }

// completeIndex lets the index hold every group in the shards that the agent leads: it reads all groups of the cluster if
// the agent came to lead a shard since it last did.
func (c *Coordinator) completeIndex(ctx context.Context) error {
	if err := c.beginScan(ctx); err != nil {
		return err
	}
	defer c.endScan()
	missing := map[coordinator.ShardID]int32{}
	for i := range c.cfg.Shards {
		shard := coordinator.ShardID(i)
		epoch, ok := c.deps.Leads(shard)
		if !ok {
			continue
		}
		c.mu.Lock()
		if have, ok := c.indexed[shard]; !ok || have != epoch {
			missing[shard] = epoch
		}
		c.mu.Unlock()
	}
	if len(missing) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.LoadTimeout)
	defer cancel()
	items, _, err := c.deps.KV.List(ctx, coordinator.PrefixGroups, 0)
	if err != nil {
		return fmt.Errorf("list groups: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, item := range items {
		name, err := coordinator.ParseKeyGroup(item.Key)
		if err != nil {
			return err
		}
		shard := coordinator.ShardOfName(name, c.cfg.Shards)
		if _, ok := missing[shard]; !ok {
			continue
		}
		if _, ok := c.index[name]; ok {
			continue // newer than what was read
		}
		snapshot, err := coordinator.Decode[group.Snapshot](item)
		if err != nil {
			return err
		}
		c.index[name] = entry{shard: shard, protocolType: snapshot.ProtocolType, state: snapshot.State()}
	}
	for shard, epoch := range missing {
		if now, ok := c.deps.Leads(shard); ok && now == epoch {
			c.indexed[shard] = epoch
		}
	}
	return nil
}

// listed returns the groups of the led shards, by name.
func (c *Coordinator) listed() map[string]entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	groups := maps.Clone(c.index)
	for name, o := range c.owners {
		switch s := o.shown.Load(); {
		case s == nil: // being loaded
		case s.exists:
			groups[name] = entry{shard: o.shard, protocolType: s.protocolType, state: s.state}
		default:
			delete(groups, name)
		}
	}
	maps.DeleteFunc(groups, func(_ string, e entry) bool {
		_, ok := c.deps.Leads(e.shard)
		return !ok
	})
	return groups
}

// ListGroups lists the groups that this agent coordinates. Filters compare without regard to case; an unknown state or
// type matches nothing.
func (c *Coordinator) ListGroups(ctx context.Context, req *kmsg.ListGroupsRequest) *kmsg.ListGroupsResponse {
	resp := kmsg.NewPtrListGroupsResponse()
	resp.Version = req.Version
	if err := c.completeIndex(ctx); err != nil {
		c.log.Warn("list groups", "error", err)
		resp.ErrorCode = int16(protocol.CoordinatorNotAvailable)
		return resp
	}
	if !matches(req.TypesFilter, classicType) {
		return resp
	}
	groups := c.listed()
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		e := groups[name]
		if !matches(req.StatesFilter, e.state.String()) {
			continue
		}
		answer := kmsg.NewListGroupsResponseGroup()
		answer.Group, answer.ProtocolType, answer.GroupState, answer.GroupType = name, e.protocolType, e.state.String(), classicType
		resp.Groups = append(resp.Groups, answer)
	}
	return resp
}

// matches tells whether a filter lets a name pass; an empty one lets all.
func matches(filter []string, name string) bool {
	return len(filter) == 0 || slices.ContainsFunc(filter, func(s string) bool { return strings.EqualFold(s, name) })
}

// groupOperations is the bit field of what may be done with a group where nobody is forbidden anything: READ, DELETE,
// DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS (AclEntry.supportedOperations).
const groupOperations = 1<<3 | 1<<6 | 1<<8 | 1<<10 | 1<<11

// DescribeGroups describes groups, one after another. One that does not exist is Dead, and from version 6 on also
// GROUP_ID_NOT_FOUND (KIP-1043).
func (c *Coordinator) DescribeGroups(ctx context.Context, req *kmsg.DescribeGroupsRequest) *kmsg.DescribeGroupsResponse {
	resp := kmsg.NewPtrDescribeGroupsResponse()
	resp.Version = req.Version
	for _, name := range req.Groups {
		answer := kmsg.NewDescribeGroupsResponseGroup()
		answer.Group = name
		d, code := c.describe(ctx, name)
		switch {
		case code != protocol.None:
			answer.ErrorCode = int16(code)
		case d.State == group.Dead:
			answer.State = d.State.String()
			if req.Version >= 6 {
				message := fmt.Sprintf("Group %s not found.", name)
				answer.ErrorCode, answer.ErrorMessage = int16(protocol.GroupIDNotFound), &message
			}
		default:
			fillDescription(&answer, d)
			if req.IncludeAuthorizedOperations {
				answer.AuthorizedOperations = groupOperations
			}
		}
		resp.Groups = append(resp.Groups, answer)
	}
	return resp
}

func (c *Coordinator) describe(ctx context.Context, name string) (group.Description, protocol.ErrorCode) {
	return call(ctx, c, name, func(o *owner, done func(group.Description)) {
		o.used = c.deps.Now()
		if !o.exists() {
			done(group.Description{State: group.Dead})
			return
		}
		done(o.machine.Describe())
	})
}

func fillDescription(answer *kmsg.DescribeGroupsResponseGroup, d group.Description) {
	answer.State, answer.ProtocolType, answer.Protocol = d.State.String(), d.ProtocolType, d.Protocol
	for _, m := range d.Members {
		member := kmsg.NewDescribeGroupsResponseGroupMember()
		member.MemberID, member.InstanceID = m.MemberID, nullable(m.InstanceID)
		member.ClientID, member.ClientHost = m.ClientID, m.ClientHost
		member.ProtocolMetadata, member.MemberAssignment = m.Metadata, m.Assignment
		answer.Members = append(answer.Members, member)
	}
}

// DeleteGroups deletes empty groups and their offsets, one after another.
func (c *Coordinator) DeleteGroups(ctx context.Context, req *kmsg.DeleteGroupsRequest) *kmsg.DeleteGroupsResponse {
	resp := kmsg.NewPtrDeleteGroupsResponse()
	resp.Version = req.Version
	for _, name := range req.Groups {
		answer := kmsg.NewDeleteGroupsResponseGroup()
		answer.Group = name
		result, code := call(ctx, c, name, func(o *owner, done func(protocol.ErrorCode)) {
			if !o.exists() {
				done(protocol.GroupIDNotFound)
				return
			}
			o.delete(done)
		})
		if code == protocol.None {
			code = result
		}
		answer.ErrorCode = int16(code)
		resp.Groups = append(resp.Groups, answer)
	}
	return resp
}

// delete deletes the group if it is empty: first its offsets, pending ones before all, then its record, by which they could be found again if
// only some were deleted. If that fails the owner ends, and what is left is loaded anew.
func (o *owner) delete(done func(protocol.ErrorCode)) {
	event := func(id group.RequestID) group.Event { return group.Delete{Request: id} }
	o.ask(event, func(r group.Result) {
		if code := r.(group.CodeResult).Code; code != protocol.None {
			done(code)
			return
		}
		failed := func(code protocol.ErrorCode) bool {
			if code != protocol.None {
				o.undone = true
				done(code)
			}
			return code != protocol.None
		}
		o.discardOpen(func(code protocol.ErrorCode) {
			if failed(code) {
				return
			}
			o.change(o.everyOffset(), func(blockKey) {}, func(code protocol.ErrorCode) {
				if failed(code) {
					return
				}
				o.write([]coordinator.Op{{Key: coordinator.KeyGroup(o.name), Delete: true}}, func(code protocol.ErrorCode) {
					o.deleted(code)
					done(code)
				})
			})
		})
	})
}

// deleted begins the group anew after its deletion.
func (o *owner) deleted(code protocol.ErrorCode) {
	if code != protocol.None {
		o.undone = true
		return
	}
	o.recorded, o.machine = false, group.New(o.c.machineConfig(), o.c.deps.Now())
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	o.reindex()
}

// everyOffset returns the deletion of every offset there is or will be.
func (o *owner) everyOffset() []change {
	var changes []change
	for _, key := range sortedBlocks(o.offsets) {
		for _, p := range sortedPartitions(o.offsets[key].latest) {
			changes = append(changes, change{topic: key.topic, partition: p})
		}
	}
	return changes
}

func sortedNames[V any](set map[string]V) []string { return slices.Sorted(maps.Keys(set)) }

func sortedPartitions(offsets coordinator.GroupOffsets) []int32 {
	return slices.Sorted(maps.Keys(offsets))
}
