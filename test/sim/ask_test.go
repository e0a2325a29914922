package sim

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol/peering"
)

// Ask is what an agent asks another one on its own, in Kafka's protocol: whether a transaction includes a partition, and that markers be written.
func (n network) Ask(ctx context.Context, to coordinator.Agent, req kmsg.Request) (kmsg.Response, error) {
	if change := n.from.c.broken.asks; change != nil {
		req = copyRequest(req)
		change(n.from.c, req)
	}
	identity, err := uuid.Parse(to.Store)
	if err != nil {
		return nil, err
	}
	answers := make(chan kmsg.Response, 2) // a request may arrive twice
	r := &remote{from: n.from, place: to.Peer, identity: identity}
	_, err = r.ask(ctx, nameOf(req), timeoutMax, func(other *node) error { //nolint:contextcheck // what is asked goes on if who asks does not wait
		return other.serveAgent(copyRequest(req), answers)
	})
	var resp kmsg.Response
	if err == nil {
		resp = <-answers
	}
	if change := n.from.c.broken.askedFor; change != nil {
		return change(req, resp, err)
	}
	return resp, err
}

// serveAgent has the node answer another agent's request. It ends with the node.
func (n *node) serveAgent(req kmsg.Request, answers chan<- kmsg.Response) error {
	ctx, cancel := context.WithCancel(n.c.ctx)
	defer cancel()
	go func() {
		select {
		case <-n.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	a := n.agent.Load()
	if a == nil {
		return fmt.Errorf("%w: %s does not serve", peering.ErrUnreachable, n.name)
	}
	resp, err := a.Answer(ctx, req)
	if err != nil {
		return fmt.Errorf("%w: %w", peering.ErrUnreachable, err)
	}
	select {
	case answers <- resp:
	default:
	}
	return nil
}

// copyRequest gives what arrives of a request.
func copyRequest(req kmsg.Request) kmsg.Request {
	other := kmsg.RequestForKey(req.Key())
	other.SetVersion(req.GetVersion())
	if err := other.ReadFrom(req.AppendTo(nil)); err != nil {
		panic(err)
	}
	return other
}

// nameOf names a request in the trace.
func nameOf(req kmsg.Request) string {
	var b strings.Builder
	b.WriteString(kmsg.NameForKey(req.Key()))
	switch req := req.(type) {
	case *kmsg.AddPartitionsToTxnRequest:
		for _, x := range req.Transactions {
			fmt.Fprintf(&b, " %s %d/%d", x.TransactionalID, x.ProducerID, x.ProducerEpoch)
			for _, t := range x.Topics {
				fmt.Fprintf(&b, " %s%v", t.Topic, t.Partitions)
			}
		}
	case *kmsg.WriteTxnMarkersRequest:
		for _, m := range req.Markers {
			fmt.Fprintf(&b, " %d/%d %v", m.ProducerID, m.ProducerEpoch, m.Committed)
			for _, t := range m.Topics {
				fmt.Fprintf(&b, " %s%v", t.Topic, t.Partitions)
			}
		}
	}
	return b.String()
}
