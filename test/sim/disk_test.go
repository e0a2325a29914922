package sim

import (
	"errors"
	"fmt"

	"github.com/varve-io/varve/wal/disk"
	"github.com/varve-io/varve/wal/disk/disktest"
)

// machine is a disk and the store on it, which all agents on the machine share, as if it were a process of its own: so that an agent which was thought
// dead goes on appending while another recovers its log.
type machine struct {
	process
	w     *world
	disk  *disktest.Disk
	store *disk.Store // nil until the first agent has opened it
	boots int
	// opening: an agent has begun to open the store.
	opening bool
}

const walFileBytes = 64 << 10

func newMachine(w *world, seed uint64) *machine {
	m := &machine{w: w, disk: disktest.New(seed)}
	m.boot()
	return m
}

// boot gives the machine a new life on its disk.
func (m *machine) boot() {
	m.boots++
	m.process = newProcess(fmt.Sprintf("m%d", m.boots))
	m.store, m.opening = nil, false
}

// open opens the store, by calls that park.
func (m *machine) open() error {
	store, err := disk.Open(disk.Config{FS: &machineFS{Disk: m.disk, w: m.w, by: &m.process}, FileBytes: walFileBytes})
	if err == nil {
		m.store = store
	}
	return err
}

var errDead = errors.New("the process is dead")

// machineFS is the machine's disk as a run of the store reaches it. What changes nothing does not park.
type machineFS struct {
	*disktest.Disk
	w  *world
	by *process
}

// do parks until the disk may do something. torn, if not nil, is what it may have done when the power goes meanwhile.
func (f *machineFS) do(what string, run, torn func() error) (err error) {
	c := &call{by: f.by, kind: kindDisk, what: what, torn: torn, run: func(e effect) {
		if e == failsHalf {
			f.Inject(disktest.Fault{Op: disktest.OpSync, Err: errors.New("input/output error")})
		}
		err = run()
	}}
	if !f.w.call(f.w.ctx, c) {
		return errDead
	}
	return err
}

// Open implements disk.FS.
func (f *machineFS) Open(name string, create, direct bool) (disk.File, error) {
	var file disk.File
	open := func() (err error) {
		file, err = f.Disk.Open(name, create, direct)
		return err
	}
	var err error
	if create {
		err = f.do("create "+name, open, nil)
	} else {
		err = open()
	}
	if err != nil {
		return nil, err
	}
	return &machineFile{File: file, fs: f, name: name}, nil
}

// Rename implements disk.FS.
func (f *machineFS) Rename(from, to string) error {
	return f.do("rename "+from+" "+to, func() error { return f.Disk.Rename(from, to) }, nil)
}

// Exchange implements disk.FS.
func (f *machineFS) Exchange(from, to string) error {
	return f.do("exchange "+from+" "+to, func() error { return f.Disk.Exchange(from, to) }, nil)
}

// Remove implements disk.FS.
func (f *machineFS) Remove(name string) error {
	return f.do("remove "+name, func() error { return f.Disk.Remove(name) }, nil)
}

// SyncFolder implements disk.FS.
func (f *machineFS) SyncFolder() error { return f.do("sync folder", f.Disk.SyncFolder, nil) }

type machineFile struct {
	disk.File
	fs   *machineFS
	name string
}

// WriteBuffers implements disk.File.
func (f *machineFile) WriteBuffers(bufs [][]byte, off int64, durable bool) error {
	write := func(durable bool) func() error {
		return func() error { return f.File.WriteBuffers(bufs, off, durable) }
	}
	what := fmt.Sprintf("write %s at %d, durable %v", f.name, off, durable)
	return f.fs.do(what, write(durable && (off == 0 || !f.fs.w.broken.noSync)), write(false))
}

// Sync implements disk.File.
func (f *machineFile) Sync() error { return f.fs.do("sync "+f.name, f.File.Sync, nil) }
