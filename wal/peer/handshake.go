package peer

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

	"github.com/google/uuid"

	"github.com/varve-io/varve/wal/frame"
)

const (
	protocolVersion = 1

	nonceBytes     = 32
	helloBytes     = 8 + 16 + 16 + nonceBytes // magic and version, cluster, store
	challengeBytes = 8 + nonceBytes
	proofBytes     = sha256.Size
	verdictBytes   = 44 // of the welcome, before its proof
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
	verdictStore
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

// greet is the client's side of the handshake with the agent that has store. The caller sets deadlines. It gives the length of the longest frame
// that the store takes.
func greet(raw net.Conn, cr *Credentials, store uuid.UUID) (int64, error) {
	h := handshake{secret: cr.Secret}
	if c, ok := raw.(*tls.Conn); ok {
		if err := h.bind(c); err != nil {
			return 0, err
		}
	}
	putGreeting(h.hello[:])
	copy(h.hello[8:], cr.Cluster[:])
	copy(h.hello[24:], store[:])
	if _, err := raw.Write(h.hello[:]); err != nil {
		return 0, unreachable(err)
	}
	if _, err := io.ReadFull(raw, h.challenge[:]); err != nil {
		return 0, fmt.Errorf("no answer to the first bytes of the handshake, does one side use TLS and the other not? %w", refusal(err))
	}
	if err := checkGreeting(h.challenge[:]); err != nil {
		return 0, err
	}
	if _, err := raw.Write(h.proof(roleClient, nil)); err != nil {
		return 0, unreachable(err)
	}
	var welcome [welcomeBytes]byte
	if _, err := io.ReadFull(raw, welcome[:]); err != nil {
		return 0, unreachable(err)
	}
	return h.judge(welcome[:], cr, store)
}

// judge reads the welcome on the client's side.
func (h *handshake) judge(welcome []byte, cr *Credentials, store uuid.UUID) (int64, error) {
	what, proof := welcome[:verdictBytes], welcome[verdictBytes:]
	if verdict(what[0]) == verdictSecret {
		return 0, fmt.Errorf("%w: it says that it has another cluster secret", ErrDenied)
	}
	if !hmac.Equal(proof, h.proof(roleServer, what)) {
		return 0, fmt.Errorf("%w: it does not know the cluster secret", ErrDenied)
	}
	frameBytesMax := binary.LittleEndian.Uint64(what[4:])
	switch verdict(what[0]) {
	case verdictWelcome:
	case verdictCluster:
		return 0, fmt.Errorf("%w: it is of cluster %s, want %s", ErrDenied, uuid.UUID(what[12:28]), cr.Cluster)
	case verdictStore:
		return 0, fmt.Errorf("%w: it has the store %s, want %s", ErrDenied, uuid.UUID(what[28:44]), store)
	case verdictFull:
		return 0, fmt.Errorf("%w: it has no room for another connection", ErrUnreachable)
	default:
		return 0, fmt.Errorf("%w: verdict %d", ErrProtocol, what[0])
	}
	if frameBytesMax < frame.BlockBytes || frameBytesMax > frameBytesLimit {
		return 0, fmt.Errorf("%w: frames of at most %d bytes", ErrProtocol, frameBytesMax)
	}
	return int64(frameBytesMax), nil
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

// receive is the server's side of the handshake. The caller sets deadlines. admit says whether there is room for another connection; it is
// asked when the client has proved itself.
func receive(raw net.Conn, cr *Credentials, store Local, admit func() bool) error {
	h := handshake{secret: cr.Secret}
	if c, ok := raw.(*tls.Conn); ok {
		if err := h.bind(c); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(raw, h.hello[:]); err != nil {
		return unreachable(err)
	}
	greeting := checkGreeting(h.hello[:])
	if greeting != nil && [4]byte(h.hello[:]) != handshakeMagic {
		return greeting
	}
	putGreeting(h.challenge[:])
	if _, err := raw.Write(h.challenge[:]); err != nil || greeting != nil {
		return errors.Join(greeting, err) // a client of another version learns of this one's
	}
	var proof [proofBytes]byte
	if _, err := io.ReadFull(raw, proof[:]); err != nil {
		return unreachable(err)
	}
	var welcome [welcomeBytes]byte
	if !hmac.Equal(proof[:], h.proof(roleClient, nil)) {
		welcome[0] = byte(verdictSecret)
		_, err := raw.Write(welcome[:])
		return errors.Join(fmt.Errorf("%w: it does not know the cluster secret", ErrDenied), err)
	}
	what, refused := h.decide(welcome[:verdictBytes], cr.Cluster, store, admit)
	copy(welcome[verdictBytes:], h.proof(roleServer, what))
	if _, err := raw.Write(welcome[:]); err != nil {
		return unreachable(err)
	}
	return refused
}

// decide fills in the verdict on a client that proved itself.
func (h *handshake) decide(b []byte, cluster uuid.UUID, store Local, admit func() bool) ([]byte, error) {
	identity := store.Identity()
	binary.LittleEndian.PutUint64(b[4:], uint64(store.FrameBytesMax()))
	copy(b[12:], cluster[:])
	copy(b[28:], identity[:])
	wantCluster, wantStore := uuid.UUID(h.hello[8:24]), uuid.UUID(h.hello[24:40])
	switch {
	case wantCluster != cluster:
		b[0] = byte(verdictCluster)
		return b, fmt.Errorf("%w: it wants cluster %s, this is %s", ErrDenied, wantCluster, cluster)
	case wantStore != identity:
		b[0] = byte(verdictStore)
		return b, fmt.Errorf("%w: it wants the store %s, this is %s", ErrDenied, wantStore, identity)
	case !admit():
		b[0] = byte(verdictFull)
		return b, fmt.Errorf("%w: no room for another connection", ErrUnreachable)
	}
	return b, nil
}
