package group

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/varve-io/varve/protocol"
)

// script runs the commands of testdata. The clock stands still but for `tick` and `advance`.
type script struct {
	m        *Machine
	now      time.Time
	cfg      Config
	stored   *Snapshot // what the last successful persist stored
	unstored map[uint64]Snapshot
	request  RequestID
}

func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{now: time.UnixMilli(1_000_000)}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			t.Helper()
			return s.run(t, d)
		})
	})
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	switch d.Cmd {
	case "new":
		s.cfg = Config{
			InitialDelay: duration(t, d, "delay", "0s"), MembersMax: 10, PayloadBytesMax: 1000,
		}
		if d.HasArg("max") {
			d.ScanArgs(t, "max", &s.cfg.MembersMax)
		}
		s.m, s.unstored, s.stored = New(s.cfg, s.now), map[uint64]Snapshot{}, nil
		return s.m.String() + "\n"
	case "load":
		snapshot := *s.stored
		if d.HasArg("bare") {
			snapshot = snapshot.WithoutPayloads()
		}
		m, err := Load(s.cfg, s.now, snapshot)
		if err != nil {
			return err.Error() + "\n"
		}
		s.m, s.unstored = m, map[uint64]Snapshot{}
		return s.m.String() + "\n"
	case "state":
		return s.m.String() + "\n"
	case "describe":
		return fmt.Sprintf("%+v\n", s.m.Describe())
	case "deadline":
		at, ok := s.m.Deadline()
		if !ok {
			return "none\n"
		}
		return at.Sub(s.now).String() + "\n"
	}
	return s.effects(s.m.Step(s.now, s.event(t, d)))
}

func (s *script) event(t *testing.T, d *datadriven.TestData) Event {
	t.Helper()
	s.request++
	switch d.Cmd {
	case "join":
		return s.join(t, d)
	case "sync":
		e := Sync{
			Request: s.request, MemberID: arg(t, d, "id"), InstanceID: arg(t, d, "instance"), Generation: number(t, d, "gen"),
			Assignments: map[string][]byte{},
		}
		if d.HasArg("type") {
			e.ProtocolType = new(arg(t, d, "type"))
		}
		if d.HasArg("protocol") {
			e.Protocol = new(arg(t, d, "protocol"))
		}
		for _, pair := range list(arg(t, d, "assign")) {
			id, assignment, _ := strings.Cut(pair, ":")
			e.Assignments[id] = []byte(assignment)
		}
		return e
	case "heartbeat":
		return Heartbeat{Request: s.request, MemberID: arg(t, d, "id"), InstanceID: arg(t, d, "instance"), Generation: number(t, d, "gen")}
	case "leave":
		e := Leave{Request: s.request}
		for _, who := range list(arg(t, d, "members")) {
			id, instance, _ := strings.Cut(who, ":")
			e.Members = append(e.Members, LeavingMember{MemberID: id, InstanceID: instance})
		}
		return e
	case "commit":
		return Commit{
			Request: s.request, MemberID: arg(t, d, "id"), InstanceID: arg(t, d, "instance"), Generation: number(t, d, "gen"),
			Transactional: d.HasArg("transactional"),
		}
	case "delete":
		return Delete{Request: s.request}
	case "persisted":
		e := Persisted{Write: uint64(number(t, d, "write"))}
		if d.HasArg("fails") {
			e.Code = protocol.CoordinatorNotAvailable
		} else {
			s.stored = new(s.unstored[e.Write])
		}
		return e
	case "tick":
		s.now = s.now.Add(duration(t, d, "after", "0s"))
		return Tick{}
	}
	t.Fatalf("%s: unknown command %q", d.Pos, d.Cmd)
	return nil
}

func (s *script) join(t *testing.T, d *datadriven.TestData) Event {
	t.Helper()
	e := Join{
		Request: s.request, MemberID: arg(t, d, "id"), InstanceID: arg(t, d, "instance"), NewMemberID: arg(t, d, "new"),
		ClientID: "client", ClientHost: "/192.0.2.1",
		SessionTimeout: duration(t, d, "session", "10s"), RebalanceTimeout: duration(t, d, "rebalance", "60s"),
		ProtocolType: "consumer", KnownIDRequired: d.HasArg("v4"), SkipSupported: d.HasArg("v9"),
	}
	if d.HasArg("type") {
		e.ProtocolType = arg(t, d, "type")
	}
	protocols := "range:s"
	if d.HasArg("protocols") {
		protocols = arg(t, d, "protocols")
	}
	for _, p := range list(protocols) {
		name, metadata, _ := strings.Cut(p, ":")
		e.Protocols = append(e.Protocols, Protocol{Name: name, Metadata: []byte(metadata)})
	}
	return e
}

func (s *script) effects(effects []Effect) string {
	var b strings.Builder
	for _, effect := range effects {
		switch e := effect.(type) {
		case Reply:
			fmt.Fprintf(&b, "reply %d: %s\n", e.Request, formatResult(e.Result))
		case Persist:
			s.unstored[e.Write] = e.Snapshot
			fmt.Fprintf(&b, "persist %d: generation=%d members=", e.Write, e.Snapshot.Generation)
			for i, m := range e.Snapshot.Members {
				if i > 0 {
					b.WriteString(",")
				}
				fmt.Fprintf(&b, "%s:%s", m.ID, m.Assignment)
			}
			b.WriteString("\n")
		case Moved:
			fmt.Fprintf(&b, "%s -> %s\n", e.From, e.To)
		case Note:
			fmt.Fprintf(&b, "note %s %s (%s)\n", e.Message, e.Member, e.Reason)
		}
	}
	b.WriteString(s.m.String() + "\n")
	return b.String()
}

func formatResult(result Result) string {
	var b strings.Builder
	switch r := result.(type) {
	case JoinResult:
		fmt.Fprintf(&b, "join %s id=%s", r.Code, r.MemberID)
		if r.Code == protocol.None {
			fmt.Fprintf(&b, " generation=%d protocol=%s leader=%s", r.Generation, r.Protocol, r.Leader)
		}
		if r.SkipAssignment {
			b.WriteString(" skip-assignment")
		}
		for _, m := range r.Members {
			fmt.Fprintf(&b, " [%s %s]", m.MemberID, m.Metadata)
		}
	case SyncResult:
		fmt.Fprintf(&b, "sync %s", r.Code)
		if r.Code == protocol.None {
			fmt.Fprintf(&b, " %q", r.Assignment)
		}
	case LeaveResult:
		fmt.Fprintf(&b, "leave %s", r.Code)
		for _, m := range r.Members {
			fmt.Fprintf(&b, " [%s %s %s]", m.MemberID, m.InstanceID, m.Code)
		}
	case CodeResult:
		b.WriteString(r.Code.String())
	}
	return b.String()
}

func arg(t *testing.T, d *datadriven.TestData, key string) string {
	t.Helper()
	if !d.HasArg(key) {
		return ""
	}
	var v string
	d.ScanArgs(t, key, &v)
	return v
}

func number(t *testing.T, d *datadriven.TestData, key string) int32 {
	t.Helper()
	if !d.HasArg(key) {
		return -1
	}
	var v int32
	d.ScanArgs(t, key, &v)
	return v
}

func duration(t *testing.T, d *datadriven.TestData, key, otherwise string) time.Duration {
	t.Helper()
	if v := arg(t, d, key); v != "" {
		otherwise = v
	}
	parsed, err := time.ParseDuration(otherwise)
	if err != nil {
		t.Fatalf("%s: %v", d.Pos, err)
	}
	return parsed
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "/")
}
