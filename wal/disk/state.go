package disk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/varve-io/varve/protocol/crc32c"
	"github.com/varve-io/varve/wal/frame"
)

const (
	stateName    = "store"
	stateNewName = "store.new"
	statePrefix  = "varve-wal-store 1 crc32c "
	// stateLineBytes is the length of the first line, with its checksum.
	stateLineBytes = len(statePrefix) + 8 + 1
)

// state is the store's own small file, replaced as a whole: who the store is, and what it promised. Text, so that an
// operator can read it.
type state struct {
	Identity uuid.UUID `json:"identity"`
	// Cluster is the cluster whose logs are here; zero until the store is bound to one.
	Cluster uuid.UUID `json:"cluster"`
	// Opened counts the times that the store was opened; it makes the sequence numbers of file uses unique.
	Opened uint32 `json:"opened"`
	// Boot, Unsynced and Clean say what the last run leaves behind: without sync, an unclean end and another boot of
	// the machine, nothing here can be trusted.
	Boot     string `json:"boot"`
	Unsynced bool   `json:"unsynced"`
	Clean    bool   `json:"clean"`
	// Marks are the highest fences seen per log, and stay when the log is gone.
	Marks []mark `json:"marks"`
	// Losses are the cuts that an operator accepted.
	Losses []loss `json:"losses"`
}

type mark struct {
	Log   frame.LogID `json:"log"`
	Fence frame.Fence `json:"fence"`
}

// loss says that a segment ends before entry Before, whatever the files hold.
type loss struct {
	Segment frame.SegmentID `json:"segment"`
	Before  frame.EntryID   `json:"before"`
}

// encodeState gives the bytes of a state file, at least so many: empty lines fill it up.
func encodeState(st *state, bytesMin int64) ([]byte, error) {
	body, err := json.MarshalIndent(st, "", " ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	if short := int(bytesMin) - stateLineBytes - len(body); short > 0 {
		body = append(body, bytes.Repeat([]byte{'\n'}, short)...)
	}
	return append(fmt.Appendf(nil, "%s%08x\n", statePrefix, stateCRC(body)), body...), nil
}

func decodeState(b []byte) (*state, error) {
	line, body, found := bytes.Cut(b, []byte{'\n'})
	want := fmt.Sprintf("%s%08x", statePrefix, stateCRC(body))
	if !found || string(line) != want {
		return nil, fmt.Errorf("first line is %.60q, want %q", line, want)
	}
	st := new(state)
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	return st, decoder.Decode(st)
}

func stateCRC(body []byte) uint32 { return crc32c.Checksum(body) }

// readState reads the state file; nil if there is none.
func readState(fs FS, names []string) (*state, error) {
	if !slices.Contains(names, stateName) {
		return nil, nil
	}
	f, err := fs.Open(stateName, false, false)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", stateName, err)
	}
	st, err := func() (*state, error) {
		size, err := f.Bytes()
		if err != nil {
			return nil, err
		}
		if size > stateBytesMax {
			return nil, fmt.Errorf("%d bytes, want at most %d", size, stateBytesMax)
		}
		b := make([]byte, size)
		if _, err := f.ReadAt(b, 0); err != nil {
			return nil, err
		}
		return decodeState(b)
	}()
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", stateName, err)
	}
	return st, nil
}

// stateBytesMax bounds what is read into memory: some 400,000 logs.
const stateBytesMax = 32 << 20

// writeState replaces the state file, durably. The one before becomes the file that the next one is written to, over what is there: so that a store can be opened, seal and be closed
// without new room on its disk.
func writeState(fs FS, st *state) error {
	err := replaceState(fs, st)
	if err == nil {
		return nil
	}
	if !errors.Is(err, ErrFull) {
		// Whether the folder's sync failed is said once: what may be the state file after a crash is not written over by the next one, which gets a file of its own.
		_ = fs.Remove(stateNewName)
	}
	return fmt.Errorf("write %s: %w", stateName, err)
}

func replaceState(fs FS, st *state) error {
	names, err := fs.Names()
	if err != nil {
		return err
	}
	if slices.Contains(names, stateNewName) {
		// A crash may make it the state file again, as long as the exchange that it comes from is not durable: it must not be written over until then.
		if err := fs.SyncFolder(); err != nil {
			return err
		}
	}
	if err := writeNew(fs, st); err != nil {
		return err
	}
	take := fs.Rename
	if slices.Contains(names, stateName) {
		take = fs.Exchange
	}
	if err := take(stateNewName, stateName); err != nil {
		return err
	}
	return fs.SyncFolder()
}

// writeNew writes a state to where it is no store's yet, durably. It never makes the file shorter, which gives room away.
func writeNew(fs FS, st *state) error {
	f, err := fs.Open(stateNewName, true, false)
	if err != nil {
		return err
	}
	err = func() error {
		size, err := f.Bytes()
		if err != nil {
			return err
		}
		b, err := encodeState(st, size)
		if err != nil {
			return err
		}
		if err := f.WriteBuffers([][]byte{b}, 0, false); err != nil {
			return err
		}
		return f.Sync()
	}()
	return errors.Join(err, f.Close())
}
