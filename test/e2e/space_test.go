package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve-io/varve/test/servers"
)

// spacePatience bounds waits for what takes its time by design: the controller compacts what is half a minute old, every quarter of a minute.
const spacePatience = 5 * time.Minute

// TestEtcdWithoutSpace uses up etcd's quota under an agent that is written to. Producing goes on until the WAL is full, then producers wait, and everybody is told why. Once an
// operator has made room, all goes on by itself, and every acknowledged record is there.
func TestEtcdWithoutSpace(t *testing.T) {
	server := servers.Etcd(t, servers.EtcdOptions{QuotaBytes: 8 << 20})
	c := cluster{etcd: "http://" + server.Address, bucket: "file://" + t.TempDir(), name: "full"}
	kafka, http := freeAddress(t), freeAddress(t)
	p := start(t, nil, "agent", "--wal-copies", "1", "--wal-bytes-max", "64MiB", "--etcd", c.etcd, "--bucket", c.bucket, "--cluster", c.name,
		"--listen", kafka, "--http", http, "--data", t.TempDir())
	p.ready(t)
	metrics := "http://" + http + "/metrics"
	const few, all = 50, 400 // of 256 KiB: more than the WAL takes
	value := func(i int64) string { return fmt.Sprint(i) + strings.Repeat("v", 256<<10) }
	produce(t, kafka, "lake", 0, few, value)
	if code := commitOffset(t, kafka, few); code != 0 {
		t.Fatalf("commit an offset: %v", kerr.ErrorForCode(code))
	}

	client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.etcd}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	for err == nil {
		_, err = client.Put(within(t), fmt.Sprintf("/other/%d", time.Now().UnixNano()), string(make([]byte, 64<<10)))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatal(err)
	}

	// It is told, and the agent serves on.
	p.await(t, p.stderr, `level=ERROR msg="etcd has no space left`)
	awaitMetric(t, metrics, "varve_etcd_no_space", func(v string) bool { return v == "1" })
	status := []string{"--etcd", c.etcd, "--cluster", c.name}
	awaitStatus(t, func(status int, out string) bool {
		return status == 1 && strings.Contains(out, "\n! etcd has no space left and refuses writes")
	}, status...)
	if status, _ := get(t, "http://"+http+"/readyz"); status != 200 {
		t.Errorf("GET /readyz: status %d, want 200", status)
	}
	produce(t, kafka, "lake", few, few, value)
	if code := commitOffset(t, kafka, 2*few); code != kerr.CoordinatorNotAvailable.Code {
		t.Errorf("commit an offset: %v, want COORDINATOR_NOT_AVAILABLE", kerr.ErrorForCode(code))
	}

	// The WAL fills, and producers wait.
	producer := connect(t, kafka, kgo.DefaultProduceTopic("lake"), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	produced := make(chan error, all)
	for i := int64(2 * few); i < all; i++ {
		producer.Produce(t.Context(), &kgo.Record{Value: []byte(value(i))}, func(_ *kgo.Record, err error) { produced <- err })
	}
	awaitMetric(t, metrics, "varve_wal_waiting_requests", func(v string) bool { return v != "0" })

	// What was the operator's own goes, the controller compacts, and the operator defragments and disarms the alarm.
	gone, err := client.Delete(within(t), "/other/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	late := time.After(spacePatience)
	for err = nil; !errors.Is(err, rpctypes.ErrCompacted); {
		select {
		case <-late:
			t.Fatalf("what was deleted is still in etcd's history: %v", err)
		case <-time.After(100 * time.Millisecond):
			_, err = client.Get(within(t), "/other/", clientv3.WithRev(gone.Header.Revision-1))
		}
	}
	if _, err := client.Defragment(within(t), server.Address); err != nil {
		t.Fatal(err)
	}
	if _, err := client.AlarmDisarm(within(t), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	for range all - 2*few {
		select {
		case err := <-produced:
			if err != nil {
				t.Fatalf("a record that waited: %v", err)
			}
		case <-time.After(spacePatience):
			t.Fatal("producers wait for ever")
		}
	}
	consume(t, kafka, "lake", all, value)
	if code := commitOffset(t, kafka, all); code != 0 {
		t.Errorf("commit an offset afterwards: %v", kerr.ErrorForCode(code))
	}
	p.await(t, p.stderr, `level=INFO msg="etcd has space again`)
	awaitStatus(t, func(status int, _ string) bool { return status == 0 }, status...)
}

// commitOffset commits an offset of a group that has no members, once, and returns the code of the answer.
func commitOffset(t *testing.T, kafka string, offset int64) int16 {
	t.Helper()
	req := kmsg.NewPtrOffsetCommitRequest()
	req.Group = "readers"
	topic, partition := kmsg.NewOffsetCommitRequestTopic(), kmsg.NewOffsetCommitRequestTopicPartition()
	topic.Topic, partition.Offset = "lake", offset
	topic.Partitions = append(topic.Partitions, partition)
	req.Topics = append(req.Topics, topic)
	answer, err := req.RequestWith(within(t), connect(t, kafka).SeedBrokers()[0])
	if err != nil {
		t.Fatal(err)
	}
	return answer.Topics[0].Partitions[0].ErrorCode
}

// awaitMetric waits until a gauge without labels is as it should be.
func awaitMetric(t *testing.T, url, name string, good func(value string) bool) {
	t.Helper()
	late := time.After(spacePatience)
	for {
		_, page := get(t, url)
		for line := range bytes.Lines([]byte(page)) {
			if value, ok := bytes.CutPrefix(line, []byte(name+" ")); ok && good(strings.TrimSpace(string(value))) {
				return
			}
		}
		select {
		case <-late:
			t.Fatalf("%s does not become what it should be:\n%s", name, page)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
