package e2e_test

import (
	"syscall"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestDataSurvives ends the process in order and by SIGKILL, in turn, and wants everything that was acknowledged before, at its offset,
// and new records after it.
func TestDataSurvives(t *testing.T) {
	data := t.TempDir()
	const batch = 1000
	for round := range int64(4) {
		p, kafka, _ := dev(t, data)
		if round > 0 {
			consume(t, kafka, "lake", round*batch, line)
		}
		produce(t, kafka, "lake", round*batch, batch, line)
		if round%2 == 0 {
			p.signal(t, syscall.SIGKILL)
			if status := p.status(t); status != -1 {
				t.Fatalf("exit status %d after SIGKILL", status)
			}
			continue
		}
		p.signal(t, syscall.SIGTERM)
		if status := p.status(t); status != 0 {
			t.Fatalf("exit status %d after SIGTERM, want 0", status)
		}
	}
	_, kafka, _ := dev(t, data)
	consume(t, kafka, "lake", 4*batch, line)
}

// TestKillUnderLoad kills the process while an idempotent producer writes, starts it again on the same address, and wants what
// the producer was told: every acknowledged record at its offset, none twice, though the client sent some again.
func TestKillUnderLoad(t *testing.T) {
	data, kafka, http := t.TempDir(), freeAddress(t), freeAddress(t)
	args := []string{"dev", "--listen", kafka, "--http", http, "--data", data}
	p := start(t, nil, args...)
	p.ready(t)
	createTopic(t, kafka, "lake", 1)
	client := connect(t, kafka, kgo.DefaultProduceTopic("lake"), kgo.MaxBufferedRecords(500), kgo.RecordRetries(1<<30))
	const records, kills = 20_000, 3
	ctx := within(t)
	acknowledged := make(chan int64, records)
	for i := range int64(records) {
		if i > 0 && i%(records/(kills+1)) == 0 {
			p.signal(t, syscall.SIGKILL)
			p.status(t)
			p = start(t, nil, args...)
			p.ready(t)
		}
		client.Produce(ctx, kgo.StringRecord(line(i)), func(r *kgo.Record, err error) {
			if err != nil || r.Offset != i {
				t.Errorf("record %d: offset %d, error %v", i, r.Offset, err)
			}
			acknowledged <- i
		})
	}
	if err := client.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if len(acknowledged) != records {
		t.Fatalf("%d records were answered, want %d", len(acknowledged), records)
	}
	consume(t, kafka, "lake", records, line)
}

// TestGroupSurvives: committed offsets are there after a crash.
func TestGroupSurvives(t *testing.T) {
	data := t.TempDir()
	p, kafka, _ := dev(t, data)
	produce(t, kafka, "lake", 0, 100, line)
	admin := kadm.NewClient(connect(t, kafka))
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "lake", Partition: 0, At: 42, LeaderEpoch: -1, Metadata: "note"})
	if err := admin.CommitAllOffsets(within(t), "readers", offsets); err != nil {
		t.Fatal(err)
	}
	p.signal(t, syscall.SIGKILL)
	p.status(t)

	_, kafka, _ = dev(t, data)
	fetched, err := kadm.NewClient(connect(t, kafka)).FetchOffsets(within(t), "readers")
	if err != nil {
		t.Fatal(err)
	}
	if at, _ := fetched.Lookup("lake", 0); at.At != 42 || at.Metadata != "note" {
		t.Errorf("committed offset %d with %q, want 42 with \"note\"", at.At, at.Metadata)
	}
}
