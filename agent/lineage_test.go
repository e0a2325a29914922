package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/coordinator"
	memkv "github.com/varve-io/varve/coordinator/mem"
)

// TestLineage has etcd set back between two calls: whatever is asked next is not answered, and ends the agent.
func TestLineage(t *testing.T) {
	put := []coordinator.Op{{Key: "k", Value: []byte("v")}}
	for name, ask := range map[string]func(*lineage) error{
		"get": func(l *lineage) error {
			_, _, err := l.Get(t.Context(), "k")
			return err
		},
		"list": func(l *lineage) error {
			_, _, err := l.List(t.Context(), "", 0)
			return err
		},
		"write": func(l *lineage) error {
			_, err := l.Txn(t.Context(), nil, put)
			return err
		},
		"write under a comparison that fails": func(l *lineage) error {
			_, err := l.Txn(t.Context(), []coordinator.Compare{{Key: "k", Revision: 4}}, put)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			kv := memkv.New(memkv.Config{Start: time.Now()})
			var told error
			l := &lineage{KV: kv, setBack: func(err error) { told = err }}
			for range 3 {
				if _, err := l.Txn(t.Context(), nil, put); err != nil {
					t.Fatal(err)
				}
			}
			if err := ask(l); err != nil || told != nil {
				t.Fatalf("without a reason: %v, %v", err, told)
			}
			l.KV = memkv.New(memkv.Config{Start: time.Now()})
			if _, _, err := l.List(t.Context(), "", 0); !errors.Is(err, rebuild.ErrSetBack) {
				t.Errorf("etcd was set back: %v", err)
			}
			told = nil
			if err := ask(l); !errors.Is(err, rebuild.ErrSetBack) || !errors.Is(told, rebuild.ErrSetBack) {
				t.Errorf("etcd was set back: %v, told %v", err, told)
			}
		})
	}
}
