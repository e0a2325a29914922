package wire_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// frameOf encodes a request as a client does, without the size.
func frameOf(request kmsg.Request, correlationID int32, clientID string) []byte {
	formatter := kmsg.NewRequestFormatter(kmsg.FormatterClientID(clientID))
	return formatter.AppendRequest(nil, request, correlationID)[4:]
}

// fill sets every field of a message at random, so that encodings with all
// optional parts and with none both occur.
func fill(r *rand.Rand, v reflect.Value) {
	switch k := v.Kind(); {
	case k == reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case v.CanInt():
		v.SetInt(r.Int64())
	case k == reflect.String:
		v.SetString(strings.Repeat("s", r.IntN(5)))
	case k == reflect.Pointer:
		if r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem())
		}
	case k == reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(r.IntN(256)))
		}
	case k == reflect.Slice:
		n := r.IntN(4)
		if v.Type().Elem().Kind() == reflect.Uint8 {
			n *= 100
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fill(r, v.Index(i))
		}
	case k == reflect.Uint8:
		v.SetUint(uint64(r.IntN(256)))
	case k == reflect.Struct:
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; name != "Version" && name != "UnknownTags" {
				fill(r, v.Field(i))
			}
		}
	}
}

// TestDecodeEveryVersion sends random requests of every API and version
// through header and body. It holds the layouts against kmsg: each must accept
// what kmsg encodes, and refuse it once the last byte is missing.
func TestDecodeEveryVersion(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, api := range protocol.APIs() {
		for version := api.ServedMin; version <= api.Max; version++ {
			for range 50 {
				sent := kmsg.RequestForKey(int16(api.Key))
				sent.SetVersion(version)
				fill(r, reflect.ValueOf(sent).Elem())
				frame := frameOf(sent, 77, "client")
				h, body, err := wire.ParseHeader(frame)
				if err != nil {
					t.Fatalf("%v version %d: %v", api.Key, version, err)
				}
				want := wire.Header{Key: api.Key, Version: version, CorrelationID: 77, ClientID: "client"}
				if h != want {
					t.Fatalf("header %+v, want %+v", h, want)
				}
				got, err := wire.DecodeRequest(h, append(slices.Clip(body), "trailing"...))
				if err != nil {
					t.Fatalf("%v version %d: %v", api.Key, version, err)
				}
				if again := got.AppendTo(nil); !bytes.Equal(again, body) {
					t.Fatalf("%v version %d: decoded to another message", api.Key, version)
				}
				if len(body) == 0 {
					continue
				}
				if _, err := wire.DecodeRequest(h, body[:len(body)-1]); protocol.CodeOf(err) != protocol.InvalidRequest {
					t.Fatalf("%v version %d without its last byte: %v", api.Key, version, err)
				}
			}
		}
	}
}

func TestParseHeaderErrors(t *testing.T) {
	metadata := kmsg.NewPtrMetadataRequest()
	metadata.Version = 12
	whole := frameOf(metadata, 1, "abc")
	header := whole[:len(whole)-len(metadata.AppendTo(nil))]
	for n := range len(header) {
		if _, _, err := wire.ParseHeader(whole[:n]); protocol.CodeOf(err) != protocol.InvalidRequest {
			t.Errorf("%d bytes of a header: %v", n, err)
		}
	}
	for name, c := range map[string]struct {
		key, version int16
		want         protocol.ErrorCode
	}{
		"unknown key":      {999, 0, protocol.InvalidRequest},
		"negative key":     {-1, 0, protocol.InvalidRequest},
		"version too high": {3, 14, protocol.UnsupportedVersion},
		"version negative": {3, -1, protocol.UnsupportedVersion},
		"produce 0":        {0, 0, protocol.UnsupportedVersion},
	} {
		frame := binary.BigEndian.AppendUint16(nil, uint16(c.key))
		frame = binary.BigEndian.AppendUint16(frame, uint16(c.version))
		h, _, err := wire.ParseHeader(append(frame, 0, 0, 0, 9, 0xff, 0xff))
		if protocol.CodeOf(err) != c.want || wire.IsUnsupportedAPIVersions(h, err) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestNullClientID(t *testing.T) {
	h, body, err := wire.ParseHeader([]byte{0, 3, 0, 0, 0, 0, 0, 9, 0xff, 0xff, 1, 2})
	if err != nil || h.ClientID != "" || h.CorrelationID != 9 || !bytes.Equal(body, []byte{1, 2}) {
		t.Errorf("%+v, body %v, %v", h, body, err)
	}
}

// TestUnknownAPIVersionsIsAnsweredInVersion0 is what clients newer than the
// broker start with; the body is not looked at.
func TestUnknownAPIVersionsIsAnsweredInVersion0(t *testing.T) {
	frame := []byte{0, 18, 0, 99, 0, 0, 0, 5, 0xde, 0xad, 0xbe, 0xef}
	h, _, err := wire.ParseHeader(frame)
	if !wire.IsUnsupportedAPIVersions(h, err) || h.CorrelationID != 5 {
		t.Fatalf("header %+v, %v", h, err)
	}
	answer := wire.AppendUnsupportedAPIVersions(nil, h.CorrelationID)
	if size := binary.BigEndian.Uint32(answer); int(size) != len(answer)-4 {
		t.Errorf("size %d of %d bytes", size, len(answer))
	}
	if correlationID := binary.BigEndian.Uint32(answer[4:]); correlationID != 5 {
		t.Errorf("correlation id %d", correlationID)
	}
	response := kmsg.NewPtrApiVersionsResponse()
	if err := response.ReadFrom(answer[8:]); err != nil {
		t.Fatal(err)
	}
	if response.ErrorCode != int16(protocol.UnsupportedVersion) || len(response.ApiKeys) != 1 || protocol.Key(response.ApiKeys[0].ApiKey) != protocol.KeyAPIVersions {
		t.Errorf("error %d with %d keys", response.ErrorCode, len(response.ApiKeys))
	}
	for _, k := range response.ApiKeys {
		if minVersion, maxVersion, ok := protocol.Versions(protocol.Key(k.ApiKey)); !ok || minVersion != k.MinVersion || maxVersion != k.MaxVersion {
			t.Errorf("key %d: %d to %d", k.ApiKey, k.MinVersion, k.MaxVersion)
		}
	}
}

func TestAppendResponseHeaders(t *testing.T) {
	for _, c := range []struct {
		response kmsg.Response
		version  int16
		header   int
	}{
		{kmsg.NewPtrMetadataResponse(), 8, 4},
		{kmsg.NewPtrMetadataResponse(), 9, 5},
		{kmsg.NewPtrApiVersionsResponse(), 0, 4},
		{kmsg.NewPtrApiVersionsResponse(), 3, 4},
	} {
		c.response.SetVersion(c.version)
		frame := wire.AppendResponse([]byte("before"), -2, c.response)[6:]
		body := c.response.AppendTo(nil)
		if size := binary.BigEndian.Uint32(frame); int(size) != c.header+len(body) || len(frame) != int(size)+4 {
			t.Errorf("%T %d: size %d of %d bytes", c.response, c.version, size, len(frame))
		}
		if !bytes.HasPrefix(frame[4:], []byte{0xff, 0xff, 0xff, 0xfe}) || !bytes.Equal(frame[4+c.header:], body) {
			t.Errorf("%T %d: frame %x", c.response, c.version, frame)
		}
	}
}

// TestRecordsAliasTheFrame holds the promise that Produce is not copied.
func TestRecordsAliasTheFrame(t *testing.T) {
	request := kmsg.NewPtrProduceRequest()
	request.Version = 9
	request.Topics = []kmsg.ProduceRequestTopic{{Topic: "t", Partitions: []kmsg.ProduceRequestTopicPartition{{Records: []byte("records")}}}}
	frame := frameOf(request, 1, "")
	h, body, err := wire.ParseHeader(frame)
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := wire.DecodeRequest(h, body)
	if err != nil {
		t.Fatal(err)
	}
	copy(body[bytes.Index(body, []byte("records")):], "RECORDS")
	if got := decoded.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records; string(got) != "RECORDS" {
		t.Errorf("records are %q: copied", got)
	}
}

// TestArraysThatAreNotThere claims many elements in few bytes.
func TestArraysThatAreNotThere(t *testing.T) {
	body := make([]byte, 1<<20)
	binary.BigEndian.PutUint32(body, 1<<20-4) // so many topics, the rest are zeros
	h := wire.Header{Key: protocol.KeyMetadata, Version: 1}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := wire.DecodeRequest(h, body); protocol.CodeOf(err) != protocol.InvalidRequest {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 64<<10 {
		t.Errorf("%d bytes allocated", allocated)
	}
}

func TestStructureLimit(t *testing.T) {
	topics := func(n int) []byte {
		request := kmsg.NewPtrMetadataRequest()
		request.Topics = make([]kmsg.MetadataRequestTopic, n)
		name := strings.Repeat("x", 249)
		for i := range request.Topics {
			request.Topics[i].Topic = &name
		}
		return request.AppendTo(nil)
	}
	h := wire.Header{Key: protocol.KeyMetadata}
	if _, err := wire.DecodeRequest(h, topics(30_000)); err != nil {
		t.Error(err)
	}
	if _, err := wire.DecodeRequest(h, topics(40_000)); protocol.CodeOf(err) != protocol.InvalidRequest || !strings.Contains(err.Error(), "structure") {
		t.Errorf("10 MB of structure: %v", err)
	}
	produce := kmsg.NewPtrProduceRequest()
	produce.Version = 9
	produce.Topics = []kmsg.ProduceRequestTopic{{Topic: "t", Partitions: []kmsg.ProduceRequestTopicPartition{{Records: make([]byte, 20<<20)}}}}
	if _, err := wire.DecodeRequest(wire.Header{Key: protocol.KeyProduce, Version: 9}, produce.AppendTo(nil)); err != nil {
		t.Errorf("20 MiB of records: %v", err)
	}
}

func FuzzRequest(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, api := range protocol.APIs() {
		for _, version := range []int16{api.ServedMin, api.Max} {
			request := kmsg.RequestForKey(int16(api.Key))
			request.SetVersion(version)
			fill(r, reflect.ValueOf(request).Elem())
			f.Add(frameOf(request, 1, "fuzz"))
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		h, body, err := wire.ParseHeader(frame)
		if err != nil {
			return
		}
		request, err := wire.DecodeRequest(h, body)
		if err != nil {
			if protocol.CodeOf(err) != protocol.InvalidRequest {
				t.Errorf("unexpected kind of error: %v", err)
			}
			return
		}
		if protocol.Key(request.Key()) != h.Key || request.GetVersion() != h.Version {
			t.Errorf("decoded %d version %d from %+v", request.Key(), request.GetVersion(), h)
		}
	})
}
