// Package stores runs the contract suite of object stores with each S3 client against each real server.
package stores

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
	"github.com/varve-io/varve/objectstore/storetest"
	"github.com/varve-io/varve/test/servers"
)

const bucketName = "lake"

var realServers = []struct {
	name  string
	start func(testing.TB, servers.StoreOptions) *servers.Server
}{
	{"versitygw", servers.Versitygw},
	{"MinIO", servers.MinIO},
}

// clients are the libraries, by the URL that opens a store with them.
var clients = []struct{ name, url string }{
	{"s3", "s3://" + bucketName + "%[2]s?endpoint=http://%[1]s"},
	{"minio", "minio://%[1]s/" + bucketName + "%[2]s?secure=false"},
}

// open opens a store on the server, under a prefix that nobody used before. Credentials are in the environment.
func open(t testing.TB, url, address, prefix string) objectstore.Store {
	t.Helper()
	s, err := bucket.Open(t.Context(), fmt.Sprintf(url, address, prefix))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func setCredentials(t testing.TB) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", servers.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", servers.SecretKey)
	t.Setenv("MINIO_ROOT_USER", "")
	t.Setenv("MINIO_ACCESS_KEY", "")
}

func TestContract(t *testing.T) {
	setCredentials(t)
	for _, real := range realServers {
		t.Run(real.name, func(t *testing.T) {
			server := real.start(t, servers.StoreOptions{Buckets: []string{bucketName}})
			var prefixes atomic.Int64
			for _, client := range clients {
				t.Run(client.name, func(t *testing.T) {
					storetest.Run(t, func(t *testing.T) objectstore.Store {
						return open(t, client.url, server.Address, fmt.Sprintf("/run-%d/p", prefixes.Add(1)))
					})
				})
			}
		})
	}
}

// TestUploads checks that uploads of a store that were left are found, those of others not, and that they can be aborted.
func TestUploads(t *testing.T) {
	setCredentials(t)
	for _, real := range realServers {
		t.Run(real.name, func(t *testing.T) {
			server := real.start(t, servers.StoreOptions{Buckets: []string{bucketName}})
			core, err := minio.NewCore(server.Address, &minio.Options{Creds: credentials.NewStaticV4(servers.AccessKey, servers.SecretKey, "")})
			if err != nil {
				t.Fatal(err)
			}
			begin := func(key string) {
				if _, err := core.NewMultipartUpload(t.Context(), bucketName, key, minio.PutObjectOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			for _, client := range clients {
				t.Run(client.name, func(t *testing.T) {
					store, ok := open(t, client.url, server.Address, "/ours/p-"+client.name).(objectstore.Multipart)
					if !ok {
						t.Fatal("the store knows no multipart uploads")
					}
					begin("others/x")
					storetest.Uploads(t, store, func(name string) { begin("ours/p-" + client.name + "/" + name) })
				})
			}
		})
	}
}

// TestMissingBucket checks that a bucket that is not there is told from an object that is not there.
func TestMissingBucket(t *testing.T) {
	setCredentials(t)
	for _, real := range realServers {
		t.Run(real.name, func(t *testing.T) {
			server := real.start(t, servers.StoreOptions{})
			for _, client := range clients {
				t.Run(client.name, func(t *testing.T) {
					storetest.Missing(t, open(t, strings.Replace(client.url, bucketName, "nowhere", 1), server.Address, ""))
				})
			}
		})
	}
}
