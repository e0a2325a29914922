// Package config is the configuration of Varve's processes: what can be set, where from, and what is wrong with it.
//
// A setting has one name everywhere: the flag --wal-sync, the environment variable VARVE_WAL_SYNC, the key wal-sync of
// the YAML file that --config names. A flag wins over the environment, the environment over the file, the file over the
// default. An empty variable counts as not set.
//
//	reader := config.Bind(config.Agent, cmd.Flags())    // defines the flags
//	cfg, err := reader.Read(os.LookupEnv, os.ReadFile)  // after they were parsed
//
// The file is one mapping of names to values; etcd may also be a list:
//
//	etcd: [http://10.0.0.1:2379, http://10.0.0.2:2379]
//	bucket: s3://lake/varve?region=eu-central-1
//	listen: 10.0.0.7:9092
//
// Nothing is ignored: a key that is not a setting, or one given twice, is an error with its line and column. Every error
// is an [*Error] of one line, which says where the value stands, what was seen and what was wanted. The package reads
// neither files nor the environment by itself.
package config

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/varve-io/varve/objectstore/bucket"
)

// Command is a command that has a configuration.
type Command string

// Commands. Dev has those settings that do not concern its neighbours: its etcd and its bucket are its own. Status has those that say where a cluster's etcd
// is: Etcd and Cluster, or the Data of a dev. Inspect has Etcd and Cluster,
// or Bucket, or none of them, from flags alone. Fsck and Cost have what Status has, and Bucket, which is zero for a dev. Restore has Etcd, Cluster and Bucket, and needs them.
const (
	Dev     Command = "dev"
	Agent   Command = "agent"
	Status  Command = "status"
	Inspect Command = "inspect"
	Fsck    Command = "fsck"
	Cost    Command = "cost"
	Restore Command = "restore"
)

// Config is a configuration without contradictions.
type Config struct {
	// Agents is how many agents run in the process; 1 but in dev.
	Agents int
	// Listen is where to serve Kafka's protocol. Port 0 takes a free one. Of several agents, each has the port after that of the one before, and so
	// with Advertise.
	Listen Address
	// Advertise is what clients are told to connect to; zero means the address that Listen became.
	Advertise Address
	// Balancer says that Advertise is the address of a load balancer in front of all agents.
	Balancer bool
	// PeerListen is where other agents reach this agent, and PeerAdvertise what they are told to connect to; zero means the address that
	// PeerListen became. Both are zero if there is one copy only and no other agent's is taken.
	PeerListen    Address
	PeerAdvertise Address
	// PeerTLS is a folder with the certificates for mutual TLS between agents; empty for none.
	PeerTLS string
	// WALCopies is how many agents hold each record until it is in the bucket; zero in dev, where there are as many as agents, up to three.
	WALCopies int
	// HTTP is where to serve health, metrics and profiles.
	HTTP Address
	// Data is the folder of the WAL, and in dev of everything, as it was given: it may be relative.
	Data string
	// Etcd holds the URLs of etcd's members; none in dev, nor if that of a dev is meant, nor if nothing in etcd is to be inspected.
	Etcd []string
	// Bucket is the object store; zero in dev, and if nothing in a bucket is to be inspected.
	Bucket bucket.URL
	// Cluster is the cluster's name, and the part of etcd that is its: /varve/NAME/.
	Cluster string
	// Zone is where the agent runs, the rack in Kafka's metadata; may be empty. In dev it is Zones, which the agents take in turn.
	Zone  string
	Zones []string
	// AutoCreateTopics says that Metadata and Produce create unknown topics (auto.create.topics.enable).
	AutoCreateTopics bool
	// Partitions is how many a topic gets that is created without a number (num.partitions).
	Partitions int32
	// Shards is how many a new cluster gets, for ever.
	Shards uint32
	// WALSync says that an acknowledgement waits until the disk has it, not only the kernel.
	WALSync bool
	// WALBytesMax is how many unflushed bytes the WAL holds in memory until producers are slowed down.
	WALBytesMax int64
	// DiskCacheBytes bounds the file in which each agent keeps blocks of segments; 0 for none.
	DiskCacheBytes int64
	// TransactionTimeoutMax is the longest timeout that a transactional producer may ask for (transaction.max.timeout.ms).
	TransactionTimeoutMax time.Duration
	// ProducerIDExpiration is after how long without a batch a partition forgets an idempotent producer (producer.id.expiration.ms).
	ProducerIDExpiration time.Duration
	// RetentionCheck is how often records are looked for that are past their topics' retention (log.retention.check.interval.ms).
	RetentionCheck time.Duration
	// MergeAfter is after how long what was flushed is merged, however little it is.
	MergeAfter time.Duration
	// CompactionMemory bounds the memory for the keys of a partition that is compacted, in bytes (log.cleaner.dedupe.buffer.size).
	CompactionMemory int64
	// GarbageGrace is for how long an object that nothing refers to stays in the bucket.
	GarbageGrace time.Duration
	// AcceptLoss is the WAL log of which an operator says that what it still holds may be given up; 0 for none.
	AcceptLoss uint64
	// LogLevel is the least level that is logged.
	LogLevel slog.Level

	places map[string]string
}

// Place returns where the value of a setting stands, for messages about it: "--data", "VARVE_DATA",
// "varve.yaml:3:7: data" or "default of --data".
func (c Config) Place(name string) string { return c.places[name] }

// Error is what is wrong with a setting, or with the command line.
type Error struct {
	Place string // "--listen", "VARVE_LISTEN", "varve.yaml:3:9: listen"
	Seen  string
	Want  string
	Err   error // instead of Seen and Want, if something below says it better
}

// Error implements error, in one line.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Place, e.Err)
	}
	return fmt.Sprintf("%s: seen %s, want %s", e.Place, e.Seen, e.Want)
}

// Unwrap gives Err.
func (e *Error) Unwrap() error { return e.Err }
