package fsck

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/varve-io/varve/agent/display"
	"github.com/varve-io/varve/coordinator"
)

// Report is what a check found. Its JSON is for machines: fields may be added, and stay otherwise.
type Report struct {
	Cluster  string    `json:"cluster"`  // id
	Revision int64     `json:"revision"` // of etcd, as of which it was read
	Deep     bool      `json:"deep"`     // every checksum was checked
	Clean    bool      `json:"clean"`    // nothing is wrong, or was and was repaired
	Problems []Problem `json:"problems"`
	Further  int       `json:"further_problems"` // that are not listed
	Keys     []Count   `json:"keys"`             // by prefix
	Objects  []Count   `json:"objects"`          // by kind
}

// Problem is something that is wrong.
type Problem struct {
	Kind     Kind   `json:"kind"`
	Subject  string `json:"subject"` // a key, an object, or a partition
	Text     string `json:"text"`
	Repaired bool   `json:"repaired"`
}

// Kind says what is wrong.
type Kind string

// Kinds of problems.
const (
	BadKey  Kind = "bad key" // it cannot be decoded, or contradicts another
	Missing Kind = "missing" // an object that something refers to
	Damaged Kind = "damaged" // an object that something refers to is not what it should be
	Gap     Kind = "gap"     // offsets do not continue
	Orphan  Kind = "orphan"  // an object that nothing refers to, for longer than it should be there
	Unknown Kind = "unknown" // an object that is none of Varve's
)

// Count is how many there are of a kind.
type Count struct {
	Kind  string `json:"kind"`
	Count int    `json:"count"`
	Bytes int64  `json:"bytes"`
}

// problemsMax is how many problems are listed.
const problemsMax = 10_000

// objectKind is what an object is to the cluster.
type objectKind string

const (
	commitSegment  objectKind = "segments of commits"
	mergedSegment  objectKind = "merged segments"
	shardManifest  objectKind = "manifests"
	copyPage       objectKind = "copies of etcd"
	underWay       objectKind = "under way" // nothing refers to it yet
	garbage        objectKind = "garbage"   // to be deleted soon
	orphanedObject objectKind = "orphans"
	unknownObject  objectKind = "unknown"
	notLookedAt    objectKind = ""
)

var objectKinds = []objectKind{commitSegment, mergedSegment, shardManifest, copyPage, underWay, garbage, orphanedObject, unknownObject}

// problem takes a problem in.
func (r *Report) problem(kind Kind, subject, format string, args ...any) {
	if len(r.Problems) == problemsMax {
		r.Further++
		return
	}
	r.Problems = append(r.Problems, Problem{Kind: kind, Subject: subject, Text: fmt.Sprintf(format, args...)})
}

// key counts a key.
func (r *Report) key(prefix string, item coordinator.Item) {
	at := slices.IndexFunc(r.Keys, func(c Count) bool { return c.Kind == prefix })
	if at < 0 {
		at = len(r.Keys)
		r.Keys = append(r.Keys, Count{Kind: prefix})
	}
	r.Keys[at].Count++
	r.Keys[at].Bytes += int64(len(item.Key) + len(item.Value))
}

// finish counts objects and says whether all is well.
func (r *Report) finish(objects map[string]*object) {
	byKind := make(map[objectKind]*Count)
	for _, k := range objectKinds {
		byKind[k] = &Count{Kind: string(k)}
	}
	for _, o := range objects {
		if o.kind != notLookedAt {
			byKind[o.kind].Count++
			byKind[o.kind].Bytes += o.size
		}
	}
	for _, k := range objectKinds {
		r.Objects = append(r.Objects, *byKind[k])
	}
	slices.SortFunc(r.Keys, func(a, b Count) int { return cmp.Compare(a.Kind, b.Kind) })
	if r.Problems == nil {
		r.Problems = []Problem{}
	}
	r.Clean = r.Further == 0 && !slices.ContainsFunc(r.Problems, func(p Problem) bool { return !p.Repaired })
}

// WriteJSON writes the report for machines.
func (r *Report) WriteJSON(w io.Writer) error { return display.JSON(w, r) }

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", args...) } // Flush gives the error
	depth := "footers and manifests were checked; --deep checks all sections"
	if r.Deep {
		depth = "every checksum was checked"
	}
	line("cluster %s, etcd at revision %d; %s", r.Cluster, r.Revision, depth)
	line("\nKEYS\tCOUNT\tBYTES")
	for _, c := range r.Keys {
		line("%s\t%d\t%s", c.Kind, c.Count, display.Bytes(c.Bytes))
	}
	line("\nOBJECTS\tCOUNT\tBYTES")
	for _, c := range r.Objects {
		line("%s\t%d\t%s", c.Kind, c.Count, display.Bytes(c.Bytes))
	}
	line("")
	for _, p := range r.Problems {
		repaired := ""
		if p.Repaired {
			repaired = " (deleted)"
		}
		line("! %s: %s: %s%s", p.Kind, p.Subject, p.Text, repaired)
	}
	switch {
	case r.Further > 0:
		line("! and %d more", r.Further)
	case r.Clean:
		line("all is well")
	}
	return t.Flush()
}
