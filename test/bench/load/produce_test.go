package load

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fakeBroker speaks just enough to be produced to. From the tenth Produce
// request of a connection on, it does what the test says.
type fakeBroker struct {
	net.Listener
	tenth func(c net.Conn, correlation int32)
}

func (f fakeBroker) serve() {
	for {
		c, err := f.Accept()
		if err != nil {
			return
		}
		go f.answer(c)
	}
}

func (f fakeBroker) answer(c net.Conn) {
	defer func() { _ = c.Close() }()
	for produced := 0; ; {
		var prefix [4]byte
		if _, err := io.ReadFull(c, prefix[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(prefix[:]))
		if _, err := io.ReadFull(c, frame); err != nil {
			return
		}
		correlation := int32(binary.BigEndian.Uint32(frame[4:]))
		switch int16(binary.BigEndian.Uint16(frame)) {
		case int16(kmsg.ApiVersions):
			response := kmsg.NewPtrApiVersionsResponse()
			for _, key := range []kmsg.Key{kmsg.Produce, kmsg.InitProducerID} {
				response.ApiKeys = append(response.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: int16(key), MaxVersion: 3})
			}
			respond(c, correlation, response)
		case int16(kmsg.InitProducerID):
			response := kmsg.NewPtrInitProducerIDResponse()
			response.Version = 3
			respond(c, correlation, response)
		default:
			if produced++; produced >= 10 {
				f.tenth(c, correlation)
				continue
			}
			respond(c, correlation, produceResponse(0))
		}
	}
}

func produceResponse(code int16) *kmsg.ProduceResponse {
	response := kmsg.NewPtrProduceResponse()
	response.Version = 3
	response.Topics = []kmsg.ProduceResponseTopic{{Partitions: []kmsg.ProduceResponseTopicPartition{{ErrorCode: code}}}}
	return response
}

func respond(c net.Conn, correlation int32, response kmsg.Response) {
	body := binary.BigEndian.AppendUint32(nil, uint32(correlation))
	if response.IsFlexible() {
		body = append(body, 1, 7, 2, 'x', 'y') // a tagged field that the reader does not know
	}
	body = response.AppendTo(body)
	_, _ = c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
}

// TestProduceEndsWithTheFirstFailure shows that sender and receiver of every
// connection end, whatever a broker does.
func TestProduceEndsWithTheFirstFailure(t *testing.T) {
	for name, test := range map[string]struct {
		tenth func(c net.Conn, correlation int32)
		want  func(err error) bool
	}{
		"closes": {
			func(c net.Conn, _ int32) { _ = c.Close() },
			func(err error) bool { return strings.Contains(err.Error(), "Produce") },
		},
		"refuses": {
			func(c net.Conn, correlation int32) {
				respond(c, correlation, produceResponse(kerr.NotLeaderForPartition.Code))
			},
			func(err error) bool { return errors.Is(err, kerr.NotLeaderForPartition) },
		},
		"answers another request": {
			func(c net.Conn, correlation int32) { respond(c, correlation+1, produceResponse(0)) },
			func(err error) bool { return strings.Contains(err.Error(), "want 9") },
		},
		"sends nonsense": {
			func(c net.Conn, _ int32) { _, _ = c.Write([]byte{0, 0, 0, 6, 0, 0, 0, 9, 1, 2}) },
			func(err error) bool { return strings.Contains(err.Error(), "decode Produce") },
		},
		"sends an endless frame": {
			func(c net.Conn, _ int32) { _, _ = c.Write([]byte{0x7f, 0, 0, 0}) },
			func(err error) bool { return strings.Contains(err.Error(), "frame of") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = listener.Close() })
			go fakeBroker{listener, test.tenth}.serve()
			cfg := Defaults()
			cfg.Duration = time.Minute
			address := listener.Addr().String()
			_, err = runProduce(t.Context(), cfg, &topic{name: "t", leaders: []string{address, address}})
			if err == nil || !test.want(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}
