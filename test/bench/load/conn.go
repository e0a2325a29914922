package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// frameBytesMax bounds a response: a fetch of all partitions at their limits
// stays well below.
const frameBytesMax = 256 << 20

// clientID is what the generator calls itself to the broker.
const clientID = "varve-bench"

var formatter = kmsg.NewRequestFormatter(kmsg.FormatterClientID(clientID))

// conn is a connection that speaks Kafka's frames and leaves their meaning to
// its user. One goroutine may write while another reads.
type conn struct {
	net.Conn
	versions map[int16]int16 // the newest version of an API key that both sides know
	buffer   []byte          // the last response; reused by the next
}

// dial connects and asks the broker for its API versions. The connection is
// closed when ctx ends, so that no read outlives a run.
func dial(ctx context.Context, address string) (*conn, error) {
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("dial broker: %w", err)
	}
	c := &conn{Conn: nc, versions: make(map[int16]int16)}
	context.AfterFunc(ctx, func() { _ = nc.Close() })
	if err := c.negotiate(); err != nil {
		return nil, errors.Join(fmt.Errorf("api versions of %s: %w", address, err), nc.Close())
	}
	return c, nil
}

// negotiate fills versions. Version 0 of ApiVersions is understood by every
// broker.
func (c *conn) negotiate() error {
	response := kmsg.NewPtrApiVersionsResponse()
	if err := c.roundTrip(kmsg.NewPtrApiVersionsRequest(), response); err != nil {
		return err
	}
	for _, api := range response.ApiKeys {
		if request := kmsg.RequestForKey(api.ApiKey); request != nil {
			c.versions[api.ApiKey] = min(api.MaxVersion, request.MaxVersion())
		}
	}
	return nil
}

// prepare sets the version in which the request is spoken on this connection.
func (c *conn) prepare(request kmsg.Request) error {
	version, ok := c.versions[request.Key()]
	if !ok {
		return fmt.Errorf("%s: not served by this broker", kmsg.NameForKey(request.Key()))
	}
	request.SetVersion(version)
	return nil
}

// roundTrip sends a request in the version that it carries and decodes the
// response, whose byte slices are valid until the next read.
func (c *conn) roundTrip(request kmsg.Request, response kmsg.Response) error {
	if _, err := c.Write(formatter.AppendRequest(nil, request, 0)); err != nil {
		return fmt.Errorf("write %s: %w", kmsg.NameForKey(request.Key()), err)
	}
	response.SetVersion(request.GetVersion())
	_, err := c.read(response)
	return err
}

// read waits for the next response, decodes it into response, whose version is
// set, and returns its correlation id. Byte slices in response alias the
// connection's buffer and are valid until the next read.
func (c *conn) read(response kmsg.Response) (correlation int32, err error) {
	name := kmsg.NameForKey(response.Key())
	var prefix [4]byte
	if _, err := io.ReadFull(c, prefix[:]); err != nil {
		return 0, fmt.Errorf("read %s response: %w", name, err)
	}
	size := int(binary.BigEndian.Uint32(prefix[:]))
	if size < 4 || size > frameBytesMax {
		return 0, fmt.Errorf("read %s response: frame of %d bytes, want 4 to %d", name, size, frameBytesMax)
	}
	if cap(c.buffer) < size {
		c.buffer = make([]byte, size+size/4)
	}
	frame := c.buffer[:size]
	if _, err := io.ReadFull(c, frame); err != nil {
		return 0, fmt.Errorf("read %s response: %w", name, err)
	}
	correlation = int32(binary.BigEndian.Uint32(frame))
	body := frame[4:]
	// The header of ApiVersions responses never has tags (KIP-511).
	if response.IsFlexible() && response.Key() != int16(kmsg.ApiVersions) {
		if body, err = skipTags(body); err != nil {
			return 0, fmt.Errorf("read %s response: %w", name, err)
		}
	}
	if err := response.ReadFrom(body); err != nil {
		return 0, fmt.Errorf("decode %s response: %w", name, err)
	}
	return correlation, nil
}

var errTags = errors.New("malformed tags in the response header")

// skipTags drops the tagged fields of a flexible response header (KIP-482).
func skipTags(body []byte) ([]byte, error) {
	uvarint := func() (uint64, bool) {
		v, n := binary.Uvarint(body)
		if n <= 0 {
			return 0, false
		}
		body = body[n:]
		return v, true
	}
	count, ok := uvarint()
	for ; ok && count > 0; count-- {
		var size uint64
		if _, ok = uvarint(); !ok {
			break
		}
		if size, ok = uvarint(); !ok || size > uint64(len(body)) {
			return nil, errTags
		}
		body = body[size:]
	}
	if !ok {
		return nil, errTags
	}
	return body, nil
}

// joinClose adds the error of closing something to the error of using it.
func joinClose(err, closeErr error) error {
	if closeErr == nil || errors.Is(closeErr, net.ErrClosed) {
		return err
	}
	return errors.Join(err, closeErr)
}
