package txn

import (
	"fmt"
	"time"

	"github.com/varve-io/varve/protocol"
)

// snapshotFormat is the newest format version; older ones are read, newer ones refused.
const snapshotFormat = 1

// Snapshot is the record of a transactional id: what outlives the agent that coordinates it, and what
// DescribeTransactions and ListTransactions show. It is stored as JSON under coordinator.KeyTxn.
type Snapshot struct {
	Format     int                    `json:"format"`
	State      State                  `json:"state"`
	ProducerID protocol.ProducerID    `json:"producer"`
	Epoch      protocol.ProducerEpoch `json:"epoch"` // of the producer; in a Prepare state, of the markers
	// LastProducerID and LastEpoch are what the producer had before it got ProducerID and Epoch, if it was the same one: if
	// it comes with them again, it has not got the answer. -1 and -1 for none.
	LastProducerID protocol.ProducerID    `json:"last_producer"`
	LastEpoch      protocol.ProducerEpoch `json:"last_epoch"`
	// NextProducerID takes the place of ProducerID, with epoch 0, when the markers of this decision are written: the epochs
	// of ProducerID are used up. -1 for none.
	NextProducerID protocol.ProducerID `json:"next_producer"`
	Version2       bool                `json:"version2,omitempty"` // the last decision raised the epoch (KIP-890)
	TimeoutMs      int32               `json:"timeout_ms"`
	Partitions     Set                 `json:"partitions,omitempty"` // of the transaction; empty unless Ongoing or in a Prepare state
	// Fence are partitions in which the producer is fenced, and what it may have begun since is aborted, once the markers of this decision to commit are written. A restore sets it.
	Fence     Set   `json:"fence,omitempty"`
	StartedMs int64 `json:"started_ms"` // the transaction, Unix milliseconds; -1 if there was none since Init
	UpdatedMs int64 `json:"updated_ms"` // Unix milliseconds
}

// Snapshot returns the id as DescribeTransactions shows it. What a write that is under way would change is not in it.
// Its Partitions are shared and must not be changed. State is Dead if there is no record.
func (m *Machine) Snapshot() Snapshot {
	s := m.record
	s.Partitions = m.partitions()
	return s
}

// Load returns the id as a snapshot has it. The first event must be [Loaded]. It fails if the snapshot is of a format
// that this program does not know, or contradicts itself.
func Load(cfg Config, now time.Time, s Snapshot) (*Machine, error) {
	switch {
	case s.Format < 1 || s.Format > snapshotFormat:
		return nil, fmt.Errorf("load transactional id: format %d, want at most %d", s.Format, snapshotFormat)
	case s.State == Dead || s.ProducerID < 0 || s.Epoch < 0:
		return nil, fmt.Errorf("load transactional id: state %s, producer id %d, epoch %d", s.State, s.ProducerID, s.Epoch)
	}
	m := New(cfg, now)
	m.record = s
	m.record.StartedMs = min(s.StartedMs, now.UnixMilli()) // of a clock that goes ahead
	return m, nil
}
