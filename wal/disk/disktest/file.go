package disktest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"unsafe"

	"github.com/varve-io/varve/wal/disk"
)

// file is an open file of a Disk.
type file struct {
	disk   *Disk
	inode  *inode
	direct bool
	closed bool
}

var errClosedFile = errors.New("file is closed")

const directBytes = 4096 // what direct I/O must be aligned to, and a file's blocks have

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if err := f.check(OpRead); err != nil {
		return 0, err
	}
	if off >= int64(len(f.inode.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.inode.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) check(op Op) error {
	if f.closed {
		return fmt.Errorf("%s %s: %w", op, f.inode.name, errClosedFile)
	}
	return f.disk.fault(op, f.inode.name)
}

// WriteBuffers implements disk.File. It is strict about what direct I/O asks for.
func (f *file) WriteBuffers(bufs [][]byte, off int64, durable bool) error {
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := f.check(OpWrite); err != nil {
		return err
	}
	var w write
	w.off = off
	for _, b := range bufs {
		if f.direct && (len(b)%directBytes != 0 || off%directBytes != 0 || uintptr(unsafe.Pointer(&b[0]))%directBytes != 0) {
			return fmt.Errorf("write %d bytes to %s at %d: not aligned for direct I/O", len(b), f.inode.name, off)
		}
		w.data = append(w.data, b...)
	}
	if len(w.data) == 0 {
		return nil
	}
	if err := d.room(f.inode, w); err != nil {
		return fmt.Errorf("write %s: %w", f.inode.name, err)
	}
	f.inode.data = put(f.inode.data, w.off, w.data)
	f.inode.pending = append(f.inode.pending, w)
	d.step()
	if !durable {
		return nil
	}
	d.hold()
	if err := f.check(OpSync); err != nil {
		return err
	}
	f.inode.durable = put(f.inode.durable, w.off, w.data)
	f.inode.pending = slices.DeleteFunc(f.inode.pending, func(p write) bool { return &p.data[0] == &w.data[0] })
	for _, p := range f.inode.pending {
		p.supersede(w)
	}
	d.step()
	return nil
}

// supersede makes w what survives of an earlier write in the same place: a device does not bring back what was written over durably.
func (p *write) supersede(w write) {
	from, to := max(p.off, w.off), min(p.off+int64(len(p.data)), w.off+int64(len(w.data)))
	if from < to {
		copy(p.data[from-p.off:to-p.off], w.data[from-w.off:to-w.off])
	}
}

// room says whether a write fits on the disk, of which a file has whole blocks.
func (d *Disk) room(i *inode, w write) error {
	blocks := func(bytes int64) int64 { return (bytes + directBytes - 1) / directBytes * directBytes }
	used := blocks(w.off + int64(len(w.data)))
	if d.capacity == 0 || used <= blocks(int64(len(i.data))) {
		return nil
	}
	for _, other := range d.names {
		if other != i {
			used += blocks(int64(len(other.data)))
		}
	}
	if used > d.capacity {
		return fmt.Errorf("%d bytes of %d: %w", used, d.capacity, disk.ErrFull)
	}
	return nil
}

// hold waits while Hold is in force.
func (d *Disk) hold() {
	d.held++
	d.cond.Broadcast()
	for d.holding {
		d.cond.Wait()
	}
	d.held--
}

// Sync implements disk.File.
func (f *file) Sync() error {
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step()
	if err := f.check(OpSync); err != nil {
		return err
	}
	f.inode.durable = slices.Clone(f.inode.data)
	f.inode.pending = nil
	d.step()
	return nil
}

// Bytes implements disk.File.
func (f *file) Bytes() (int64, error) {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	return int64(len(f.inode.data)), nil
}

// Close implements io.Closer.
func (f *file) Close() error {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	if f.closed {
		return fmt.Errorf("close %s: %w", f.inode.name, errClosedFile)
	}
	f.closed = true
	return nil
}
