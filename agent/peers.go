package agent

import (
	"context"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/placement"
	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/peer"
)

// stores are the WAL stores that this agent can reach: its own, and those of agents that are registered. They may be used concurrently.
type stores struct {
	own    *disk.Store
	view   *coordinator.View
	dialer *peering.Dialer

	mu     sync.Mutex
	peers  map[string]*peer.Store // by identity
	places map[string]string      // where each of them was found
}

func newStores(own *disk.Store, view *coordinator.View, dialer *peering.Dialer) *stores {
	return &stores{own: own, view: view, dialer: dialer, peers: make(map[string]*peer.Store), places: make(map[string]string)}
}

// reach reports whether the store is this agent's, or of one that is registered.
func (s *stores) reach(id string) bool {
	return id == s.own.Identity().String() || s.place(id) != ""
}

// place is where a registered agent serves the store; empty for nowhere.
func (s *stores) place(id string) string {
	for _, a := range s.view.Agents() {
		if a.Store == id {
			return a.Peer
		}
	}
	return ""
}

// peer returns another agent's store.
func (s *stores) peer(id string) (*peer.Store, error) {
	place := s.place(id)
	if place == "" {
		return nil, fmt.Errorf("WAL store %s: %w: no agent that has it is registered", id, peering.ErrUnreachable)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.peers[id]; p != nil {
		if s.places[id] == place {
			return p, nil
		}
		p.Close()
	}
	identity, err := uuid.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("WAL store %s: %w", id, err)
	}
	p := peer.NewStore(peer.Config{Address: place, Identity: identity, Dialer: s.dialer})
	s.peers[id], s.places[id] = p, place
	return p, nil
}

// sealer returns a store for recovery; nil if it is out of reach.
func (s *stores) sealer(id string) wal.Sealer {
	if id == s.own.Identity().String() {
		return s.own
	}
	p, err := s.peer(id)
	if err != nil {
		return nil
	}
	return p
}

// create begins a segment on a store.
func (s *stores) create(ctx context.Context, id string, segment wal.SegmentID, fence wal.Fence, first wal.EntryID) (wal.Store, error) {
	if id == s.own.Identity().String() {
		return asStore(s.own.Create(segment, fence, first))
	}
	p, err := s.peer(id)
	if err != nil {
		return nil, err
	}
	return asStore(p.Create(ctx, segment, fence, first))
}

// asStore avoids an interface that holds a nil pointer.
func asStore[S wal.Store](s S, err error) (wal.Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// candidates are the stores that may take copies: those of registered agents that others can reach.
func (s *stores) candidates() []placement.Store {
	var all []placement.Store
	for _, a := range s.view.Agents() {
		if a.Peer != "" {
			all = append(all, placement.Store{ID: a.Store, Node: a.Node, Zone: a.Zone, Draining: a.State == coordinator.AgentDraining})
		}
	}
	return all
}

// close ends all connections.
func (s *stores) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		p.Close()
	}
}
