package inspect

import (
	"fmt"

	"github.com/varve-io/varve/coordinator"
	"github.com/varve-io/varve/coordinator/backup"
	"github.com/varve-io/varve/protocol"
)

// showCopy prints a page of a copy of the coordinator's state, which is read as a whole.
func showCopy(p *Printer, s *source) error {
	if s.size > backup.PageBytesMax {
		p.damaged(0, fmt.Errorf("%d bytes, want at most %d: %w", s.size, backup.PageBytesMax, backup.ErrCorrupt))
		return nil
	}
	b, err := s.bytes(0, s.size)
	if err != nil {
		return err
	}
	page, err := backup.Parse(b)
	if err != nil {
		p.damaged(0, err) // its one checksum is over all of it
		return nil
	}
	facts := copyFacts{
		Object: page.ID.Name(page.Number), Cluster: protocol.TopicID(page.ID.Cluster).String(), Number: page.ID.Number, Revision: page.ID.Revision, Nonce: page.ID.Nonce,
		CreatedMs: page.CreatedMs, Page: page.Number, Last: page.Last, Keys: len(page.Items), Size: s.size,
	}
	p.emit(&facts)
	if s.object && facts.Object != s.name {
		p.damaged(0, fmt.Errorf("the object is %s by its header", facts.Object))
	}
	for _, it := range page.Items {
		p.key(coordinator.Item{Key: it.Key, Value: it.Value, ModRevision: it.Revision, CreateRevision: it.Revision})
	}
	return nil
}

type copyFacts struct {
	Object    string `json:"object"` // name
	Cluster   string `json:"cluster"`
	Number    uint64 `json:"number"`
	Revision  int64  `json:"revision"`
	Nonce     uint64 `json:"nonce"`
	CreatedMs int64  `json:"created_ms"`
	Page      uint32 `json:"page"`
	Last      bool   `json:"last"` // no page follows
	Keys      int    `json:"keys"`
	Size      int64  `json:"size"`
}

func (*copyFacts) form() form { return form{kind: "copy", facts: true} }

func (f *copyFacts) cells() []cell {
	return []cell{
		{"copy", f.Object},
		{"cluster", f.Cluster},
		{"number", number(f.Number)},
		{"of revision", number(f.Revision)},
		{"nonce", number(f.Nonce)},
		{"created", moment(f.CreatedMs)},
		{"page", fmt.Sprintf("%d, last: %t", f.Page, f.Last)},
		{"keys", number(f.Keys)},
		{"size", number(f.Size)},
	}
}
