package main

import (
	"strings"
	"testing"
	"time"

	"github.com/varve-io/varve/test/bench/load"
)

// aTransactionRun is a run with numbers that are easy to recognise: of the first load scale times 100 transactions in a second.
func aTransactionRun(scale int64, w *writes) transactionRun {
	r := transactionRun{
		on:  load.Throughput{Bytes: scale * 90e6, Cost: load.Cost{Elapsed: time.Second}},
		off: load.Throughput{Bytes: scale * 100e6, Cost: load.Cost{Elapsed: time.Second}},
	}
	for i := range newTransactionPlan(true).loads {
		cpu := time.Duration(scale) * time.Second
		one := load.Transactions{Count: scale * int64(i+1) * 100, Version: 2, Cost: load.Cost{Elapsed: time.Second, ServerCPU: &cpu}}
		one.Commit = load.Quantiles{P50: time.Duration(scale) * time.Millisecond, P99: 8 * time.Millisecond}
		r.loads = append(r.loads, transactionPhase{Transactions: one, writes: w})
	}
	return r
}

func TestTransactionsMarkdown(t *testing.T) {
	w := &writes{TxnRecords: 600, Pending: 100, Applied: 100, Keys: 900, EtcdTxns: 500}
	r := transactionResults{
		plan:    newTransactionPlan(false),
		setting: setting{contest: twoContenders},
		runs: [2][]transactionRun{
			{aTransactionRun(2, w), aTransactionRun(2, w), aTransactionRun(4, w)},
			{aTransactionRun(1, nil), aTransactionRun(1, nil), aTransactionRun(1, nil)},
		},
	}
	r.runs[1][2].loads[0].Version = 1
	text := r.markdown()
	for _, want := range []string{
		"With Varve its clients spoke version 2 of transactions",
		"with Apache Kafka version 1 and 2.",
		"| with, MB/s | 180 (180 to 360) | 90 | 2.00 |",
		"| with / without | 0.90 | 0.90 | 1.00 |",
		"| 1 producer, 100 B | 200 (200 to 400) | 100 | 2.00 |",
		"| 1 producer, 100 B p50 | 2.0 (2.0 to 4.0) | 1.0 | 2.00 |",
		"| 1 producer, 100 B | 10.00 | 10.00 | 1.00 |",
		"| 1 producer, 100 B: writes | 4.00 (2.00 to 4.00) | - | - |",
		"| 1 producer, 100 B: of offsets | 1.00 (0.50 to 1.00) | - | - |",
		"at least 0.95 of without | 0.90 | no |",
		"at most 4 writes to etcd per transaction that produces | 4.00 | yes |",
		"than one: as a part of its | 0.33 | yes |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}
