package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/agent/fsck"
	"github.com/varve-io/varve/coordinator/etcd"
	"github.com/varve-io/varve/objectstore"
	"github.com/varve-io/varve/objectstore/bucket"
)

var (
	// errProblems makes the exit status that of a cluster in which something is wrong, which has been printed.
	errProblems = errors.New("not all is in order")
	// errUnchecked makes the exit status that of a cluster that could not be checked.
	errUnchecked = errors.New("could not check")
)

// printFsck checks a cluster and prints what it found. It returns errProblems if something is wrong, and errUnchecked if that cannot be told.
func printFsck(ctx context.Context, cfg config.Config, out io.Writer, o fsck.Options, machine bool) error {
	report, err := check(ctx, cfg, o)
	if err != nil {
		return fmt.Errorf("cluster %s: %w: %w", cfg.Cluster, errUnchecked, err)
	}
	write := report.WriteTable
	if machine {
		write = report.WriteJSON
	}
	if err := write(out); err != nil {
		return fmt.Errorf("%w: %w", errUnchecked, err)
	}
	if !report.Clean {
		return fmt.Errorf("cluster %s: %w", cfg.Cluster, errProblems)
	}
	return nil
}

func check(ctx context.Context, cfg config.Config, o fsck.Options) (*fsck.Report, error) {
	kv, store, err := openCluster(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer kv.Close() //nolint:errcheck // it was only read
	return fsck.Check(ctx, kv, store, o)
}

// openCluster opens the etcd and the bucket of the cluster that is meant: of the dev on the data folder, if none are given.
func openCluster(ctx context.Context, cfg config.Config) (*etcd.Store, objectstore.Store, error) {
	endpoints, err := endpointsOf(cfg)
	if err != nil {
		return nil, nil, err
	}
	url := cfg.Bucket
	if url == (bucket.URL{}) {
		folder, err := filepath.Abs(filepath.Join(cfg.Data, objectFolder))
		if err != nil {
			return nil, nil, err
		}
		url = bucket.URL{Scheme: bucket.File, Folder: folder}
	}
	store, err := bucket.OpenURL(ctx, url)
	if err != nil {
		return nil, nil, err
	}
	kv, err := openEtcd(cfg, endpoints)
	return kv, store, err
}
