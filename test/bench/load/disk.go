package load

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The probe appends as a log of small requests does.
const (
	probeBytes = 4 << 10
	probeSyncs = 1000
	probeMax   = 5 * time.Second
)

// ProbeDisk measures what the disk under a folder takes to make 4 KiB durable:
// append to a new file and fdatasync, a thousand times or for five seconds.
// No acknowledgement that waits for the disk can be faster. It works in a
// temporary file and removes it.
func ProbeDisk(ctx context.Context, folder string) (quantiles Quantiles, err error) {
	file, err := os.CreateTemp(folder, ".varve-bench-*")
	if err != nil {
		return Quantiles{}, fmt.Errorf("probe disk: %w", err)
	}
	defer func() {
		if cleanErr := errors.Join(file.Close(), os.Remove(file.Name())); cleanErr != nil {
			err = errors.Join(err, fmt.Errorf("probe disk: %w", cleanErr))
		}
	}()
	block := make([]byte, probeBytes)
	latency := newHistogram()
	deadline := time.Now().Add(probeMax)
	for range probeSyncs {
		if ctx.Err() != nil {
			return Quantiles{}, fmt.Errorf("probe disk: %w", ctx.Err())
		}
		began := time.Now()
		if began.After(deadline) {
			break
		}
		if _, err := file.Write(block); err != nil {
			return Quantiles{}, fmt.Errorf("probe disk: %w", err)
		}
		if err := syncData(file); err != nil {
			return Quantiles{}, fmt.Errorf("probe disk: %w", err)
		}
		latency.record(time.Since(began))
	}
	return latency.quantiles(), nil
}

// FolderBytes adds up the sizes of the files below a folder, some of which may be deleted meanwhile.
func FolderBytes(folder string) (sum int64, err error) {
	err = filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
