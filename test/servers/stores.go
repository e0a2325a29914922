package servers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// AccessKey and SecretKey open the object stores that this package starts.
const (
	AccessKey = "varve-test"
	SecretKey = "varve-test-secret"
)

// StoreOptions say how to start an object store. The zero value starts an empty one on a free port.
type StoreOptions struct {
	// Data is the data folder. See VarveOptions.Data for what no folder means.
	Data string
	// Listen is the address for clients; empty means a free loopback port.
	Listen string
	// Buckets are created once the server serves, where they do not exist.
	Buckets []string
	// Under is what VarveOptions.Under is.
	Under   []string
	started func(*Server)
}

// StartMinIO starts a MinIO server on one folder.
func StartMinIO(ctx context.Context, o StoreOptions) (*Server, error) {
	console, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	return startStore(ctx, o, "minio", func(listen string) command {
		return command{
			args: []string{"server", "--address", listen, "--console-address", console, o.Data},
			env:  []string{"MINIO_ROOT_USER=" + AccessKey, "MINIO_ROOT_PASSWORD=" + SecretKey, "MINIO_BROWSER=off", "MINIO_UPDATE=off"},
			// MinIO accepts connections, and refuses requests, before its object layer is up; it prints this line after.
			ready: regexp.MustCompile(`^API: `),
		}
	})
}

// StartVersitygw starts a Versity S3 gateway over one folder. It does not sync what it writes.
func StartVersitygw(ctx context.Context, o StoreOptions) (*Server, error) {
	return startStore(ctx, o, "versitygw", func(listen string) command {
		return command{
			args: []string{"--port", listen, "--keep-alive", "posix", o.Data},
			env:  []string{"ROOT_ACCESS_KEY=" + AccessKey, "ROOT_SECRET_KEY=" + SecretKey},
		}
	})
}

func startStore(ctx context.Context, o StoreOptions, name string, invocation func(listen string) command) (*Server, error) {
	if o.Data == "" {
		return nil, fmt.Errorf("start %s: no data folder given", name)
	}
	binary, err := Install(ctx, name)
	if err != nil {
		return nil, err
	}
	listen, err := addressOr(ctx, o.Listen)
	if err != nil {
		return nil, err
	}
	c := invocation(listen)
	c.name, c.under, c.program, c.data, c.address, c.started = name, o.Under, binary, o.Data, listen, o.started
	s, err := start(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, bucket := range o.Buckets {
		if err := makeBucket(ctx, s.Address, bucket); err != nil {
			s.Kill()
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
	}
	return s, nil
}

func makeBucket(ctx context.Context, address, bucket string) error {
	client, err := minio.New(address, &minio.Options{Creds: credentials.NewStaticV4(AccessKey, SecretKey, "")})
	if err != nil {
		return fmt.Errorf("make bucket %s: %w", bucket, err)
	}
	exists, err := client.BucketExists(ctx, bucket)
	if err == nil && !exists {
		err = client.MakeBucket(ctx, bucket, minio.MakeBucketOptions{})
	}
	if err != nil {
		return fmt.Errorf("make bucket %s: %w", bucket, err)
	}
	return nil
}

// MinIO starts a MinIO server for a test.
func MinIO(t testing.TB, o StoreOptions) *Server {
	t.Helper()
	o.Data, o.started = forTest(t, o.Data, "minio")
	return must(t)(StartMinIO(t.Context(), o))
}

// Versitygw starts a Versity S3 gateway for a test.
func Versitygw(t testing.TB, o StoreOptions) *Server {
	t.Helper()
	o.Data, o.started = forTest(t, o.Data, "versitygw")
	return must(t)(StartVersitygw(t.Context(), o))
}

// EtcdOptions say how to start etcd. The zero value starts one member on free ports.
type EtcdOptions struct {
	// Data is the data folder. See VarveOptions.Data for what no folder means.
	Data string
	// Listen is the address for clients; empty means a free loopback port.
	Listen string
	// QuotaBytes is what its database may become; 0 means etcd's own default.
	QuotaBytes int64
	// Under is what VarveOptions.Under is.
	Under   []string
	started func(*Server)
}

// StartEtcd starts a cluster of one etcd member, which syncs its writes and uses short election timeouts. Its clients'
// URL is "http://" + Address.
func StartEtcd(ctx context.Context, o EtcdOptions) (*Server, error) {
	if o.Data == "" {
		return nil, errors.New("start etcd: no data folder given")
	}
	binary, err := Install(ctx, "etcd")
	if err != nil {
		return nil, err
	}
	listen, err := addressOr(ctx, o.Listen)
	if err != nil {
		return nil, err
	}
	peer, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	member := "varve-test-" + port
	return start(ctx, command{
		name: "etcd", under: o.Under, program: binary, data: o.Data, address: listen, started: o.started,
		args: []string{
			"--name", member, "--data-dir", o.Data,
			"--listen-client-urls", "http://" + listen, "--advertise-client-urls", "http://" + listen,
			"--listen-peer-urls", "http://" + peer, "--initial-advertise-peer-urls", "http://" + peer,
			"--initial-cluster", member + "=http://" + peer,
			"--heartbeat-interval", "20", "--election-timeout", "200",
			"--quota-backend-bytes", strconv.FormatInt(o.QuotaBytes, 10),
		},
		ready: regexp.MustCompile(`ready to serve client requests`),
	})
}

// Etcd starts etcd for a test.
func Etcd(t testing.TB, o EtcdOptions) *Server {
	t.Helper()
	o.Data, o.started = forTest(t, o.Data, "etcd")
	return must(t)(StartEtcd(t.Context(), o))
}
