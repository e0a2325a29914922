package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/agent/rebuild"
	"github.com/varve-io/varve/objectstore/bucket"
)

// restore builds a cluster's etcd anew from its bucket, and prints what it found.
func restore(ctx context.Context, cfg config.Config, out io.Writer, repair, disksLost, acceptMissing bool) error {
	store, err := bucket.OpenURL(ctx, cfg.Bucket)
	if err != nil {
		return &config.Error{Place: cfg.Place("bucket"), Err: err}
	}
	kv, err := openEtcd(cfg, cfg.Etcd)
	if err != nil {
		return err
	}
	defer kv.Close() //nolint:errcheck // every write was answered
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	report, err := rebuild.Restore(ctx, kv, store, rebuild.Options{
		Repair: repair, DisksLost: disksLost, AcceptMissing: acceptMissing, Secret: secret, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if report != nil {
		if printErr := report.Write(out); printErr != nil && err == nil {
			err = printErr
		}
	}
	if err != nil {
		return fmt.Errorf("restore cluster %s: %w", cfg.Cluster, err)
	}
	return nil
}
