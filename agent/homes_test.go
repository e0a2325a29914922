package agent

import (
	"slices"
	"testing"

	"github.com/varve-io/varve/coordinator"
)

func TestHomes(t *testing.T) {
	agents := []coordinator.Agent{
		{Node: 1, Zone: "a", Peer: "h1:1", State: coordinator.AgentServing},
		{Node: 2, Zone: "b", Peer: "h2:1", State: coordinator.AgentServing},
		{Node: 3, Zone: "a", Peer: "h3:1", State: coordinator.AgentDraining},
		{Node: 4, Zone: "a", Peer: "h4:1", State: coordinator.AgentStarting},
		{Node: 5, Zone: "a", State: coordinator.AgentServing},
		{Node: 6, Zone: "a", Peer: "h6:1", State: coordinator.AgentServing},
		{Node: 7, Peer: "h7:1", State: coordinator.AgentServing},
	}
	for zone, want := range map[string][]int32{"a": {1, 6}, "b": {2}, "c": nil, "": {7}} {
		if got := homes(agents, zone); !slices.Equal(got, want) {
			t.Errorf("homes in zone %q are %v, want %v", zone, got, want)
		}
	}
}
