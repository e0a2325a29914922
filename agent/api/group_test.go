package api_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/protocol"
)

// TestDrainWhileJoining holds that a member that waits for others does not hold up an agent that leaves.
func TestDrainWhileJoining(t *testing.T) {
	w := start(t, func(c *agent.Config) { c.GroupDelay = time.Hour })
	p := w.dial(t)
	req := kmsg.NewPtrJoinGroupRequest()
	req.Version = 3 // which needs no member id first
	req.Group, req.ProtocolType, req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = "g", "consumer", 30_000, 300_000
	proto := kmsg.NewJoinGroupRequestProtocol()
	proto.Name = "range"
	req.Protocols = append(req.Protocols, proto)
	id := p.send(req)
	ask[*kmsg.ApiVersionsResponse](w.dial(t), 0, kmsg.NewPtrApiVersionsRequest())
	begin := time.Now()
	w.stop()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the drain took %v", took)
	}
	// The connection may also end before the agent has read the request.
	resp, err := p.tryReceive(req, id)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err == nil {
		if code := protocol.ErrorCode(resp.(*kmsg.JoinGroupResponse).ErrorCode); code != protocol.CoordinatorNotAvailable {
			t.Errorf("the member is told %v", code)
		}
	}
}
