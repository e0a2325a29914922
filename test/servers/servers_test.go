package servers_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/servers"
)

// TestEtcdLifecycle follows one server through a start, a crash, a restart on its data and a clean stop.
func TestEtcdLifecycle(t *testing.T) {
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	connect(t, etcd)
	etcd.Kill()
	again, err := etcd.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	connect(t, again)
	if again.Address != etcd.Address || again.PID() == etcd.PID() {
		t.Errorf("restarted at %s as %d, want at %s and not as %d", again.Address, again.PID(), etcd.Address, etcd.PID())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// etcd reports SIGTERM as the cause of its end after a clean shutdown.
	if err := again.Stop(ctx); err == nil || !strings.Contains(err.Error(), "signal: terminated") {
		t.Errorf("stopped with %v, want an end by SIGTERM", err)
	}
	select {
	case <-again.Exited():
	default:
		t.Error("Exited is open after Stop")
	}
}

// TestVarve follows Varve through a start, a crash, a restart on its data and a drain.
func TestVarve(t *testing.T) {
	varve := servers.Varve(t, servers.VarveOptions{})
	connect(t, varve)
	varve.Kill()
	again, err := varve.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	connect(t, again)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := again.Stop(ctx); err != nil {
		t.Errorf("drained with %v, want exit status 0\n%s", err, again.Output())
	}
}

// TestKafka starts Apache Kafka twice on one data folder.
func TestKafka(t *testing.T) {
	kafka := servers.Kafka(t, servers.KafkaOptions{})
	connect(t, kafka)
	again, err := kafka.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	connect(t, again)
}

// TestKafkaCluster starts three brokers, which find each other and make a topic of three replicas.
func TestKafkaCluster(t *testing.T) {
	brokers, err := servers.StartKafkaCluster(t.Context(), 3, servers.KafkaOptions{Data: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, b := range brokers {
			b.Kill()
		}
	})
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers[2].Address))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	if _, err := admin.CreateTopic(t.Context(), 1, -1, nil, "copied"); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: "copied", Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	listed, err := admin.ListTopics(t.Context(), "copied")
	if err != nil {
		t.Fatal(err)
	}
	if replicas := listed["copied"].Partitions[0].Replicas; len(replicas) != 3 {
		t.Errorf("replicas %v, want three", replicas)
	}
}

// TestStores starts each object store with a bucket.
func TestStores(t *testing.T) {
	for name, start := range map[string]func(testing.TB, servers.StoreOptions) *servers.Server{
		"minio": servers.MinIO, "versitygw": servers.Versitygw,
	} {
		t.Run(name, func(t *testing.T) {
			connect(t, start(t, servers.StoreOptions{Buckets: []string{"varve"}}))
		})
	}
}

// TestNotReady shows what a server's failure to start says.
func TestNotReady(t *testing.T) {
	_, err := servers.StartVarve(t.Context(), servers.VarveOptions{Binary: "/bin/ls", Data: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "ended before it was ready") || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("started /bin/ls with %v, want its complaint about --listen", err)
	}
}

func connect(t *testing.T, s *servers.Server) {
	t.Helper()
	connection, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Address)
	if err != nil {
		t.Fatalf("connect to %s: %v\n%s", s.Name, err, s.Output())
	}
	if err := connection.Close(); err != nil {
		t.Error(err)
	}
}
