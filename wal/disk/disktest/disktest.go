// Package disktest is a disk for tests that can crash, fail, fill up and stall. It implements [disk.FS] in memory, and
// knows of every byte whether it is durable.
//
//	d := disktest.New(seed)
//	d.CrashAt(120, func() { acked = ... })   // at the 120th step, whatever goroutine makes it
//	... use d until <-d.Crashed() ...
//	after := d.Crash()                       // what the machine finds after the power failure
//
// A crash keeps what was synced. Of each write that was not, it keeps some of the sectors and loses the others, and later
// writes may survive earlier ones. Changes of the folder survive in order, up to some point. What it keeps is a function of
// the seed.
package disktest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/varve-io/varve/wal/disk"
)

// Disk is a simulated disk with one folder. Its methods may be called concurrently.
type Disk struct {
	mu       sync.Mutex
	cond     *sync.Cond
	rng      *rand.Rand
	boot     int
	locked   bool
	capacity int64 // 0: no limit

	names   map[string]*inode
	durable map[string]*inode // what the folder was at its last sync
	pending []change          // of the folder since

	steps   int
	crashAt int
	onCrash func()
	crashed chan struct{}
	after   *Disk

	faults  []*Fault
	holding bool
	held    int
}

// change is one change of the folder: to is put, and from deleted, or put too; either may be empty.
type change struct {
	from, to string
	inode    *inode // at to
	back     *inode // at from; nil to delete it
}

type inode struct {
	name    string // of the running machine
	data    []byte // as the running machine sees it
	durable []byte
	pending []write
}

type write struct {
	off  int64
	data []byte
}

// Op is a kind of call, for faults.
type Op string

// The kinds of calls.
const (
	OpOpen   Op = "open"
	OpRead   Op = "read"
	OpWrite  Op = "write"
	OpSync   Op = "sync"
	OpRename Op = "rename"
	OpRemove Op = "remove"
	OpFolder Op = "sync folder"
)

// Fault makes calls fail.
type Fault struct {
	Op     Op
	Name   string // of the file; empty for any
	After  int    // so many calls succeed first
	Always bool   // all later ones fail too, not just one
	Err    error
}

// New gives an empty disk. What a crash keeps depends on seed alone.
func New(seed uint64) *Disk { return newDisk(rand.New(rand.NewPCG(seed, 0x5eed)), 1) }

func newDisk(rng *rand.Rand, boot int) *Disk {
	d := &Disk{
		rng: rng, boot: boot, names: make(map[string]*inode), durable: make(map[string]*inode),
		crashed: make(chan struct{}),
	}
	d.cond = sync.NewCond(&d.mu)
	return d
}

// Inject adds a fault.
func (d *Disk) Inject(f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = append(d.faults, &f)
}

// Capacity limits the bytes of all files, in whole blocks of 4 KiB; 0 for no limit. What is there can always be written over.
func (d *Disk) Capacity(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = bytes
}

// Hold makes durable writes wait, after their data reached the disk and before it is durable, until Go. A sync of a whole
// file does not wait.
func (d *Disk) Hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holding = true
}

// Go ends Hold.
func (d *Disk) Go() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holding = false
	d.cond.Broadcast()
}

// AwaitHeld waits until n calls wait in Hold.
func (d *Disk) AwaitHeld(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.held < n {
		d.cond.Wait()
	}
}

// CrashAt takes the state of a crash at the n-th step from now, which may lie in the middle of a write. The machine goes on
// as if nothing had happened. At that moment, with the disk standing still, onCrash is called.
func (d *Disk) CrashAt(n int, onCrash func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashAt, d.onCrash = d.steps+n, onCrash
}

// Crashed is closed when the moment of CrashAt has come.
func (d *Disk) Crashed() <-chan struct{} { return d.crashed }

// Steps counts the moments at which a crash could happen so far.
func (d *Disk) Steps() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.steps
}

// Crash gives the disk as a power failure leaves it: at the moment of CrashAt if that came, otherwise now.
func (d *Disk) Crash() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.after == nil {
		d.after = d.cut()
	}
	return d.after
}

// Kill gives the disk as the death of the process leaves it: everything that was written is there, in the same boot of
// the machine.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	after := newDisk(d.rng, d.boot)
	for name, i := range d.names {
		copied := &inode{name: name, data: slices.Clone(i.data), durable: slices.Clone(i.durable), pending: slices.Clone(i.pending)}
		after.names[name] = copied
		after.durable[name] = copied // changes of the folder are taken for durable
	}
	return after
}

// cut makes the state after a power failure.
func (d *Disk) cut() *Disk {
	after := newDisk(d.rng, d.boot+1)
	folder := make(map[string]*inode, len(d.durable))
	maps.Copy(folder, d.durable)
	for _, c := range d.pending[:d.rng.IntN(len(d.pending)+1)] {
		c.apply(folder)
	}
	sector := int64(512)
	if d.rng.IntN(2) == 0 {
		sector = 4096
	}
	survive := []float64{0, 0.1, 0.5, 0.9, 1}[d.rng.IntN(5)]
	names := make([]string, 0, len(folder))
	for name := range folder {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		data := slices.Clone(folder[name].durable)
		for _, w := range folder[name].pending {
			data = w.survive(data, sector, survive, d.rng)
		}
		i := &inode{name: name, data: data, durable: slices.Clone(data)}
		after.names[name], after.durable[name] = i, i
	}
	return after
}

// survive applies those sectors of a write that a crash keeps.
func (w *write) survive(data []byte, sector int64, chance float64, rng *rand.Rand) []byte {
	for at := int64(0); at < int64(len(w.data)); {
		n := min(sector-(w.off+at)%sector, int64(len(w.data))-at)
		if rng.Float64() < chance {
			data = put(data, w.off+at, w.data[at:at+n])
		}
		at += n
	}
	return data
}

// put writes b into data at off, which grows as needed.
func put(data []byte, off int64, b []byte) []byte {
	if grow := off + int64(len(b)) - int64(len(data)); grow > 0 {
		data = append(data, make([]byte, grow)...)
	}
	copy(data[off:], b)
	return data
}

func (c change) apply(folder map[string]*inode) {
	delete(folder, c.from)
	if c.back != nil {
		folder[c.from] = c.back
	}
	if c.to != "" {
		folder[c.to] = c.inode
	}
}

// step is a moment at which the machine may crash. The mutex is held.
func (d *Disk) step() {
	d.steps++
	if d.steps == d.crashAt {
		d.after = d.cut()
		if d.onCrash != nil {
			d.onCrash()
		}
		close(d.crashed)
	}
}

// fault gives the error that is due for a call, if any.
func (d *Disk) fault(op Op, name string) error {
	for i, f := range d.faults {
		if f.Op != op || f.Name != "" && f.Name != name {
			continue
		}
		if f.After > 0 {
			f.After--
			continue
		}
		if !f.Always {
			d.faults = slices.Delete(d.faults, i, i+1)
		}
		return fmt.Errorf("%s %s: %w", op, name, f.Err)
	}
	return nil
}

// Damage inverts n bytes of a file at off, durably: what was written well has gone bad.
func (d *Disk) Damage(name string, off int64, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.names[name]
	for k := off; k < off+int64(n); k++ {
		i.data[k] ^= 0xff
	}
	i.durable = slices.Clone(i.data)
	i.pending = nil
}

// Contents gives a copy of a file's bytes; nil if there is none of that name.
func (d *Disk) Contents(name string) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.names[name]; i != nil {
		return slices.Clone(i.data)
	}
	return nil
}

// Open implements disk.FS.
func (d *Disk) Open(name string, create, direct bool) (disk.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault(OpOpen, name); err != nil {
		return nil, err
	}
	i := d.names[name]
	if i == nil {
		if !create {
			return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
		}
		i = &inode{name: name}
		d.change(change{to: name, inode: i})
	}
	return &file{disk: d, inode: i, direct: direct}, nil
}

func (d *Disk) change(c change) {
	c.apply(d.names)
	d.pending = append(d.pending, c)
	d.step()
}

// Names implements disk.FS.
func (d *Disk) Names() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := make([]string, 0, len(d.names))
	for name := range d.names {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// Rename implements disk.FS.
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault(OpRename, from); err != nil {
		return err
	}
	i := d.names[from]
	if i == nil {
		return fmt.Errorf("rename %s: %w", from, fs.ErrNotExist)
	}
	i.name = to
	d.change(change{from: from, to: to, inode: i})
	return nil
}

// Exchange implements disk.FS. To faults it is a rename.
func (d *Disk) Exchange(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault(OpRename, from); err != nil {
		return err
	}
	i, back := d.names[from], d.names[to]
	if i == nil || back == nil {
		return fmt.Errorf("exchange %s and %s: %w", from, to, fs.ErrNotExist)
	}
	i.name, back.name = to, from
	d.change(change{from: from, to: to, inode: i, back: back})
	return nil
}

// Remove implements disk.FS.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault(OpRemove, name); err != nil {
		return err
	}
	if d.names[name] == nil {
		return fmt.Errorf("remove %s: %w", name, fs.ErrNotExist)
	}
	d.change(change{from: name})
	return nil
}

// SyncFolder implements disk.FS.
func (d *Disk) SyncFolder() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.fault(OpFolder, ""); err != nil {
		return err
	}
	d.step()
	for _, c := range d.pending {
		c.apply(d.durable)
	}
	d.pending = nil
	d.step()
	return nil
}

// Lock implements disk.FS.
func (d *Disk) Lock(string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked {
		return nil, errors.New("locked")
	}
	d.locked = true
	return unlocker{d}, nil
}

// Boot implements disk.FS.
func (d *Disk) Boot() string { return fmt.Sprint("boot ", d.boot) }

type unlocker struct{ *Disk }

func (u unlocker) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.locked = false
	return nil
}
