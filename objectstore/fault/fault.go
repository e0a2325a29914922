// Package fault makes an object store fail as told, for tests and for the simulation. Failures are data:
//
//	store := fault.New(mem.New(),
//		fault.Rule{Op: fault.Put, Prefix: "wal/", Nth: 3, Effect: fault.UnknownApplied},
//		fault.Rule{Op: fault.Get, Times: fault.Always, Effect: fault.Unavailable})
//
// says that the third Put below wal/ is carried out but its answer is lost, and that every Get fails. The same calls in
// the same order fail in the same way.
package fault

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"

	"github.com/varve-io/varve/objectstore"
)

// Op is a method of a store.
type Op string

// The methods, and Any for all of them.
const (
	Any    Op = ""
	Put    Op = "put"
	Get    Op = "get"
	Stat   Op = "stat"
	List   Op = "list"
	Delete Op = "delete"
)

// Effect is what happens to a call.
type Effect int

const (
	// None lets the call pass. With a gate it is late.
	None Effect = iota
	// Unavailable refuses the call with objectstore.ErrUnavailable.
	Unavailable
	// Denied refuses the call with objectstore.ErrDenied.
	Denied
	// UnknownNotApplied drops the write and says objectstore.ErrUnknownOutcome. Reads are refused as by Unavailable, and
	// by the next two too.
	UnknownNotApplied
	// UnknownApplied carries the write out and says objectstore.ErrUnknownOutcome, whatever came of it.
	UnknownApplied
	// UnknownLate says objectstore.ErrUnknownOutcome and keeps the write for [Store.ApplyLate]: a request that is still
	// on its way when its sender has given up.
	UnknownLate
	// WrongBytes flips a bit of what a Get returns. Other calls pass.
	WrongBytes
)

// Always is for ever, as Rule.Times.
const Always = -1

// Rule says which calls have which effect. Of several rules that match a call the first has its effect; all count it.
type Rule struct {
	Op     Op     // Any matches all
	Prefix string // of the object's name; of a List, of its prefix
	Nth    int    // the first matching call that it affects, counted from 1 since the rule was added; 0 means 1
	Times  int    // how many it affects from there on; 0 means 1
	Effect Effect
	// Gate, if not nil, holds an affected call until it is opened, before the effect. If the call's context ends first,
	// a read fails with the context's error and a write, which is not applied, with objectstore.ErrUnknownOutcome.
	Gate *Gate
}

// Gate holds calls until it is opened.
type Gate struct {
	entered, opened chan struct{}
	enter, open     sync.Once
}

// NewGate returns a closed gate.
func NewGate() *Gate {
	return &Gate{entered: make(chan struct{}), opened: make(chan struct{})}
}

// Entered is closed when the first call stands at the gate.
func (g *Gate) Entered() <-chan struct{} { return g.entered }

// Open lets all calls pass, those to come too.
func (g *Gate) Open() { g.open.Do(func() { close(g.opened) }) }

func (g *Gate) pass(ctx context.Context) error {
	g.enter.Do(func() { close(g.entered) })
	select {
	case <-g.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Store implements [objectstore.Store] on top of another.
type Store struct {
	inner objectstore.Store

	mu    sync.Mutex
	rules []*rule
	calls map[Op]int
	late  []write
}

type rule struct {
	Rule
	seen int // matching calls
}

// write is a Put or Delete that was not applied yet.
type write struct {
	op   Op
	name string
	body objectstore.Body
}

var _ objectstore.Store = (*Store)(nil)

// New returns a store that fails as the rules say, and otherwise is inner.
func New(inner objectstore.Store, rules ...Rule) *Store {
	s := &Store{inner: inner, calls: make(map[Op]int)}
	s.Add(rules...)
	return s
}

// Add adds rules behind those that are there. They count calls from now on.
func (s *Store) Add(rules ...Rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range rules {
		s.rules = append(s.rules, &rule{Rule: r})
	}
}

// Clear removes all rules. Calls that stand at a gate stay there.
func (s *Store) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = nil
}

// Calls returns how many calls of op there were, failed ones included.
func (s *Store) Calls(op Op) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if op != Any {
		return s.calls[op]
	}
	sum := 0
	for _, n := range s.calls {
		sum += n
	}
	return sum
}

// ApplyLate carries out the writes that UnknownLate kept, in their order, and returns what came of each.
func (s *Store) ApplyLate(ctx context.Context) []error {
	s.mu.Lock()
	late := s.late
	s.late = nil
	s.mu.Unlock()
	var errs []error
	for _, w := range late {
		errs = append(errs, w.apply(ctx, s.inner))
	}
	return errs
}

// String implements [objectstore.Store].
func (s *Store) String() string { return s.inner.String() }

// Put implements [objectstore.Store].
func (s *Store) Put(ctx context.Context, name string, body objectstore.Body) error {
	return s.write(ctx, write{op: Put, name: name, body: body})
}

// Delete implements [objectstore.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.write(ctx, write{op: Delete, name: name})
}

// Get implements [objectstore.Store].
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	effect, err := s.read(ctx, Get, name)
	if err != nil {
		return err
	}
	if err := s.inner.Get(ctx, name, off, p); err != nil {
		return err
	}
	if effect == WrongBytes && len(p) > 0 {
		p[len(p)/2] ^= 1
	}
	return nil
}

// Stat implements [objectstore.Store].
func (s *Store) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	if _, err := s.read(ctx, Stat, name); err != nil {
		return objectstore.Info{}, err
	}
	return s.inner.Stat(ctx, name)
}

// List implements [objectstore.Store].
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		if _, err := s.read(ctx, List, prefix); err != nil {
			yield(objectstore.Info{}, err)
			return
		}
		s.inner.List(ctx, prefix, after)(yield)
	}
}

// read returns the effect on a read that passes, or the error of one that does not.
func (s *Store) read(ctx context.Context, op Op, name string) (Effect, error) {
	r := s.match(op, name)
	if r.Gate != nil {
		if err := r.Gate.pass(ctx); err != nil {
			return None, fmt.Errorf("%s %s: %w", op, name, err)
		}
	}
	switch r.Effect {
	case Denied:
		return None, injected(op, name, objectstore.ErrDenied)
	case Unavailable, UnknownNotApplied, UnknownApplied, UnknownLate:
		return None, injected(op, name, objectstore.ErrUnavailable)
	case None, WrongBytes:
	}
	return r.Effect, nil
}

func (s *Store) write(ctx context.Context, w write) error {
	r := s.match(w.op, w.name)
	if r.Gate != nil {
		if err := r.Gate.pass(ctx); err != nil {
			return fmt.Errorf("%s %s: %w: %w", w.op, w.name, objectstore.ErrUnknownOutcome, err)
		}
	}
	switch r.Effect {
	case Unavailable:
		return injected(w.op, w.name, objectstore.ErrUnavailable)
	case Denied:
		return injected(w.op, w.name, objectstore.ErrDenied)
	case UnknownNotApplied:
		return injected(w.op, w.name, objectstore.ErrUnknownOutcome)
	case UnknownApplied:
		_ = w.apply(ctx, s.inner) // nobody gets to know
		return injected(w.op, w.name, objectstore.ErrUnknownOutcome)
	case UnknownLate:
		s.keep(w)
		return injected(w.op, w.name, objectstore.ErrUnknownOutcome)
	case None, WrongBytes:
	}
	return w.apply(ctx, s.inner)
}

// keep copies the write, as its body belongs to the caller.
func (s *Store) keep(w write) {
	var content []byte
	for _, part := range w.body.Parts {
		content = append(content, part...)
	}
	w.body = objectstore.Bytes(content)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late = append(s.late, w)
}

func (w write) apply(ctx context.Context, inner objectstore.Store) error {
	if w.op == Delete {
		return inner.Delete(ctx, w.name)
	}
	return inner.Put(ctx, w.name, w.body)
}

// match counts a call and returns the rule that affects it, or the zero Rule.
func (s *Store) match(op Op, name string) Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[op]++
	var found Rule
	affected := false
	for _, r := range s.rules {
		if r.Op != Any && r.Op != op || !strings.HasPrefix(name, r.Prefix) {
			continue
		}
		r.seen++
		first, times := max(r.Nth, 1), r.Times
		if times == 0 {
			times = 1
		}
		if !affected && r.seen >= first && (times == Always || r.seen < first+times) {
			found, affected = r.Rule, true
		}
	}
	return found
}

var errInjected = errors.New("injected")

func injected(op Op, name string, kind error) error {
	return fmt.Errorf("%s %s: %w: %w", op, name, kind, errInjected)
}
