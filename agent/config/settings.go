package config

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/varve-io/varve/objectstore/bucket"
)

// envPrefix comes before the names of environment variables.
const envPrefix = "VARVE_"

// devCluster is the name of dev's cluster.
const devCluster = "dev"

// configName is the one flag that is no setting: it names the file that holds settings.
const configName = "config"

// Limits of settings.
const (
	agentsMax     = 9 // of dev; each takes some 300 MB of disk
	shardsMax     = 4096
	partitionsMax = 10_000
	walCopiesMax  = 7

	transactionTimeoutMax   = 24 * time.Hour
	producerIDExpirationMax = 30 * 24 * time.Hour
	upkeepMax               = 24 * time.Hour
	walBytesMin             = 64 << 20
	walBytesMax             = 1 << 40
	walBytesChosen          = 512 << 20
	compactionMemoryMin     = 1 << 20
	compactionMemoryMax     = 64 << 30
	compactionMemoryChosen  = 128 << 20
	diskCacheMin            = 64 << 20
	diskCacheMax            = 16 << 40
)

// setting is one thing that can be set.
type setting struct {
	name string
	// usage is the help; a word in backquotes stands for the value.
	usage string
	value string // the default; empty for none
	// required says that an agent needs it.
	required bool
	// of lists the commands that have it; nil for those that run agents.
	of []Command
	// list says that the file may give several values, which are joined by commas.
	list bool
	// parse puts a value into the configuration. Its error is a want, or one that says everything itself.
	parse func(c *Config, value string) error
}

// has reports whether a command has the setting.
func (s *setting) has(c Command) bool {
	if s.of == nil {
		return c == Dev || c == Agent
	}
	return slices.Contains(s.of, c)
}

// env is the name of the setting's environment variable.
func (s *setting) env() string { return envName(s.name) }

func envName(name string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// settings lists all there are, in the order in which they are checked.
func settings() []setting {
	return slices.Concat(placeSettings(), addressSettings(), behaviourSettings(), keepingSettings())
}

// placeSettings say where things are.
func placeSettings() []setting {
	return []setting{
		{
			name: "etcd", required: true, of: []Command{Agent, Status, Inspect, Fsck, Cost, Restore}, list: true,
			usage: "etcd's members, as `URL[,URL]`: http://host:port or https://host:port",
			parse: func(c *Config, v string) (err error) { c.Etcd, err = parseEndpoints(v); return err },
		},
		{
			name: "bucket", required: true, of: []Command{Agent, Inspect, Fsck, Cost, Restore},
			usage: "object store, as `URL`: s3://bucket/prefix?region=&endpoint=, minio://host:port/bucket/prefix?secure=, " +
				"file:///folder or mem://",
			parse: func(c *Config, v string) (err error) { c.Bucket, err = bucket.Parse(v); return err },
		},
		{
			name: "cluster", value: "default", of: []Command{Agent, Status, Inspect, Fsck, Cost, Restore},
			usage: "the cluster's `NAME`; its part of etcd is /varve/NAME/",
			parse: func(c *Config, v string) (err error) {
				c.Cluster, err = parsePattern(clusterPattern, v, "1 to 63 letters, digits and ._- that begin with a letter or digit")
				return err
			},
		},
		{
			name: "data", value: "./varve-data", of: []Command{Dev, Agent, Status, Fsck, Cost},
			usage: "`folder` for data, created if it is not there",
			parse: func(c *Config, v string) error {
				if strings.ContainsRune(v, 0) {
					return want("a path")
				}
				c.Data = v
				return nil
			},
		},
		{
			name: "agents", value: "1", of: []Command{Dev},
			usage: "`number` of agents; with more than one, Kafka's ports are that of --listen and those that follow",
			parse: func(c *Config, v string) error {
				n, err := parseNumber(v, agentsMax)
				c.Agents = int(n)
				return err
			},
		},
		{
			name: "zones", of: []Command{Dev},
			usage: "availability zones of the agents, as `zone[,zone]`, in turn; clients see them as racks",
			parse: func(c *Config, v string) (err error) {
				c.Zones, err = parseZones(v)
				return err
			},
		},
		{
			name: "zone", of: []Command{Agent},
			usage: "availability `zone`, which clients see as the rack",
			parse: func(c *Config, v string) (err error) {
				c.Zone, err = parsePattern(zonePattern, v, errZone)
				return err
			},
		},
	}
}

// addressSettings say where to listen, and what others are told of that.
func addressSettings() []setting {
	return []setting{
		{
			name: "listen", value: "127.0.0.1:9092",
			usage: "`host:port` to serve Kafka clients on; there is no authentication yet",
			parse: func(c *Config, v string) (err error) { c.Listen, err = parseAddress(v); return err },
		},
		{
			name:  "advertise",
			usage: "`host:port` that clients are told to connect to (default: where --listen listens, which must then not be a wildcard)",
			parse: func(c *Config, v string) (err error) { c.Advertise, err = parsePublicAddress(v); return err },
		},
		{
			name: "advertise-mode", value: "direct", of: []Command{Agent},
			usage: "`direct|balancer`: clients are told of each agent at its own --advertise, or of one broker at --advertise, which is then a load balancer's address " +
				"and the same for all agents; whichever agent a connection lands on answers everything",
			parse: func(c *Config, v string) error {
				if v != "direct" && v != "balancer" {
					return want("direct or balancer")
				}
				c.Balancer = v == "balancer"
				return nil
			},
		},
		{
			name: "peer-listen", of: []Command{Agent},
			usage: "`host:port` to serve other agents on, which keep copies of their write-ahead logs on this agent's disk, and pass requests on; needed unless --wal-copies is 1 and --advertise-mode direct",
			parse: func(c *Config, v string) (err error) { c.PeerListen, err = parseAddress(v); return err },
		},
		{
			name: "peer-advertise", of: []Command{Agent},
			usage: "`host:port` that other agents connect to (default: where --peer-listen listens, which must then not be a wildcard)",
			parse: func(c *Config, v string) (err error) { c.PeerAdvertise, err = parsePublicAddress(v); return err },
		},
		{
			name: "peer-tls", of: []Command{Agent},
			usage: "`folder` with ca.pem, cert.pem and key.pem, for mutual TLS between agents; without it, a secret of the cluster in etcd keeps strangers out",
			parse: func(c *Config, v string) error {
				c.PeerTLS = v
				return nil
			},
		},
		{
			name: "http", value: "127.0.0.1:9080",
			usage: "`host:port` to serve health, metrics and profiles on",
			parse: func(c *Config, v string) (err error) { c.HTTP, err = parseAddress(v); return err },
		},
	}
}

// behaviourSettings say how to behave.
func behaviourSettings() []setting {
	return []setting{
		{
			name: "auto-create-topics", value: "true",
			usage: "create unknown topics when clients ask for them: `true|false`",
			parse: func(c *Config, v string) (err error) { c.AutoCreateTopics, err = parseBool(v); return err },
		},
		{
			name: "partitions", value: "1",
			usage: "partitions of a topic that is created without a `number`",
			parse: func(c *Config, v string) error {
				n, err := parseNumber(v, partitionsMax)
				c.Partitions = int32(n)
				return err
			},
		},
		{
			name: "shards", value: "128",
			usage: "`number` of shards of a new cluster, a few times the agents that it will ever have; without effect on one that exists",
			parse: func(c *Config, v string) error {
				n, err := parseNumber(v, shardsMax)
				c.Shards = uint32(n)
				return err
			},
		},
		{
			name: "wal-copies", value: "3", of: []Command{Agent},
			usage: "`number` of agents that hold each acknowledged record until it is in the bucket, this one among them; an acknowledgement waits for more than half of them",
			parse: func(c *Config, v string) error {
				n, err := parseNumber(v, walCopiesMax)
				c.WALCopies = int(n)
				return err
			},
		},
		{
			name: "wal-sync", value: "always",
			usage: "`always|none`: acknowledge when the disk has the data, or when the kernel has it, which a crash of the machine loses",
			parse: func(c *Config, v string) error {
				if v != "always" && v != "none" {
					return want("always or none")
				}
				c.WALSync = v == "always"
				return nil
			},
		},
		{
			name: "wal-bytes-max", value: formatSize(walBytesChosen),
			usage: "`size` of what may wait for the object store, in memory; on disk it takes as much and up to 200 MiB more; beyond it producers are slowed down",
			parse: func(c *Config, v string) (err error) {
				c.WALBytesMax, err = parseSize(v, walBytesMin, walBytesMax)
				return err
			},
		},
		{
			name: "disk-cache", value: "0",
			usage: "`size` of a file in the data folder for old data that was read from the bucket, to be read from there again; 0 for none; it leaves the WAL the room that it may want",
			parse: func(c *Config, v string) (err error) {
				if v != "0" {
					c.DiskCacheBytes, err = parseSize(v, diskCacheMin, diskCacheMax)
				}
				return err
			},
		},
		{
			name:  "accept-loss",
			usage: "give up what the WAL log of this `number` still holds: its disk is gone for good, or damaged",
			parse: func(c *Config, v string) error {
				id, err := strconv.ParseUint(v, 16, 64)
				if err != nil || id == 0 {
					return want("the number of a WAL log as the agent's log prints it, up to 16 hexadecimal digits")
				}
				c.AcceptLoss = id
				return nil
			},
		},
		{
			name: "log-level", value: "info",
			usage: "least `level` of what is logged to standard error: debug, info, warn or error",
			parse: func(c *Config, v string) (err error) { c.LogLevel, err = parseLevel(v); return err },
		},
	}
}

// keepingSettings say how long things are kept.
func keepingSettings() []setting {
	return []setting{
		{
			name: "transaction-timeout-max", value: "15m",
			usage: "longest `time` that a transactional producer may ask for until its open transaction is aborted (transaction.max.timeout.ms)",
			parse: func(c *Config, v string) (err error) {
				c.TransactionTimeoutMax, err = parseDuration(v, transactionTimeoutMax)
				return err
			},
		},
		{
			name: "producer-id-expiration", value: "24h",
			usage: "`time` without a batch after which a partition forgets an idempotent producer (producer.id.expiration.ms)",
			parse: func(c *Config, v string) (err error) {
				c.ProducerIDExpiration, err = parseDuration(v, producerIDExpirationMax)
				return err
			},
		},
		{
			name: "retention-check", value: "5m",
			usage: "`time` between two looks for records that are past their topics' retention (log.retention.check.interval.ms)",
			parse: func(c *Config, v string) (err error) {
				c.RetentionCheck, err = parseDuration(v, upkeepMax)
				return err
			},
		},
		{
			name: "merge-after", value: "1h",
			usage: "`time` after which what was flushed is merged, however little it is; shorter costs requests, longer keeps deleted records in the bucket",
			parse: func(c *Config, v string) (err error) {
				c.MergeAfter, err = parseDuration(v, upkeepMax)
				return err
			},
		},
		{
			name: "compaction-memory", value: formatSize(compactionMemoryChosen),
			usage: "`size` of the memory for the keys of a partition that is compacted, 27 bytes each; one with more new keys takes several goes (log.cleaner.dedupe.buffer.size)",
			parse: func(c *Config, v string) (err error) {
				c.CompactionMemory, err = parseSize(v, compactionMemoryMin, compactionMemoryMax)
				return err
			},
		},
		{
			name: "garbage-grace", value: "10m",
			usage: "`time` for which an object that nothing refers to any more stays in the bucket, for those who may be reading it",
			parse: func(c *Config, v string) (err error) {
				c.GarbageGrace, err = parseDuration(v, upkeepMax)
				return err
			},
		},
	}
}
