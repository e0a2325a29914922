package server

import (
	"context"
	"net"
	"strings"
)

// Requests that another agent forwards for its clients come as any client's frames, but for the client id, which also carries the client's address. They are
// marked as forwarded, and have limits of their own: an agent whose requests all wait for another one must still serve what that one forwards to it.

// ServeAgent serves a connection of another agent, which is known to be one, to its end. It returns when that has come: when the other agent
// closes it, ctx ends, or the server has drained. It closes the connection.
func (s *Server) ServeAgent(ctx context.Context, nc net.Conn) {
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		_ = nc.Close()
		return
	}
	ctx, c := newConn(ctx, s, nc, "")
	c.agent = true
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	c.run(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.changed.Broadcast()
}

// forwardedIDBytesMax keeps a client id within what a header can carry.
const forwardedIDBytesMax = 30_000

// ForwardedID returns the client id under which a client's request is forwarded.
func ForwardedID(host, clientID string) string {
	return host + "\x00" + clientID[:min(len(clientID), forwardedIDBytesMax)]
}

// origin makes a forwarded request's client the one that it came from.
func (r *Request) origin() {
	if host, id, ok := strings.Cut(r.ClientID, "\x00"); ok {
		r.Client.Host, r.ClientID = host, id
	}
}
