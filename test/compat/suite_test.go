package compat

import (
	"context"
	"debug/buildinfo"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/servers"
)

var (
	target = flag.String("target", "varve", "the broker to test: varve or kafka")
	binary = flag.String("binary", "", "the varve program to test; built from the working tree if empty")
)

// TestMain lets more clients work at a time than there are processors, unless the command line says otherwise: they wait
// for group timers more than they compute.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	m.Run()
}

const (
	// featureWithin bounds one feature of one client, starts of its programs included: on a busy machine, those are most of it.
	featureWithin = 3 * time.Minute
	// compactionWithin bounds what an application does with topics that are compacted, which brokers take their time for.
	compactionWithin = 8 * time.Minute
)

// suite is one run: a broker, a client of our own to look at it, the clients under test, and the results.
type suite struct {
	bootstrap string
	// probe prepares topics and looks at what clients left in the broker. It is franz-go, as is one of the clients
	// under test; what it says of stored batches, it says of their bytes.
	probe    *kgo.Client
	admin    *kadm.Client
	subjects []subject
	tools    console
	classes  string // the folder of the Java programs of this suite
	results  *results
	began    time.Time

	mu         sync.Mutex
	transacted []*transacted // topics that clients wrote in transactions
}

func newSuite(t *testing.T) *suite {
	t.Helper()
	broker := startBroker(t, nil, map[string]string{
		// Without these, a transaction may outlive its timeout by ten seconds, and the first one waits for 50 partitions.
		"transaction.abort.timed.out.transaction.cleanup.interval.ms": "200",
		"transaction.state.log.num.partitions":                        "4",
	})
	s := &suite{results: newResults(), began: time.Now().Truncate(time.Second)}
	s.connect(t, broker)
	s.addSubjects(t)
	return s
}

// beside returns the suite on another broker. It has no subjects, and notes its results with those of s.
func (s *suite) beside(t *testing.T, broker *servers.Server) *suite {
	t.Helper()
	other := &suite{results: s.results, classes: s.classes, tools: console{bootstrap: broker.Address, jars: s.tools.jars}}
	other.connect(t, broker)
	return other
}

// connect gives the suite its broker.
func (s *suite) connect(t *testing.T, broker *servers.Server) {
	t.Helper()
	probe, err := kgo.NewClient(kgo.SeedBrokers(broker.Address), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(probe.Close)
	s.bootstrap, s.probe, s.admin = broker.Address, probe, kadm.NewClient(probe)
}

// startBroker starts the broker under test. Varve takes arguments, and Kafka settings.
func startBroker(t *testing.T, args []string, settings map[string]string) *servers.Server {
	t.Helper()
	switch *target {
	case "varve":
		return servers.Varve(t, servers.VarveOptions{Binary: *binary, Args: args})
	case "kafka":
		return servers.Kafka(t, servers.KafkaOptions{Config: settings})
	}
	t.Fatalf("-target is %q, want varve or kafka", *target)
	return nil
}

// installed returns the path of something that test/tools/install installs.
func installed(t *testing.T, name string) string {
	t.Helper()
	path, err := servers.Install(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (s *suite) addSubjects(t *testing.T) {
	t.Helper()
	jars, classes := installed(t, "kafka"), installed(t, "java")
	python := installed(t, "python")
	modules := installed(t, "js")
	goDrivers := buildGoDrivers(t)
	pinned := func(file, expression string) string { return pinnedVersion(t, file, expression) }

	s.tools, s.classes = console{bootstrap: s.bootstrap, jars: jars}, classes
	k := kcat{bootstrap: s.bootstrap, program: installed(t, "kcat")}
	kcatVersion, err := k.version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kafkaVersion := pinned("../tools/kafka/pom.xml", `<kafka.version>(.*)</kafka.version>`)
	goDriver := func(name string) driver {
		return driver{bootstrap: s.bootstrap, command: []string{filepath.Join(goDrivers, name)}}
	}
	goVersion := func(name, module string) string { return moduleVersion(t, filepath.Join(goDrivers, name), module) }
	s.subjects = []subject{
		{
			name: "kcat", version: kcatVersion, client: k,
			lacks: lacking("kcat has no transactional producer", map[feature]string{administer: "kcat does not administer topics"}),
		},
		{
			name: "confluent-kafka", version: pinned("python/requirements.txt", `confluent-kafka==(.*)`),
			client: driver{bootstrap: s.bootstrap, command: []string{python, "python/confluent_driver.py"}}, fenced: "^_FENCED$", late: "^_FENCED$",
		},
		{
			name: "kafka-python", version: pinned("python/requirements.txt", `kafka-python==(.*)`),
			client: driver{bootstrap: s.bootstrap, command: []string{python, "python/kafka_python_driver.py"}}, fenced: "^ProducerFencedError$", late: "^ProducerFencedError$",
		},
		{
			name: "franz-go", version: goVersion("franz", "github.com/twmb/franz-go"), client: goDriver("franz"),
			fenced: "^PRODUCER_FENCED:", late: "^INVALID_TXN_STATE:",
		},
		{
			name: "sarama", version: goVersion("sarama", "github.com/IBM/sarama"), client: goDriver("sarama"),
			fenced: "Error code = 90$", late: "Error code = 90$", offsetsLast: true,
		},
		{
			name: "kafka-go", version: goVersion("kafkago", "github.com/segmentio/kafka-go"), client: goDriver("kafkago"),
			lacks: lacking("kafka-go has no transactional producer", map[feature]string{
				produceIdempotent: "kafka-go has no idempotent producer", readIsolated: "kafka-go does not drop aborted records",
			}),
		},
		{
			name: "Java clients", version: kafkaVersion,
			client: driver{bootstrap: s.bootstrap, command: append(java(classes, filepath.Join(jars, "*")), "Driver")},
			fenced: "^ProducerFencedException$", late: "^InvalidTxnStateException$",
		},
		{
			name: "Java command line", version: kafkaVersion, client: s.tools,
			lacks: lacking("the console producer has no transactions", nil),
		},
		{
			name: "KafkaJS", version: pinned("js/package.json", `"kafkajs": "(.*)"`),
			client: driver{bootstrap: s.bootstrap, command: []string{"node", "js/driver.js"}, env: []string{"NODE_PATH=" + modules}},
			fenced: "^INVALID_PRODUCER_EPOCH$", late: "^INVALID_PRODUCER_EPOCH$",
			lacks: map[feature]string{copyByTwo: "KafkaJS commits offsets in transactions without the group's generation"},
		},
	}
}

// subject returns the client of that name.
func (s *suite) subject(name string) subject {
	return s.subjects[slices.IndexFunc(s.subjects, func(of subject) bool { return of.name == name })]
}

// lacking adds to what a client lacks all that needs a transactional producer.
func lacking(reason string, others map[feature]string) map[feature]string {
	all := map[feature]string{transactional: reason, fencing: reason, copyRestarted: reason, copyByTwo: reason}
	maps.Copy(all, others)
	return all
}

// buildGoDrivers builds the Go drivers, whose module is not the product's, into a folder of the test.
func buildGoDrivers(t *testing.T) string {
	t.Helper()
	folder := t.TempDir() + string(filepath.Separator)
	cmd := exec.CommandContext(t.Context(), "go", "build", "-C", "go", "-o", folder, "./...")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the Go drivers: %v: %s", err, said)
	}
	return folder
}

func moduleVersion(t *testing.T, binary, module string) string {
	t.Helper()
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, dependency := range info.Deps {
		if dependency.Path == module {
			return dependency.Version
		}
	}
	t.Fatalf("%s does not use %s", binary, module)
	return ""
}

func pinnedVersion(t *testing.T, file, expression string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(expression).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in %s", expression, file)
	}
	return string(found[1])
}

// check runs one feature of one client as a subtest and notes the result.
func (s *suite) check(t *testing.T, of subject, f feature, body func(ctx context.Context, t *testing.T) error) {
	t.Helper()
	if reason, lacking := of.lacks[f]; lacking {
		s.results.set(of.name, f, outcome{notAvailable: reason})
		return
	}
	t.Run(strings.ReplaceAll(string(f), " ", "-"), func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), featureWithin)
		defer cancel()
		err := body(ctx, t)
		s.results.set(of.name, f, outcome{err: err})
		if err != nil {
			t.Error(err)
		}
	})
}

// topic makes a topic for one check and waits until it has leaders.
func (s *suite) topic(ctx context.Context, name string, partitions int32) (string, error) {
	if _, err := s.admin.CreateTopic(ctx, partitions, 1, nil, name); err != nil {
		return "", fmt.Errorf("create topic %s: %w", name, err)
	}
	for {
		topics, err := s.admin.ListTopics(ctx, name)
		if err != nil {
			return "", fmt.Errorf("await topic %s: %w", name, err)
		}
		led := 0
		for _, partition := range topics[name].Partitions {
			if partition.Err == nil && partition.Leader >= 0 {
				led++
			}
		}
		if led == int(partitions) {
			return name, nil
		}
		if err := pause(ctx); err != nil {
			return "", fmt.Errorf("await topic %s: %d of %d partitions led: %w", name, led, partitions, err)
		}
	}
}

// write produces records with the probe, each into its partition, with the timestamps that stamp gives.
func (s *suite) write(ctx context.Context, topic string, records []record, stamp func(i int) time.Time) error {
	batch := make([]*kgo.Record, 0, len(records))
	for i, r := range records {
		batch = append(batch, &kgo.Record{
			Topic: topic, Partition: int32(r.partition), Key: []byte(r.key), Value: []byte(r.value), Timestamp: stamp(i),
		})
	}
	if err := s.probe.ProduceSync(ctx, batch...).FirstErr(); err != nil {
		return fmt.Errorf("write %s: %w", topic, err)
	}
	return nil
}

// corpus makes records that differ in length, compress well, hold more than ASCII and say where they come from.
func corpus(origin string, count int) []record {
	records := make([]record, 0, count)
	for i := range count {
		filling := strings.Repeat("sediment ⇣ Schicht für Schicht; ", 3+i*7%13) // each record alone compresses
		records = append(records, record{
			offset: int64(i), key: fmt.Sprintf("key-%05d", i), value: fmt.Sprintf("%s/%05d %s.", origin, i, filling),
		})
	}
	return records
}

// same compares what was read with what is there, in order.
func same(got, want []record) error {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Errorf("record %d is %v, want %v", i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("read %d records, want %d", len(got), len(want))
	}
	return nil
}

// byOffset orders records by partition and offset.
func byOffset(records []record) []record {
	return slices.SortedFunc(slices.Values(records), func(a, b record) int {
		if a.partition != b.partition {
			return a.partition - b.partition
		}
		return int(a.offset - b.offset)
	})
}
