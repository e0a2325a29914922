package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/varve-io/varve/coordinator"
)

// Txn implements [coordinator.KV]. A put on a lease that is gone fails with ErrLeaseGone and changes nothing.
//
// Without space left, the error is both ErrNoSpace and ErrUnknownOutcome: etcd looks at its quota before it proposes and
// again when it applies, and in the second case applies the transaction all the same and gives the same answer (its
// quotaApplierV3). That outcome is settled, however: a Get after the answer tells.
func (s *Store) Txn(ctx context.Context, compares []coordinator.Compare, ops []coordinator.Op) (coordinator.TxnResult, error) {
	if err := coordinator.CheckTxn(compares, ops); err != nil {
		return coordinator.TxnResult{}, fmt.Errorf("transaction: %w", err)
	}
	ctx, cancel, client, err := s.begin(ctx)
	if err != nil {
		return coordinator.TxnResult{}, fmt.Errorf("transaction: %w", err)
	}
	defer cancel()
	conditions, thens, elses := s.txnParts(compares, ops)
	for attempt := 0; ; attempt++ {
		sentCtx, sent := withSent(ctx)
		resp, err := client.Txn(sentCtx).If(conditions...).Then(thens...).Else(elses...).Commit()
		if err == nil {
			return s.txnResult(resp, compares)
		}
		if attempt == 0 && isAny(err, staleTokens) {
			continue // refused, and the library has a new token now
		}
		return coordinator.TxnResult{}, fmt.Errorf("transaction: %w", writeError(err, sent.Load()))
	}
}

// txnParts converts a transaction; the branch for the case that it does not hold reads the compared keys.
func (s *Store) txnParts(compares []coordinator.Compare, ops []coordinator.Op) ([]clientv3.Cmp, []clientv3.Op, []clientv3.Op) {
	conditions := make([]clientv3.Cmp, 0, len(compares))
	elses := make([]clientv3.Op, 0, len(compares))
	for _, c := range compares {
		key := s.cfg.Prefix + c.Key
		if c.Value != nil {
			conditions = append(conditions, clientv3.Compare(clientv3.Value(key), "=", string(c.Value)))
		} else {
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(key), "=", c.Revision))
		}
		elses = append(elses, clientv3.OpGet(key))
	}
	thens := make([]clientv3.Op, 0, len(ops))
	for _, op := range ops {
		key := s.cfg.Prefix + op.Key
		switch {
		case op.Delete && op.Prefix:
			thens = append(thens, clientv3.OpDelete(key, clientv3.WithPrefix()))
		case op.Delete:
			thens = append(thens, clientv3.OpDelete(key))
		default:
			thens = append(thens, clientv3.OpPut(key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease))))
		}
	}
	return conditions, thens, elses
}

func (s *Store) txnResult(resp *clientv3.TxnResponse, compares []coordinator.Compare) (coordinator.TxnResult, error) {
	result := coordinator.TxnResult{Succeeded: resp.Succeeded, Revision: resp.Header.Revision}
	if resp.Succeeded {
		return result, nil
	}
	if len(resp.Responses) != len(compares) {
		// The transaction did not hold, so nothing was applied.
		return coordinator.TxnResult{}, fmt.Errorf("transaction: %w: %d items in the answer, wanted %d", coordinator.ErrUnavailable, len(resp.Responses), len(compares))
	}
	result.Failed = make([]coordinator.Item, len(compares))
	for i, r := range resp.Responses {
		result.Failed[i].Key = compares[i].Key
		if kvs := r.GetResponseRange().GetKvs(); len(kvs) > 0 {
			result.Failed[i] = s.item(kvs[0])
		}
	}
	return result, nil
}
