package server

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
)

// A connection of another agent, which forwards requests of its clients, begins with a greeting:
//
//	greetingMark (4 bytes)  no client's first bytes: as the size of a frame they are negative
//	proof (32 bytes)        HMAC-SHA-256 of greetingPurpose under the cluster's secret
//
// What follows are frames as any client sends them, but for their client id, which also carries the address of the client: see [ForwardedID]. Requests of
// such a connection are marked as forwarded, and have limits of their own: an agent whose requests all wait for another one must still
// serve what that one forwards to it.
const (
	greetingMark    = "\xffVRV"
	greetingPurpose = "varve: requests that an agent forwards, version 1"
	proofBytes      = sha256.Size
)

// Greeting returns the bytes with which a connection to another agent begins. Both ends derive them from the cluster's secret.
func Greeting(secret []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(greetingPurpose))
	return mac.Sum([]byte(greetingMark))
}

// forwardedIDBytesMax keeps a client id within what a header can carry.
const forwardedIDBytesMax = 30_000

// ForwardedID returns the client id under which a client's request is forwarded.
func ForwardedID(host, clientID string) string {
	return host + "\x00" + clientID[:min(len(clientID), forwardedIDBytesMax)]
}

var errGreeting = errors.New("a greeting of an agent of another cluster")

// greet takes the rest of another agent's greeting, after its mark.
func (c *conn) greet() error {
	var proof [proofBytes]byte
	if err := c.fill(proof[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	want, _ := bytes.CutPrefix(c.server.greeting, []byte(greetingMark))
	if len(want) == 0 || subtle.ConstantTimeCompare(proof[:], want) == 0 {
		return errGreeting
	}
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.agent = true
	c.server.changed.Broadcast()
	return nil
}

// origin makes a forwarded request's client the one that it came from.
func (r *Request) origin() {
	if host, id, ok := strings.Cut(r.ClientID, "\x00"); ok {
		r.Client.Host, r.ClientID = host, id
	}
}
