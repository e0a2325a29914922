package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/agent/status"
	"github.com/varve-io/varve/coordinator/etcd/embedded"
)

// statusTimeout bounds the reading of a cluster's records.
const statusTimeout = 10 * time.Second

// errUnwell makes the exit status that of a cluster with problems, which have been printed.
var errUnwell = errors.New("not all is well")

// printStatus prints how the cluster is, and returns errUnwell if it has problems.
func printStatus(ctx context.Context, cfg config.Config, out io.Writer, machine bool) error {
	endpoints, err := endpointsOf(cfg)
	if err != nil {
		return err
	}
	kv, err := openEtcd(cfg, endpoints)
	if err != nil {
		return err
	}
	defer kv.Close() //nolint:errcheck // it was only read
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	records, err := status.Read(ctx, kv)
	if err != nil {
		return fmt.Errorf("status of cluster %s in etcd at %s: %w", cfg.Cluster, endpoints, err)
	}
	report := status.Make(cfg.Cluster, records)
	write := report.WriteTable
	if machine {
		write = report.WriteJSON
	}
	if err := write(out); err != nil {
		return err
	}
	if !report.Well {
		return fmt.Errorf("cluster %s: %w", cfg.Cluster, errUnwell)
	}
	return nil
}

// endpointsOf returns the URLs of the etcd that is meant: that of the dev on the data folder, if none are given.
func endpointsOf(cfg config.Config) ([]string, error) {
	if len(cfg.Etcd) > 0 {
		return cfg.Etcd, nil
	}
	found, err := embedded.Find(cfg.Data)
	if errors.Is(err, embedded.ErrNotRunning) {
		return nil, &config.Error{Place: cfg.Place("data"), Seen: strconv.Quote(cfg.Data), Want: "the folder of a varve dev that runs, or --etcd for another cluster"}
	}
	if err != nil {
		return nil, err
	}
	return []string{found}, nil
}
