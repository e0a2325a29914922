package objectstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// ProbePrefix is what the names of probes start with.
const ProbePrefix = "probe/"

const (
	probeAgeMax  = time.Hour        // older probes are leftovers of a process that died in its probe
	probeCleanup = 10 * time.Second // for deleting the probe, when the caller's time is over
)

// Probe checks that the store can be reached, reads back what was written, and refuses a second conditional Put, on
// which every commit relies: some stores ignore If-None-Match and overwrite. It works on one small object of its own
// under "probe/" and deletes it, and those that crashed probes left more than an hour ago.
//
// A store that cannot be reached gives the error of the failed call, with its kind. A store that breaks the contract
// gives an error of kind [ErrDenied] that says what was done, seen and wanted.
func Probe(ctx context.Context, store Store) (err error) {
	name := ProbePrefix + rand.Text()
	first, second := []byte("first of two writers"), []byte("second of two writers")

	err = store.Put(ctx, name, Bytes(first))
	if err != nil && !errors.Is(err, ErrUnknownOutcome) {
		return fmt.Errorf("probe %s: %w", store, err)
	}
	defer func() {
		if cleanErr := cleanProbe(ctx, store, name); err == nil && cleanErr != nil {
			err = fmt.Errorf("probe %s: %w", store, cleanErr)
		}
	}()

	if err != nil {
		return fmt.Errorf("probe %s: %w", store, err)
	}
	switch err := store.Put(ctx, name, Bytes(second)); {
	case err == nil:
		return fmt.Errorf("probe %s: a second conditional put of %s succeeded, want a refusal; the store ignores If-None-Match: %w",
			store, name, ErrDenied)
	case !errors.Is(err, ErrExists):
		return fmt.Errorf("probe %s: a second conditional put, want a refusal because the object exists: %w", store, err)
	}
	got := make([]byte, len(first))
	if err := store.Get(ctx, name, 0, got); err != nil {
		return fmt.Errorf("probe %s: %w", store, err)
	}
	if !bytes.Equal(got, first) {
		return fmt.Errorf("probe %s: %s reads %q after a refused put, want %q: %w", store, name, got, first, ErrDenied)
	}
	return probeList(ctx, store, name)
}

// cleanProbe deletes a probe. The caller's context may be the reason that the probe ended.
func cleanProbe(ctx context.Context, store Store, name string) error {
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeCleanup)
	defer cancel()
	return store.Delete(cleanup, name)
}

// probeList checks that the store lists the probe, and deletes old ones.
func probeList(ctx context.Context, store Store, name string) error {
	// The age of others is measured by the store's own clock.
	self, err := store.Stat(ctx, name)
	if err != nil {
		return fmt.Errorf("probe %s: %w", store, err)
	}
	listed := false
	var old []string
	for info, err := range store.List(ctx, ProbePrefix, "") {
		if err != nil {
			return fmt.Errorf("probe %s: %w", store, err)
		}
		if info.Name == name {
			listed = true
		} else if self.Modified.Sub(info.Modified) > probeAgeMax {
			old = append(old, info.Name)
		}
	}
	if !listed {
		return fmt.Errorf("probe %s: %s is missing from the list of %s: %w", store, name, ProbePrefix, ErrDenied)
	}
	for _, name := range old {
		if err := store.Delete(ctx, name); err != nil {
			return fmt.Errorf("probe %s: %w", store, err)
		}
	}
	return nil
}
