package status

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/varve-io/varve/agent/display"
)

// WriteJSON writes the report for machines.
func (r *Report) WriteJSON(w io.Writer) error { return display.JSON(w, r) }

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cells ...string) { _, _ = fmt.Fprintln(t, strings.Join(cells, "\t")) } // Flush gives the error
	line("cluster " + r.Name + ", " + r.ID)
	line("shards " + r.shards())
	line("etcd " + r.etcd())
	line()
	line("NODE", "STATE", "ZONE", "SHARDS", "PRODUCED", "CONSUMED", "UNFLUSHED", "OLDEST", "KAFKA", "PEERS")
	for _, a := range r.Agents {
		unflushed, oldest := "-", "-"
		if a.UnflushedBytes != nil && a.OldestSeconds != nil {
			unflushed, oldest = display.Bytes(*a.UnflushedBytes), age(*a.OldestSeconds)
		}
		line(node(a.Node), a.State, display.OrDash(a.Zone), strconv.Itoa(a.Shards), rate(a.ProducedBytesPerSecond), rate(a.ConsumedBytesPerSecond), unflushed, oldest, a.Kafka, display.OrDash(a.Peer))
	}
	line()
	line("WAL LOG", "NODE", "STATE", "SEGMENT", "ENTRIES", "ON NODES", "ACK QUORUM", "FLUSHED")
	for _, l := range r.Logs {
		for _, s := range l.Segments {
			last := ""
			if s.Last >= 0 {
				last = strconv.FormatInt(s.Last, 10)
			}
			line(l.ID, node(l.Node), l.state(), strconv.Itoa(int(s.Number)), strconv.FormatInt(s.First, 10)+"-"+last, s.nodes(), strconv.Itoa(s.Quorum),
				strconv.FormatInt(l.Flushed, 10))
		}
	}
	line()
	if r.Well {
		line("all is well")
	}
	for _, p := range r.Problems {
		line("! " + p)
	}
	return t.Flush()
}

func (r *Report) shards() string {
	s := fmt.Sprintf("%d, %d without a leader, %d to be handed over, planned by ", r.Shards, len(r.Leaderless), r.Moves)
	if r.Controller == 0 {
		return s + "nobody"
	}
	return s + "node " + node(r.Controller)
}

func (r *Report) etcd() string {
	quota := ""
	if r.Etcd.QuotaBytes > 0 {
		quota = ", quota " + display.Bytes(r.Etcd.QuotaBytes)
	}
	return fmt.Sprintf("%s of %s in use%s, revision %d, %s", display.Bytes(r.Etcd.UsedBytes), display.Bytes(r.Etcd.SizeBytes), quota, r.Revision, count(r.Etcd.Commits, "commit"))
}

func (l *Log) state() string {
	switch {
	case l.Claimer > 0:
		return "recovered by " + node(l.Claimer)
	case !l.Living || l.Claimer < 0:
		return "no agent"
	}
	return "open"
}

// nodes prints where a segment is; in brackets what is away.
func (s *Segment) nodes() string {
	names := make([]string, len(s.Stores))
	for i, store := range s.Stores {
		if names[i] = node(store.Node); !store.Living {
			names[i] = "(" + names[i] + ")"
		}
	}
	return strings.Join(names, " ")
}

func node(n int32) string {
	if n == 0 {
		return "?"
	}
	return strconv.Itoa(int(n))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

func age(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// rate prints bytes per second, if they are known.
func rate(bytes *int64) string {
	if bytes == nil {
		return "-"
	}
	return display.Bytes(*bytes) + "/s"
}
