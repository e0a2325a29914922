package main

import (
	"strings"
	"testing"
	"time"
)

// TestStep holds that a round writes each key once.
func TestStep(t *testing.T) {
	for _, keys := range []int{partitions, 10, 999, 1 << 12, 100_000} {
		for round := range rounds {
			seen := make([]bool, keys)
			for i, key, by := 0, 0, step(keys, round); i < keys; i, key = i+1, (key+by)%keys {
				if seen[key] {
					t.Fatalf("%d keys, round %d: key %d comes twice", keys, round, key)
				}
				seen[key] = true
			}
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := result{keys: 10, varve: "at abc", records: 15, wrong: 1, write: time.Second, bucket: 3 << 20}
	for _, want := range []string{"Varve at abc", "10 keys", "| until all was acknowledged | 1.0 s |", "| 3 MiB |", "15 (1.50 for each key)", "than was written | 1 |"} {
		if text := r.markdown(); !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
