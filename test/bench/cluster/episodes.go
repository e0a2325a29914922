package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/varve-io/varve/test/bench/gaps"
	"github.com/varve-io/varve/test/servers"
)

const (
	// recoverWithin bounds how long partitions may take no records.
	recoverWithin = 2 * time.Minute
	// exitWithin bounds how long an agent may take to leave.
	exitWithin = 2 * time.Minute
	// aftermath is how long one goes on to look after every partition has taken a record again.
	aftermath = time.Second
	// stopWithin bounds how long the last records of a load may wait for their acknowledgement.
	stopWithin = 2 * time.Minute
)

// episode is one thing that happened to a cluster under load, and what clients noticed of it.
type episode struct {
	gaps.Window
	// took is how long the agent itself needed: to leave, or to be ready.
	took time.Duration
	// led is how many partitions it led before, when it left, or after, when it came.
	led int
}

// String says what clients noticed.
func (e episode) String() string {
	return fmt.Sprintf("a partition was %v without an acknowledgement, a record waited %v, %d failed",
		e.Gap.Round(time.Millisecond), e.Wait.Round(time.Millisecond), e.Failed)
}

// series is a part of the run in which the same thing happens several times, and is undone each time.
type series struct {
	struck, undone []episode
	kept           gaps.Kept
	failed         int // records
}

// stage is a cluster with a topic under load.
type stage struct {
	*nodes
	admin      *admin
	probe      *gaps.Probe
	partitions int
}

// perform starts a cluster, puts it under load and lets f make things happen. In the end it stops the load and reads everything back.
func (p plan) perform(ctx context.Context, start starter, partitions int, f func(*stage) error) (kept gaps.Kept, failed int, err error) {
	err = within(ctx, start, func(n *nodes) error {
		a, err := newAdmin(n, "watched")
		if err != nil {
			return err
		}
		defer a.close()
		if err := a.create(ctx, partitions); err != nil {
			return err
		}
		if _, err := a.settled(ctx, partitions); err != nil {
			return err
		}
		s := &stage{nodes: n, admin: a, partitions: partitions}
		kept, failed, err = s.underLoad(ctx, p.load(n, a.topic, partitions), f)
		return err
	})
	return kept, failed, err
}

// underLoad runs f while records flow to every partition.
func (s *stage) underLoad(ctx context.Context, cfg gaps.Config, f func(*stage) error) (kept gaps.Kept, failed int, err error) {
	if s.probe, err = gaps.Start(ctx, cfg); err != nil {
		return kept, 0, err
	}
	defer s.probe.Close()
	if err := s.awaitAll(ctx, time.Now()); err != nil {
		return kept, 0, err
	}
	if err := f(s); err != nil {
		if n, first := s.probe.Failures(); n > 0 {
			err = fmt.Errorf("%w; %d records failed, the first: %w", err, n, first)
		}
		return kept, 0, err
	}
	stopping, cancel := context.WithTimeout(ctx, stopWithin)
	defer cancel()
	if err := s.probe.Stop(stopping); err != nil {
		return kept, 0, err
	}
	failed, first := s.probe.Failures()
	if failed > 0 {
		progress("  %d records failed, the first: %v", failed, first)
	}
	kept, err = s.probe.ReadBack(ctx)
	return kept, failed, err
}

// awaitAll waits until every partition has taken a record that was due after a moment.
func (s *stage) awaitAll(ctx context.Context, moment time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	return s.probe.AwaitAll(ctx, moment)
}

// leads says how many partitions each broker leads, once nothing moves.
func (s *stage) leads(ctx context.Context) ([]int, error) {
	placed, err := s.admin.settled(ctx, s.partitions)
	led := make([]int, len(s.brokers))
	for i, b := range s.brokers {
		led[i] = placed[b.Address]
	}
	return led, err
}

// killAgent kills an agent that leads so many partitions, and waits until all take records again.
func (s *stage) killAgent(ctx context.Context, i, led int) (episode, error) {
	e := episode{led: led}
	s.probe.Begin()
	s.brokers[i].Kill()
	if err := s.awaitAll(ctx, time.Now()); err != nil {
		return e, err
	}
	if err := pause(ctx, aftermath); err != nil {
		return e, err
	}
	e.Window = s.probe.Window()
	progress("  killed agent %d, which led %d partitions: %s", i+1, e.led, e)
	return e, nil
}

// drainAgent asks an agent that leads so many partitions to leave, and waits until it has and all partitions take records without it.
func (s *stage) drainAgent(ctx context.Context, i, led int) (episode, error) {
	e := episode{led: led}
	exiting, cancel := context.WithTimeout(ctx, exitWithin)
	defer cancel()
	s.probe.Begin()
	signalled := time.Now()
	if err := s.brokers[i].Stop(exiting); err != nil {
		return e, err
	}
	e.took = time.Since(signalled)
	if err := s.awaitAll(ctx, time.Now()); err != nil {
		return e, err
	}
	if err := pause(ctx, aftermath); err != nil {
		return e, err
	}
	e.Window = s.probe.Window()
	progress("  agent %d left with %d partitions in %v: %s", i+1, e.led, e.took.Round(time.Millisecond), e)
	return e, nil
}

// join starts an agent and waits until it has been given shards and nothing moves any more.
func (s *stage) join(ctx context.Context, i int, start func() (*servers.Server, error)) (e episode, err error) {
	s.probe.Begin()
	began := time.Now()
	agent, err := start()
	if err != nil {
		return e, err
	}
	e.took = time.Since(began)
	if i == len(s.brokers) {
		s.brokers = append(s.brokers, agent)
	}
	s.brokers[i] = agent
	led, err := s.leads(ctx)
	if err != nil {
		return e, err
	}
	e.led = led[i]
	e.Window = s.probe.Window()
	progress("  agent %d was ready in %v and got %d partitions: %s", i+1, e.took.Round(time.Millisecond), e.led, e)
	return e, nil
}

// kill kills agents, each of which comes back before the next.
func kill(ctx context.Context, p plan, r *results) (err error) {
	var k series
	k.kept, k.failed, err = p.perform(ctx, startVarve, p.partitions, func(s *stage) error {
		return k.repeat(ctx, p.kills, s, s.killAgent)
	})
	if err == nil {
		r.kill = &k
	}
	return err
}

// drain asks agents to leave, each of which comes back before the next.
func drain(ctx context.Context, p plan, r *results) (err error) {
	var d series
	d.kept, d.failed, err = p.perform(ctx, startVarve, agents*p.drained, func(s *stage) error {
		return d.repeat(ctx, p.drains, s, s.drainAgent)
	})
	if err == nil {
		r.drain = &d
	}
	return err
}

// repeat ends the agent that leads most partitions, so many times, and each time starts it again.
func (all *series) repeat(ctx context.Context, times int, s *stage, end func(ctx context.Context, i, led int) (episode, error)) error {
	for range times {
		led, err := s.leads(ctx)
		if err != nil {
			return err
		}
		i := slices.Index(led, slices.Max(led))
		struck, err := end(ctx, i, led[i])
		if err != nil {
			return fmt.Errorf("agent %d: %w", i+1, err)
		}
		undone, err := s.join(ctx, i, func() (*servers.Server, error) { return s.brokers[i].Restart(ctx) })
		if err != nil {
			return fmt.Errorf("agent %d: back again: %w", i+1, err)
		}
		all.struck, all.undone = append(all.struck, struck), append(all.undone, undone)
	}
	return nil
}

// move lets a fourth agent join and leave.
func move(ctx context.Context, p plan, r *results) (err error) {
	var m series
	m.kept, m.failed, err = p.perform(ctx, startVarve, p.partitions, func(s *stage) error {
		newcomer := len(s.brokers)
		for n := range p.joins {
			if err := pause(ctx, p.steady); err != nil {
				return err
			}
			joined, err := s.join(ctx, newcomer, func() (*servers.Server, error) {
				if n == 0 {
					return s.startAgent(ctx, newcomer)
				}
				return s.brokers[newcomer].Restart(ctx)
			})
			if err != nil {
				return fmt.Errorf("join: %w", err)
			}
			left, err := s.drainAgent(ctx, newcomer, joined.led)
			if err != nil {
				return fmt.Errorf("leave: %w", err)
			}
			m.struck, m.undone = append(m.struck, joined), append(m.undone, left)
		}
		return nil
	})
	if err == nil {
		r.move = &m
	}
	return err
}

// outage is a time without something that agents need.
type outage struct {
	episode
	without string
}

// away takes a neighbour away for a while.
func (s *stage) away(ctx context.Context, p plan, without string, neighbour **servers.Server) (o outage, err error) {
	o.without = without
	if err := pause(ctx, p.steady); err != nil {
		return o, err
	}
	s.probe.Begin()
	(*neighbour).Kill()
	if err := pause(ctx, p.outage); err != nil {
		return o, err
	}
	back, err := (*neighbour).Restart(ctx)
	if err != nil {
		return o, err
	}
	*neighbour = back
	if err := s.awaitAll(ctx, time.Now()); err != nil {
		return o, err
	}
	if err := pause(ctx, p.recovery); err != nil {
		return o, err
	}
	o.Window = s.probe.Window()
	progress("  %v without %s: %s", p.outage, without, o.episode)
	return o, nil
}

// outages takes the bucket and etcd away, one after the other.
func outages(ctx context.Context, p plan, r *results) error {
	var all outageSeries
	var err error
	all.kept, _, err = p.perform(ctx, startVarveOnMinIO, p.partitions, func(s *stage) error {
		bucket, err := s.away(ctx, p, "the bucket", &s.store)
		if err != nil {
			return fmt.Errorf("without the bucket: %w", err)
		}
		etcd, err := s.away(ctx, p, "etcd", &s.etcd)
		if err != nil {
			return fmt.Errorf("without etcd: %w", err)
		}
		all.outages = []outage{bucket, etcd}
		return nil
	})
	if err == nil {
		r.outages = &all
	}
	return err
}

// outageSeries is what outages measures.
type outageSeries struct {
	outages []outage
	kept    gaps.Kept
}
