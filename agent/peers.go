package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/placement"
	"github.com/varve-io/varve/protocol/peering"
	"github.com/varve-io/varve/wal"
	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/peer"
)

// Peers reaches other agents, above all their WAL stores. Its methods may be called concurrently.
type Peers interface {
	// Store is the store of that identity, which an agent serves at a place. It does not connect yet.
	Store(place string, identity uuid.UUID) PeerStore
	// Dial connects to another service of the agent that has that store.
	Dial(ctx context.Context, place string, identity uuid.UUID, service peering.Service) (net.Conn, error)
	// Refuses reports whether the machine at the place says that nobody serves there. It waits for some 100 ms at most.
	Refuses(ctx context.Context, place string) bool
}

// PeerStore is another agent's store.
type PeerStore interface {
	wal.Sealer
	// Create begins a segment whose first entry will be first, as [disk.Store.Create] does.
	Create(ctx context.Context, id wal.SegmentID, fence wal.Fence, first wal.EntryID) (wal.Store, error)
	// Segments lists what the store holds.
	Segments() ([]disk.SegmentInfo, error)
	// Close ends all connections.
	Close()
}

// network is what agents reach each other through, unless a test has one of its own.
type network struct {
	dialer *peering.Dialer
	// patient is for requests that are forwarded: what an agent whose WAL is full does not take has to wait; that it is gone is known by its registration.
	patient *peering.Dialer
}

func newNetwork(c peering.Credentials) (network, error) {
	dialer, err := peering.NewDialer(peering.DialerConfig{Credentials: c})
	if err != nil {
		return network{}, err
	}
	patient, err := peering.NewDialer(peering.DialerConfig{Credentials: c, Patient: true})
	return network{dialer, patient}, err
}

func (n network) Store(place string, identity uuid.UUID) PeerStore {
	return peerStore{peer.NewStore(peer.Config{Address: place, Identity: identity, Dialer: n.dialer})}
}

func (n network) Dial(ctx context.Context, place string, identity uuid.UUID, service peering.Service) (net.Conn, error) {
	if service == forwarding {
		return n.patient.Dial(ctx, place, identity, service)
	}
	return n.dialer.Dial(ctx, place, identity, service)
}

type peerStore struct{ *peer.Store }

func (p peerStore) Create(ctx context.Context, id wal.SegmentID, fence wal.Fence, first wal.EntryID) (wal.Store, error) {
	return asStore(p.Store.Create(ctx, id, fence, first))
}

// probeMax bounds the look at whether a machine refuses connections.
const probeMax = 300 * time.Millisecond

func (n network) Refuses(ctx context.Context, place string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeMax)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", place)
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// stores are the WAL stores that this agent can reach: its own, and those of agents that are registered. They may be used concurrently.
type stores struct {
	own     *disk.Store
	view    *coordinator.View
	network Peers

	mu     sync.Mutex
	peers  map[string]PeerStore // by identity
	places map[string]string    // where each of them was found
}

func newStores(own *disk.Store, view *coordinator.View, network Peers) *stores {
	return &stores{own: own, view: view, network: network, peers: make(map[string]PeerStore), places: make(map[string]string)}
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
func (s *stores) peer(id string) (PeerStore, error) {
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
	p := s.network.Store(place, identity)
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

// segments lists what a store holds.
func (s *stores) segments(id string) ([]disk.SegmentInfo, error) {
	if id == s.own.Identity().String() {
		return s.own.Segments(), nil
	}
	p, err := s.peer(id)
	if err != nil {
		return nil, err
	}
	return p.Segments()
}

// errNoRoom: this agent's own disk has no room for a segment.
var errNoRoom = errors.New("no room on this agent's disk")

// create begins a segment on a store.
func (s *stores) create(ctx context.Context, id string, segment wal.SegmentID, fence wal.Fence, first wal.EntryID) (wal.Store, error) {
	if id == s.own.Identity().String() {
		a, err := s.own.Create(segment, fence, first)
		if errors.Is(err, disk.ErrFull) {
			err = fmt.Errorf("%w: %w", errNoRoom, err)
		}
		return asStore(a, err)
	}
	p, err := s.peer(id)
	if err != nil {
		return nil, err
	}
	return p.Create(ctx, segment, fence, first)
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
