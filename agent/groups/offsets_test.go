package groups

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/protocol"
)

func TestCommitsPipeline(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		code(t, "commit", a.commit("g", nobody, "orders", 0, 1), protocol.None)
		a.ledger.hold()
		var answers []<-chan int16
		for i := range int64(10) {
			answers = append(answers, later(func() int16 { return a.commit("g", nobody, "orders", int32(i%2), 10+i) }))
			synctest.Wait()
		}
		pending(t, answers[0], "commit")
		equal(t, "writes under way", len(a.ledger.queue), 10)
		equal(t, "offset while not durable", a.fetchOffset("g", "orders", 0), 1)
		a.ledger.release()
		for _, answer := range answers {
			code(t, "commit", <-answer, protocol.None)
		}
		equal(t, "offset", a.fetchOffset("g", "orders", 0), 18)
		equal(t, "offset", a.fetchOffset("g", "orders", 1), 19)
		a.stop()
		equal(t, "offset after takeover", c.start(2).fetchOffset("g", "orders", 1), 19)
	})
}

// TestSealedFetch: an agent that was stopped while others took its log over does not answer with the offsets that it remembers.
func TestSealedFetch(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		code(t, "commit", a.commit("g", nobody, "orders", 0, 1), protocol.None)
		a.sealed.Store(true)
		code(t, "fetch", a.OffsetFetch(t.Context(), &kmsg.OffsetFetchRequest{Version: 5, Group: "g"}).ErrorCode, protocol.NotCoordinator)
	})
}

func TestFailedCommits(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		code(t, "commit", a.commit("g", nobody, "orders", 0, 1), protocol.None)
		a.ledger.hold()
		a.ledger.fail(coordinator.ErrNoSpace, nil, coordinator.ErrNoSpace)
		var answers []<-chan int16
		for i := range int64(3) {
			answers = append(answers, later(func() int16 { return a.commit("g", nobody, "orders", int32(i), 10+i) }))
			synctest.Wait()
		}
		a.ledger.release()
		code(t, "first", <-answers[0], protocol.CoordinatorNotAvailable)
		code(t, "second", <-answers[1], protocol.None)
		code(t, "third", <-answers[2], protocol.CoordinatorNotAvailable)
		// The second was written with what the first had changed.
		for p, want := range []int64{10, 11, -1} {
			equal(t, fmt.Sprintf("offset of %d", p), a.fetchOffset("g", "orders", int32(p)), want)
		}
		code(t, "commit", a.commit("g", nobody, "orders", 3, 13), protocol.None)
		a.stop()
		b := c.start(2)
		for p, want := range []int64{10, 11, -1, 13} {
			equal(t, fmt.Sprintf("durable offset of %d", p), b.fetchOffset("g", "orders", int32(p)), want)
		}
	})
}

func TestWritesInFlightAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1, func(cfg *Config) { cfg.WritesInFlightMax, cfg.MailboxMax = 3, 2 })
		a.ledger.hold()
		var answers []<-chan int16
		for i := range int64(20) {
			answers = append(answers, later(func() int16 { return a.commit("g", nobody, "orders", int32(i), i) }))
		}
		pending(t, answers[0], "commit")
		equal(t, "writes under way", len(a.ledger.queue), 3)
		a.ledger.release()
		for _, answer := range answers {
			code(t, "commit", <-answer, protocol.None)
		}
	})
}

func TestCommitOfManyPartitions(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		c.topics["wide"] = coordinator.Topic{Name: "wide", Partitions: 10_000}
		a := c.start(1)
		offsets := map[int32]int64{}
		for p := range int32(10_000) {
			offsets[p] = int64(p)
		}
		for _, p := range a.OffsetCommit(t.Context(), commitRequest("g", nobody, "wide", offsets)).Topics[0].Partitions {
			code(t, "commit", p.ErrorCode, protocol.None)
		}
		equal(t, "offset", a.fetchOffset("g", "wide", 9_999), 9_999)
	})
}

func TestRefusedPartitions(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1, func(cfg *Config) { cfg.MetadataBytesMax = 100_000 })
		codes := func(r *kmsg.OffsetCommitRequest) string {
			var b strings.Builder
			for _, topic := range a.OffsetCommit(t.Context(), r).Topics {
				for _, p := range topic.Partitions {
					fmt.Fprintf(&b, "%d ", p.ErrorCode)
				}
			}
			return strings.TrimSpace(b.String())
		}
		equal(t, "unknown topic", codes(commitRequest("g", nobody, "none", map[int32]int64{0: 1})), "3")
		equal(t, "unknown partition", codes(commitRequest("g", nobody, "bills", map[int32]int64{3: 1})), "3")
		equal(t, "negative partition", codes(commitRequest("g", nobody, "bills", map[int32]int64{-1: 1})), "3")
		equal(t, "state", a.state("g"), "Dead")

		r := commitRequest("g", nobody, "orders", map[int32]int64{0: 1})
		r.Topics[0].Partitions[0].Metadata = new(strings.Repeat("x", 100_001))
		more := commitRequest("g", nobody, "bills", map[int32]int64{0: 1})
		r.Topics = append(r.Topics, more.Topics...)
		equal(t, "metadata too large", codes(r), "12 0")

		r = commitRequest("g", nobody, "orders", nil)
		for p := range int32(6) {
			part := kmsg.NewOffsetCommitRequestTopicPartition()
			part.Partition, part.Metadata = p, new(strings.Repeat("x", 100_000))
			r.Topics[0].Partitions = append(r.Topics[0].Partitions, part)
		}
		part := kmsg.NewOffsetCommitRequestTopicPartition()
		part.Partition, part.Offset = 64, 1
		r.Topics[0].Partitions = append(r.Topics[0].Partitions, part)
		equal(t, "block too large", codes(r), "28 28 28 28 28 28 0")
		equal(t, "offset", a.fetchOffset("g", "orders", 0), -1)
		equal(t, "offset", a.fetchOffset("g", "orders", 64), 1)

		equal(t, "member of no group", codes(commitRequest("h", member{"m", 1}, "bills", map[int32]int64{0: 1})), "69")
		r = commitRequest("h", member{"m", 1}, "bills", map[int32]int64{0: 1})
		r.Version = 8
		equal(t, "member of no group", codes(r), "22")
	})
}

func TestFetchShapes(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		for _, topic := range []string{"orders", "bills"} {
			code(t, "commit", a.commit("g", nobody, topic, 1, 7), protocol.None)
		}
		all := a.OffsetFetch(t.Context(), &kmsg.OffsetFetchRequest{Version: 5, Group: "g"})
		if len(all.Topics) != 2 || all.Topics[0].Topic != "bills" || all.Topics[0].Partitions[0].Offset != 7 ||
			*all.Topics[0].Partitions[0].Metadata != "at 7" {
			t.Fatalf("all topics: %+v", all.Topics)
		}
		none := a.OffsetFetch(t.Context(), &kmsg.OffsetFetchRequest{Version: 5, Group: "g", Topics: []kmsg.OffsetFetchRequestTopic{}})
		equal(t, "topics when none was asked for", len(none.Topics), 0)

		batch := kmsg.NewPtrOffsetFetchRequest()
		batch.Version = 8
		topics := []kmsg.OffsetFetchRequestGroupTopic{{Topic: "orders", Partitions: []int32{1, 2}}}
		batch.Groups = []kmsg.OffsetFetchRequestGroup{{Group: "g"}, {Group: "none", Topics: topics}, {Group: "g", Topics: topics}}
		got := a.OffsetFetch(t.Context(), batch).Groups
		equal(t, "topics of g", len(got[0].Topics), 2)
		equal(t, "offset of none", got[1].Topics[0].Partitions[0].Offset, -1)
		equal(t, "error of none", got[1].Topics[0].Partitions[0].ErrorCode, 0)
		equal(t, "offset of g", got[2].Topics[0].Partitions[0].Offset, 7)

		a.lose()
		lost := a.OffsetFetch(t.Context(), batch).Groups
		code(t, "not coordinator", lost[0].ErrorCode, protocol.NotCoordinator)
		one := &kmsg.OffsetFetchRequest{Version: 1, Group: "g", Topics: []kmsg.OffsetFetchRequestTopic{{Topic: "orders", Partitions: []int32{1}}}}
		code(t, "not coordinator, v1", a.OffsetFetch(t.Context(), one).Topics[0].Partitions[0].ErrorCode, protocol.NotCoordinator)
	})
}

func deleteRequest(group string, partitions ...int32) *kmsg.OffsetDeleteRequest {
	r := kmsg.NewPtrOffsetDeleteRequest()
	r.Group = group
	for _, topic := range []string{"orders", "bills"} {
		t := kmsg.NewOffsetDeleteRequestTopic()
		t.Topic = topic
		for _, p := range partitions {
			t.Partitions = append(t.Partitions, kmsg.OffsetDeleteRequestTopicPartition{Partition: p})
		}
		r.Topics = append(r.Topics, t)
	}
	return r
}

func TestOffsetDelete(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		code(t, "no group", a.OffsetDelete(t.Context(), deleteRequest("g", 0)).ErrorCode, protocol.GroupIDNotFound)
		for _, topic := range []string{"orders", "bills"} {
			code(t, "commit", a.commit("g", nobody, topic, 1, 7), protocol.None)
		}
		members := a.form("g", 1)
		r := a.OffsetDelete(t.Context(), deleteRequest("g", 1, 300))
		code(t, "delete", r.ErrorCode, protocol.None)
		code(t, "subscribed", r.Topics[0].Partitions[0].ErrorCode, protocol.GroupSubscribedToTopic)
		code(t, "no partition", r.Topics[0].Partitions[1].ErrorCode, protocol.UnknownTopicOrPartition)
		code(t, "bills", r.Topics[1].Partitions[0].ErrorCode, protocol.None)
		equal(t, "offset", a.fetchOffset("g", "orders", 1), 7)
		equal(t, "offset", a.fetchOffset("g", "bills", 1), -1)
		a.leave("g", members...)
		code(t, "delete", a.OffsetDelete(t.Context(), deleteRequest("g", 1)).Topics[0].Partitions[0].ErrorCode, protocol.None)
		equal(t, "offset", a.fetchOffset("g", "orders", 1), -1)

		connect := joinRequest("c", "")
		connect.Version, connect.ProtocolType = 3, "connect"
		code(t, "join", a.JoinGroup(t.Context(), client, connect).ErrorCode, protocol.None)
		code(t, "delete", a.OffsetDelete(t.Context(), deleteRequest("c", 1)).ErrorCode, protocol.NonEmptyGroup)
	})
}

func TestExpiry(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		const day = 24 * time.Hour
		members := a.form("g", 1)
		code(t, "commit", a.commit("g", members[0], "bills", 0, 1), protocol.None)
		code(t, "commit", a.commit("g", members[0], "orders", 0, 2), protocol.None)
		code(t, "commit", a.commit("simple", nobody, "orders", 0, 3), protocol.None)
		for range 6 * 24 * 3600 / 9 { // six days in a session
			time.Sleep(9 * time.Second)
			code(t, "heartbeat", a.heartbeat("g", members[0]), protocol.None)
		}
		code(t, "commit", a.commit("simple", nobody, "orders", 1, 4), protocol.None)
		a.leave("g", members...)
		time.Sleep(day + time.Hour)
		equal(t, "simple, seven days after the commit", a.fetchOffset("simple", "orders", 0), -1)
		equal(t, "simple, one day after the commit", a.fetchOffset("simple", "orders", 1), 4)
		equal(t, "empty for a day", a.fetchOffset("g", "orders", 0), 2)
		time.Sleep(6 * day)
		equalSlices(t, "listed", a.list())
		equal(t, "live", a.live(), 0)
		if items, _, _ := c.store.List(t.Context(), "", 0); len(items) != 0 {
			t.Fatalf("left behind: %v", items)
		}
	})
}

func TestExpiryOfTopicsThatAMemberLeftBehind(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1, func(cfg *Config) { cfg.OffsetsRetention = time.Hour })
		members := a.form("g", 1)
		code(t, "commit", a.commit("g", members[0], "bills", 0, 1), protocol.None)
		code(t, "commit", a.commit("g", members[0], "orders", 0, 2), protocol.None)
		for range 2 * 3600 / 9 {
			time.Sleep(9 * time.Second)
			code(t, "heartbeat", a.heartbeat("g", members[0]), protocol.None)
		}
		equal(t, "not subscribed", a.fetchOffset("g", "bills", 0), -1)
		equal(t, "subscribed", a.fetchOffset("g", "orders", 0), 2)
	})
}

// A group whose agent died together with all its members must become empty nevertheless.
func TestUpkeepLoadsGroupsThatNobodyAsksFor(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		members := a.form("g", 1)
		code(t, "commit", a.commit("g", members[0], "orders", 0, 2), protocol.None)
		a.stop()
		b := c.start(2)
		equalSlices(t, "listed", b.list(), "g/consumer/Stable")
		time.Sleep(11 * time.Minute)
		equalSlices(t, "listed", b.list(), "g/consumer/Empty")
		time.Sleep(8 * 24 * time.Hour)
		equalSlices(t, "listed", b.list())
	})
}

func TestTopicDeleted(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		for i := range 20 {
			group := fmt.Sprintf("g%d", i)
			code(t, "commit", a.commit(group, nobody, "orders", 100, 7), protocol.None)
			code(t, "commit", a.commit(group, nobody, "bills", 1, 8), protocol.None)
		}
		a.stop()
		b := c.start(2)
		if err := b.TopicDeleted(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		equal(t, "orders, created anew", b.fetchOffset("g0", "orders", 100), 7)
		orders, bills := c.topics["orders"], c.topics["bills"]
		delete(c.topics, "orders")
		if err := b.TopicDeleted(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		c.topics["orders"] = orders
		for i := range 20 {
			equal(t, "orders", b.fetchOffset(fmt.Sprintf("g%d", i), "orders", 100), -1)
			equal(t, "bills", b.fetchOffset(fmt.Sprintf("g%d", i), "bills", 1), 8)
		}

		b.ledger.hold()
		delete(c.topics, "bills")
		deleted := later(func() error { return b.TopicDeleted(t.Context(), "bills") })
		pending(t, deleted, "deletion")
		c.topics["bills"] = bills
		code(t, "commit", b.commit("g0", nobody, "bills", 1, 9), protocol.UnknownTopicOrPartition)
		b.ledger.release()
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
		code(t, "commit", b.commit("g0", nobody, "bills", 1, 9), protocol.None)
		equal(t, "bills", b.fetchOffset("g0", "bills", 1), 9)
	})
}

func TestDeleteFails(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster) {
		a := c.start(1)
		code(t, "commit", a.commit("g", nobody, "orders", 0, 7), protocol.None)
		del := &kmsg.DeleteGroupsRequest{Version: 2, Groups: []string{"g"}}
		for i, offset := range []int64{7, -1} { // fails before the offsets are deleted, and after
			a.ledger.fail(append(make([]error, i), coordinator.ErrNoSpace)...)
			code(t, "delete", a.DeleteGroups(t.Context(), del).Groups[0].ErrorCode, protocol.CoordinatorNotAvailable)
			synctest.Wait()
			equal(t, "state", a.state("g"), "Empty")
			equalSlices(t, "listed", a.list(), "g//Empty")
			equal(t, "offset", a.fetchOffset("g", "orders", 0), offset)
		}
		code(t, "delete", a.DeleteGroups(t.Context(), del).Groups[0].ErrorCode, protocol.None)
		equal(t, "state", a.state("g"), "Dead")
	})
}
