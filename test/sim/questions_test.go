package sim

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// question is a request whose answer is checked by itself.
type question struct {
	client   string
	exchange *exchange
	check    func(kmsg.Response)
}

// inquire asks a node something, unless that client still waits.
func (c *cluster) inquire(n *node, client string, r kmsg.Request, answer func(kmsg.Response)) {
	for _, q := range c.asked {
		if q.client == client {
			return
		}
	}
	c.note("%s asks %s", client, n.name)
	c.asked = append(c.asked, &question{client: client, exchange: n.connection(client).ask(r), check: answer})
}

// pollQuestions takes the answers.
func (c *cluster) pollQuestions() {
	asked := c.asked
	c.asked = nil
	for _, q := range asked {
		switch {
		case !q.exchange.answered():
			c.asked = append(c.asked, q)
		case q.exchange.response != nil:
			q.check(q.exchange.response)
		}
	}
}

// askProducerID asks for a producer id, which nobody must have had before.
func (c *cluster) askProducerID(n *node) {
	r := kmsg.NewPtrInitProducerIDRequest()
	r.Version = 2
	c.inquire(n, "new producer", r, func(response kmsg.Response) {
		a := response.(*kmsg.InitProducerIDResponse)
		if a.ErrorCode != 0 {
			return
		}
		c.note("producer id %d", a.ProducerID)
		if c.ids[a.ProducerID] {
			c.check.report("5: producer id %d is handed out twice", a.ProducerID)
		}
		c.ids[a.ProducerID] = true
	})
}

// askOffset asks for a group's offset, which must not be before one whose commit was acknowledged by then.
func (c *cluster) askOffset(g *committer) {
	n, ok := c.choose(g.shard).(*node)
	if !ok {
		return
	}
	t := kmsg.NewOffsetFetchRequestTopic()
	t.Topic, t.Partitions = c.topic.Name, []int32{0}
	r := kmsg.NewPtrOffsetFetchRequest()
	r.Version, r.Group, r.Topics = 5, g.group, []kmsg.OffsetFetchRequestTopic{t}
	acked := g.acked
	c.inquire(n, fmt.Sprintf("consumer of %s", g.group), r, func(response kmsg.Response) {
		a := response.(*kmsg.OffsetFetchResponse)
		if a.ErrorCode != 0 || len(a.Topics) == 0 || a.Topics[0].Partitions[0].ErrorCode != 0 {
			return
		}
		offset := max(a.Topics[0].Partitions[0].Offset, 0) // -1 for none
		c.note("offset of %s: %d", g.group, offset)
		if offset < acked {
			c.check.report("7: %s says that the offset of %s is %d, %d was committed", n.name, g.group, offset, acked)
		}
	})
}
