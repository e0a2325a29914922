package coordinator

import "context"

// Take takes n numbers from a counter, which begins at 1 and gives each number once, and returns the first. After an unknown outcome
// the numbers may be taken and not returned, which leaves a gap and does no harm.
func Take(ctx context.Context, kv KV, counter string, n int64) (int64, error) {
	for {
		item, _, err := kv.Get(ctx, counter)
		if err != nil {
			return 0, err
		}
		next := int64(1)
		if item.ModRevision != 0 {
			if next, err = Decode[int64](item); err != nil {
				return 0, err
			}
		}
		res, err := kv.Txn(ctx, []Compare{{Key: counter, Revision: item.ModRevision}}, []Op{{Key: counter, Value: Encode(next + n)}})
		if err != nil {
			return 0, err
		}
		if res.Succeeded {
			return next, nil
		}
	}
}
