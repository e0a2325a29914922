// Package zone has the agents of one zone fetch each piece of an object from the bucket once, and hand it on to each other.
//
//	source := zone.New(zone.Config{Self: 3, Homes: homes, Dial: dial, Log: log}, cache.NewBucket(store))
//	blocks, err := cache.New(config, source)       // this agent's reads
//	server := zone.NewServer(blocks, cacheBytes)   // those of the others
//	server.Serve(ctx, conn)
//
// # Model
//
// Each piece of an object (as long as one GET of the cache, [cache.GetBytesDefault]) has a home among the agents: the one
// with the highest hash of piece and agent, so that pieces are spread evenly, and only those move whose home comes or goes. An
// agent that lacks blocks of a piece asks its home, which reads them through its own cache: whoever asks meanwhile shares its
// GET, and whoever asks later finds the blocks there. The one that asked keeps them too, since consumers come to a block many
// times.
//
// All of this is about saving GETs. Whatever goes wrong, the one that asked goes to the bucket itself: a home that cannot be
// reached, has no memory to spare, does not find the object, or does not have it within three quarters of a second, in which a bucket
// answers all but a few GETs. Then it says so. A home that says nothing within a second, or did not answer as it should, is left out for ten seconds, and the
// next in the order of hashes is asked instead; nothing else is concluded from it. Bytes are not believed for where they come from: batches have
// checksums, and who finds one wrong asks again with [cache.Object.Direct].
//
// A home never asks others for what it is asked for: it goes to the bucket, whether or not it believes to be the home. Agents that
// see different agents do not send each other round in circles, therefore; the most that may happen is that such a read meets one of the
// home's own, which was sent before the home knew better. It ends like any that takes too long.
//
// The price is a second hop, for what one agent alone needs too: handing out a GiB costs both agents together about 0.9 s of CPU, as much as a client of
// MinIO spends on reading it (BenchmarkHome; test/stores, BenchmarkClients), and the block lies in two caches.
//
// # Bytes
//
// A connection carries one request at a time; numbers are little-endian. Both sides have proved who they are before (protocol/peering).
//
//	request                                    answer
//	 0   1  version, 1                          0   1  0: the bytes follow; 1: refused
//	 1   2  length of the name, 1 to 512        1      as many bytes as were asked for
//	 3   4  how many bytes, 1 to 4 MiB
//	 7   8  from which offset
//	15   8  size of the object
//	23      its name
//
// A refusal ends the request, and the connection goes on. What is no request ends the connection.
//
// # Limits
//
// An agent has four requests to each home under way, and more wait in line, up to the same second. A home answers sixteen at a time, or fewer
// if these could pin more than a quarter of its cache, and takes no memory from a cache of which all is held. A GET that comes too late for who asked counts until it has come. The answer must be taken, and must
// come, within five seconds, so that nobody holds the other's memory for longer.
package zone

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"time"

	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/cache"
)

const (
	// beginMax is how long a home may take until it begins to answer: for the connection, and for its own GET.
	beginMax = time.Second
	// readMax is how long a home reads for another agent until it refuses: so much less that a bucket which is slow is not taken for a home which is.
	readMax = beginMax * 3 / 4
	// answerMax is how long the rest of an answer may take: below a megabyte per second the bucket is faster.
	answerMax = 5 * time.Second
	// leftOutFor is how long a home that failed is not asked.
	leftOutFor = 10 * time.Second
	// asksMax is how many requests to one home are under way.
	asksMax = 4
	// answersMax is how many requests of others are served at once, and pinnedShare the part of the cache that they may pin: one in so many.
	answersMax  = 16
	pinnedShare = 4
	// idleMax is how long a connection that nobody uses is kept, and idleCut when the home ends it.
	idleMax = 30 * time.Second
	idleCut = time.Minute
)

const (
	version      = 1
	requestBytes = 23 // before the name
)

// status begins an answer.
type status byte

const (
	statusHere status = iota
	statusRefused
)

// errProtocol: what came is nothing that the protocol knows.
var errProtocol = errors.New("protocol of blocks broken")

// request is what an agent asks a home for.
type request struct {
	object cache.Object
	off, n int64
}

// append appends the encoded request to b.
func (r *request) append(b []byte) []byte {
	b = append(b, version)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(r.object.Name)))
	b = binary.LittleEndian.AppendUint32(b, uint32(r.n))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.off))
	b = binary.LittleEndian.AppendUint64(b, uint64(r.object.Size))
	return append(b, r.object.Name...)
}

// readRequest reads a request, which lies in its object as far as that can be told. The error is that of in, or errProtocol.
func readRequest(in io.Reader) (request, error) {
	b := make([]byte, requestBytes)
	if _, err := io.ReadFull(in, b); err != nil {
		return request{}, err
	}
	if b[0] != version {
		return request{}, fmt.Errorf("%w: version %d, want %d", errProtocol, b[0], version)
	}
	r := request{
		object: cache.Object{Size: int64(binary.LittleEndian.Uint64(b[15:]))},
		off:    int64(binary.LittleEndian.Uint64(b[7:])),
		n:      int64(binary.LittleEndian.Uint32(b[3:])),
	}
	name := int(binary.LittleEndian.Uint16(b[1:]))
	if name > objectstore.NameBytesMax {
		return request{}, fmt.Errorf("%w: name of %d bytes, want at most %d", errProtocol, name, objectstore.NameBytesMax)
	}
	b = make([]byte, name)
	if _, err := io.ReadFull(in, b); err != nil {
		return request{}, err
	}
	r.object.Name = string(b)
	if r.n < 1 || r.n > cache.GetBytesDefault || r.off < 0 || r.object.Size < r.n || r.off > r.object.Size-r.n || !objectstore.ValidName(r.object.Name) {
		return request{}, fmt.Errorf("%w: %d bytes from %d of %q of %d bytes", errProtocol, r.n, r.off, r.object.Name, r.object.Size)
	}
	return r, nil
}

// homeOf returns which of the agents is the home of a piece: rendezvous hashing. Of none it is 0, which no agent is.
func homeOf(object string, piece int64, agents []int32) int32 {
	if len(agents) == 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(object))
	seed := mix(h.Sum64() + uint64(piece))
	weight := func(agent int32) uint64 { return mix(seed ^ mix(uint64(agent))) }
	return slices.MaxFunc(agents, func(a, b int32) int { return cmp.Compare(weight(a), weight(b)) })
}

// mix spreads every bit of x over all others: the finalizer of MurmurHash3. FNV alone does not, and names and agents differ in few bits.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
