// Package wire reads requests from frames and writes responses into frames.
//
// A frame is a 4-byte big-endian size and that many bytes. A request's bytes are
//
//	request header   v0: key, version, correlation id (int16, int16, int32)
//	                 v1: and client id (nullable string)
//	                 v2: and tagged fields
//	request body     as kmsg encodes it
//
// and a response's are
//
//	response header  v0: correlation id (int32)
//	                 v1: and tagged fields
//	response body    as kmsg encodes it
//
// Flexible versions of an API (KIP-482) have request header v2 and response
// header v1; all others have v1 and v0. ApiVersions always answers with
// response header v0, so that a client that does not know the broker's
// versions yet can read it (KIP-511).
//
// The server reads the size, checks it against [FrameBytesMax], and hands the
// rest to [ParseHeader] and [DecodeRequest]:
//
//	h, body, err := wire.ParseHeader(frame)
//	if wire.IsUnsupportedAPIVersions(h, err) {
//		send(wire.AppendUnsupportedAPIVersions(buf[:0], h.CorrelationID))
//	}
//	request, err := wire.DecodeRequest(h, body)
//	...
//	send(wire.AppendResponse(buf[:0], h.CorrelationID, response))
//
// Responses to Fetch have an encoder of their own, [FetchResponse], that
// refers to record batches instead of copying them.
package wire

import (
	"encoding/binary"
	"slices"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// Header is the header of a request.
type Header struct {
	Key           protocol.Key
	Version       int16
	CorrelationID int32
	// ClientID is empty if the client sent none or null, which Kafka does
	// not tell apart either (RequestHeader.parse).
	ClientID string
}

// headerBytesMin is the size of what every request starts with: key, version
// and correlation id.
const headerBytesMin = 2 + 2 + 4

// ParseHeader splits a frame, without its size, into header and body. The body
// aliases the frame; the header does not.
//
// Errors are [*protocol.Error]: InvalidRequest for a header that cannot be
// read or an unknown key, UnsupportedVersion for a version that is not served.
// Kafka closes the connection on either (SocketServer.parseRequestHeader),
// except for an ApiVersions request of an unknown version, whose header is then
// returned up to the correlation id: see [IsUnsupportedAPIVersions].
func ParseHeader(frame []byte) (h Header, body []byte, err error) {
	if len(frame) < headerBytesMin {
		return h, nil, protocol.InvalidRequest.Errorf("request of %d bytes is shorter than a header", len(frame))
	}
	h.Key = protocol.Key(binary.BigEndian.Uint16(frame))
	h.Version = int16(binary.BigEndian.Uint16(frame[2:]))
	h.CorrelationID = int32(binary.BigEndian.Uint32(frame[4:]))
	api, ok := protocol.Lookup(h.Key)
	if !ok {
		return h, nil, protocol.InvalidRequest.Errorf("unknown API key %d", int16(h.Key))
	}
	if !api.Serves(h.Version) {
		return h, nil, protocol.UnsupportedVersion.Errorf("%s version %d, want %d to %d",
			api.Name, h.Version, api.ServedMin, api.Max)
	}
	r := newReader(frame[headerBytesMin:])
	h.ClientID = string(r.nullableString())
	if api.Flexible(h.Version) {
		r.tags()
	}
	if r.Bad() {
		return h, nil, protocol.InvalidRequest.Errorf("%s version %d: header ends early", api.Name, h.Version)
	}
	return h, r.Rest(), nil
}

// IsUnsupportedAPIVersions reports whether ParseHeader's results are those of
// an ApiVersions request of a version that is not known. It is answered with
// [AppendUnsupportedAPIVersions], whatever the body, and the connection goes
// on: the client tries again with a version from the list.
func IsUnsupportedAPIVersions(h Header, err error) bool {
	return h.Key == protocol.KeyAPIVersions && protocol.CodeOf(err) == protocol.UnsupportedVersion
}

// AppendUnsupportedAPIVersions appends the framed answer to an ApiVersions
// request of an unknown version: version 0, UNSUPPORTED_VERSION and the versions of ApiVersions
// alone (KIP-511), whereupon clients ask again: what features there are is in no answer of version 0.
func AppendUnsupportedAPIVersions(dst []byte, correlationID int32) []byte {
	response := kmsg.NewPtrApiVersionsResponse()
	response.ErrorCode = int16(protocol.UnsupportedVersion)
	response.ApiKeys = slices.DeleteFunc(APIVersionsKeys(), func(k kmsg.ApiVersionsResponseApiKey) bool {
		return protocol.Key(k.ApiKey) != protocol.KeyAPIVersions
	})
	return AppendResponse(dst, correlationID, response)
}

// APIVersionsKeys returns the table of versions as an ApiVersions response has it.
func APIVersionsKeys() []kmsg.ApiVersionsResponseApiKey {
	apis := protocol.APIs()
	keys := make([]kmsg.ApiVersionsResponseApiKey, len(apis))
	for i, api := range apis {
		keys[i].ApiKey = int16(api.Key)
		keys[i].MinVersion = api.Min
		keys[i].MaxVersion = api.Max
	}
	return keys
}

// DecodeRequest decodes the body of a request whose header [ParseHeader]
// accepted. Bytes after the body are ignored, as Kafka does.
//
// Byte slices of the result, among them the record batches of Produce, alias
// body: the caller owns the frame for as long as it uses the request. Strings
// are copies.
//
// Errors are [*protocol.Error]: InvalidRequest for a body that cannot be read
// or has more structure than [StructureBytesMax]; Kafka closes the connection
// on it.
func DecodeRequest(h Header, body []byte) (kmsg.Request, error) {
	api, ok := protocol.Lookup(h.Key)
	if !ok || !api.Serves(h.Version) {
		return nil, protocol.UnsupportedVersion.Errorf("%v version %d", h.Key, h.Version)
	}
	if err := checkStructure(api, h.Version, body); err != nil {
		return nil, err
	}
	request := kmsg.RequestForKey(int16(h.Key))
	request.SetVersion(h.Version)
	if err := request.ReadFrom(body); err != nil {
		return nil, protocol.InvalidRequest.Errorf("%v version %d: %v", h.Key, h.Version, err)
	}
	return request, nil
}

// AppendResponse appends a framed response: size, header, body. The response's
// version must be set to the request's.
func AppendResponse(dst []byte, correlationID int32, response kmsg.Response) []byte {
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(correlationID))
	if response.IsFlexible() && protocol.Key(response.Key()) != protocol.KeyAPIVersions {
		dst = append(dst, 0) // no tagged fields
	}
	dst = response.AppendTo(dst)
	binary.BigEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}
