package api_test

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent"
	"github.com/varve-io/varve/protocol"
)

func metadataRequest(names ...string) *kmsg.MetadataRequest {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{}
	for _, n := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &n
		req.Topics = append(req.Topics, t)
	}
	return req
}

// TestBalancer: behind a load balancer, clients are told of one broker at its address, which leads and coordinates everything.
func TestBalancer(t *testing.T) {
	w := start(t, func(c *agent.Config) {
		c.Balancer, c.AdvertiseHost, c.AdvertisePort = true, "balancer.example.com", 9092
	})
	p := w.dial(t)
	p.create("t", 3)
	got := ask[*kmsg.MetadataResponse](p, 12, metadataRequest("t"))
	if len(got.Brokers) != 1 || got.Brokers[0].Host != "balancer.example.com" || got.Brokers[0].Port != 9092 {
		t.Fatalf("brokers %+v, want the load balancer", got.Brokers)
	}
	node := got.Brokers[0].NodeID
	if got.ControllerID != node || node == 1 {
		t.Errorf("controller %d, node %d: want one that no agent has", got.ControllerID, node)
	}
	for _, part := range got.Topics[0].Partitions {
		if part.Leader != node || part.LeaderEpoch != -1 || part.ErrorCode != 0 || !slices.Equal(part.Replicas, []int32{node}) {
			t.Errorf("partition %+v, want node %d for everything, and no leader epoch", part, node)
		}
	}
	cluster := ask[*kmsg.DescribeClusterResponse](p, 1, &kmsg.DescribeClusterRequest{EndpointType: 1})
	if len(cluster.Brokers) != 1 || cluster.Brokers[0].NodeID != node || cluster.ControllerID != node {
		t.Errorf("cluster %+v, want node %d", cluster, node)
	}
	found := ask[*kmsg.FindCoordinatorResponse](p, 4, &kmsg.FindCoordinatorRequest{CoordinatorKeys: []string{"g"}})
	if c := found.Coordinators[0]; c.NodeID != node || c.Host != "balancer.example.com" || c.Port != 9092 {
		t.Errorf("coordinator %+v, want node %d", c, node)
	}
}

func TestMetadataEveryVersion(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	id := p.create("t", 3)
	p.create("u", 1)
	for _, v := range versions(t, protocol.KeyMetadata) {
		req := metadataRequest("t")
		got := ask[*kmsg.MetadataResponse](p, v, req)
		if len(got.Brokers) != 1 || got.Brokers[0].Host != "127.0.0.1" || got.Brokers[0].NodeID != 1 {
			t.Fatalf("version %d: brokers %+v", v, got.Brokers)
		}
		if v >= 1 && (got.ControllerID != 1 || got.Brokers[0].Rack == nil || *got.Brokers[0].Rack != "z1") || v >= 2 && *got.ClusterID == "" {
			t.Errorf("version %d: controller %d, rack %v", v, got.ControllerID, got.Brokers[0].Rack)
		}
		if len(got.Topics) != 1 || *got.Topics[0].Topic != "t" || got.Topics[0].ErrorCode != 0 || v >= 10 && got.Topics[0].TopicID != id {
			t.Fatalf("version %d: topics %+v", v, got.Topics)
		}
		for n, part := range got.Topics[0].Partitions {
			if part.Partition != int32(n) || part.Leader != 1 || v >= 7 && part.LeaderEpoch != 1 ||
				!slices.Equal(part.Replicas, []int32{1}) || !slices.Equal(part.ISR, []int32{1}) || part.ErrorCode != 0 {
				t.Errorf("version %d: partition %+v", v, part)
			}
		}
		all := kmsg.NewPtrMetadataRequest() // null; in version 0 an empty list
		if got := ask[*kmsg.MetadataResponse](p, v, all); len(got.Topics) != 2 {
			t.Errorf("version %d: %d topics for all, want 2", v, len(got.Topics))
		}
		if v >= 1 {
			if got := ask[*kmsg.MetadataResponse](p, v, metadataRequest()); len(got.Topics) != 0 {
				t.Errorf("version %d: %d topics for none", v, len(got.Topics))
			}
		}
		if v >= 12 {
			byID := kmsg.NewPtrMetadataRequest()
			a, b := kmsg.NewMetadataRequestTopic(), kmsg.NewMetadataRequestTopic()
			a.TopicID, b.TopicID = id, protocol.TopicID{5}
			byID.Topics = append(byID.Topics, a, b)
			got := ask[*kmsg.MetadataResponse](p, v, byID)
			if *got.Topics[0].Topic != "t" || len(got.Topics[0].Partitions) != 3 {
				t.Errorf("version %d: by id %+v", v, got.Topics[0])
			}
			if protocol.ErrorCode(got.Topics[1].ErrorCode) != protocol.UnknownTopicID || got.Topics[1].TopicID != (protocol.TopicID{5}) {
				t.Errorf("version %d: by an unknown id %+v", v, got.Topics[1])
			}
		}
	}
}

func TestMetadataCreatesTopics(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	code := func(version int16, allow bool, name string) protocol.ErrorCode {
		req := metadataRequest(name)
		req.AllowAutoTopicCreation = allow
		got := ask[*kmsg.MetadataResponse](p, version, req).Topics[0]
		if got.Topic == nil || *got.Topic != name {
			t.Errorf("version %d: topic %v, want %s", version, got.Topic, name)
		}
		return protocol.ErrorCode(got.ErrorCode)
	}
	for _, c := range []struct {
		version int16
		allow   bool
		name    string
		want    protocol.ErrorCode
	}{
		{12, false, "later", protocol.UnknownTopicOrPartition},
		{4, false, "later", protocol.UnknownTopicOrPartition},
		{12, true, "a b", protocol.InvalidTopicException},
		{12, true, strings.Repeat("x", 250), protocol.InvalidTopicException},
		{12, true, ".", protocol.InvalidTopicException},
		{12, true, "new", protocol.None},
		{12, false, "new", protocol.None},
		{3, false, "old", protocol.None}, // the version has no flag: always
	} {
		if got := code(c.version, c.allow, c.name); got != c.want {
			t.Errorf("version %d, %v, %.20q: %v, want %v", c.version, c.allow, c.name, got, c.want)
		}
	}
	off := start(t, func(c *agent.Config) { c.AutoCreate = false })
	p = off.dial(t)
	if got := code(12, true, "new"); got != protocol.UnknownTopicOrPartition {
		t.Errorf("where topics are not created on demand: %v", got)
	}
}

func TestMetadataOperations(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	req := metadataRequest("t")
	got := ask[*kmsg.MetadataResponse](p, 10, req)
	if got.AuthorizedOperations != -1<<31 || got.Topics[0].AuthorizedOperations != -1<<31 {
		t.Errorf("operations that were not asked for: %d, %d", got.AuthorizedOperations, got.Topics[0].AuthorizedOperations)
	}
	req.IncludeClusterAuthorizedOperations, req.IncludeTopicAuthorizedOperations = true, true
	got = ask[*kmsg.MetadataResponse](p, 10, req)
	if got.AuthorizedOperations != 0b1_1111_1010_0000 || got.Topics[0].AuthorizedOperations != 0b1101_1111_1000 {
		t.Errorf("operations: %b, %b", got.AuthorizedOperations, got.Topics[0].AuthorizedOperations)
	}
}

func TestDescribeCluster(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	for _, v := range versions(t, protocol.KeyDescribeCluster) {
		got := ask[*kmsg.DescribeClusterResponse](p, v, kmsg.NewPtrDescribeClusterRequest())
		if got.ErrorCode != 0 || got.ControllerID != 1 || got.ClusterID == "" || len(got.Brokers) != 1 || got.Brokers[0].NodeID != 1 {
			t.Errorf("version %d: %+v", v, got)
		}
	}
	req := kmsg.NewPtrDescribeClusterRequest()
	req.EndpointType = 2
	if got := ask[*kmsg.DescribeClusterResponse](p, 1, req); protocol.ErrorCode(got.ErrorCode) != protocol.MismatchedEndpointType {
		t.Errorf("controllers: %v", protocol.ErrorCode(got.ErrorCode))
	}
}

func TestFindCoordinator(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	for _, v := range versions(t, protocol.KeyFindCoordinator) {
		for kind, want := range map[int8]protocol.ErrorCode{0: 0, 1: 0, 2: protocol.InvalidRequest} {
			if v == 0 && kind != 0 {
				continue // groups alone
			}
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.CoordinatorType, req.CoordinatorKey, req.CoordinatorKeys = kind, "g", []string{"g", "h"}
			got := ask[*kmsg.FindCoordinatorResponse](p, v, req)
			if v < 4 {
				got.Coordinators = []kmsg.FindCoordinatorResponseCoordinator{{
					Key: "g", NodeID: got.NodeID, Host: got.Host, Port: got.Port, ErrorCode: got.ErrorCode,
				}}
			} else if len(got.Coordinators) != 2 || got.Coordinators[1].Key != "h" {
				t.Fatalf("version %d: %+v", v, got.Coordinators)
			}
			c := got.Coordinators[0]
			if protocol.ErrorCode(c.ErrorCode) != want || want == 0 && (c.NodeID != 1 || c.Host != "127.0.0.1") || want != 0 && c.NodeID != -1 {
				t.Errorf("version %d, type %d: %+v, want %v", v, kind, c, want)
			}
		}
	}
}

func TestApiVersions(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	for _, v := range versions(t, protocol.KeyAPIVersions) {
		req := kmsg.NewPtrApiVersionsRequest()
		req.ClientSoftwareName, req.ClientSoftwareVersion = "varve-test", "1.0"
		got := ask[*kmsg.ApiVersionsResponse](p, v, req)
		if got.ErrorCode != 0 || len(got.ApiKeys) != len(protocol.APIs()) {
			t.Errorf("version %d: %v and %d APIs", v, protocol.ErrorCode(got.ErrorCode), len(got.ApiKeys))
		}
		if v >= 3 && (len(got.FinalizedFeatures) != 1 || got.FinalizedFeatures[0].Name != "transaction.version" || got.FinalizedFeatures[0].MaxVersionLevel != 2) {
			t.Errorf("version %d: features %+v", v, got.FinalizedFeatures)
		}
	}
	bad := kmsg.NewPtrApiVersionsRequest()
	bad.ClientSoftwareName, bad.ClientSoftwareVersion = "a name", "1.0"
	if got := ask[*kmsg.ApiVersionsResponse](p, 3, bad); protocol.ErrorCode(got.ErrorCode) != protocol.InvalidRequest {
		t.Errorf("a bad software name: %v", protocol.ErrorCode(got.ErrorCode))
	}
	// A version of the future, with a body that nobody knows, is answered in version 0, and the connection goes on.
	frame := []byte{0, 0, 0, 0, 0, 18, 0, 99, 0, 0, 0, 77, 0xff, 0xff, 0xff}
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-4))
	if _, err := p.conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	got := p.receive(kmsg.NewPtrApiVersionsRequest(), 77).(*kmsg.ApiVersionsResponse)
	if protocol.ErrorCode(got.ErrorCode) != protocol.UnsupportedVersion || len(got.ApiKeys) != 1 {
		t.Errorf("an unknown version: %v and %d APIs", protocol.ErrorCode(got.ErrorCode), len(got.ApiKeys))
	}
	ask[*kmsg.ApiVersionsResponse](p, 0, kmsg.NewPtrApiVersionsRequest())
}

func TestInitProducerID(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	seen := make(map[int64]bool)
	for range 2 { // ids are not given again by another incarnation
		for _, v := range versions(t, protocol.KeyInitProducerID) {
			got := ask[*kmsg.InitProducerIDResponse](p, v, kmsg.NewPtrInitProducerIDRequest())
			if got.ErrorCode != 0 || got.ProducerEpoch != 0 || got.ProducerID < 0 || seen[got.ProducerID] {
				t.Errorf("version %d: %+v", v, got)
			}
			seen[got.ProducerID] = true
		}
		w.restart(t)
		p = w.dial(t)
	}
	req := kmsg.NewPtrInitProducerIDRequest()
	id := "txn"
	req.TransactionalID = &id
	if got := ask[*kmsg.InitProducerIDResponse](p, 4, req); protocol.ErrorCode(got.ErrorCode) != protocol.InvalidTransactionTimeout || got.ProducerID != -1 {
		t.Errorf("a transactional id without a timeout: %+v", got)
	}
	req.TransactionTimeoutMillis = 60_000
	first := ask[*kmsg.InitProducerIDResponse](p, 4, req)
	if first.ErrorCode != 0 || first.ProducerEpoch != 0 || seen[first.ProducerID] {
		t.Errorf("a transactional id: %+v", first)
	}
	if got := ask[*kmsg.InitProducerIDResponse](p, 4, req); got.ErrorCode != 0 || got.ProducerID != first.ProducerID || got.ProducerEpoch != 1 {
		t.Errorf("a transactional id again: %+v, want epoch 1 of producer %d", got, first.ProducerID)
	}
}

func TestDescribeProducers(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 1)
	p.mustProduce("t", 0, idempotent(t, 5, 0, 0, 3))
	p.mustProduce("t", 0, idempotent(t, 6, 2, 0, 1))
	check := func(when string) {
		t.Helper()
		req := kmsg.NewPtrDescribeProducersRequest()
		req.Topics = []kmsg.DescribeProducersRequestTopic{{Topic: "t", Partitions: []int32{0, 1}}, {Topic: "nobody", Partitions: []int32{0}}}
		got := ask[*kmsg.DescribeProducersResponse](p, 0, req)
		parts := got.Topics[0].Partitions
		if len(parts[0].ActiveProducers) != 2 {
			t.Fatalf("%s: %+v", when, parts[0])
		}
		first, second := parts[0].ActiveProducers[0], parts[0].ActiveProducers[1]
		if first.ProducerID != 5 || first.LastSequence != 2 || first.CurrentTxnStartOffset != -1 || second.ProducerID != 6 || second.ProducerEpoch != 2 {
			t.Errorf("%s: %+v, %+v", when, first, second)
		}
		for _, bad := range []kmsg.DescribeProducersResponseTopicPartition{parts[1], got.Topics[1].Partitions[0]} {
			if protocol.ErrorCode(bad.ErrorCode) != protocol.UnknownTopicOrPartition || bad.ErrorMessage == nil {
				t.Errorf("%s, unknown: %+v", when, bad)
			}
		}
	}
	check("before a restart")
	w.restart(t)
	p = w.dial(t)
	check("after a restart")
}

func TestDescribeLogDirs(t *testing.T) {
	w := start(t, nil)
	p := w.dial(t)
	p.create("t", 2)
	p.create("u", 1)
	size := int64(len(plain(t, base, "x")))
	p.mustProduce("t", 1, plain(t, base, "x"))
	sizes := func(version int16, req *kmsg.DescribeLogDirsRequest) map[string][]int64 {
		t.Helper()
		got := ask[*kmsg.DescribeLogDirsResponse](p, version, req)
		if got.ErrorCode != 0 || len(got.Dirs) != 1 || got.Dirs[0].ErrorCode != 0 || got.Dirs[0].Dir == "" {
			t.Fatalf("version %d: %+v", version, got)
		}
		all := make(map[string][]int64)
		for _, dt := range got.Dirs[0].Topics {
			for _, dp := range dt.Partitions {
				all[dt.Topic] = append(all[dt.Topic], dp.Size)
			}
		}
		return all
	}
	check := func(when string) {
		t.Helper()
		for _, v := range versions(t, protocol.KeyDescribeLogDirs) {
			got := sizes(v, kmsg.NewPtrDescribeLogDirsRequest())
			if len(got) != 2 || !slices.Equal(got["t"], []int64{0, size}) || !slices.Equal(got["u"], []int64{0}) {
				t.Errorf("version %d %s: %v, want %d bytes in t/1", v, when, got, size)
			}
		}
	}
	check("in memory")
	w.restart(t)
	p = w.dial(t)
	check("in the bucket")
	p.mustProduce("t", 1, plain(t, base, "x"))
	req := kmsg.NewPtrDescribeLogDirsRequest()
	req.Topics = []kmsg.DescribeLogDirsRequestTopic{{Topic: "t", Partitions: []int32{1, 7}}, {Topic: "nobody", Partitions: []int32{0}}}
	if got := sizes(4, req); len(got) != 1 || !slices.Equal(got["t"], []int64{2 * size}) {
		t.Errorf("in both: %v, want %d", got, 2*size)
	}
}
