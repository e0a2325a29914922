package coordinator

import (
	"context"
	"errors"
	"fmt"
)

// ListAll returns the items of several prefixes, in their order, all as of one revision, which it returns too. If that is compacted on the way, it begins anew.
func ListAll(ctx context.Context, kv KV, prefixes ...string) ([]Item, int64, error) {
	for {
		items, revision, err := listAll(ctx, kv, prefixes)
		if !errors.Is(err, ErrCompacted) {
			return items, revision, err
		}
	}
}

func listAll(ctx context.Context, kv KV, prefixes []string) (all []Item, revision int64, err error) {
	for _, prefix := range prefixes {
		var items []Item
		if items, revision, err = kv.List(ctx, prefix, revision); err != nil {
			return nil, 0, fmt.Errorf("read %s: %w", prefix, err)
		}
		all = append(all, items...)
	}
	return all, revision, nil
}
