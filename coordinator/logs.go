package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
)

// ErrPassedOver: a log's number is below the mark and the log was never opened, so that everybody takes it for over. Its agent must take another number.
var ErrPassedOver = errors.New("log number was passed over")

// Logs are the WAL logs as of one moment. A log that is over and served its time has no record any more ([Logs.Forget]); what tells it from one that
// is still to be opened, or of another cluster, is the mark: see KEYS.md.
type Logs struct {
	Records []Log // by number
	AsOf    int64 // revision at which they are so

	revisions []int64 // of the records
	mark      LogID   // a log below it that has no record is over, and will never have one
	marked    int64   // revision that wrote the mark; 0 for none yet
}

// ListLogs returns the logs as of a revision; 0 is the newest.
func ListLogs(ctx context.Context, kv KV, revision int64) (Logs, error) {
	items, asOf, err := kv.List(ctx, PrefixLogs, revision)
	if err != nil {
		return Logs{}, fmt.Errorf("list WAL logs: %w", err)
	}
	return MakeLogs(items, asOf)
}

// MakeLogs makes them of the items of [PrefixLogs] as of a revision.
func MakeLogs(items []Item, asOf int64) (l Logs, err error) {
	l.AsOf = asOf
	for _, item := range items {
		if item.Key == KeyPastLog {
			if l.mark, err = Decode[LogID](item); err != nil {
				return Logs{}, err
			}
			l.marked = item.ModRevision
			continue
		}
		record, err := Decode[Log](item)
		if err != nil {
			return Logs{}, err
		}
		l.Records = append(l.Records, record)
		l.revisions = append(l.revisions, item.ModRevision)
	}
	return l, nil
}

// find returns where a log's record is.
func (l *Logs) find(id LogID) (int, bool) {
	return slices.BinarySearchFunc(l.Records, id, func(r Log, id LogID) int {
		switch {
		case r.ID < id:
			return -1
		case r.ID > id:
			return 1
		}
		return 0
	})
}

// Record returns a log's record; nil if it has none.
func (l *Logs) Record(id LogID) *Log {
	if at, ok := l.find(id); ok {
		return &l.Records[at]
	}
	return nil
}

// Revision returns the revision that wrote a log's record; 0 if it has none.
func (l *Logs) Revision(id LogID) int64 {
	if at, ok := l.find(id); ok {
		return l.revisions[at]
	}
	return 0
}

// Closed reports whether a log was closed, or is over without ever having been open. That is final. Of a log that nobody knows it is false, unless it was opened after the copy was made from which the state was rebuilt
// ([Cluster.SinceCopy]).
func (l *Logs) Closed(id LogID) bool {
	if record := l.Record(id); record != nil {
		return record.Closed
	}
	return id < l.mark
}

// Old returns the logs that are open and from before the coordinator's state was last rebuilt.
func (l *Logs) Old(c Cluster) (all []LogID) {
	for i := range l.Records {
		if r := &l.Records[i]; r.ID < c.Restored && !r.Closed {
			all = append(all, r.ID)
		}
	}
	return all
}

// Forget deletes the records of closed logs, and raises the mark above them in the same transactions. It fails, with nothing said about which were deleted, if
// somebody else does the same, or changes a record; whoever wants to try again lists anew.
func (l *Logs) Forget(ctx context.Context, kv KV, ids []LogID) error {
	slices.Sort(ids)
	mark, marked := l.mark, l.marked
	for len(ids) > 0 {
		n := min(len(ids), TxnOpsMax-1)
		mark = max(mark, ids[n-1]+1)
		compares := []Compare{{Key: KeyPastLog, Revision: marked}}
		ops := []Op{{Key: KeyPastLog, Value: Encode(mark)}}
		for _, id := range ids[:n] {
			at, ok := l.find(id)
			if !ok || !l.Records[at].Closed {
				return fmt.Errorf("forget WAL log %s: it is not closed", id)
			}
			compares = append(compares, Compare{Key: KeyLog(id), Revision: l.revisions[at]})
			ops = append(ops, Op{Key: KeyLog(id), Delete: true})
		}
		res, err := kv.Txn(ctx, compares, ops)
		switch {
		case err != nil:
			return fmt.Errorf("forget WAL logs from %s: %w", ids[0], err)
		case !res.Succeeded:
			return fmt.Errorf("forget WAL logs from %s: %w", ids[0], ErrFenced)
		}
		marked = res.Revision
		ids = ids[n:]
	}
	return nil
}

// OpenLog writes the record of a new log, and returns the revision that wrote it. It is [ErrPassedOver] if the mark is above the log, and may be repeated after an
// outcome that is unknown: it then returns what the first one did.
func OpenLog(ctx context.Context, kv KV, record Log) (revision int64, err error) {
	own := Guard{Key: KeyLog(record.ID), Next: Encode(record)}
	for {
		mark, marked, err := readMark(ctx, kv)
		if err != nil {
			return 0, err
		}
		if record.ID < mark {
			item, _, err := kv.Get(ctx, own.Key)
			switch {
			case err != nil:
				return 0, fmt.Errorf("open WAL log %s: %w", record.ID, err)
			case item.ModRevision != 0 && bytes.Equal(item.Value, own.Next): // by an earlier call
				return item.ModRevision, nil
			}
			return 0, fmt.Errorf("open WAL log %s: %w: all below %s are over", record.ID, ErrPassedOver, mark)
		}
		// Without the mark, a transaction that applies late could open a log again that was closed and forgotten.
		err = Apply(ctx, kv, []*Guard{&own, {Key: KeyPastLog, Revision: marked}}, nil)
		fenced, ok := errors.AsType[*FencedError](err)
		switch {
		case err == nil, ok && fenced.Applied:
			return own.Revision, nil
		case !ok || slices.Contains(fenced.Keys, own.Key):
			return 0, fmt.Errorf("open WAL log %s: %w", record.ID, err)
		}
	}
}

func readMark(ctx context.Context, kv KV) (mark LogID, marked int64, err error) {
	item, _, err := kv.Get(ctx, KeyPastLog)
	if err != nil {
		return 0, 0, fmt.Errorf("read which WAL logs are past: %w", err)
	}
	if item.ModRevision == 0 {
		return 0, 0, nil
	}
	mark, err = Decode[LogID](item)
	return mark, item.ModRevision, err
}
