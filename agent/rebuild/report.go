package rebuild

import (
	"fmt"
	"io"
	"time"
)

// linesMax is how many lines of a kind are printed.
const linesMax = 100

// Write writes the report for people.
func (r *Report) Write(w io.Writer) error {
	p := &printer{w: w}
	p.line("cluster   %s", r.Cluster)
	p.line("copy      %d, of revision %d, made at %s", r.Copy.Number, r.Copy.Revision, r.CopiedAt.UTC().Format(time.RFC3339))
	p.line("topics    %d", r.Topics)
	p.line("commits   %d, of which %d are newer than the copy", r.Commits, r.Adopted)
	p.line("WAL logs  %d to be recovered from agents' disks %v", len(r.Open), r.Open)
	p.list("note", r.Notes)
	p.list("missing", r.Missing)
	return p.err
}

// printer writes until a write fails.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) list(what string, all []string) {
	for i, text := range all {
		if i == linesMax {
			p.line("%s: and %d more", what, len(all)-i)
			return
		}
		p.line("%s: %s", what, text)
	}
}
