package config_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/objectstore/bucket"
)

const fileName = "varve.yaml"

// read parses args of a command and reads its configuration, with an environment of "NAME=value" and one file.
func read(t testing.TB, command config.Command, args, env []string, file string) (config.Config, error) {
	t.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	reader := config.Bind(command, flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	lookup := func(name string) (string, bool) {
		i := slices.IndexFunc(env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
		if i < 0 {
			return "", false
		}
		return strings.TrimPrefix(env[i], name+"="), true
	}
	return reader.Read(lookup, func(name string) ([]byte, error) {
		if name != fileName {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return []byte(file), nil
	})
}

func TestDevDefaults(t *testing.T) {
	c, err := read(t, config.Dev, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Listen.String() + " " + c.HTTP.String() + " " + c.Data; got != "127.0.0.1:9092 127.0.0.1:9080 ./varve-data" {
		t.Errorf("addresses and folder: %s", got)
	}
	if c.Agents != 1 || c.Zones != nil || c.Cluster != "dev" || c.Advertise.String() != "" || len(c.Etcd) != 0 || !c.AutoCreateTopics || c.Partitions != 1 ||
		c.Shards != 128 || !c.WALSync || c.WALBytesMax != 512<<20 || c.DiskCacheBytes != 0 || c.LogLevel != slog.LevelInfo {
		t.Errorf("defaults of dev: %+v", c)
	}
}

func TestDevAgents(t *testing.T) {
	c, err := read(t, config.Dev, []string{"--agents", "3", "--listen", "127.0.0.1:65533"}, []string{"VARVE_ZONES=a,b"}, "")
	if err != nil || c.Agents != 3 || !slices.Equal(c.Zones, []string{"a", "b"}) {
		t.Errorf("three agents in two zones: %+v, %v", c, err)
	}
	for _, test := range []struct {
		args        []string
		place, want string
	}{
		{[]string{"--agents", "0"}, "--agents", "1 to 9"},
		{[]string{"--agents", "10"}, "--agents", "1 to 9"},
		{[]string{"--agents", "3", "--listen", "127.0.0.1:65534"}, "--agents", "3 from port 65534"},
		{[]string{"--agents", "3", "--advertise", "h:65535"}, "--agents", "3 from port 65535"},
		{[]string{"--zones", "a,,b"}, "--zones", "zones with commas"},
		{[]string{"--zones", ""}, "--zones", "leave it out"},
	} {
		_, err := read(t, config.Dev, test.args, nil, "")
		checkError(t, strings.Join(test.args, " "), err, test.place, test.want)
	}
}

func TestStatus(t *testing.T) {
	c, err := read(t, config.Status, nil, []string{"VARVE_BUCKET=nonsense", "VARVE_LISTEN=nonsense"}, "")
	if err != nil || len(c.Etcd) != 0 || c.Cluster != "dev" || c.Data != "./varve-data" {
		t.Errorf("status of a dev: %+v, %v", c, err)
	}
	c, err = read(t, config.Status, []string{"--cluster", "prod"}, []string{"VARVE_ETCD=http://h:2379"}, "")
	if err != nil || !slices.Equal(c.Etcd, []string{"http://h:2379"}) || c.Cluster != "prod" {
		t.Errorf("status of a cluster: %+v, %v", c, err)
	}
	_, err = read(t, config.Status, []string{"--cluster", "prod"}, nil, "")
	checkError(t, "no etcd", err, "--cluster", `seen "prod" without --etcd`)
}

func TestFsck(t *testing.T) {
	c, err := read(t, config.Fsck, nil, nil, "")
	if err != nil || len(c.Etcd) > 0 || c.Bucket != (bucket.URL{}) || c.Cluster != "dev" || c.Data != "./varve-data" {
		t.Errorf("fsck of a dev: %+v, %v", c, err)
	}
	c, err = read(t, config.Fsck, []string{"--bucket", "file:///lake"}, []string{"VARVE_ETCD=http://h:2379"}, "")
	if err != nil || c.Bucket.Folder != "/lake" || len(c.Etcd) != 1 || c.Cluster != "default" {
		t.Errorf("fsck of a cluster: %+v, %v", c, err)
	}
	_, err = read(t, config.Fsck, []string{"--etcd", "http://h:2379"}, nil, "")
	checkError(t, "no bucket", err, "--etcd", "seen no --bucket")
	_, err = read(t, config.Fsck, []string{"--bucket", "file:///lake"}, nil, "")
	checkError(t, "no etcd", err, "--bucket", "seen no --etcd")
}

func TestCost(t *testing.T) {
	c, err := read(t, config.Cost, []string{"--bucket", "file:///lake"}, []string{"VARVE_ETCD=http://h:2379"}, "")
	if err != nil || c.Bucket.Folder != "/lake" || len(c.Etcd) != 1 || c.Cluster != "default" {
		t.Errorf("cost of a cluster: %+v, %v", c, err)
	}
	_, err = read(t, config.Cost, []string{"--etcd", "http://h:2379"}, nil, "")
	checkError(t, "no bucket", err, "--etcd", "seen no --bucket")
}

func TestInspect(t *testing.T) {
	env := []string{"VARVE_BUCKET=nonsense", "VARVE_ETCD=http://h:2379"}
	c, err := read(t, config.Inspect, nil, env, "")
	if err != nil || len(c.Etcd) > 0 || c.Bucket != (bucket.URL{}) {
		t.Errorf("inspect of a file: %+v, %v", c, err)
	}
	c, err = read(t, config.Inspect, []string{"--etcd", "http://e:2379"}, env, "")
	if err != nil || !slices.Equal(c.Etcd, []string{"http://e:2379"}) || c.Cluster != "default" {
		t.Errorf("inspect of a key: %+v, %v", c, err)
	}
	_, err = read(t, config.Inspect, []string{"--etcd", "http://e:2379", "--bucket", "file:///lake"}, nil, "")
	checkError(t, "both", err, "--bucket", "seen --etcd too")
}

func TestAgent(t *testing.T) {
	const file = `
# a comment
etcd: ["http://10.0.0.1:2379", 'http://10.0.0.2:2379/']
bucket: s3://lake/varve?region=eu-central-1
cluster: prod
listen: 0.0.0.0:9092
advertise: "broker-1:9092"
peer-listen: "[::1]:9094"
http: :9080
data: /var/lib/varve
zone: eu-central-1a
auto-create-topics: false
partitions: 6
shards: 1024
wal-sync: none
wal-bytes-max: 2GiB
disk-cache: 100GiB
transaction-timeout-max: 1h
producer-id-expiration: 1h30m
retention-check: 30s
merge-after: 10m
compaction-memory: 1GiB
garbage-grace: 1h
log-level: debug
`
	c, err := read(t, config.Agent, []string{"--config", fileName}, nil, file)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"http://10.0.0.1:2379", "http://10.0.0.2:2379"}; !slices.Equal(c.Etcd, want) {
		t.Errorf("etcd %q, want %q", c.Etcd, want)
	}
	if want := (bucket.URL{Scheme: bucket.S3, Bucket: "lake", Prefix: "varve", Region: "eu-central-1"}); c.Bucket != want {
		t.Errorf("bucket %+v, want %+v", c.Bucket, want)
	}
	addresses := []string{c.Listen.String(), c.Advertise.String(), c.PeerListen.String(), c.HTTP.String()}
	if want := []string{"0.0.0.0:9092", "broker-1:9092", "[::1]:9094", ":9080"}; !slices.Equal(addresses, want) {
		t.Errorf("addresses %q, want %q", addresses, want)
	}
	if c.Cluster != "prod" || c.Data != "/var/lib/varve" || c.Zone != "eu-central-1a" || c.AutoCreateTopics || c.Partitions != 6 ||
		c.Shards != 1024 || c.WALSync || c.WALBytesMax != 2<<30 || c.DiskCacheBytes != 100<<30 || c.TransactionTimeoutMax != time.Hour || c.ProducerIDExpiration != 90*time.Minute ||
		c.RetentionCheck != 30*time.Second || c.MergeAfter != 10*time.Minute || c.CompactionMemory != 1<<30 || c.GarbageGrace != time.Hour || c.LogLevel != slog.LevelDebug {
		t.Errorf("configuration %+v", c)
	}
}

// TestPrecedence sets the same thing in more and more places.
func TestPrecedence(t *testing.T) {
	required := []string{"--etcd", "http://h:2379", "--bucket", "mem://", "--wal-copies", "1"}
	const inFile = "zone: of-file"
	env := []string{"VARVE_ZONE=of-env", "VARVE_CONFIG=" + fileName}
	tests := []struct {
		args, env   []string
		zone, place string
	}{
		{nil, nil, "", ""},
		{[]string{"--config", fileName}, nil, "of-file", "varve.yaml:1:7: zone"},
		{nil, env[1:], "of-file", "varve.yaml:1:7: zone"},
		{nil, env, "of-env", "VARVE_ZONE"},
		{nil, []string{"VARVE_ZONE=", env[1]}, "of-file", "varve.yaml:1:7: zone"},
		{[]string{"--zone", "of-flag"}, env, "of-flag", "--zone"},
	}
	for _, test := range tests {
		c, err := read(t, config.Agent, slices.Concat(required, test.args), test.env, inFile)
		if err != nil || c.Zone != test.zone || c.Place("zone") != test.place {
			t.Errorf("%v and %v: zone %q of %q, error %v; want %q of %q",
				test.args, test.env, c.Zone, c.Place("zone"), err, test.zone, test.place)
		}
	}
}

// TestRefusesValues gives each source the same bad values, and wants the place in the message.
func TestRefusesValues(t *testing.T) {
	tests := []struct{ name, value, want string }{
		{"etcd", "10.0.0.1:2379", "http://host:port"},
		{"etcd", "http://h:1,,http://h:2", "http://host:port"},
		{"etcd", "http://h:1/path", "http://host:port"},
		{"etcd", "ftp://h:1", "http://host:port"},
		{"bucket", "gs://lake", "minio://host:port"},
		{"bucket", "s3://Lake", "lower-case"},
		{"cluster", "a/b", "1 to 63 letters"},
		{"cluster", "..", "1 to 63 letters"},
		{"listen", "9092", "host:port"},
		{"listen", "localhost", "host:port"},
		{"listen", "h:99999", "0 to 65535"},
		{"listen", "h:kafka", "0 to 65535"},
		{"listen", "a b:9092", "host name"},
		{"listen", "http://h:9092", "host:port"},
		{"listen", "0.0.0.0:9092", "--advertise"},
		{"listen", ":9092", "--advertise"},
		{"listen", "[::]:9092", "--advertise"},
		{"advertise", "0.0.0.0:9092", "not a wildcard"},
		{"advertise", "h:0", "above 0"},
		{"advertise-mode", "both", "direct or balancer"},
		{"advertise-mode", "balancer", "--advertise host:port"},
		{"peer-listen", "x", "host:port"},
		{"peer-listen", ":9093", "--peer-advertise"},
		{"peer-advertise", "0.0.0.0:9093", "not a wildcard"},
		{"wal-copies", "0", "1 to 7"},
		{"http", "h:-1", "0 to 65535"},
		{"zone", "a b", "letters"},
		{"auto-create-topics", "yes", "true or false"},
		{"partitions", "0", "1 to 10000"},
		{"partitions", "1e3", "1 to 10000"},
		{"shards", "4097", "1 to 4096"},
		{"wal-sync", "sometimes", "always or none"},
		{"wal-bytes-max", "1MiB", "from 64MiB to 1024GiB"},
		{"wal-bytes-max", "9999999999GiB", "from 64MiB"},
		{"wal-bytes-max", "256MB", "from 64MiB"},
		{"wal-bytes-max", "-1", "from 64MiB"},
		{"disk-cache", "1MiB", "from 64MiB to 16384GiB"},
		{"disk-cache", "-1", "from 64MiB"},
		{"transaction-timeout-max", "0s", "from 1s to 24h"},
		{"transaction-timeout-max", "15", "such as 90s"},
		{"producer-id-expiration", "1000h", "from 1s to 720h"},
		{"retention-check", "0s", "from 1s to 24h"},
		{"merge-after", "25h", "from 1s to 24h"},
		{"compaction-memory", "1000", "from 1MiB to 64GiB"},
		{"garbage-grace", "1ms", "from 1s to 24h"},
		{"log-level", "loud", "debug, info, warn or error"},
	}
	for _, test := range tests {
		base := []string{"VARVE_ETCD=http://h:2379", "VARVE_BUCKET=mem://"}
		variable := "VARVE_" + strings.ToUpper(strings.ReplaceAll(test.name, "-", "_"))
		base = slices.DeleteFunc(base, func(s string) bool { return strings.HasPrefix(s, variable+"=") })
		sources := []struct {
			place     string
			args, env []string
			file      string
		}{
			{"--" + test.name, []string{"--" + test.name, test.value}, base, ""},
			{variable, nil, slices.Concat(base, []string{variable + "=" + test.value}), ""},
			{fileName + ":2:" /* and column: */, []string{"--config", fileName}, base, "\n" + test.name + ": '" + test.value + "'\n"},
		}
		for _, source := range sources {
			_, err := read(t, config.Agent, source.args, source.env, source.file)
			checkError(t, test.name+"="+test.value, err, source.place, test.want)
		}
	}
}

func checkError(t *testing.T, what string, err error, place, want string) {
	t.Helper()
	var settingErr *config.Error
	switch {
	case !errors.As(err, &settingErr):
		t.Errorf("%s: %v, want an Error", what, err)
	case !strings.HasPrefix(settingErr.Error(), place) || !strings.Contains(err.Error(), want):
		t.Errorf("%s: %v\nwant the place %q and %q", what, err, place, want)
	case strings.ContainsAny(err.Error(), "\r\n"):
		t.Errorf("%s: message of several lines: %v", what, err)
	}
}

func TestBalancer(t *testing.T) {
	args := []string{"--etcd", "http://h:2379", "--bucket", "mem://", "--wal-copies", "1", "--peer-listen", "h:9093", "--advertise-mode", "balancer", "--advertise", "lb:9092"}
	c, err := read(t, config.Agent, args, nil, "")
	if err != nil || !c.Balancer || c.Advertise.String() != "lb:9092" {
		t.Errorf("balancer %v at %s, %v, want one at lb:9092", c.Balancer, c.Advertise, err)
	}
	_, err = read(t, config.Agent, slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "--peer-listen" || a == "h:9093" }), nil, "")
	checkError(t, "no way from agent to agent", err, "--advertise-mode: seen", "--peer-listen")
}

func TestRequired(t *testing.T) {
	_, err := read(t, config.Agent, []string{"--bucket", "mem://"}, nil, "")
	checkError(t, "no etcd", err, "--etcd: seen none", "VARVE_ETCD")
	_, err = read(t, config.Agent, []string{"--etcd", "http://h:2379"}, nil, "")
	checkError(t, "no bucket", err, "--bucket: seen none", "VARVE_BUCKET")
	_, err = read(t, config.Agent, []string{"--etcd", ""}, nil, "")
	checkError(t, "empty flag", err, `--etcd: seen ""`, "leave it out")
}

func TestRefusesFile(t *testing.T) {
	tests := []struct{ name, file, place, want string }{
		{"unknown key", "zone: a\nlissen: h:1\n", "varve.yaml:2:1", `unknown key "lissen", want one of etcd, bucket`},
		{"config is no key", "config: x\n", "varve.yaml:1:1", `unknown key "config"`},
		{"twice", "zone: a\nlisten: h:1\nzone: b\n", "varve.yaml:3:1", `"zone"`},
		{"list", "zone: [a, b]\n", "varve.yaml:1:7", "a plain value for zone"},
		{"empty list", "etcd: []\n", "varve.yaml:1:7", "or a list"},
		{"list of lists", "etcd: [[a]]\n", "varve.yaml:1:8", "in the list of etcd"},
		{"mapping", "zone:\n  a: b\n", "varve.yaml:2", "a plain value for zone"},
		{"nothing", "zone:\n", "varve.yaml:1:", "seen no value"},
		{"null", "zone: null\n", "varve.yaml:1:7", "seen no value"},
		{"empty", "zone: ''\n", "varve.yaml:1:7: zone", "leave it out"},
		{"number in another notation", "partitions: 0x10\n", "varve.yaml:1:13: partitions", `seen "0x10", want a whole number`},
		{"anchor", "zone: &z a\n", "varve.yaml:1:7", "a plain value"},
		{"alias", "zone: a\ncluster: *z\n", "varve.yaml:2:10", ""},
		{"merge", "<<: {zone: a}\n", "varve.yaml:1:1", "not a plain name"},
		{"tag", "zone: !!str a\n", "varve.yaml:1:7", "a plain value"},
		{"key in quotes is fine, value is not", "\"zone\": 'a b'\n", "varve.yaml:1:9: zone", "letters"},
		{"no mapping", "just text\n", "varve.yaml:1:1", "one mapping"},
		{"a list", "- zone: a\n", "varve.yaml:1:1", "one mapping"},
		{"two documents", "zone: a\n---\nzone: b\n", "varve.yaml:3", "a second document"},
		{"syntax", "zone: [a\n", "varve.yaml:1:", "want YAML"},
		{"syntax of keys", "zone a\nlisten: b\n", "varve.yaml:", ""},
		{"tabs", "zone:\n\t- a\n", "varve.yaml:2", "want YAML"},
		{"large", strings.Repeat("# words\n", 10_000), "varve.yaml", "at most 65536"},
	}
	for _, test := range tests {
		_, err := read(t, config.Agent, []string{"--config", fileName}, []string{"VARVE_ETCD=http://h:2379", "VARVE_BUCKET=mem://"}, test.file)
		checkError(t, test.name, err, test.place, test.want)
	}
	_, err := read(t, config.Agent, []string{"--config", "nothing.yaml"}, nil, "")
	checkError(t, "no file", err, "--config", "nothing.yaml")
	_, err = read(t, config.Agent, nil, []string{"VARVE_CONFIG=nothing.yaml"}, "")
	checkError(t, "no file", err, "VARVE_CONFIG", "nothing.yaml")
}

func TestEmptyFile(t *testing.T) {
	for _, file := range []string{"", "# only a comment\n", "---\n", "{}\n"} {
		args := []string{"--config", fileName, "--etcd", "http://h:2379", "--bucket", "mem://", "--wal-copies", "1"}
		if _, err := read(t, config.Agent, args, nil, file); err != nil {
			t.Errorf("file %q: %v", file, err)
		}
	}
}

func TestKeepsSecrets(t *testing.T) {
	for _, args := range [][]string{
		{"--etcd", "http://root:hunter2@h:2379"},
		{"--etcd", "http://h:2379,http://root:hunter2@h:2379"},
		{"--etcd", "http://h:2379", "--bucket", "s3://key:hunter2@lake"},
		{"--etcd", "http://h:2379", "--bucket", "mem://", "--listen", "http://key:hunter2@h:9092"},
	} {
		_, err := read(t, config.Agent, args, nil, "")
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v: %v, want an error without the secret", args, err)
		}
	}
}

// TestDevIgnoresNeighbours: what concerns a cluster is no flag of dev, and no variable of it.
func TestDevIgnoresNeighbours(t *testing.T) {
	flags := pflag.NewFlagSet("dev", pflag.ContinueOnError)
	config.Bind(config.Dev, flags)
	for _, name := range []string{"etcd", "bucket", "cluster", "peer-listen", "zone", "config"} {
		if flags.Lookup(name) != nil {
			t.Errorf("dev has a flag --%s", name)
		}
	}
	c, err := read(t, config.Dev, nil, []string{"VARVE_CLUSTER=x", "VARVE_CONFIG=nothing.yaml", "VARVE_DATA=/d"}, "")
	if err != nil || c.Cluster != "dev" || c.Data != "/d" {
		t.Errorf("dev: cluster %q, data %q, error %v", c.Cluster, c.Data, err)
	}
}

// TestExample reads the example of a file that the repository has.
func TestExample(t *testing.T) {
	example, err := os.ReadFile("../../deploy/varve.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, config.Agent, []string{"--config", fileName}, nil, string(example)); err != nil {
		t.Error(err)
	}
}

func FuzzFile(f *testing.F) {
	for _, seed := range []string{
		"etcd: [http://h:2379]\nbucket: mem://\n", "a: &b c\nd: *b\n", "<<: {a: b}", "zone: |\n  x\n", "- x", "---\n...\n---", "? a\n: b", "{a: [b, {c: d}]}",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, file string) {
		_, err := read(t, config.Agent, []string{"--config", fileName}, nil, file)
		var settingErr *config.Error
		if err != nil && (!errors.As(err, &settingErr) || strings.ContainsAny(err.Error(), "\r\n")) {
			t.Errorf("file %q: %v, want an Error of one line", file, err)
		}
	})
}
