// Package protocol holds the nouns of the Kafka protocol that every room of
// Varve shares: offsets, epochs, producer and topic ids, topic names, error
// codes, and the one table of API versions that the broker advertises and
// serves.
//
// The rooms below it hold the bytes: wire has frames, headers, requests and
// responses; batch has record batches.
//
// The package and its rooms are pure: no goroutine, clock, socket, file or
// logger. Message structs come from franz-go's kmsg; the reference for every
// behaviour is Apache Kafka 4.1, named by class or KIP where it matters.
//
//	min, max, ok := protocol.Versions(protocol.KeyFetch)
//	err := protocol.CorruptMessage.Errorf("batch at %d: checksum %08x, want %08x", off, got, want)
//	code := protocol.CodeOf(err)
package protocol

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// Offset is the position of a record in its partition; the first record has 0.
type Offset int64

// Special offsets and timestamps that ListOffsets and Produce put on the wire.
const (
	// NoOffset stands for an offset that is not known.
	NoOffset Offset = -1

	// LatestTimestamp asks ListOffsets for the end of the log: the high
	// watermark, or the last stable offset for read_committed.
	LatestTimestamp int64 = -1
	// EarliestTimestamp asks ListOffsets for the log start offset.
	EarliestTimestamp int64 = -2
	// MaxTimestamp asks ListOffsets for the record with the largest
	// timestamp (KIP-734, version 7).
	MaxTimestamp int64 = -3
	// EarliestLocalTimestamp asks ListOffsets for the first offset that is
	// not only in tiered storage (KIP-405, version 8).
	EarliestLocalTimestamp int64 = -4
	// LatestTieredTimestamp asks ListOffsets for the last offset in tiered
	// storage (KIP-1005, version 9).
	LatestTieredTimestamp int64 = -5

	// NoTimestamp stands for a timestamp that is not known. Timestamps are
	// milliseconds since the Unix epoch.
	NoTimestamp int64 = -1
)

// LeaderEpoch counts the leaders of a partition; it grows with each new one.
type LeaderEpoch int32

// NoLeaderEpoch stands for a leader epoch that the sender does not know.
const NoLeaderEpoch LeaderEpoch = -1

// ProducerID identifies an idempotent or transactional producer (KIP-98).
type ProducerID int64

// NoProducerID marks a batch without idempotence.
const NoProducerID ProducerID = -1

// ProducerEpoch counts the incarnations of a ProducerID; an older one is fenced.
type ProducerEpoch int16

// NoProducerEpoch marks a batch without idempotence.
const NoProducerEpoch ProducerEpoch = -1

// NoSequence is the base sequence of a batch without idempotence.
const NoSequence int32 = -1

// TopicID identifies one life of a topic: deleted and created again under the
// same name, it gets another (KIP-516). The zero value means that no id is known.
type TopicID [16]byte

// String returns the id as Kafka prints it: 22 characters of unpadded,
// URL-safe base64 (org.apache.kafka.common.Uuid).
func (id TopicID) String() string {
	return base64.RawURLEncoding.EncodeToString(id[:])
}

// IsZero reports whether no id is known.
func (id TopicID) IsZero() bool { return id == TopicID{} }

// Reserved reports whether Kafka keeps the id for itself, so that no topic may
// have it: 0 (none) and 1 (the metadata topic), as in Uuid.RESERVED.
func (id TopicID) Reserved() bool {
	return id == TopicID{} || id == TopicID{15: 1}
}

// ParseTopicID reads what [TopicID.String] prints.
func ParseTopicID(s string) (TopicID, error) {
	var id TopicID
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return id, fmt.Errorf("parse topic id %q: %w", s, err)
	}
	if len(raw) != len(id) {
		return id, fmt.Errorf("parse topic id %q: %d bytes, want %d", s, len(raw), len(id))
	}
	copy(id[:], raw)
	return id, nil
}

// MarshalText implements encoding.TextMarshaler with the form of [TopicID.String].
func (id TopicID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; see [ParseTopicID].
func (id *TopicID) UnmarshalText(text []byte) error {
	parsed, err := ParseTopicID(string(text))
	*id = parsed
	return err
}

// TopicNameLengthMax is the longest topic name, in bytes.
const TopicNameLengthMax = 249

// ValidateTopicName applies the rules of Kafka's Topic.validate. The error is
// an [*Error] with code InvalidTopicException and Kafka's wording.
func ValidateTopicName(name string) error {
	switch {
	case name == "":
		return InvalidTopicException.Errorf("Topic name is invalid: the empty string is not allowed")
	case name == "." || name == "..":
		return InvalidTopicException.Errorf("Topic name is invalid: '%s' is not allowed", name)
	case len(name) > TopicNameLengthMax:
		return InvalidTopicException.Errorf("Topic name is invalid: the length of '%s' is longer than the max allowed length %d",
			name, TopicNameLengthMax)
	}
	for i := range len(name) {
		if !topicNameByte(name[i]) {
			return InvalidTopicException.Errorf("Topic name is invalid: '%s' contains one or more characters "+
				"other than ASCII alphanumerics, '.', '_' and '-'", name)
		}
	}
	return nil
}

func topicNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}

// TopicNamesCollide reports whether Kafka treats two different names as one
// because they differ only in '.' and '_' (Topic.hasCollision): such a pair
// would share the names of its metrics.
func TopicNamesCollide(a, b string) bool {
	return strings.ReplaceAll(a, ".", "_") == strings.ReplaceAll(b, ".", "_")
}

// Error is an error that a client is told by code. Wrap it freely: [CodeOf]
// and errors.As find it.
type Error struct {
	// Code is never None.
	Code ErrorCode
	// Message explains this occurrence; empty means Code's default message.
	Message string
}

// Error returns the code's name and the message.
func (e *Error) Error() string {
	return e.Code.String() + ": " + e.Text()
}

// Text returns the message to put into a response's error message field.
func (e *Error) Text() string {
	if e.Message == "" {
		return e.Code.Message()
	}
	return e.Message
}

// Is makes errors.Is(err, protocol.X.Err()) true for any error of code X.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Message == ""
}

// CodeOf returns the code to answer for err: None for nil, the code of the
// first [*Error] in its chain, and UnknownServerError for anything else.
func CodeOf(err error) ErrorCode {
	if err == nil {
		return None
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return UnknownServerError
}
