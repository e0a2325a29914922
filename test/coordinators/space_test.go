package coordinators_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/test/servers"
)

// TestNoSpace holds what KEYS.md says of an etcd whose quota is used up, and that it takes writes again once an operator has made room and disarmed the alarm.
func TestNoSpace(t *testing.T) {
	const quota = 4 << 20
	server := servers.Etcd(t, servers.EtcdOptions{QuotaBytes: quota})
	store := open(t, server, "/varve/")
	ctx := t.Context()
	if st, err := store.Status(ctx); err != nil || st.NoSpace || st.QuotaBytes != quota {
		t.Fatalf("Status = %+v, %v; want space within a quota of %d", st, err, quota)
	}
	kept, ending := grant(t, store, "kept"), grant(t, store, "ending")
	alive, end := context.WithCancel(ctx)
	defer end()
	for lease, until := range map[int64]context.Context{kept: ctx, ending: alive} {
		go func() { _ = store.KeepAlive(until, lease) }()
	}
	begin, err := store.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, store)
	full, err := store.Status(ctx)
	if err != nil || !full.NoSpace {
		t.Fatalf("Status = %+v, %v; want no space", full, err)
	}

	small := coordinator.Op{Key: "small", Value: []byte("1")}
	wantNoSpace := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, coordinator.ErrNoSpace) {
			t.Errorf("%s: %v, want ErrNoSpace", what, err)
		}
	}
	_, err = store.Txn(ctx, nil, []coordinator.Op{small})
	wantNoSpace("a small put", err)
	_, err = store.Txn(ctx, []coordinator.Compare{{Key: "absent", Revision: 7}}, []coordinator.Op{small})
	wantNoSpace("one that would not have held", err)
	_, err = store.Grant(ctx, 2)
	wantNoSpace("a new lease", err)
	guard := coordinator.Guard{Key: "guard", Next: []byte("1")}
	wantNoSpace("a guarded write", coordinator.Apply(ctx, store, []*coordinator.Guard{&guard}, nil))

	// Leases end, by themselves and by revocation, and those that are kept stay.
	gone := make(chan string, 10)
	go func() {
		_ = store.Watch(ctx, "lease/", begin.Revision, func(b coordinator.Batch) {
			for _, e := range b.Events {
				if e.Deleted {
					gone <- e.Key
				}
			}
		})
	}()
	end()
	select {
	case key := <-gone:
		if key != "lease/ending" {
			t.Errorf("%s ended, want the lease that nobody kept", key)
		}
	case <-time.After(time.Minute):
		t.Error("a lease that nobody keeps does not end")
	}
	if item, _, err := store.Get(ctx, "lease/kept"); err != nil || item.ModRevision == 0 {
		t.Errorf("the lease that is kept: %+v, %v", item, err)
	}
	if err := store.Revoke(ctx, kept); err != nil {
		t.Errorf("Revoke: %v", err)
	}
	if result, err := store.Txn(ctx, nil, []coordinator.Op{{Key: "fill/0", Delete: true}}); err != nil || !result.Succeeded {
		t.Errorf("a deletion: %+v, %v", result, err)
	}
	if result, err := store.Txn(ctx, nil, []coordinator.Op{{Key: "fill/", Delete: true, Prefix: true}}); err != nil || !result.Succeeded {
		t.Errorf("a deletion of a prefix: %+v, %v", result, err)
	}
	now, err := store.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Compact(ctx, now.Revision); err != nil {
		t.Errorf("Compact: %v", err)
	}
	_, err = store.Txn(ctx, nil, []coordinator.Op{small})
	wantNoSpace("a put while the alarm is armed", err)

	operate(t, server)
	if result, err := store.Txn(ctx, nil, []coordinator.Op{small}); err != nil || !result.Succeeded {
		t.Errorf("a put after the alarm: %+v, %v", result, err)
	}
	if st, err := store.Status(ctx); err != nil || st.NoSpace || st.SizeBytes >= full.SizeBytes {
		t.Errorf("Status = %+v, %v; want space, and less than %d bytes", st, err, full.SizeBytes)
	}
}

// grant makes a lease of two seconds that a key hangs on.
func grant(t *testing.T, store *etcd.Store, name string) int64 {
	t.Helper()
	lease, err := store.Grant(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Txn(t.Context(), nil, []coordinator.Op{{Key: "lease/" + name, Lease: lease}}); err != nil {
		t.Fatal(err)
	}
	return lease
}

// fill writes until there is no space.
func fill(t *testing.T, store *etcd.Store) {
	t.Helper()
	for i := range 1000 {
		_, err := store.Txn(t.Context(), nil, []coordinator.Op{{Key: fmt.Sprintf("fill/%d", i), Value: make([]byte, 64<<10)}})
		switch {
		case errors.Is(err, coordinator.ErrNoSpace):
			return
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Fatal("the quota is not used up")
}

// operate does what an operator does once there is room inside of the database.
func operate(t *testing.T, server *servers.Server) {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + server.Address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if _, err := client.Defragment(t.Context(), server.Address); err != nil {
		t.Fatal(err)
	}
	if _, err := client.AlarmDisarm(t.Context(), &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
}
