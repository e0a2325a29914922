package api

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/agent/ingest"
	"github.com/varve-io/varve/agent/server"
	"github.com/varve-io/varve/agent/txns"
	"github.com/varve-io/varve/protocol"
)

// produceVersion2 is the version of Produce from which on a batch adds its partition to the producer's transaction (KIP-890).
const produceVersion2 = 12

// produceAbortable is the version from which on a producer may be told TRANSACTION_ABORTABLE.
const produceAbortable = 11

// forwardedMax is how long a batch waits for its transaction's coordinator with those of other producers behind it; then its producer is told to try again.
const forwardedMax = 200 * time.Millisecond

// verify makes sure, for batches that would begin their producer's transaction in their partition, that it is open and includes the partition: else a batch that was late
// would begin one that nobody ends. It waits for the transaction's coordinator, and so do the requests behind on the same connection, which keep their order. Batches that may not be
// written get an error.
func (b *Broker) verify(ctx context.Context, r *server.Request, req *kmsg.ProduceRequest, in *ingest.Request) {
	if r.Forwarded { // on a connection that many producers share
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, forwardedMax)
		defer cancel()
	}
	var members []txns.Member // one, of all clients that there are: a request is one producer's
	var of [][]int
	for i := range in.Batches {
		x := &in.Batches[i]
		if x.Result.Err != nil || !x.Header.Attributes.Transactional() {
			continue
		}
		if req.TransactionID == nil {
			x.Result.Err = protocol.TransactionalIDAuthorizationFailed.Errorf("a transactional batch without a transactional id")
			continue
		}
		ticket, needed := x.Partition.Verify(&x.Header, req.Version >= produceVersion2)
		if !needed {
			continue
		}
		x.Ticket = ticket
		at := 0
		for at < len(members) && (members[at].Producer != x.Header.ProducerID || members[at].Epoch != x.Header.ProducerEpoch) {
			at++
		}
		if at == len(members) {
			members = append(members, txns.Member{
				ID: *req.TransactionID, Producer: x.Header.ProducerID, Epoch: x.Header.ProducerEpoch, Add: req.Version >= produceVersion2,
			})
			of = append(of, nil)
		}
		members[at].Parts = append(members[at].Parts, txns.Part{Topic: x.Partition.Name, ID: x.Partition.ID.Topic, Partitions: []int32{x.Partition.ID.Partition}})
		of[at] = append(of[at], i)
	}
	for at := range members {
		codes := b.deps.Verifier.Verify(ctx, members[at])
		for _, i := range of[at] {
			x := &in.Batches[i]
			if code := codes.Of(x.Partition.Name, x.Partition.ID.Partition); code != protocol.None {
				x.Result.Err = refusedBy(code, req.Version)
				if !protocol.CodeOf(x.Result.Err).Retriable() { // else the ticket knows which batch must come first
					x.Partition.Drop(&x.Header, x.Ticket)
				}
				x.Ticket = nil
			}
		}
	}
}

// refusedBy is what a producer is told for its coordinator's refusal (ReplicaManager.maybeSendPartitionsToTransactionCoordinator, Errors of AddPartitionsToTxnManager): what passes is one that every
// version tries again.
func refusedBy(code protocol.ErrorCode, version int16) error {
	switch {
	case code == protocol.ProducerFenced:
		code = protocol.InvalidProducerEpoch
	case code == protocol.TransactionAbortable && version < produceAbortable:
		code = protocol.InvalidTxnState
	case code == protocol.ConcurrentTransactions && version < produceVersion2,
		code == protocol.CoordinatorNotAvailable, code == protocol.UnknownTopicOrPartition, code == protocol.OperationNotAttempted:
		code = protocol.NotEnoughReplicas
	}
	return code.Errorf("the transaction's coordinator does not let the partition in")
}
