package agent

import (
	"context"
	"fmt"
	"net"

	"github.com/google/uuid"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol/peering"
)

// blocksService is under which an agent hands out blocks of segments to others of its zone.
const blocksService peering.Service = "blocks"

// neighbours are the agents of a zone, as objectstore/zone wants to know them. They may be used concurrently.
type neighbours struct {
	view    *coordinator.View
	zone    string // those that have none are in one
	network Peers
}

// homes are those that may be asked.
func (n *neighbours) homes() []int32 { return homes(n.view.Agents(), n.zone) }

// homes returns the nodes of a zone's agents that others can reach, and that are there to stay.
func homes(agents []coordinator.Agent, zone string) []int32 {
	var all []int32
	for _, a := range agents {
		if a.Zone == zone && a.Peer != "" && a.State == coordinator.AgentServing {
			all = append(all, a.Node)
		}
	}
	return all
}

// dial connects to one of them.
func (n *neighbours) dial(ctx context.Context, node int32) (net.Conn, error) {
	for _, a := range n.view.Agents() {
		if a.Node != node {
			continue
		}
		return dial(ctx, n.network, a, blocksService)
	}
	return nil, fmt.Errorf("node %d: %w: it is not registered", node, peering.ErrUnreachable)
}

// dial connects to a service of another agent.
func dial(ctx context.Context, through Peers, a coordinator.Agent, service peering.Service) (net.Conn, error) {
	identity, err := uuid.Parse(a.Store)
	if err != nil {
		return nil, fmt.Errorf("node %d has store %s: %w", a.Node, a.Store, err)
	}
	return through.Dial(ctx, a.Peer, identity, service)
}
