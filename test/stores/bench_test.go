package stores

import (
	"crypto/rand"
	"testing"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/storetest"
	"github.com/varve-io/varve/test/servers"
)

// BenchmarkClients measures the CPU that each client library spends in this process for objects of 8 MiB.
func BenchmarkClients(b *testing.B) {
	setCredentials(b)
	for _, real := range realServers {
		b.Run(real.name, func(b *testing.B) {
			server := real.start(b, servers.StoreOptions{Buckets: []string{bucketName}})
			for _, client := range clients {
				store := open(b, client.url, server.Address, "/bench/"+client.name)
				b.Run("put/"+client.name, func(b *testing.B) { benchmarkPut(b, store) })
				b.Run("get/"+client.name, func(b *testing.B) { benchmarkGet(b, store) })
			}
		})
	}
}

// benchmarkBody is 8 MiB in parts of 64 KiB.
func benchmarkBody() objectstore.Body {
	part := make([]byte, 64<<10)
	var parts [][]byte
	for range 128 {
		parts = append(parts, part)
	}
	return objectstore.Parts(parts...)
}

func benchmarkPut(b *testing.B, store objectstore.Store) {
	body := benchmarkBody()
	b.SetBytes(body.Size)
	storetest.ReportCPU(b, body.Size, func() {
		for b.Loop() {
			if err := store.Put(b.Context(), "put/"+rand.Text(), body); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// benchmarkGet reads an object of 8 MiB in ranges of 1 MiB.
func benchmarkGet(b *testing.B, store objectstore.Store) {
	body := benchmarkBody()
	if err := store.Delete(b.Context(), "get"); err != nil {
		b.Fatal(err)
	}
	if err := store.Put(b.Context(), "get", body); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	off := int64(0)
	storetest.ReportCPU(b, int64(len(p)), func() {
		for b.Loop() {
			if err := store.Get(b.Context(), "get", off, p); err != nil {
				b.Fatal(err)
			}
			off = (off + int64(len(p))) % body.Size
		}
	})
}
