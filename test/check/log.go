package check

import "fmt"

// Log returns the anomalies in the history of one log, in the order in which they show. It changes nothing of the history.
func Log(h History) []Finding {
	c := checker{
		history: h,
		sends:   make(map[ID]*tracked, len(h.Sends)),
		final:   make(map[int64]*Record, len(h.Final)),
		last:    make(map[int32]int64),
	}
	c.acknowledgements()
	next := h.Start
	for i := range h.Final {
		next = c.record(&h.Final[i], next)
	}
	if h.Compacted {
		c.superseded()
	} else {
		c.missing()
	}
	c.seen()
	return c.findings
}

// tracked is a send and where the final read has it.
type tracked struct {
	*Send
	found bool
	at    int64
}

type checker struct {
	history  History
	sends    map[ID]*tracked
	final    map[int64]*Record // by offset
	last     map[int32]int64   // writer -> sequence of its latest record in the final read
	findings []Finding
}

func (c *checker) report(kind Kind, id ID, offset int64, format string, args ...any) {
	c.findings = append(c.findings, Finding{Kind: kind, ID: id, Offset: offset, Detail: fmt.Sprintf(format, args...)})
}

// acknowledgements checks what writers were told.
func (c *checker) acknowledgements() {
	acked := make(map[int64]ID, len(c.history.Sends))
	for i := range c.history.Sends {
		s := &c.history.Sends[i]
		c.sends[s.ID] = &tracked{Send: s}
		if s.Outcome != Acked {
			continue
		}
		if other, twice := acked[s.Offset]; twice {
			c.report(Reused, s.ID, s.Offset, "acknowledged for %v too", other)
		}
		acked[s.Offset] = s.ID
		if s.Offset <= s.Floor {
			c.report(Stale, s.ID, s.Offset, "offset %d had been acknowledged when it was sent", s.Floor)
		}
	}
}

// record checks one record of the final read, where offset next is due, and returns the offset that is due after it.
func (c *checker) record(r *Record, next int64) int64 {
	switch {
	case r.Offset < next:
		c.report(Disorder, r.ID, r.Offset, "read where offset %d was due", next)
	case r.Offset > next && !c.history.Compacted:
		c.report(Gap, r.ID, r.Offset, "offsets %d to %d are missing", next, r.Offset-1)
	}
	c.final[r.Offset] = r
	if s := c.sends[r.ID]; s == nil {
		c.report(Foreign, r.ID, r.Offset, "nobody sent it")
	} else {
		c.match(s, r)
	}
	return max(next, r.Offset+1)
}

// match compares a record with its send.
func (c *checker) match(s *tracked, r *Record) {
	if s.found {
		c.report(Duplicate, r.ID, r.Offset, "at offset %d too", s.at)
		return
	}
	s.found, s.at = true, r.Offset
	if r.Content != s.Content {
		c.report(Changed, r.ID, r.Offset, "content has hash %016x, sent was %016x", r.Content, s.Content)
	}
	switch {
	case s.Outcome == Failed:
		c.report(Undone, r.ID, r.Offset, "its send failed")
	case s.Outcome == Acked && s.Offset != r.Offset:
		c.report(WrongOffset, r.ID, r.Offset, "acknowledged at %d", s.Offset)
	case s.Outcome == Unknown && r.Offset <= s.Floor:
		c.report(Stale, r.ID, r.Offset, "offset %d had been acknowledged when it was sent", s.Floor)
	}
	if last, ok := c.last[r.ID.Writer]; ok && r.ID.Seq < last {
		c.report(Reordered, r.ID, r.Offset, "after %v", ID{r.ID.Writer, last})
	} else {
		c.last[r.ID.Writer] = r.ID.Seq
	}
}

// missing finds what is acknowledged and nowhere.
func (c *checker) missing() {
	for i := range c.history.Sends {
		s := &c.history.Sends[i]
		if s.Outcome == Acked && !c.sends[s.ID].found {
			c.report(Lost, s.ID, s.Offset, "acknowledged there")
		}
	}
}

// superseded finds keys of a compacted log that do not have the value that they were given last.
func (c *checker) superseded() {
	newest, kept := make(map[uint64]*tracked), make(map[uint64]*tracked) // by key: of all sends that are known to be done, and of those that are there
	offset := func(s *tracked) int64 {
		if s.found {
			return s.at
		}
		return s.Offset
	}
	for i := range c.history.Sends {
		s := c.sends[c.history.Sends[i].ID]
		if !s.found && s.Outcome != Acked {
			continue
		}
		if other := newest[s.Key]; other == nil || offset(s) > offset(other) {
			newest[s.Key] = s
		}
		if other := kept[s.Key]; s.found && (other == nil || s.at > other.at) {
			kept[s.Key] = s
		}
	}
	for i := range c.history.Sends {
		s := c.sends[c.history.Sends[i].ID]
		if newest[s.Key] != s || s.found {
			continue
		}
		if !s.Deletes {
			c.report(Lost, s.ID, s.Offset, "acknowledged there, the newest of key %d", s.Key)
		} else if left := kept[s.Key]; left != nil {
			c.report(Revived, left.ID, left.at, "key %d was deleted by %v at %d", s.Key, s.ID, s.Offset)
		}
	}
}

// seen compares what readers saw during the load with the final read, and where compaction has left nothing there with what was acknowledged.
func (c *checker) seen() {
	for _, r := range c.history.Seen {
		final := c.final[r.Offset]
		if final == nil && c.history.Compacted {
			if s := c.sends[r.ID]; s == nil {
				c.report(Foreign, r.ID, r.Offset, "nobody sent it")
			} else if r.Content != s.Content || s.Outcome == Acked && s.Offset != r.Offset {
				c.report(Unstable, r.ID, r.Offset, "content has hash %016x, sent was %016x, acknowledged at %d", r.Content, s.Content, s.Offset)
			}
			continue
		}
		switch {
		case final == nil:
			c.report(Unstable, r.ID, r.Offset, "the final read has nothing there")
		case final.ID != r.ID || final.Content != r.Content:
			c.report(Unstable, r.ID, r.Offset, "the final read has %v there", final.ID)
		}
	}
}
