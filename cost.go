package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/agent/cost"
)

// printCost prints what a cluster costs, in the prices of a file, if one is named.
func printCost(ctx context.Context, cfg config.Config, out io.Writer, pricesFile string, machine bool) error {
	prices, err := readPrices(pricesFile)
	if err != nil {
		return err
	}
	kv, store, err := openCluster(ctx, cfg)
	if err != nil {
		return err
	}
	defer kv.Close() //nolint:errcheck // it was only read
	records, err := cost.Read(ctx, kv, store)
	if err != nil {
		return fmt.Errorf("cost of cluster %s: %w", cfg.Cluster, err)
	}
	report := cost.Make(cfg.Cluster, records, prices, time.Now())
	if machine {
		return report.WriteJSON(out)
	}
	return report.WriteTable(out)
}

// readPrices returns nil if no file is named.
func readPrices(name string) (*cost.Prices, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // no prices
	}
	content, err := os.ReadFile(name) //nolint:gosec // the user's own choice
	if err != nil {
		return nil, &config.Error{Place: "--prices", Err: err}
	}
	prices, err := cost.ParsePrices(content)
	if err != nil {
		return nil, &config.Error{Place: "--prices", Seen: strconv.Quote(name), Want: fmt.Sprintf("a file of prices like deploy/prices.yaml (%v)", err)}
	}
	return prices, nil
}
