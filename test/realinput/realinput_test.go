// Package realinput sends a large body of real text through Varve, with one client, and reads it back with another: every
// line of every .go file of the Go distribution, produced by kcat (librdkafka), consumed by franz-go, across a kill -9 in
// the middle.
//
//	go test ./test/realinput
//
// A record's key is the file's path and its value the line with its number before it, so that no value is empty (an empty line
// would be none to kcat) and no two are alike. All lines of a file are in one partition, and both sides hash them in order:
// a line that is lost, doubled, moved or changed gives another hash.
package realinput

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/servers"
)

var binaryFlag = flag.String("binary", "", "the varve program to test; built from the working tree if empty")

const (
	topic      = "go-source"
	partitions = 5
	// messageBytesMax leaves room for the longest line of the distribution, an embedded archive of 1.4 MB: more than the
	// default of max.message.bytes.
	messageBytesMax = 4 << 20
	// keyDelimiter is between key and value on kcat's input; no path has it.
	keyDelimiter = "\t"
	// within bounds each step of a run.
	within = 5 * time.Minute
)

// TestGoSource runs once for each kind of bucket.
func TestGoSource(t *testing.T) {
	t.Run("file", func(t *testing.T) {
		run(t, "file://"+filepath.Join(t.TempDir(), "lake"))
	})
	t.Run("minio", func(t *testing.T) {
		store := servers.MinIO(t, servers.StoreOptions{Buckets: []string{"lake"}})
		run(t, "minio://"+store.Address+"/lake/go?secure=false")
	})
}

// run sends the source through an agent that keeps its log in the bucket.
func run(t *testing.T, bucket string) {
	source := goSource(t)
	etcd := servers.Etcd(t, servers.EtcdOptions{})
	varve := servers.Varve(t, servers.VarveOptions{
		Binary: *binaryFlag, Command: "agent", Args: []string{"--etcd", "http://" + etcd.Address, "--bucket", bucket, "--wal-copies", "1"},
		Env: []string{"AWS_ACCESS_KEY_ID=" + servers.AccessKey, "AWS_SECRET_ACCESS_KEY=" + servers.SecretKey},
	})
	createTopic(t, varve.Address)

	sent := newDigest()
	killed := make(chan error, 1)
	crash := func() error {
		end, err := highWatermarks(t.Context(), varve.Address)
		if err != nil {
			return err
		}
		t.Logf("kill -9 with %d records in the log and %d sent", end, sent.records)
		go func() {
			again, err := varve.Restart(t.Context())
			if err == nil {
				varve = again
			}
			killed <- err
		}()
		return nil
	}
	began := time.Now()
	kcat := startKcat(t, varve.Address)
	half := source.bytes / 2
	err := source.each(func(path string, line int, text []byte) error {
		if half >= 0 {
			if half -= int64(len(text)); half < 0 {
				if err := crash(); err != nil {
					return err
				}
			}
		}
		return kcat.produce(sent, path, line, text)
	})
	if err != nil {
		t.Fatalf("feed kcat: %v\n%s", err, kcat.said.String())
	}
	if err := kcat.finish(); err != nil {
		t.Fatalf("kcat: %v\n%s", err, kcat.said.String())
	}
	if err := <-killed; err != nil {
		t.Fatalf("restart after kill -9: %v", err)
	}
	t.Logf("kcat produced %d records of %d files in %v", sent.records, len(sent.files), time.Since(began).Round(time.Second))
	compare(t, varve.Address, sent)

	// After an orderly stop all of it comes from the bucket.
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := varve.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if varve, err = varve.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	compare(t, varve.Address, sent)
}

// compare reads the topic and compares it with what was sent.
func compare(t *testing.T, address string, sent *digest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	began := time.Now()
	read, err := readAll(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("sent %d records, hash %s; read %d, hash %s, in %v",
		sent.records, sent.sum(), read.records, read.sum(), time.Since(began).Round(time.Second))
	if sent.sum() == read.sum() {
		return
	}
	const shown = 5
	differ := sent.differences(read)
	t.Errorf("read %d records, want %d; %d files differ, the first: %q", read.records, sent.records, len(differ), differ[:min(shown, len(differ))])
}

// digest is what a set of files hashes to.
type digest struct {
	records int64
	files   map[string]hash.Hash // over each file's values in order
}

func newDigest() *digest { return &digest{files: make(map[string]hash.Hash)} }

func (d *digest) add(path string, value []byte) {
	h := d.files[path]
	if h == nil {
		h = sha256.New()
		d.files[path] = h
	}
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(value)))
	h.Write(size[:])
	h.Write(value)
	d.records++
}

// sum returns one hash of all files.
func (d *digest) sum() string {
	all := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(d.files)) {
		all.Write(d.files[path].Sum([]byte(path)))
	}
	return fmt.Sprintf("%x", all.Sum(nil)[:8])
}

// differences returns the files whose values are not the same, in order.
func (d *digest) differences(other *digest) []string {
	var differ []string
	for path, h := range d.files {
		if o := other.files[path]; o == nil || !bytes.Equal(o.Sum(nil), h.Sum(nil)) {
			differ = append(differ, path)
		}
	}
	for path := range other.files {
		if d.files[path] == nil {
			differ = append(differ, path)
		}
	}
	slices.Sort(differ)
	return differ
}

// source is the Go distribution's source.
type source struct {
	root  string
	paths []string
	bytes int64
}

func goSource(t *testing.T) *source {
	t.Helper()
	printed, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env GOROOT: %v", err)
	}
	s := &source{root: filepath.Join(strings.TrimSpace(string(printed)), "src")}
	err = filepath.WalkDir(s.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || !strings.HasSuffix(path, ".go") {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(s.root, path)
		s.paths, s.bytes = append(s.paths, relative), s.bytes+info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// each calls f for each line of each file, without its end, until f fails. Lines count from 1; text is valid during the call.
func (s *source) each(f func(path string, line int, text []byte) error) error {
	for _, path := range s.paths {
		content, err := os.ReadFile(filepath.Join(s.root, path))
		if err != nil {
			return err
		}
		number := 0
		for line := range bytes.Lines(content) {
			number++
			if err := f(path, number, bytes.TrimSuffix(line, []byte("\n"))); err != nil {
				return err
			}
		}
	}
	return nil
}

// producer is a running kcat.
type producer struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Writer
	value []byte
	said  bytes.Buffer // what kcat writes; to be read once it has ended
}

func startKcat(t *testing.T, address string) *producer {
	t.Helper()
	program, err := servers.Install(t.Context(), "kcat")
	if err != nil {
		t.Fatal(err)
	}
	p := &producer{cmd: exec.CommandContext(t.Context(), program,
		"-P", "-E", "-b", address, "-t", topic, "-K", keyDelimiter, "-z", "lz4",
		"-X", "enable.idempotence=true", "-X", "message.timeout.ms="+strconv.FormatInt(within.Milliseconds(), 10),
		"-X", "message.max.bytes="+strconv.Itoa(messageBytesMax), "-X", "reconnect.backoff.max.ms=500",
	)}
	p.cmd.Stdout, p.cmd.Stderr = &p.said, &p.said
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewWriterSize(p.stdin, 64<<10)
	return p
}

// produce hands one line to kcat and notes it.
func (p *producer) produce(sent *digest, path string, line int, text []byte) error {
	p.value = append(strconv.AppendInt(p.value[:0], int64(line), 10), ':')
	p.value = append(p.value, text...)
	sent.add(path, p.value)
	_, err := fmt.Fprintf(p.lines, "%s%s%s\n", path, keyDelimiter, p.value)
	return err
}

// finish ends kcat's input and waits until everything is acknowledged.
func (p *producer) finish() error {
	return errors.Join(p.lines.Flush(), p.stdin.Close(), p.cmd.Wait())
}

func createTopic(t *testing.T, address string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(address))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	most := strconv.Itoa(messageBytesMax)
	_, err = kadm.NewClient(client).CreateTopic(t.Context(), partitions, 1, map[string]*string{"max.message.bytes": &most}, topic)
	if err != nil {
		t.Fatal(err)
	}
}

// highWatermarks returns the sum of all partitions' high watermarks.
func highWatermarks(ctx context.Context, address string) (int64, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(address))
	if err != nil {
		return 0, err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	sum := int64(0)
	ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum, err
}

// readAll reads the topic from its start to its end.
func readAll(ctx context.Context, address string) (*digest, error) {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(address), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	left, err := highWatermarks(ctx, address)
	if err != nil {
		return nil, err
	}
	read := newDigest()
	for read.records < left {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, fmt.Errorf("after %d of %d records: %w", read.records, left, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { read.add(string(r.Key), r.Value) })
	}
	return read, nil
}
