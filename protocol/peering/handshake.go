package peering

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/google/uuid"
)

const (
	protocolVersion = 1

	nonceBytes     = 32
	helloBytes     = 8 + 16 + 16 + serviceBytesMax + nonceBytes // magic and version, cluster, agent, service
	challengeBytes = 8 + nonceBytes
	proofBytes     = sha256.Size
	verdictBytes   = 36 // of the welcome, before its proof
	welcomeBytes   = verdictBytes + proofBytes
	sessionBytes   = 32
)

var handshakeMagic = [4]byte{'V', 'R', 'V', 'P'}

// verdict is how the server ends a handshake.
type verdict uint8

const (
	verdictWelcome verdict = iota
	// verdictSecret: the client does not know the secret. The welcome says nothing else.
	verdictSecret
	verdictCluster
	verdictAgent
	verdictService
	verdictFull
)

// handshake is what both sides saw, and prove to have seen.
type handshake struct {
	secret    []byte
	hello     [helloBytes]byte
	challenge [challengeBytes]byte
	session   []byte // of TLS; nil without
}

// The roles are of one length, so that no two proofs are over the same bytes.
const (
	roleClient = "varve peer client"
	roleServer = "varve peer server"
)

// proof says that its maker knows the secret and has this role in this handshake.
func (h *handshake) proof(role string, verdict []byte) []byte {
	mac := hmac.New(sha256.New, h.secret)
	mac.Write([]byte(role))
	mac.Write(h.hello[:])
	mac.Write(h.challenge[:])
	mac.Write(h.session)
	mac.Write(verdict)
	return mac.Sum(nil)
}

// What lies where in a hello.
func (h *handshake) cluster() uuid.UUID  { return uuid.UUID(h.hello[8:24]) }
func (h *handshake) identity() uuid.UUID { return uuid.UUID(h.hello[24:40]) }
func (h *handshake) service() Service {
	return Service(strings.TrimRight(string(h.hello[40:48]), "\x00"))
}

// bind makes the TLS session a part of what is proved.
func (h *handshake) bind(c *tls.Conn) error {
	state := c.ConnectionState()
	session, err := state.ExportKeyingMaterial("EXPORTER-varve-peer", nil, sessionBytes)
	if err != nil {
		return fmt.Errorf("%w: TLS: %w", ErrProtocol, err)
	}
	h.session = session
	return nil
}

// putGreeting fills in what hello and challenge begin with, and the random number that they end with.
func putGreeting(b []byte) {
	copy(b, handshakeMagic[:])
	binary.LittleEndian.PutUint32(b[4:], protocolVersion)
	_, _ = rand.Read(b[len(b)-nonceBytes:]) // never fails
}

func checkGreeting(b []byte) error {
	if [4]byte(b) != handshakeMagic {
		return fmt.Errorf("%w: no handshake of a peer", ErrProtocol)
	}
	if v := binary.LittleEndian.Uint32(b[4:]); v != protocolVersion {
		return fmt.Errorf("%w: version %d, want %d", ErrProtocol, v, protocolVersion)
	}
	return nil
}

// greet is the client's side of the handshake. The caller bounds its time.
func greet(raw net.Conn, cr *Credentials, identity uuid.UUID, service Service) error {
	h := handshake{secret: cr.Secret}
	if c, ok := raw.(*tls.Conn); ok {
		if err := h.bind(c); err != nil {
			return err
		}
	}
	putGreeting(h.hello[:])
	copy(h.hello[8:], cr.Cluster[:])
	copy(h.hello[24:], identity[:])
	copy(h.hello[40:48], service)
	if _, err := raw.Write(h.hello[:]); err != nil {
		return unreachable(err)
	}
	if _, err := io.ReadFull(raw, h.challenge[:]); err != nil {
		return fmt.Errorf("no answer to the first bytes of the handshake, does one side use TLS and the other not? %w", refusal(err))
	}
	if err := checkGreeting(h.challenge[:]); err != nil {
		return err
	}
	if _, err := raw.Write(h.proof(roleClient, nil)); err != nil {
		return unreachable(err)
	}
	var welcome [welcomeBytes]byte
	if _, err := io.ReadFull(raw, welcome[:]); err != nil {
		return unreachable(err)
	}
	return h.judge(welcome[:])
}

// judge reads the welcome on the client's side.
func (h *handshake) judge(welcome []byte) error {
	what, proof := welcome[:verdictBytes], welcome[verdictBytes:]
	if verdict(what[0]) == verdictSecret {
		return fmt.Errorf("%w: it says that it has another cluster secret", ErrDenied)
	}
	if !hmac.Equal(proof, h.proof(roleServer, what)) {
		return fmt.Errorf("%w: it does not know the cluster secret", ErrDenied)
	}
	switch verdict(what[0]) {
	case verdictWelcome:
		return nil
	case verdictCluster:
		return fmt.Errorf("%w: it is of cluster %s, want %s", ErrDenied, uuid.UUID(what[4:20]), h.cluster())
	case verdictAgent:
		return fmt.Errorf("%w: it is the agent with disk %s, want %s", ErrDenied, uuid.UUID(what[20:36]), h.identity())
	case verdictService:
		return fmt.Errorf("%w: it has no service %q", ErrUnreachable, h.service())
	case verdictFull:
		return fmt.Errorf("%w: it has no room for another connection to service %q", ErrUnreachable, h.service())
	default:
		return fmt.Errorf("%w: verdict %d", ErrProtocol, what[0])
	}
}

// refusal makes an error of what TLS says of certificates ErrDenied, and of anything else ErrUnreachable.
func refusal(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // an alert
		return fmt.Errorf("%w: %w", ErrDenied, err)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return unreachable(err)
}

// receive is the server's side of the handshake. The caller bounds its time. admit says what a client that has proved itself gets of the service that it
// wants: a welcome, or one of verdictService and verdictFull.
func receive(raw net.Conn, cr *Credentials, identity uuid.UUID, admit func(Service) verdict) (Service, error) {
	h := handshake{secret: cr.Secret}
	if c, ok := raw.(*tls.Conn); ok {
		if err := h.bind(c); err != nil {
			return "", err
		}
	}
	if _, err := io.ReadFull(raw, h.hello[:]); err != nil {
		return "", unreachable(err)
	}
	greeting := checkGreeting(h.hello[:])
	if greeting != nil && [4]byte(h.hello[:]) != handshakeMagic {
		return "", greeting
	}
	putGreeting(h.challenge[:])
	if _, err := raw.Write(h.challenge[:]); err != nil || greeting != nil {
		return "", errors.Join(greeting, err) // a client of another version learns of this one's
	}
	var proof [proofBytes]byte
	if _, err := io.ReadFull(raw, proof[:]); err != nil {
		return "", unreachable(err)
	}
	var welcome [welcomeBytes]byte
	if !hmac.Equal(proof[:], h.proof(roleClient, nil)) {
		welcome[0] = byte(verdictSecret)
		_, err := raw.Write(welcome[:])
		return "", errors.Join(fmt.Errorf("%w: it does not know the cluster secret", ErrDenied), err)
	}
	what := welcome[:verdictBytes]
	copy(what[4:], cr.Cluster[:])
	copy(what[20:], identity[:])
	v, refused := h.decide(cr.Cluster, identity, admit)
	what[0] = byte(v)
	copy(welcome[verdictBytes:], h.proof(roleServer, what))
	if _, err := raw.Write(welcome[:]); err != nil {
		return "", unreachable(err)
	}
	return h.service(), refused
}

// decide gives the verdict on a client that proved itself.
func (h *handshake) decide(cluster, identity uuid.UUID, admit func(Service) verdict) (verdict, error) {
	if h.cluster() != cluster {
		return verdictCluster, fmt.Errorf("%w: it wants cluster %s, this is %s", ErrDenied, h.cluster(), cluster)
	}
	if h.identity() != identity {
		return verdictAgent, fmt.Errorf("%w: it wants the agent with disk %s, this is %s", ErrDenied, h.identity(), identity)
	}
	v := admit(h.service())
	switch v {
	case verdictService:
		return v, fmt.Errorf("%w: it wants service %q, which is not there", ErrDenied, h.service())
	case verdictFull:
		return v, fmt.Errorf("%w: no room for another connection to service %q", ErrUnreachable, h.service())
	default:
		return v, nil
	}
}
