package protocol_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/varve-io/varve/protocol"
)

// TestVersionsAreKafka41 compares the table with what others recorded of the
// Kafka 4.1 release, and with the encodings of kmsg.
func TestVersionsAreKafka41(t *testing.T) {
	release := kversion.V4_1_0()
	last := protocol.Key(-1)
	for _, api := range protocol.APIs() {
		if api.Key <= last {
			t.Errorf("%v follows key %d: not sorted", api.Key, last)
		}
		last = api.Key
		if want, ok := release.LookupMaxKeyVersion(int16(api.Key)); !ok || api.Max != want {
			t.Errorf("%v: max %d, Kafka 4.1 has %d", api.Key, api.Max, want)
		}
		if want := strings.ToLower(kmsg.NameForKey(int16(api.Key))); strings.ToLower(api.Name) != want {
			t.Errorf("%v: name %q, want %q", int16(api.Key), api.Name, want)
		}
		request := kmsg.RequestForKey(int16(api.Key))
		if request.MaxVersion() < api.Max {
			t.Errorf("%v: max %d, kmsg decodes up to %d", api.Key, api.Max, request.MaxVersion())
		}
		for version := api.Min; version <= api.Max; version++ {
			request.SetVersion(version)
			if api.Flexible(version) != request.IsFlexible() {
				t.Errorf("%v version %d: flexible %v, kmsg says %v", api.Key, version, api.Flexible(version), request.IsFlexible())
			}
		}
	}
}

// TestVersionsKeptForOldClients holds versions that clients are pinned to.
func TestVersionsKeptForOldClients(t *testing.T) {
	kept := map[protocol.Key][]int16{
		// KafkaJS.
		protocol.KeyFetch: {11, 4}, protocol.KeyProduce: {7, 3}, protocol.KeyMetadata: {6, 1, 0},
		protocol.KeyJoinGroup: {5}, protocol.KeyOffsetFetch: {4, 1}, protocol.KeyOffsetCommit: {5, 2},
		protocol.KeyListOffsets: {3, 1}, protocol.KeyFindCoordinator: {2, 0}, protocol.KeyInitProducerID: {1},
		// sarama at V1_0_0, exporters.
		protocol.KeyListGroups: {0, 5}, protocol.KeyDescribeGroups: {0}, protocol.KeyAPIVersions: {0, 3},
	}
	for key, versions := range kept {
		api, ok := protocol.Lookup(key)
		for _, version := range versions {
			if !ok || !api.Serves(version) {
				t.Errorf("%v version %d is not served", key, version)
			}
		}
	}
}

func TestProduceIsAdvertisedFromZeroButServedFromThree(t *testing.T) {
	minVersion, maxVersion, ok := protocol.Versions(protocol.KeyProduce)
	if minVersion != 0 || maxVersion != 13 || !ok {
		t.Errorf("Versions(Produce) = %d, %d, %v; want 0, 13, true", minVersion, maxVersion, ok)
	}
	api, _ := protocol.Lookup(protocol.KeyProduce)
	if api.Serves(2) || !api.Serves(3) {
		t.Error("Produce must be served from version 3")
	}
	if _, _, ok := protocol.Versions(99); ok {
		t.Error("Versions(99) is ok")
	}
	if got := protocol.Key(99).String(); got != "API 99" {
		t.Errorf("Key(99) = %q", got)
	}
}

// TestErrorCodes compares names with franz-go's list.
func TestErrorCodes(t *testing.T) {
	// Kafka renamed it since; franz-go keeps the old name.
	renamed := map[protocol.ErrorCode]string{protocol.NotLeaderOrFollower: "NOT_LEADER_FOR_PARTITION"}
	for code := protocol.UnknownServerError; code <= protocol.ShareSessionLimitReached; code++ {
		if !code.Known() || code.Message() == "" {
			t.Errorf("code %d is not described", int16(code))
		}
		if code == protocol.None {
			continue
		}
		want := kerr.TypedErrorForCode(int16(code))
		name := code.String()
		if other, ok := renamed[code]; ok {
			name = other
		}
		if name != want.Message {
			t.Errorf("code %d is %s, franz-go says %s", int16(code), code, want.Message)
		}
	}
	if unknown := protocol.ErrorCode(500); unknown.Known() || unknown.Retriable() || unknown.String() != "ERROR_500" || unknown.Message() == "" {
		t.Errorf("unknown code: %v", unknown)
	}
	if !protocol.NotLeaderOrFollower.Retriable() || protocol.MessageTooLarge.Retriable() {
		t.Error("retriability is wrong")
	}
}

func TestErrors(t *testing.T) {
	err := fmt.Errorf("append orders-3: %w", protocol.CorruptMessage.Errorf("checksum %08x", 7))
	if got := protocol.CodeOf(err); got != protocol.CorruptMessage {
		t.Errorf("CodeOf = %v", got)
	}
	if !errors.Is(err, protocol.CorruptMessage.Err()) || errors.Is(err, protocol.InvalidRecord.Err()) {
		t.Error("errors.Is does not go by code")
	}
	var pe *protocol.Error
	if !errors.As(err, &pe) || pe.Text() != "checksum 00000007" {
		t.Errorf("errors.As found %v", pe)
	}
	if got := err.Error(); got != "append orders-3: CORRUPT_MESSAGE: checksum 00000007" {
		t.Errorf("Error() = %q", got)
	}
	if protocol.CodeOf(nil) != protocol.None || protocol.None.Err() != nil {
		t.Error("nil and None are not the same")
	}
	if protocol.CodeOf(errors.New("disk on fire")) != protocol.UnknownServerError {
		t.Error("a foreign error must be UNKNOWN_SERVER_ERROR")
	}
}

func TestValidateTopicName(t *testing.T) {
	for _, name := range []string{"a", "A.b_c-9", "...", "__consumer_offsets", strings.Repeat("x", 249)} {
		if err := protocol.ValidateTopicName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for name, want := range map[string]string{
		"":                       "the empty string is not allowed",
		".":                      "'.' is not allowed",
		"..":                     "'..' is not allowed",
		strings.Repeat("x", 250): "longer than the max allowed length 249",
		"a b":                    "other than ASCII alphanumerics",
		"a/b":                    "other than ASCII alphanumerics",
		"é":                      "other than ASCII alphanumerics",
		"a\x00":                  "other than ASCII alphanumerics",
	} {
		err := protocol.ValidateTopicName(name)
		if protocol.CodeOf(err) != protocol.InvalidTopicException || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
	if !protocol.TopicNamesCollide("a.b", "a_b") || protocol.TopicNamesCollide("a.b", "a-b") {
		t.Error("collisions are wrong")
	}
}

func TestTopicID(t *testing.T) {
	id := protocol.TopicID{0xfb, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}
	const printed = "-_8BAgMEBQYHCAkKCwwNDg"
	if id.String() != printed {
		t.Errorf("String = %q, want %q", id, printed)
	}
	if got, err := protocol.ParseTopicID(printed); err != nil || got != id {
		t.Errorf("ParseTopicID = %v, %v", got, err)
	}
	for _, bad := range []string{"", "AAAA", printed + "AA", "!" + printed[1:]} {
		if _, err := protocol.ParseTopicID(bad); err == nil {
			t.Errorf("ParseTopicID(%q) succeeds", bad)
		}
	}
	if one := (protocol.TopicID{15: 1}); !one.Reserved() || one.IsZero() || id.Reserved() || !(protocol.TopicID{}).IsZero() {
		t.Error("reserved ids are wrong")
	}
}
