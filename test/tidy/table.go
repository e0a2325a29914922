package tidy

// Room is one row of the table: a folder with a package, and what its code may use.
type Room struct {
	// Path is relative to the module; "." is the main package. A path that ends in "/..." stands for a folder and all
	// below it. The first row that matches counts.
	Path string
	// Pure rooms hold decisions: no goroutine, clock, lock, socket, file or logger. Of the standard library they may
	// import what pureLibrary lists, of other modules what Libraries lists, of this module pure rooms only.
	Pure bool
	// Rooms are those of this module that it may import, in the notation of Path. A room may always import what lies
	// below or beside it in the same top folder.
	Rooms []string
	// Libraries are other modules' packages that a pure room may import.
	Libraries []string
}

// rooms says who may import whom: main -> agent -> {wal, objectstore, coordinator} -> protocol. The middle rooms never
// meet. A folder that no row matches is a finding, so that a new room comes with its row.
var rooms = []Room{
	{Path: "protocol", Pure: true},
	{Path: "protocol/crc32c", Pure: true},
	{Path: "protocol/fields", Pure: true},
	{Path: "protocol/wire", Pure: true, Libraries: []string{kmsgLibrary}},
	{Path: "protocol/peering"},
	{Path: "protocol/batch", Pure: true, Libraries: []string{
		"github.com/klauspost/compress/gzip", "github.com/klauspost/compress/s2", "github.com/klauspost/compress/zstd",
		"github.com/pierrec/lz4/v4",
	}},

	{Path: "wal/frame", Pure: true, Rooms: []string{"protocol/crc32c"}},
	{Path: "wal/quorum", Pure: true},
	{Path: "wal", Rooms: []string{"protocol/crc32c"}},
	{Path: "wal/disk", Rooms: []string{"protocol/crc32c"}},
	{Path: "wal/disk/disktest"},
	{Path: "wal/peer", Rooms: []string{"protocol/crc32c", "protocol/peering"}},

	{Path: "objectstore/segment", Pure: true, Rooms: []string{"protocol/..."}},
	{Path: "objectstore/manifest", Pure: true, Rooms: []string{"protocol/..."}},
	{Path: "objectstore/diskcache", Rooms: []string{"protocol/crc32c"}},
	{Path: "objectstore/..."},

	{Path: "coordinator/group", Pure: true, Rooms: []string{"protocol/..."}},
	{Path: "coordinator/txn", Pure: true, Rooms: []string{"protocol/..."}},
	{Path: "coordinator/placement", Pure: true},
	{Path: "coordinator/backup", Pure: true, Rooms: []string{"protocol/..."}},
	{Path: "coordinator/...", Rooms: []string{"protocol/..."}},

	{Path: "agent/partition", Pure: true, Rooms: []string{"protocol/..."}},
	{Path: "agent/compact", Pure: true, Rooms: []string{"protocol/..."}},
	{Path: "agent/...", Rooms: []string{"wal/...", "objectstore/...", "coordinator/...", "protocol/..."}},

	// The load generator is a command of the product, and shares its home with the comparison that uses it.
	{Path: ".", Rooms: []string{"agent/...", "wal/...", "objectstore/...", "coordinator/...", "protocol/...", "test/bench/load"}},

	// The checker of histories runs in a simulation too.
	{Path: "test/check", Pure: true},
	{Path: "test/...", Rooms: []string{"..."}},
}

const kmsgLibrary = "github.com/twmb/franz-go/pkg/kmsg"

// homes gives libraries their rooms: nobody else imports them, tests and what lies in test/ aside. A key matches the
// package and all below it, and the longest key counts.
var homes = map[string][]string{
	// A socket's deadline ends in os.ErrDeadlineExceeded, which is all that agent/server wants.
	"os":        {".", "wal/disk", "objectstore/dir", "objectstore/diskcache", "coordinator/etcd/embedded", "agent/server"},
	"os/exec":   {},
	"os/signal": {"."},
	// Below are sockets, but for four that need less: agent is handed a listener and forward connections, config takes addresses apart, status puts them together.
	"net":                               {".", "agent/server", "agent/forward", "agent/admin", "objectstore/internal/s3http", "objectstore/zone", "wal/peer", "protocol/peering", "agent", "agent/config", "agent/status"},
	"net/netip":                         {"agent/config"},
	"net/url":                           {"agent/config", "objectstore/bucket", "coordinator", "coordinator/etcd/embedded"},
	"net/http":                          {"agent/admin", "objectstore/s3", "objectstore/minio", "objectstore/internal/s3http"},
	"log":                               {},
	"log/slog":                          {".", "agent/...", "wal/...", "objectstore/zone", "objectstore/diskcache", "protocol/peering", "coordinator", "coordinator/etcd/..."},
	"go.etcd.io/etcd":                   {"coordinator/etcd"},
	"go.etcd.io/etcd/server":            {"coordinator/etcd/embedded"},
	"google.golang.org/grpc":            {"coordinator/etcd/..."},
	"github.com/aws":                    {"objectstore/s3"},
	"github.com/minio":                  {"objectstore/minio"},
	"github.com/prometheus":             {".", "agent/...", "objectstore/metered", "wal/peer", "protocol/peering"},
	"github.com/spf13":                  {".", "agent/config"},
	"github.com/goccy/go-yaml":          {"agent/config", "agent/cost"},
	"github.com/twmb/franz-go":          {},
	"github.com/twmb/franz-go/pkg/kmsg": {"protocol/wire", "agent/..."},
	"github.com/klauspost/compress":     {"protocol/batch"},
	"github.com/pierrec/lz4":            {"protocol/batch"},
	"github.com/HdrHistogram":           {},
	"github.com/cockroachdb/datadriven": {},
	"testing":                           {"wal/disk/disktest", "objectstore/storetest", "coordinator/coordtest"},
	"golang.org/x/sys/unix":             {"wal", "wal/disk", "protocol/peering", "objectstore/dir", "objectstore/diskcache", "coordinator/etcd/embedded"},
	"syscall":                           {".", "agent", "objectstore/dir", "objectstore/storetest"},
	"golang.org/x/net":                  {"agent/admin"},
	"go.uber.org/zap":                   {"coordinator/etcd/..."},
	"github.com/google/uuid":            {"agent", "wal/disk", "wal/peer", "protocol/peering"},
}

// pureLibrary is what pure rooms may import of the standard library: nothing that starts, waits, locks or does I/O. Of
// package time they may use instants and durations, but no clock: see clocks.
var pureLibrary = []string{
	"bytes", "cmp", "container/heap", "container/list", "crypto/sha256", "encoding/base64", "encoding/binary", "encoding/hex",
	"errors", "fmt", "hash", "hash/crc32", "hash/crc64", "hash/fnv", "io", "iter", "maps", "math", "math/bits", "slices", "sort", "strconv",
	"strings", "time", "unicode", "unicode/utf8",
}

// clocks are the functions of package time that know what time it is, or wait.
var clocks = []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Sleep"}

// vagueNames are names of packages that do not say what is inside.
var vagueNames = []string{"base", "common", "helper", "helpers", "manager", "misc", "shared", "types", "util", "utils"}
