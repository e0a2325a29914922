package gaps

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/varve-io/varve/test/servers"
)

// TestOutage stops a broker for a while under load: the pause is measured, and everything is there afterwards.
func TestOutage(t *testing.T) {
	varve := servers.Varve(t, servers.VarveOptions{})
	cfg := Config{Seeds: []string{varve.Address}, Topic: "watched", Partitions: 6, RecordBytes: 100, RateBytes: 60_000}
	if cfg.Interval() != 10*time.Millisecond {
		t.Fatalf("interval %v", cfg.Interval())
	}
	createTopic(t, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	probe, err := Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	if err := probe.AwaitAll(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	probe.Begin()
	struck := time.Now()
	varve.Kill()
	if _, err := varve.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	down := time.Since(struck)
	if err := probe.AwaitAll(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	after := time.Since(struck)
	// A record that had left before the end may be acknowledged just after the clock was read.
	const slack = 50 * time.Millisecond
	if w := probe.Window(); w.Gap < down-slack || w.Gap > after+slack || w.Wait < down-slack-cfg.Interval() || w.Wait > after+slack || w.Acked == 0 || w.Failed != 0 {
		t.Errorf("down for %v, all back after %v: %+v", down, after, w)
	}
	if err := probe.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := probe.Failures(); n != 0 {
		t.Errorf("%d records failed: %v", n, err)
	}
	kept, err := probe.ReadBack(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if kept.Acked == 0 || kept.Read != kept.Acked || kept.Lost != 0 || kept.Twice != 0 {
		t.Errorf("kept %+v", kept)
	}
}

func createTopic(t *testing.T, cfg Config) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cfg.Seeds...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), int32(cfg.Partitions), 1, nil, cfg.Topic); err != nil {
		t.Fatal(err)
	}
}

// TestSilence is a broker that never answers: every partition is named silent, and the gap is open.
func TestSilence(t *testing.T) {
	nobody, err := servers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	probe, err := Start(t.Context(), Config{Seeds: []string{nobody}, Topic: "x", Partitions: 3, RecordBytes: 12, RateBytes: 1200})
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := probe.AwaitAll(ctx, time.Now()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("awaited with %v", err)
	}
	if w := probe.Window(); w.Gap < 50*time.Millisecond || w.Acked != 0 {
		t.Errorf("window %+v", w)
	}
}

func TestValidate(t *testing.T) {
	for _, bad := range []Config{{RecordBytes: 12, RateBytes: 1}, {Partitions: 1, RecordBytes: 11, RateBytes: 1}, {Partitions: 1, RecordBytes: 12}} {
		if _, err := Start(t.Context(), bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestTally(t *testing.T) {
	record := func(partition uint32, number uint64, on int32, offset int64) *kgo.Record {
		value := make([]byte, 20)
		binary.BigEndian.PutUint32(value, partition)
		binary.BigEndian.PutUint64(value[4:], number)
		return &kgo.Record{Partition: on, Offset: offset, Value: value}
	}
	tally := newTally([][]int64{{0, 1, 2}, {0, notAcked}})
	for _, r := range []*kgo.Record{
		record(0, 0, 0, 0), record(0, 1, 0, 1), record(0, 1, 0, 2), // record 1 twice, record 2 nowhere
		record(1, 1, 1, 0), record(1, 0, 1, 1), // one that failed but is there, and one elsewhere than acknowledged
	} {
		if err := tally.read(r); err != nil {
			t.Fatal(err)
		}
	}
	if want := (Kept{Acked: 4, Read: 5, Lost: 2, Twice: 1}); tally.result != want {
		t.Errorf("kept %+v, want %+v", tally.result, want)
	}
	for _, r := range []*kgo.Record{record(0, 3, 0, 3), record(0, 0, 1, 3), record(2, 0, 2, 0), {Value: []byte("short")}} {
		if err := tally.read(r); !errors.Is(err, errValue) {
			t.Errorf("%+v was accepted: %v", r, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	for failures, pause := range map[int]time.Duration{0: backoffFirst, 1: backoffFirst, 3: 4 * backoffFirst, 100: backoffLongest} {
		if got := backoff(failures); got < pause*8/10 || got > pause*12/10 {
			t.Errorf("after %d failures %v, want about %v", failures, got, pause)
		}
	}
}
