package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/varve-io/varve/agent/retry"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal"
)

// leaseSeconds is how long an agent counts as alive after its last sign of life. It is a hint, never a proof: fences decide.
const leaseSeconds = 6

// register makes the agent known to clients, and keeps it so under a lease; if the lease is lost, it registers again.
func (a *Agent) register(run, ctx context.Context) error {
	lease, revision, err := a.registerOnce(ctx)
	if err != nil {
		return err
	}
	a.lease = a.spawn(run, "keep the registration", func(ctx context.Context) error {
		for {
			err := a.deps.KV.KeepAlive(ctx, lease)
			if ctx.Err() != nil {
				return a.deregister(context.WithoutCancel(ctx), lease)
			}
			a.log.Warn("registration lost; registering again", "err", err)
			if lease, _, err = a.registerOnce(ctx); err != nil {
				return err
			}
		}
	})
	return a.view.Wait(ctx, revision)
}

func (a *Agent) registerOnce(ctx context.Context) (lease, revision int64, err error) {
	me := coordinator.Agent{Node: a.node, Log: a.id, Host: a.cfg.AdvertiseHost, Port: a.cfg.AdvertisePort, Zone: a.cfg.Zone}
	err = retry.Coordinator(ctx, a.log, "register", func(ctx context.Context) (err error) {
		if lease, err = a.deps.KV.Grant(ctx, leaseSeconds); err != nil {
			return err
		}
		res, err := a.deps.KV.Txn(ctx, nil, []coordinator.Op{{
			Key: coordinator.KeyAgent(a.node), Value: coordinator.Encode(me), Lease: lease,
		}})
		revision = res.Revision
		return err
	})
	return lease, revision, err
}

// deregister ends the lease, and with it the registration; if etcd is away it ends by itself.
func (a *Agent) deregister(ctx context.Context, lease int64) error {
	ctx, cancel := context.WithTimeout(ctx, retry.CallTimeout)
	defer cancel()
	if err := a.deps.KV.Revoke(ctx, lease); err != nil {
		a.log.Warn("registration stays until its lease ends", "err", err)
	}
	return nil
}

// drain leaves in order: out of metadata, answer what is here, flush, close the log. What cannot be done in time is left to the
// next incarnation's recovery, and said.
func (a *Agent) drain(run context.Context) error {
	start := a.deps.Now()
	a.log.Info("draining")
	ctx, cancel := context.WithTimeout(run, a.cfg.DrainMax)
	defer cancel()
	a.lease.stop()
	// Whoever waits for other members of a group, or takes an answer slowly, must not use up the time that the flush needs.
	answer, cut := context.WithTimeout(ctx, a.cfg.DrainMax/3)
	a.server.Drain(answer)
	cut()
	if err := a.closeLog(ctx); err != nil {
		return fmt.Errorf("drain: WAL log %s stays open, and the next start recovers it: %w", a.id, err)
	}
	a.log.Info("drained", "took", a.deps.Now().Sub(start).Round(time.Millisecond))
	return nil
}

// closeLog flushes everything and closes the log, so that nothing is to be recovered.
func (a *Agent) closeLog(ctx context.Context) error {
	// Entries of producers that wait for no answer may still be on their way to the disk.
	if err := a.wal.Prove(ctx); err != nil {
		return err
	}
	if err := a.flusher.Flush(ctx); err != nil {
		return err
	}
	a.flushing.stop()
	if err := a.writer.Close(ctx); err != nil {
		return err
	}
	if err := a.wal.Close(ctx); err != nil {
		return fmt.Errorf("close WAL: %w", err)
	}
	return a.deps.Disk.Drop(wal.SegmentID{Log: wal.LogID(a.id), Number: 1})
}

// resign stops leading a shard that another agent has taken.
func (a *Agent) resign(id coordinator.ShardID) {
	a.log.Warn("shard lost to another agent", "shard", id)
	a.partitions.resign(id)
	a.groups.Resign(id)
	a.starts.Resign(id)
}

// dropTopic forgets what the agent holds of a topic that was deleted.
func (a *Agent) dropTopic(t coordinator.Topic) { a.partitions.DropTopic(&t) }

// producerSweep is how often idle producers are looked for.
const producerSweep = time.Minute

// producersMax is how many idempotent producers one partition remembers.
const producersMax = 10_000

// expireProducers forgets idempotent producers that were idle for too long.
func (a *Agent) expireProducers(ctx context.Context) error {
	tick := time.NewTicker(producerSweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		before := a.deps.Now().Add(-a.cfg.ProducerIdleMax).UnixMilli()
		for _, p := range a.partitions.All() {
			p.ExpireProducers(before, producersMax)
		}
	}
}
