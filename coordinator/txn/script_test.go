package txn

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/varve-io/varve/protocol"
)

// script runs the commands of testdata. The clock stands still but for `tick` and `expire`. Partitions are written as
// topic and number between slashes, a0/a1, and come out as a:0-1; topic o stands for __consumer_offsets. New producer ids count from 101.
type script struct {
	m        *Machine
	cfg      Config
	now      time.Time
	stored   *Snapshot // what the last successful write left
	writing  Effect    // Persist or Delete under way
	marking  uint64    // number of the last Mark
	request  RequestID
	producer protocol.ProducerID
}

// shortTopics undoes what becomes of the topics of scripts.
var shortTopics = strings.NewReplacer(protocol.TopicID{}.String(), "o", protocol.TopicID{'a'}.String(), "a")

func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{now: time.UnixMilli(1_000_000)}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			t.Helper()
			return shortTopics.Replace(s.run(t, d))
		})
	})
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	switch d.Cmd {
	case "new":
		s.cfg = Config{TimeoutMax: 15 * time.Minute, Expiration: time.Hour, PartitionsMax: 4, ParkedMax: 3}
		s.m, s.stored, s.writing, s.request, s.producer = New(s.cfg, s.now), nil, nil, 0, 101
		if !d.HasArg("epoch") {
			return s.m.String() + "\n"
		}
		r := noRecord
		r.State, r.ProducerID, r.Epoch, r.TimeoutMs, r.UpdatedMs = Empty, 100, protocol.ProducerEpoch(number(t, d, "epoch", 0)), 60_000, s.now.UnixMilli()
		s.stored = &r
		return s.load(t)
	case "load": // what was not durable is lost
		s.writing = nil
		return s.load(t)
	case "deadline":
		at, ok := s.m.Deadline()
		if !ok {
			return "none\n"
		}
		return at.Sub(s.now).String() + "\n"
	case "needs-id":
		return fmt.Sprintln(s.m.NeedsID())
	case "idle":
		return fmt.Sprintln(s.m.Idle())
	}
	return s.effects(s.m.Step(s.now, s.event(t, d)))
}

func (s *script) load(t *testing.T) string {
	t.Helper()
	m, err := Load(s.cfg, s.now, *s.stored)
	if err != nil {
		t.Fatal(err)
	}
	s.m = m
	return s.m.String() + "\n"
}

func (s *script) event(t *testing.T, d *datadriven.TestData) Event {
	t.Helper()
	switch d.Cmd {
	case "init":
		return Init{
			Request: s.next(), TimeoutMs: int32(number(t, d, "timeout", 60_000)), ProducerID: producer(t, d), Epoch: epoch(t, d), FreshID: s.freshID(d),
		}
	case "add", "verify":
		return Add{Request: s.next(), ProducerID: producer(t, d), Epoch: epoch(t, d), Partitions: partitions(t, d), VerifyOnly: d.Cmd == "verify", Sent: d.HasArg("sent")}
	case "commit", "abort":
		return End{
			Request: s.next(), ProducerID: producer(t, d), Epoch: epoch(t, d), Commit: d.Cmd == "commit", Version2: d.HasArg("v2"), FreshID: s.freshID(d),
		}
	case "persisted":
		return s.persisted(t, d)
	case "marked":
		return Marked{Write: uint64(number(t, d, "write", int64(s.marking)))}
	case "cancel":
		return Cancel{Request: RequestID(number(t, d, "request", 0))}
	case "loaded":
		var e Loaded
		if d.HasArg("in") {
			e.Offsets = partitions(t, d)
		}
		return e
	case "expire":
		s.now = s.now.Add(duration(t, d))
		return Expire{}
	case "tick":
		s.now = s.now.Add(duration(t, d))
		return Tick{}
	}
	t.Fatalf("%s: unknown command %q", d.Pos, d.Cmd)
	return nil
}

func (s *script) next() RequestID {
	s.request++
	return s.request
}

func (s *script) freshID(d *datadriven.TestData) protocol.ProducerID {
	if !s.m.NeedsID() || d.HasArg("no-id") {
		return protocol.NoProducerID
	}
	return s.producer
}

func (s *script) persisted(t *testing.T, d *datadriven.TestData) Event {
	t.Helper()
	e := Persisted{}
	if d.HasArg("fails") {
		e.Code = protocol.CoordinatorNotAvailable
	}
	switch w := s.writing.(type) {
	case Persist:
		if e.Write = w.Write; e.Code == protocol.None {
			s.stored = &w.Snapshot
		}
	case Delete:
		e.Write = w.Write
	default:
		t.Fatalf("%s: no write is under way", d.Pos)
	}
	s.writing = nil
	return e
}

func (s *script) effects(effects []Effect) string {
	var b strings.Builder
	for _, effect := range effects {
		switch e := effect.(type) {
		case Reply:
			fmt.Fprintf(&b, "reply %d: %s", e.Request, e.Result.Code)
			if e.Result.ProducerID >= 0 {
				fmt.Fprintf(&b, " %d/%d", e.Result.ProducerID, e.Result.Epoch)
			}
			if e.Result.Missing != nil {
				fmt.Fprintf(&b, " without %s", format(e.Result.Missing))
			}
			b.WriteString("\n")
		case Persist:
			s.writing = e
			if s.producer == max(e.Snapshot.ProducerID, e.Snapshot.NextProducerID) {
				s.producer++
			}
			loaded := &Machine{record: e.Snapshot}
			fmt.Fprintf(&b, "persist %d: %s\n", e.Write, loaded)
		case Delete:
			s.writing = e
			fmt.Fprintf(&b, "delete %d\n", e.Write)
		case Mark:
			s.marking = e.Write
			fmt.Fprintf(&b, "mark %d: %d/%d commit=%t v2=%t %s\n", e.Write, e.ProducerID, e.Epoch, e.Commit, e.Version2, format(e.Partitions))
		case Note:
			fmt.Fprintf(&b, "note %s (%s)\n", e.Message, e.Reason)
		}
	}
	b.WriteString(s.m.String() + "\n")
	return b.String()
}

func format(partitions Set) string {
	text, _ := partitions.MarshalText() // never fails
	return "[" + string(text) + "]"
}

func producer(t *testing.T, d *datadriven.TestData) protocol.ProducerID {
	t.Helper()
	return protocol.ProducerID(number(t, d, "pid", -1))
}

func epoch(t *testing.T, d *datadriven.TestData) protocol.ProducerEpoch {
	t.Helper()
	return protocol.ProducerEpoch(number(t, d, "epoch", -1))
}

func partitions(t *testing.T, d *datadriven.TestData) Set {
	t.Helper()
	var list string
	d.ScanArgs(t, "in", &list)
	var set []Partition
	for p := range strings.SplitSeq(list, "/") {
		n, err := strconv.ParseInt(p[1:], 10, 32)
		if err != nil {
			t.Fatalf("%s: %v", d.Pos, err)
		}
		topic := protocol.TopicID{p[0]}
		if p[0] == 'o' {
			topic = protocol.TopicID{}
		}
		set = append(set, Partition{Topic: topic, Partition: int32(n)})
	}
	return NewSet(set...)
}

func number(t *testing.T, d *datadriven.TestData, key string, otherwise int64) int64 {
	t.Helper()
	if d.HasArg(key) {
		d.ScanArgs(t, key, &otherwise)
	}
	return otherwise
}

func duration(t *testing.T, d *datadriven.TestData) time.Duration {
	t.Helper()
	text := "0s"
	if d.HasArg("after") {
		d.ScanArgs(t, "after", &text)
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", d.Pos, err)
	}
	return parsed
}
