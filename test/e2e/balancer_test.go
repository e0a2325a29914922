package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/servers"
)

// behind is an agent behind the load balancer, at addresses that it keeps when it starts again.
type behind struct {
	args        []string
	kafka, http string
	p           *process
}

func (b *behind) start(t *testing.T) {
	t.Helper()
	b.p = start(t, nil, b.args...)
}

// balance starts three agents behind HAProxy, which deals connections out in turn, and returns them and its address.
func balance(t *testing.T) (agents []*behind, address string) {
	t.Helper()
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	bucket := t.TempDir()
	address = freeAddress(t)
	var rows strings.Builder
	for n := range 3 {
		b := &behind{kafka: freeAddress(t), http: freeAddress(t)}
		b.args = []string{
			"agent", "--etcd", "http://" + etcd.Address, "--bucket", "file://" + bucket, "--cluster", "balanced", "--data", t.TempDir(),
			"--listen", b.kafka, "--http", b.http, "--peer-listen", freeAddress(t), "--advertise-mode", "balancer", "--advertise", address,
		}
		b.start(t)
		agents = append(agents, b)
		fmt.Fprintf(&rows, "  server agent%d %s check port %s inter 200ms fall 1 rise 1\n", n+1, b.kafka, b.http[strings.LastIndex(b.http, ":")+1:])
	}
	for _, b := range agents {
		b.p.ready(t)
	}
	haproxy(t, address, rows.String())
	return agents, address
}

// haproxy starts HAProxy before agents that it asks for their readiness, and waits until it takes connections.
func haproxy(t *testing.T, address, rows string) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 5m\n  timeout server 5m\n" +
		"listen kafka\n  bind " + address + "\n  balance roundrobin\n  option httpchk GET /readyz\n  option redispatch\n" + rows
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), installed(t, "haproxy"), "-db", "-f", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said := newOutput()
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("HAProxy said:\n%s", said)
		}
	})
	client := connect(t, address)
	for {
		if err := client.Ping(within(t)); err == nil {
			return
		}
	}
}

// behindMax is how many records a reader may be behind: one of them commits each by itself, which takes as long as the machine's disk does.
const behindMax = 1000

// TestBalancer has clients of three kinds produce and consume through a load balancer, while each agent in turn drains and starts again, one is killed, and one freezes for
// as long as it takes the others to replace it. None of them sees an error, no record is lost or doubled, and no group is balanced anew.
func TestBalancer(t *testing.T) {
	agents, address := balance(t)
	t.Run("metadata", func(t *testing.T) { oneBroker(t, address) })
	const partitions = 12
	clients := []struct {
		name  string
		write func(t *testing.T, address, topic string) (line func(string), done func())
		read  func(t *testing.T, address, topic string) (got func() []string, done func())
	}{
		{"franz-go", franzWriter, franzReader},
		{"librdkafka", confluentWriter, confluentReader},
		{"java", javaWriter, javaReader},
	}
	type flow struct {
		name string
		line func(string)
		end  func()
		got  func() []string
		over func()
		sent []string
	}
	flows := make([]*flow, len(clients))
	for i, c := range clients {
		createTopic(t, address, c.name, partitions)
		f := &flow{name: c.name}
		f.got, f.over = c.read(t, address, c.name)
		f.line, f.end = c.write(t, address, c.name)
		flows[i] = f
	}
	writable, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	for _, f := range flows {
		writing.Go(func() {
			for n := 0; ; n++ {
				for pause := true; pause; pause = n%100 == 0 && n-len(f.got()) > behindMax {
					select {
					case <-writable.Done():
						return
					case <-time.After(5 * time.Millisecond):
					}
				}
				line := fmt.Sprintf("%s-%d", f.name, n)
				f.line(line)
				f.sent = append(f.sent, line)
			}
		})
	}
	t.Cleanup(func() {
		stop()
		writing.Wait()
	})
	await := func(f *flow, n int) {
		t.Helper()
		for late := time.Now().Add(patience); len(f.got()) < n; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("%s: read %d records, want %d", f.name, len(f.got()), n)
			}
		}
	}
	for _, f := range flows {
		await(f, 100)
	}
	generations := generationsOf(t, address, "franz-go", "librdkafka", "java")
	leaves := []struct {
		agent int
		how   func(t *testing.T, p *process, address, topic string)
	}{{0, drained}, {1, drained}, {2, drained}, {0, killed}, {1, frozen}}
	for n, leave := range leaves {
		b := agents[leave.agent]
		topic := fmt.Sprint("kcat-", n)
		createTopic(t, address, topic, partitions)
		leave.how(t, b.p, address, topic)
		b.start(t)
		b.p.ready(t)
		for _, f := range flows { // everybody goes on
			await(f, len(f.got())+100)
		}
	}
	stop()
	writing.Wait()
	for _, f := range flows {
		f.end()
		await(f, len(f.sent))
	}
	if again := generationsOf(t, address, "franz-go", "librdkafka", "java"); !slices.Equal(again, generations) {
		t.Errorf("members of groups are %q, were %q: groups were balanced anew", again, generations)
	}
	for _, f := range flows {
		f.over()
		got := f.got()
		slices.Sort(got)
		slices.Sort(f.sent)
		if !slices.Equal(got, f.sent) {
			t.Errorf("%s: read %d records, sent %d, or others", f.name, len(got), len(f.sent))
		}
	}
}

// drained has an agent leave, and sends and reads records of a topic without it.
func drained(t *testing.T, p *process, address, topic string) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	if status := p.status(t); status != 0 {
		t.Errorf("exit status %d after SIGTERM, want 0", status)
	}
	kcat(t, address, topic)
}

// killed kills an agent, and sends and reads records of a topic without it.
func killed(t *testing.T, p *process, address, topic string) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	p.status(t)
	kcat(t, address, topic)
}

// frozen stops an agent until records of a topic, some of which it led, have been sent and read without it. It ends when it wakes up, since others lead what it led.
func frozen(t *testing.T, p *process, address, topic string) {
	t.Helper()
	p.signal(t, syscall.SIGSTOP)
	for reached := 0; reached < 4; reached++ { // until HAProxy deals no connection to it any more
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		client := connect(t, address)
		if client.Ping(ctx) != nil {
			reached = -1
		}
		client.Close()
		cancel()
	}
	kcat(t, address, topic)
	p.signal(t, syscall.SIGCONT)
	if status := p.status(t); status == 0 {
		t.Error("exit status 0, want it to say that it was replaced")
	}
}

// oneBroker holds that clients are told of the load balancer alone.
func oneBroker(t *testing.T, address string) {
	t.Helper()
	admin := kadm.NewClient(connect(t, address))
	if _, err := admin.CreateTopic(within(t), 6, 3, nil, "one"); err != nil {
		t.Fatal(err)
	}
	metadata, err := admin.Metadata(within(t), "one")
	if err != nil {
		t.Fatal(err)
	}
	if len(metadata.Brokers) != 1 || fmt.Sprintf("%s:%d", metadata.Brokers[0].Host, metadata.Brokers[0].Port) != address {
		t.Fatalf("brokers %+v, want one at %s", metadata.Brokers, address)
	}
	for _, p := range metadata.Topics["one"].Partitions {
		if p.Leader != metadata.Brokers[0].NodeID || p.Err != nil {
			t.Errorf("partition %d is led by %d, %v, want the one broker", p.Partition, p.Leader, p.Err)
		}
	}
	coordinators := admin.FindGroupCoordinators(within(t), "a", "b", "c", "d")
	for _, c := range coordinators {
		if c.NodeID != metadata.Brokers[0].NodeID || c.Err != nil {
			t.Errorf("group %s is coordinated by %d, %v, want the one broker", c.Name, c.NodeID, c.Err)
		}
	}
}

// generationsOf tells the members of groups. Each has a new id when its group is balanced because it was lost.
func generationsOf(t *testing.T, address string, groups ...string) []string {
	t.Helper()
	described, err := kadm.NewClient(connect(t, address)).DescribeGroups(within(t), groups...)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, g := range described.Sorted() {
		for _, m := range g.Members {
			all = append(all, g.Group+" "+g.State+" "+m.MemberID)
		}
		if len(g.Members) != 1 || g.Err != nil {
			t.Errorf("group %s has %d members, %v, want one", g.Group, len(g.Members), g.Err)
		}
	}
	return all
}

func franzWriter(t *testing.T, address, topic string) (line func(string), done func()) {
	t.Helper()
	client := connect(t, address, kgo.DefaultProduceTopic(topic))
	return func(s string) {
			client.Produce(context.WithoutCancel(t.Context()), kgo.StringRecord(s), func(_ *kgo.Record, err error) {
				if err != nil {
					t.Errorf("franz-go: produce: %v", err)
				}
			})
		}, func() {
			if err := client.Flush(within(t)); err != nil {
				t.Errorf("franz-go: flush: %v", err)
			}
		}
}

// lines gathers what a consumer reads.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

func (l *lines) got() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

func franzReader(t *testing.T, address, topic string) (got func() []string, done func()) {
	t.Helper()
	client := connect(t, address, kgo.ConsumeTopics(topic), kgo.ConsumerGroup(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	read := new(lines)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			fetches := client.PollFetches(ctx)
			fetches.EachError(func(topic string, partition int32, err error) {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("franz-go: fetch %s %d: %v", topic, partition, err)
				}
			})
			fetches.EachRecord(func(r *kgo.Record) { read.add(string(r.Value)) })
		}
	}()
	end := func() {
		cancel()
		<-ended
	}
	t.Cleanup(end)
	return read.got, end
}

// program is a client that is a process: what it is given on standard input it sends, or what it reads it prints.
type program struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	read  lines
	said  *output
	ended chan struct{}
}

func run(t *testing.T, argv ...string) *program {
	t.Helper()
	p := &program{
		cmd:  exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...),
		said: newOutput(), ended: make(chan struct{}),
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Stderr = p.said
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.read.add(s.Text())
		}
		_ = p.cmd.Wait() // ProcessState says it all
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // may have ended
		<-p.ended
		if t.Failed() {
			t.Logf("%s said:\n%s", strings.Join(argv, " "), p.said)
		}
	})
	return p
}

// send sends a line.
func (p *program) send(t *testing.T) func(string) {
	t.Helper()
	return func(s string) {
		if _, err := io.WriteString(p.in, s+"\n"); err != nil {
			t.Errorf("%s takes nothing more: %v", p.cmd.Path, err)
		}
	}
}

// end ends the client, and holds that it ended well and that nothing that it said is worrying.
func (p *program) end(t *testing.T, how func() error, worrying func(line string) bool) {
	t.Helper()
	if err := how(); err != nil {
		t.Errorf("end %s: %v", p.cmd.Path, err)
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Errorf("%s does not end", p.cmd.Path)
		return
	}
	if status := p.cmd.ProcessState.ExitCode(); status != 0 && status != 128+int(syscall.SIGTERM) {
		t.Errorf("%s: exit status %d", p.cmd.Path, status)
	}
	for line := range strings.Lines(p.said.String()) {
		if worrying(line) {
			t.Errorf("%s: %s", p.cmd.Path, line)
		}
	}
}

func (p *program) terminate() error { return p.cmd.Process.Signal(syscall.SIGTERM) }

// confluent starts the compatibility suite's driver of confluent-kafka, which is librdkafka.
func confluent(t *testing.T, address, verb string, args ...string) *program {
	t.Helper()
	return run(t, slices.Concat([]string{
		installed(t, "python"), filepath.Join("..", "compat", "python", "confluent_driver.py"), verb, "--bootstrap", address,
	}, args)...)
}

func pythonWorries(line string) bool { return strings.Contains(line, "Error") }

func confluentWriter(t *testing.T, address, topic string) (line func(string), done func()) {
	t.Helper()
	p := confluent(t, address, "produce", "--topic", topic, "--codec", "lz4", "--idempotent", "true")
	send := p.send(t)
	return func(s string) { send("key\t" + s) }, func() { p.end(t, p.in.Close, pythonWorries) }
}

// confluentReader commits the offset of each record before it reads the next one.
func confluentReader(t *testing.T, address, topic string) (got func() []string, done func()) {
	t.Helper()
	p := confluent(t, address, "member", "--topic", topic, "--group", topic, "--session", "45000")
	return func() []string {
		var values []string
		for _, line := range p.read.got() {
			if fields := strings.Split(line, "\t"); fields[0] == "record" {
				values = append(values, fields[len(fields)-1])
			}
		}
		return values
	}, func() { p.end(t, p.in.Close, pythonWorries) }
}

// kcat sends records and reads them, alone and in a group. It is not among those that live through it all: it gives up when its only connection ends,
// as it does when an agent leaves, though librdkafka would connect again.
func kcat(t *testing.T, address, topic string) {
	t.Helper()
	var sent []string
	for n := range 200 {
		sent = append(sent, fmt.Sprintf("%s-%d", topic, n))
	}
	slices.Sort(sent)
	program := installed(t, "kcat")
	write := run(t, program, "-P", "-b", address, "-t", topic)
	line := write.send(t)
	for _, s := range sent {
		line(s)
	}
	quiet := func(line string) bool { return strings.Contains(line, "ERROR") }
	write.end(t, write.in.Close, quiet)
	for name, args := range map[string][]string{
		"alone":      {"-C", "-t", topic, "-e"},
		"in a group": {"-c", strconv.Itoa(len(sent)), "-X", "auto.offset.reset=earliest", "-G", topic, topic},
	} {
		read := run(t, append([]string{program, "-u", "-b", address}, args...)...)
		read.end(t, func() error { return nil }, quiet)
		got := read.read.got()
		slices.Sort(got)
		if !slices.Equal(got, sent) {
			t.Errorf("kcat reads %d records %s, want the %d that it sent", len(got), name, len(sent))
		}
	}
}

func javaWorries(line string) bool {
	return strings.Contains(line, "ERROR") || strings.Contains(line, "Exception")
}

// java starts a class of Apache Kafka's command line.
func java(t *testing.T, address, class string, args ...string) *program {
	t.Helper()
	return run(t, slices.Concat([]string{
		"java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-Dorg.apache.logging.log4j.level=ERROR",
		"-cp", filepath.Join(installed(t, "kafka"), "*"), class, "--bootstrap-server", address,
	}, args)...)
}

func javaWriter(t *testing.T, address, topic string) (line func(string), done func()) {
	t.Helper()
	p := java(t, address, "org.apache.kafka.tools.ConsoleProducer", "--topic", topic)
	return p.send(t), func() { p.end(t, p.in.Close, javaWorries) }
}

func javaReader(t *testing.T, address, topic string) (got func() []string, done func()) {
	t.Helper()
	p := java(t, address, "org.apache.kafka.tools.consumer.ConsoleConsumer", "--topic", topic, "--group", topic, "--from-beginning")
	return p.read.got, func() { p.end(t, p.terminate, javaWorries) }
}

func installed(t *testing.T, name string) string {
	t.Helper()
	path, err := servers.Install(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
