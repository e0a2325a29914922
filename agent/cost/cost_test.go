package cost_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/cost"
	"github.com/varve-io/varve/coordinator"
	kvmem "github.com/varve-io/varve/coordinator/mem"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/fault"
	"github.com/varve-io/varve/objectstore/manifest"
	"github.com/varve-io/varve/objectstore/mem"
	"github.com/varve-io/varve/protocol"
)

var (
	orders  = protocol.TopicID{1}
	clicks  = protocol.TopicID{2}
	deleted = protocol.TopicID{3}
	start   = time.UnixMilli(1_700_000_000_000)
)

// records is a cluster of two agents: one has told what it asked of the bucket in half a month, the other nothing yet.
func records() cost.Records {
	return cost.Records{
		Revision: 9, Cluster: coordinator.Cluster{ID: "id"},
		Agents: []coordinator.Agent{{Node: 2, Log: 8}, {Node: 1, Log: 7, Zone: "a"}},
		Usage: map[int32]coordinator.Usage{
			1: {
				Log: 7, SinceMs: start.UnixMilli(), Puts: 1000, Gets: 300, Stats: 30, Lists: 100, Deletes: 500, PutBytes: 4 << 30, GetBytes: 3 << 30,
				Topics: map[string]coordinator.TopicUsage{"orders": {Produced: 3 << 30, Consumed: 1 << 30}, "clicks": {Produced: 1 << 30}},
				Others: coordinator.TopicUsage{Consumed: 1 << 30},
			},
			2: {Log: 6, Puts: 1 << 40}, // of an incarnation that is over
		},
		Topics:   map[protocol.TopicID]string{orders: "orders", clicks: "clicks"},
		Stored:   map[protocol.TopicID]int64{orders: 2 << 30, deleted: 1 << 30},
		InFooter: 1 << 30,
		Objects: map[cost.ObjectKind]cost.Count{
			cost.Flushed: {Objects: 5, Bytes: 2 << 30}, cost.Merged: {Objects: 3, Bytes: 2 << 30}, cost.Manifests: {Objects: 2, Bytes: 1 << 30},
		},
	}
}

// now is half a month later.
var now = start.Add(time.Duration(730.5 / 2 * float64(time.Hour)))

func TestMake(t *testing.T) {
	prices := &cost.Prices{Currency: "EUR", StoredGiBMonth: 10, Put: 1, Get: 2, Head: 3, List: 4, Delete: 5, PutGiB: 0.5, GetGiB: 0.25}
	r := cost.Make("test", records(), prices, now)
	want := []cost.Topic{
		{Name: "orders", Kind: cost.Named, Stored: 2 << 30, Produced: 3 << 30, Consumed: 1 << 30, Requests: cost.Requests{Put: 750, Get: 200, Head: 20, List: 75, Delete: 375}},
		{Name: "clicks", Kind: cost.Named, Produced: 1 << 30, Requests: cost.Requests{Put: 250, Get: 50, Head: 5, List: 25, Delete: 125}},
		{Kind: cost.Unnamed, Consumed: 1 << 30, Requests: cost.Requests{Get: 50, Head: 5}},
		{Kind: cost.Deleted, Stored: 1 << 30},
		{Kind: cost.InFooters, Stored: 1 << 30},
		{Kind: cost.Overhead, Stored: 1 << 30},
	}
	if len(r.Topics) != len(want) {
		t.Fatalf("%d rows of topics, want %d: %+v", len(r.Topics), len(want), r.Topics)
	}
	var sum float64
	for i, got := range r.Topics {
		sum += *got.Month
		got.Month = nil
		if got != want[i] {
			t.Errorf("row %d is %+v, want %+v", i, got, want[i])
		}
	}
	// Requests and bytes count twice, as they are those of half a month.
	requests := 2 * (1000*1 + 300*2 + 30*3 + 100*4 + 500*5) / 1000.0
	moved := 2 * (4*0.5 + 3*0.25)
	a := r.Agents[0]
	if a.Node != 1 || !a.Told || math.Abs(*a.Month-requests-moved) > 1e-6 || a.Produced != 4<<30 || a.Consumed != 2<<30 {
		t.Errorf("agent %+v costs %v, want %v", a, *a.Month, requests+moved)
	}
	if a := r.Agents[1]; a.Node != 2 || a.Told || a.Requests != (cost.Requests{}) || a.Month != nil {
		t.Errorf("an agent that has told nothing: %+v", a)
	}
	total := r.Total
	if total.Stored != 5<<30 || total.Objects != 10 || total.Requests != a.Requests || math.Abs(*total.Month-requests-moved-50) > 1e-6 || math.Abs(*total.PerWrittenGiB-1930.0/4) > 1e-6 {
		t.Errorf("total %+v, %v a month, %v requests for each GiB", total, *total.Month, *total.PerWrittenGiB)
	}
	if math.Abs(sum-*total.Month) > 1e-6 {
		t.Errorf("topics cost %v together, want the total of %v", sum, *total.Month)
	}
}

// TestNothingMoved: what agents ask that nobody writes to is no topic's.
func TestNothingMoved(t *testing.T) {
	r := records()
	r.Usage[1] = coordinator.Usage{Log: 7, SinceMs: start.UnixMilli(), Puts: 10, Gets: 20, Stats: 30, Lists: 40, Deletes: 50}
	for _, at := range []time.Time{now, start, start.Add(-time.Hour)} { // a clock that is behind as well
		report := cost.Make("test", r, nil, at)
		rest := report.Topics[len(report.Topics)-1]
		if rest.Kind != cost.Overhead || rest.Requests != report.Total.Requests || rest.Requests.Put != 10 || rest.Month != nil || report.Total.PerWrittenGiB != nil {
			t.Errorf("overhead %+v of %+v", rest, report.Total)
		}
	}
	if report := cost.Make("test", cost.Records{}, new(cost.Prices), now); len(report.Agents) > 0 || *report.Total.Month != 0 {
		t.Errorf("nothing at all: %+v", report)
	}
}

func TestPrint(t *testing.T) {
	for _, prices := range []*cost.Prices{nil, {Currency: "EUR", Source: "a list of some day", StoredGiBMonth: 10}} {
		r := cost.Make("test", records(), prices, now)
		var table, machine bytes.Buffer
		if err := errors.Join(r.WriteTable(&table), r.WriteJSON(&machine)); err != nil {
			t.Fatal(err)
		}
		var back cost.Report
		if err := json.Unmarshal(machine.Bytes(), &back); err != nil || len(back.Topics) != len(r.Topics) || (back.Prices == nil) != (prices == nil) {
			t.Errorf("%v, JSON\n%s", err, &machine)
		}
		for _, want := range []string{"merged segments   3", "orders", "(overhead)", "482 requests for each GiB", "apportioned"} {
			if !strings.Contains(table.String(), want) {
				t.Errorf("no %q in\n%s", want, &table)
			}
		}
		if priced := strings.Contains(table.String(), "EUR/MONTH") && strings.Contains(table.String(), "a list of some day"); priced != (prices != nil) {
			t.Errorf("prices %v, and the table is\n%s", prices, &table)
		}
	}
}

func TestParsePrices(t *testing.T) {
	example, err := os.ReadFile("../../deploy/prices.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := cost.ParsePrices(example); err != nil || p.Currency != "USD" || p.Source == "" {
		t.Errorf("the example: %+v, %v", p, err)
	}
	whole := string(example)
	if p, err := cost.ParsePrices([]byte(strings.Replace(whole, "put-1000: 0", "put-1000: 0.25", 1))); err != nil || p.Put != 0.25 {
		t.Errorf("a price: %+v, %v", p, err)
	}
	for name, content := range map[string]string{
		"empty": "", "a list": "- 1", "a price is missing": strings.Replace(whole, "get-1000:", "#", 1), "unknown": whole + "\nrent: 3\n",
		"negative": strings.Replace(whole, "get-gib: 0", "get-gib: -1", 1), "infinite": strings.Replace(whole, "get-gib: 0", "get-gib: .inf", 1),
		"no number": strings.Replace(whole, "get-gib: 0", "get-gib: much", 1), "large": whole + strings.Repeat("#\n", 40_000),
	} {
		if p, err := cost.ParsePrices([]byte(content)); err == nil {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// TestRead reads a cluster of two shards: one has merged a part of what is committed.
func TestRead(t *testing.T) {
	kv, store := kvmem.New(kvmem.Config{}), fault.New(mem.New())
	write := func(key string, value []byte) {
		t.Helper()
		if _, err := kv.Txn(t.Context(), nil, []coordinator.Op{{Key: key, Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name string, content []byte) {
		t.Helper()
		if err := store.Put(t.Context(), name, objectstore.Bytes(content)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cost.Read(t.Context(), kv, store); !errors.Is(err, cost.ErrNoCluster) {
		t.Errorf("no cluster: %v", err)
	}
	write(coordinator.KeyCluster, coordinator.Encode(coordinator.Cluster{ID: "id", Shards: 2}))
	write(coordinator.KeyAgent(1), coordinator.Encode(coordinator.Agent{Node: 1, Log: 7}))
	write(coordinator.KeyUsage(1), coordinator.Encode(coordinator.Usage{Log: 7, Puts: 3}))
	write(coordinator.KeyTopic("orders"), coordinator.Encode(coordinator.Topic{ID: orders, Name: "orders", Partitions: 2}))
	commit := func(number uint64, parts ...coordinator.CommitPartition) {
		c := coordinator.Commit{Object: "segments/x", ObjectSize: 500, Log: 7, Number: number, Partitions: parts}
		write(coordinator.KeyCommit(7, number), c.Encode())
	}
	commit(1, coordinator.CommitPartition{Topic: orders, Shard: 0, NextOffset: 10, Size: 70}, coordinator.CommitPartition{Topic: orders, Partition: 1, Shard: 1, NextOffset: 5, Size: 40})
	_, merged, err := kv.Get(t.Context(), coordinator.KeyCluster)
	if err != nil {
		t.Fatal(err)
	}
	commit(2, coordinator.CommitPartition{Topic: orders, Shard: 0, FirstOffset: 10, NextOffset: 12, Size: 6})
	large := coordinator.Commit{Object: "segments/y", ObjectSize: 900, Log: 7, Number: 3, InFooter: true, Shards: []coordinator.ShardID{0}}
	write(coordinator.KeyCommit(7, 3), large.Encode())

	m := manifest.Manifest{
		Epoch: 3, Generation: 1, Segments: []manifest.Segment{{Epoch: 3, Number: 1, Size: 300, FooterPos: 250}},
		Partitions: []manifest.Partition{
			{
				Topic: orders, TopicName: "orders", LogStartOffset: 6, End: 10, LastStable: 10, Epochs: []manifest.EpochStart{{Epoch: 3}},
				Extents: []manifest.Extent{{First: 0, Next: 6, Pos: 80, Size: 30, Epoch: 3}, {First: 6, Next: 10, Pos: 110, Size: 40, Epoch: 3}},
			},
			{
				Topic: deleted, TopicName: "deleted", End: 3, LastStable: 3, Epochs: []manifest.EpochStart{{Epoch: 3}},
				Extents: []manifest.Extent{{Next: 3, Pos: 150, Size: 9, Epoch: 3}},
			},
		},
	}
	encoded, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write(coordinator.KeyShard(0), coordinator.Encode(coordinator.Shard{Owner: 7, Epoch: 3, Manifest: m.Name(), Merged: merged}))
	if _, err := cost.Read(t.Context(), kv, store); !errors.Is(err, objectstore.ErrNotFound) {
		t.Errorf("a manifest that is missing: %v", err)
	}
	put(m.Name(), encoded)
	put("segments/00/x", make([]byte, 500))
	put("merged/00/x", make([]byte, 300))
	put("probe/1", nil)

	before := store.Calls(fault.Get)
	r, err := cost.Read(t.Context(), kv, store)
	if err != nil {
		t.Fatal(err)
	}
	if n := store.Calls(fault.Get) - before; n != 1 {
		t.Errorf("%d GETs, want that of the manifest", n)
	}
	if len(r.Stored) != 2 || r.Stored[orders] != 40+40+6 || r.Stored[deleted] != 9 || r.InFooter != 900 {
		t.Errorf("stored %v, and %d in footers", r.Stored, r.InFooter)
	}
	if r.Topics[orders] != "orders" || len(r.Agents) != 1 || r.Usage[1].Puts != 3 {
		t.Errorf("records %+v", r)
	}
	for kind, want := range map[cost.ObjectKind]cost.Count{
		cost.Flushed: {Objects: 1, Bytes: 500}, cost.Merged: {Objects: 1, Bytes: 300}, cost.Manifests: {Objects: 1, Bytes: int64(len(encoded))}, cost.Others: {Objects: 1},
	} {
		if got := r.Objects[kind]; got != want {
			t.Errorf("%s: %+v, want %+v", kind, got, want)
		}
	}
}
