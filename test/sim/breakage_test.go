package sim

import (
	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/wal"
)

// breakage is one rule of the design, broken outside of the product's code.
type breakage struct {
	name string
	// txn changes a transaction before it runs.
	txn func(*world, *txn)
	// got changes what a Get answers.
	got func(item *coordinator.Item, revision *int64)
	// answered changes what a transaction's sender is told.
	answered func(*txn, error) error
	// put changes what the sender of an object is told.
	put func(error) error
	// sealer stands for the machine's store in recoveries.
	sealer func(*machine) wal.Sealer

	noSync          bool // appends are acknowledged before they are synced
	forgetProducers bool // a new leader restores no idempotent producers
}
