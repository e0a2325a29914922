package agent

import (
	"context"

	"github.com/varve-io/varve/agent/forward"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/protocol/peering"
)

// balancerNode is the node id of the one broker that clients behind a load balancer are told of. It is none that an agent ever has: those
// begin at 1, and a cluster has thousands of agents at most.
const balancerNode = 1_000_000

// forwarding is the service that answers what other agents forward for their clients.
const forwarding peering.Service = "kafka"

// shownNode is the node id that clients know this agent by.
func (a *Agent) shownNode() int32 {
	if a.cfg.Balancer {
		return balancerNode
	}
	return a.node
}

// balanced returns what serves clients: behind a load balancer, the APIs of all agents.
func (a *Agent) balanced(run context.Context, local server.Handler) server.Handler {
	if !a.cfg.Balancer {
		return local
	}
	f := forward.New(forward.Config{Self: a.id, BytesMax: a.cfg.Server.InFlightBytesMax}, forward.Deps{
		View: a.view, Local: local, Peers: a.peers, Kick: a.members.subscribe(), Now: a.deps.Now, Log: a.log, Metrics: a.deps.Metrics,
	})
	a.spawn(run, "forward requests", f.Run)
	return f
}
