package etcd_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"

	"github.com/varve-io/varve/coordinator/etcd"
)

// narrow is an etcd that does not come to the end of an answer with more items than it has room for.
type narrow struct {
	etcdserverpb.UnimplementedKVServer
	keys []string
	room int64
}

func (n *narrow) Range(ctx context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	if r.Limit > n.room {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	at, _ := slices.BinarySearch(n.keys, string(r.Key))
	page := n.keys[at:min(at+int(r.Limit), len(n.keys))]
	answer := &etcdserverpb.RangeResponse{Header: &etcdserverpb.ResponseHeader{Revision: 7}, More: at+len(page) < len(n.keys)}
	for _, key := range page {
		answer.Kvs = append(answer.Kvs, &mvccpb.KeyValue{Key: []byte(key), ModRevision: 5})
	}
	return answer, nil
}

// TestListLarge: a list whose pages do not come in time asks for smaller ones.
func TestListLarge(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &narrow{room: 64}
	for i := range 200 {
		n.keys = append(n.keys, fmt.Sprintf("/varve/k/%03d", i))
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, n)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	store := open(t, etcd.Config{Endpoints: []string{"http://" + l.Addr().String()}, Prefix: "/varve/"})
	items, revision, err := store.List(t.Context(), "k/", 0)
	if err != nil || len(items) != 200 || items[199].Key != "k/199" || revision != 7 {
		t.Errorf("List = %d items as of revision %d, %v; want 200 as of 7", len(items), revision, err)
	}
}
