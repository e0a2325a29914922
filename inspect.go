package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/varve-io/varve/agent/config"
	"github.com/varve-io/varve/agent/inspect"
	"github.com/varve-io/varve/objectstore/bucket"
)

// printInspected prints a key, an object or a file, whichever cfg asks for.
func printInspected(ctx context.Context, cfg config.Config, out io.Writer, args []string, o inspect.Options, machine bool) error {
	inBucket := cfg.Bucket != (bucket.URL{})
	switch {
	case len(args) > 1:
		return &config.Error{Place: "varve inspect", Seen: strconv.Quote(args[1]), Want: "one name only"}
	case len(args) == 0 && len(cfg.Etcd) == 0:
		return &config.Error{Place: "varve inspect", Seen: "no name", Want: "a file, --bucket URL and the name of an object, or --etcd URL"}
	}
	p := inspect.NewPrinter(out, machine)
	var err error
	switch {
	case inBucket:
		err = inspectObject(ctx, p, cfg.Bucket, args[0], o)
	case len(cfg.Etcd) > 0:
		key := ""
		if len(args) > 0 {
			key = args[0]
		}
		err = inspectKeys(ctx, p, cfg, key)
	default:
		err = inspectFile(p, args[0], o)
	}
	if closed := p.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	return nil
}

func inspectObject(ctx context.Context, p *inspect.Printer, url bucket.URL, name string, o inspect.Options) error {
	store, err := bucket.OpenURL(ctx, url)
	if err != nil {
		return err
	}
	return inspect.Object(ctx, p, store, name, o)
}

func inspectKeys(ctx context.Context, p *inspect.Printer, cfg config.Config, key string) error {
	kv, err := openEtcd(cfg, cfg.Etcd)
	if err != nil {
		return err
	}
	defer kv.Close() //nolint:errcheck // it was only read
	return inspect.Keys(ctx, p, kv, key)
}

func inspectFile(p *inspect.Printer, name string, o inspect.Options) error {
	file, err := os.Open(name) //nolint:gosec // the user's own choice
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // it was only read
	info, err := file.Stat()
	if err != nil {
		return err
	}
	return inspect.File(p, name, file, info.Size(), o)
}
