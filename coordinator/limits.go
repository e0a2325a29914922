package coordinator

import (
	"fmt"
	"slices"
	"strings"
)

// CheckTxn tells whether a transaction keeps within [TxnOpsMax], [TxnBytesMax] and [ValueBytesMax], names a key in
// every comparison and operation, and writes no key twice: putting a key twice, or putting one that another operation
// of the same transaction deletes, is refused by etcd. Its error wraps [ErrLimit]. Implementations of [KV] call it
// before anything is sent.
func CheckTxn(compares []Compare, ops []Op) error {
	if len(compares) > TxnOpsMax || len(ops) > TxnOpsMax {
		return fmt.Errorf("%w: %d comparisons and %d operations, at most %d of each", ErrLimit, len(compares), len(ops), TxnOpsMax)
	}
	bytes := 0
	for _, c := range compares {
		if c.Key == "" {
			return fmt.Errorf("%w: a comparison without a key", ErrLimit)
		}
		if len(c.Value) > ValueBytesMax {
			return fmt.Errorf("%w: value of %d bytes compared with %q, at most %d", ErrLimit, len(c.Value), c.Key, ValueBytesMax)
		}
		bytes += len(c.Key) + len(c.Value)
	}
	for _, op := range ops {
		if op.Key == "" {
			return fmt.Errorf("%w: an operation without a key", ErrLimit)
		}
		if len(op.Value) > ValueBytesMax {
			return fmt.Errorf("%w: value of %d bytes for %q, at most %d", ErrLimit, len(op.Value), op.Key, ValueBytesMax)
		}
		bytes += len(op.Key) + len(op.Value)
	}
	if bytes > TxnBytesMax {
		return fmt.Errorf("%w: %d bytes of keys and values, at most %d", ErrLimit, bytes, TxnBytesMax)
	}
	return checkOverlap(ops)
}

// checkOverlap refuses two operations on one key, unless both are deletions.
func checkOverlap(ops []Op) error {
	puts := make([]string, 0, len(ops))
	for _, op := range ops {
		if !op.Delete {
			puts = append(puts, op.Key)
		}
	}
	slices.Sort(puts)
	for i := 1; i < len(puts); i++ {
		if puts[i] == puts[i-1] {
			return fmt.Errorf("%w: %q is put twice", ErrLimit, puts[i])
		}
	}
	for _, op := range ops {
		if !op.Delete {
			continue
		}
		i, found := slices.BinarySearch(puts, op.Key)
		if found || op.Prefix && i < len(puts) && strings.HasPrefix(puts[i], op.Key) {
			return fmt.Errorf("%w: %q is put and deleted", ErrLimit, puts[i])
		}
	}
	return nil
}
