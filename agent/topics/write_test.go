package topics_test

import (
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/topics"
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/protocol"
)

// faults are what a transaction may meet. Each is over, with a certain outcome, before the request's time is.
var faults = []struct {
	name string
	kind mem.FaultKind
}{
	{"away", mem.Unavailable}, {"applied unknown to us", mem.UnknownApplied}, {"lost", mem.UnknownLost}, {"applied and then full", mem.NoSpaceApplied},
}

func TestWritesUnderFaults(t *testing.T) {
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			a := alone(t)
			inject := func() { a.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: fault.kind}) }
			inject()
			created := a.make(t, "t", 1)
			inject()
			alter := a.IncrementalAlterConfigs(t.Context(), incremental(ofTopic, "t", op("retention.ms", set, "5"))).Resources[0]
			expect(t, "alter", alter.ErrorCode, alter.ErrorMessage, protocol.None, "")
			inject()
			req := kmsg.NewPtrCreatePartitionsRequest()
			req.Version, req.Topics = 3, []kmsg.CreatePartitionsRequestTopic{growth("t", 4)}
			grown := a.CreatePartitions(t.Context(), req).Topics[0]
			expect(t, "grow", grown.ErrorCode, grown.ErrorMessage, protocol.None, "")
			if got := a.must(t, "t"); got.Partitions != 4 || !maps.Equal(got.Configs, map[string]string{"retention.ms": "5"}) || got.ID != created.ID {
				t.Errorf("then it is %+v", got)
			}
			inject()
			deleted := a.DeleteTopics(t.Context(), deletion("t")).Topics[0]
			expect(t, "delete", deleted.ErrorCode, deleted.ErrorMessage, protocol.None, "")
			if _, _, ok := a.view.Topic("t"); ok {
				t.Error("it is still there")
			}
		})
	}
}

func TestWritesWithoutSpace(t *testing.T) {
	a := alone(t)
	a.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: mem.NoSpace})
	got := a.CreateTopics(t.Context(), creation(topic("t", 1))).Topics[0]
	expect(t, "create", got.ErrorCode, got.ErrorMessage, protocol.UnknownServerError, "write meta/topics/t")
	a.make(t, "t", 1)
	a.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: mem.UnknownLost}, mem.Fault{Call: mem.CallTxn, Kind: mem.NoSpace})
	altered := a.AlterConfigs(t.Context(), legacy(ofTopic, "t", "retention.ms=1")).Resources[0]
	expect(t, "alter, with an earlier try lost", altered.ErrorCode, altered.ErrorMessage, protocol.UnknownServerError, "write meta/topics/t")
}

func TestWritesTimeOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := alone(t)
		a.make(t, "t", 1)
		a.kv.Inject(mem.Fault{Call: mem.CallTxn, Kind: mem.Unavailable, Times: 1 << 30})
		created := a.CreateTopics(t.Context(), creation(topic("new", 1))).Topics[0]
		expect(t, "create", created.ErrorCode, created.ErrorMessage, protocol.RequestTimedOut, "write meta/topics/new")
		deleted := a.DeleteTopics(t.Context(), deletion("t")).Topics[0]
		expect(t, "delete", deleted.ErrorCode, deleted.ErrorMessage, protocol.RequestTimedOut, "write meta/topics/t")
		altered := a.AlterConfigs(t.Context(), legacy(ofTopic, "t", "retention.ms=1")).Resources[0]
		expect(t, "alter", altered.ErrorCode, altered.ErrorMessage, protocol.RequestTimedOut, "write meta/topics/t")
		if err := a.AutoCreate(t.Context(), "new"); protocol.CodeOf(err) != protocol.RequestTimedOut {
			t.Errorf("create on demand: %v", err)
		}
	})
}

// TestAgentsAlterOneTopic has agents change different configurations of one topic at once: none may be lost.
func TestAgentsAlterOneTopic(t *testing.T) {
	kv := mem.New(mem.Config{})
	agents := []*agent{start(t, kv, topics.Defaults()), start(t, kv, topics.Defaults()), start(t, kv, topics.Defaults())}
	agents[0].make(t, "t", 1)
	keys := []string{"retention.ms", "retention.bytes", "segment.ms"}
	var wg sync.WaitGroup
	for i, a := range agents {
		wg.Go(func() {
			for n := 1; n <= 20; n++ {
				got := a.IncrementalAlterConfigs(t.Context(), incremental(ofTopic, "t", op(keys[i], set, fmt.Sprint(n)))).Resources[0]
				expect(t, keys[i], got.ErrorCode, got.ErrorMessage, protocol.None, "")
			}
		})
	}
	wg.Wait()
	item, _, err := kv.Get(t.Context(), coordinator.KeyTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := coordinator.Decode[coordinator.Topic](item)
	if err != nil || !maps.Equal(got.Configs, map[string]string{"retention.ms": "20", "retention.bytes": "20", "segment.ms": "20"}) {
		t.Errorf("then it has %v (%v)", got.Configs, err)
	}
}

// TestAgentsCreateOneTopic has agents create the same topic at once: one of them does.
func TestAgentsCreateOneTopic(t *testing.T) {
	kv := mem.New(mem.Config{})
	codes := make(chan protocol.ErrorCode, 8)
	var wg sync.WaitGroup
	for i := range cap(codes) {
		a := start(t, kv, topics.Defaults())
		a.lastID = byte(10 * (i + 1))
		wg.Go(func() {
			codes <- protocol.ErrorCode(a.CreateTopics(t.Context(), creation(topic("t", 1))).Topics[0].ErrorCode)
		})
	}
	wg.Wait()
	close(codes)
	count := map[protocol.ErrorCode]int{}
	for code := range codes {
		count[code]++
	}
	if count[protocol.None] != 1 || count[protocol.TopicAlreadyExists] != cap(codes)-1 {
		t.Errorf("answers: %v", count)
	}
}
