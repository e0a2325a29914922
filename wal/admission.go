package wal

import (
	"context"
	"fmt"
	"slices"
)

// admissions decides who may append. The log's mutex guards it.
type admissions struct {
	reserved int64 // admitted, and not done
	queue    []*applicant
}

type applicant struct {
	bytes   int64
	granted chan error // of capacity 1: nil, or why not
}

// Admission is the right to append some bytes.
type Admission struct {
	log   *Log
	bytes int64
}

// Admit waits until the log has room for that many more bytes, in the order of the calls. It slows producers when the
// flush does not keep up, instead of refusing them. The errors are the context's, and those of Append.
//
// The room stays reserved until Done, which is called as soon as everything was appended, or will not be: from Append on,
// the entries themselves are counted. More than the log's limit is admitted when nothing else is unflushed.
func (l *Log) Admit(ctx context.Context, bytes int) (Admission, error) {
	a := Admission{log: l, bytes: int64(bytes)}
	l.mu.Lock()
	switch {
	case l.err != nil || l.stopped:
		err := l.err
		l.mu.Unlock()
		if err == nil {
			err = ErrClosed
		}
		return Admission{}, err
	case len(l.queue) == 0 && l.roomFor(a.bytes):
		l.reserved += a.bytes
		l.mu.Unlock()
		return a, nil
	}
	w := &applicant{bytes: a.bytes, granted: make(chan error, 1)}
	l.queue = append(l.queue, w)
	last := l.next - 1
	l.mu.Unlock()
	if l.cfg.OnFull != nil {
		l.cfg.OnFull(last)
	}
	select {
	case err := <-w.granted:
		return a, err
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, w); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
		l.admit() // the next one may be smaller
	} else if err := <-w.granted; err == nil {
		l.reserved -= a.bytes
		l.admit()
	}
	return Admission{}, fmt.Errorf("wait for room in the WAL: %w", ctx.Err())
}

// Done gives the reservation back. Later calls, and calls on the zero value, do nothing.
func (a *Admission) Done() {
	if a.log == nil {
		return
	}
	l := a.log
	a.log = nil
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reserved -= a.bytes
	l.admit()
}

// roomFor says whether bytes more fit.
func (l *Log) roomFor(bytes int64) bool {
	if len(l.free) == 0 && l.memoryBytes+int64(l.chunkBytes) > l.cfg.BytesMax+l.cfg.CacheBytes+l.cfg.PinnedBytesMax {
		l.recyclable.Signal() // it evicts, or waits for the readers that hold all memory, and then admits
		return false
	}
	used := l.unflushed() + l.reserved
	return used == 0 || used+bytes <= l.cfg.BytesMax
}

// admit grants what has become possible, first come first served.
func (l *Log) admit() {
	n := 0
	for n < len(l.queue) && l.roomFor(l.queue[n].bytes) {
		l.reserved += l.queue[n].bytes
		l.queue[n].granted <- nil
		n++
	}
	l.queue = slices.Delete(l.queue, 0, n)
}

// refuseAdmissions fails all who wait.
func (l *Log) refuseAdmissions(err error) {
	for _, w := range l.queue {
		w.granted <- err
	}
	l.queue = nil
}
