package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/test/bench/load"
)

// aCatchup is a run whose numbers are easy to recognise: so many MB/s for one consumer, and twice and four times as many for more, in one second.
func aCatchup(rate int64, gets float64) catchupRun {
	var r catchupRun
	cpu := time.Second
	for i := range int64(3) {
		read := catchupRead{Throughput: load.Throughput{Bytes: rate * 1e6 << i, Cost: load.Cost{Elapsed: time.Second, ServerCPU: &cpu}}, history: 100 << 20}
		if gets > 0 {
			read.gets, read.getBytes = &gets, 100<<20
		}
		r.cold = append(r.cold, read)
	}
	r.alone.Ack.P99, r.paced.Ack.P99, r.full.Ack.P99 = 2*time.Millisecond, 5*time.Millisecond, 9*time.Millisecond
	r.besides = 700e6
	return r
}

func TestCatchupMarkdown(t *testing.T) {
	kafka := aCatchup(100, 0)
	kafka.warm = aCatchup(200, 0).cold
	minio := aCatchup(50, 100)
	minio.store = 170e6
	text := catchupResults{
		plan: newCatchupPlan(false), setting: setting{contest: twoContenders}, subjects: subjects(twoContenders.contenders[1]),
		runs: [][]catchupRun{{aCatchup(80, 25)}, {minio}, {kafka}},
	}.markdown()
	for _, want := range []string{
		"| median (least to most) | Varve, folder | Varve, MinIO | Apache Kafka, disk | Apache Kafka, page cache |\n| --- | --: | --: | --: | --: |",
		"| 1 consumer | 80 | 50 | 100 | 200 |",
		"| 16 consumers | 320 | 200 | 400 | 800 |",
		"| the object store alone | - | 170 | - | - |",
		"| 4 consumers | 4.0 | 1.0 | - | - |",
		"| 16 consumers | 1.00 | 1.00 | - | - |",
		"| acknowledgement p99, beside 4 readers of 50 MB/s | 5.000 | 5.000 | 5.000 |",
		"| end to end p99, alone | - | - | - |",
		"every byte fetched once, or nearly | 1.00 | yes |",
		"Varve, MinIO: at least 3.5 MiB per GET for one consumer | 1.0 | no |",
		"Varve, folder: acknowledgement p99 beside 4 readers of 50 MB/s at most twice that alone | 2.50 | no |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestDropCache drops a file's pages, which changes nothing in it, and is not put out by one that has gone.
func TestDropCache(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(name, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{name, name + "-gone"} {
		if err := dropCache(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if got, err := os.ReadFile(name); string(got) != "abc" || err != nil {
		t.Errorf("the file has %q, %v", got, err)
	}
}
