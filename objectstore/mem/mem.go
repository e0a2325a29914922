// Package mem is an object store in memory, for tests and for `mem://`. It keeps everything until it is deleted, and
// nothing when the process ends.
package mem

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/varve-io/varve/objectstore"
)

// Store implements [objectstore.Store].
type Store struct {
	mu      sync.RWMutex
	objects map[string]object
}

type object struct {
	bytes    []byte // never changed
	modified time.Time
}

var _ objectstore.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{objects: make(map[string]object)}
}

// String implements [objectstore.Store].
func (s *Store) String() string { return "mem://" }

// Put implements [objectstore.Store]. It copies the body.
func (s *Store) Put(ctx context.Context, name string, body objectstore.Body) error {
	if err := objectstore.CheckPut(name, body); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	content := bytes.Join(body.Parts, nil)

	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[name]; ok {
		return fmt.Errorf("put %s: %w", name, objectstore.ErrExists)
	}
	s.objects[name] = object{bytes: content, modified: time.Now()}
	return nil
}

// Get implements [objectstore.Store].
func (s *Store) Get(ctx context.Context, name string, off int64, p []byte) error {
	if err := objectstore.CheckGet(name, off); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("get %s: %w", name, err)
	}
	if len(p) == 0 {
		return nil
	}
	o, ok := s.find(name)
	if !ok {
		return fmt.Errorf("get %s: %w", name, objectstore.ErrNotFound)
	}
	size := int64(len(o.bytes))
	if off > size || int64(len(p)) > size-off {
		return fmt.Errorf("get %s: %d bytes from %d of an object of %d: %w", name, len(p), off, size, objectstore.ErrDenied)
	}
	copy(p, o.bytes[off:])
	return nil
}

// Stat implements [objectstore.Store].
func (s *Store) Stat(ctx context.Context, name string) (objectstore.Info, error) {
	if err := objectstore.CheckName("stat", name); err != nil {
		return objectstore.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return objectstore.Info{}, fmt.Errorf("stat %s: %w", name, err)
	}
	o, ok := s.find(name)
	if !ok {
		return objectstore.Info{}, fmt.Errorf("stat %s: %w", name, objectstore.ErrNotFound)
	}
	return o.info(name), nil
}

// List implements [objectstore.Store]. It yields the objects as they were when it began.
func (s *Store) List(ctx context.Context, prefix, after string) iter.Seq2[objectstore.Info, error] {
	return func(yield func(objectstore.Info, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(objectstore.Info{}, fmt.Errorf("list %q: %w", prefix, err))
			return
		}
		for _, info := range s.matching(prefix, after) {
			if !yield(info, nil) {
				return
			}
			if err := ctx.Err(); err != nil {
				yield(objectstore.Info{}, fmt.Errorf("list %q: %w", prefix, err))
				return
			}
		}
	}
}

// Delete implements [objectstore.Store].
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := objectstore.CheckName("delete", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, name)
	return nil
}

func (s *Store) find(name string) (object, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.objects[name]
	return o, ok
}

// matching returns what List yields, in order.
func (s *Store) matching(prefix, after string) []objectstore.Info {
	s.mu.RLock()
	var infos []objectstore.Info
	for name, o := range s.objects {
		if strings.HasPrefix(name, prefix) && name > after {
			infos = append(infos, o.info(name))
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(infos, func(a, b objectstore.Info) int { return strings.Compare(a.Name, b.Name) })
	return infos
}

func (o object) info(name string) objectstore.Info {
	return objectstore.Info{Name: name, Size: int64(len(o.bytes)), Modified: o.modified}
}
