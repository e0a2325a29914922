package inspect

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/varve-io/varve/agent/display"
)

// ErrDamaged says that what was printed is damaged; where, and how, was printed too.
var ErrDamaged = errors.New("damage was found")

// Printer prints what is found, for people or for machines, while it is being read: it keeps no more than some rows. For people, rows that follow each other and are of one kind are a table, or a list of facts. For
// machines each is a line, a JSON object of one key, which is the row's kind: {"section":{"shard":7,...}}.
//
// It is for one goroutine. After a write has failed it prints nothing more, and Close returns the error.
type Printer struct {
	out     io.Writer
	machine *json.Encoder // nil for people

	table  *tabwriter.Writer // nil for none
	kind   string            // of the row before
	rows   int               // of the table
	damage int
	err    error
}

// NewPrinter returns a printer. If machine is set, it prints JSON.
func NewPrinter(out io.Writer, machine bool) *Printer {
	p := &Printer{out: out}
	if machine {
		p.machine = json.NewEncoder(out)
		p.machine.SetEscapeHTML(false)
	}
	return p
}

// Close prints what is left. It returns [ErrDamaged] if there was damage.
func (p *Printer) Close() error {
	p.flush()
	if p.err != nil {
		return fmt.Errorf("print: %w", p.err)
	}
	if p.damage > 0 {
		return ErrDamaged
	}
	return nil
}

// row is a thing that is printed. Its JSON is for machines: fields may be added, and stay otherwise.
type row interface {
	form() form
	cells() []cell
}

// form is how rows of a kind are printed.
type form struct {
	kind   string
	indent string // of the table
	facts  bool   // each cell is a line, with its name; else each row is, and the names are above the first
}

// cell is a part of a row, for people.
type cell struct{ name, value string }

// tableRowsMax is after how many rows a table is printed, and a new one begins, which may have other widths.
const tableRowsMax = 1000

func (p *Printer) emit(r row) {
	f := r.form()
	if p.machine != nil {
		p.encode(f.kind, r)
		return
	}
	if p.kind != f.kind || f.facts || p.rows == tableRowsMax {
		p.begin(f)
		if !f.facts {
			p.line(f.indent, r.cells(), func(c cell) string { return c.name })
		}
	}
	if f.facts {
		for _, c := range r.cells() {
			p.write(p.table, f.indent+c.name+"\t"+c.value+"\n")
		}
		return
	}
	p.line(f.indent, r.cells(), func(c cell) string { return c.value })
	p.rows++
}

// encode prints a row for machines.
func (p *Printer) encode(kind string, r any) {
	if p.err == nil {
		p.err = p.machine.Encode(map[string]any{kind: r})
	}
}

// begin begins a table, after an empty line if there is something above.
func (p *Printer) begin(f form) {
	p.flush()
	if p.kind != "" {
		p.write(p.out, "\n")
	}
	p.kind, p.table = f.kind, tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
}

func (p *Printer) line(indent string, cells []cell, text func(cell) string) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		texts[i] = text(c)
	}
	p.write(p.table, indent+strings.Join(texts, "\t")+"\n")
}

// text prints lines as they are, for people.
func (p *Printer) text(kind, lines string) {
	p.begin(form{kind: kind})
	p.write(p.out, lines)
}

func (p *Printer) write(w io.Writer, s string) {
	if p.err == nil {
		_, p.err = io.WriteString(w, s)
	}
}

func (p *Printer) flush() {
	if p.table != nil && p.err == nil {
		p.err = p.table.Flush()
	}
	p.table, p.rows = nil, 0
}

// damaged prints what is wrong, and where; what is negative if no byte is to be named.
func (p *Printer) damaged(at int64, err error) {
	p.damage++
	p.emit(&damage{At: at, Error: err.Error()})
}

type damage struct {
	At    int64  `json:"at"` // byte; -1 for the whole
	Error string `json:"error"`
}

func (*damage) form() form { return form{kind: "damage", facts: true} }

func (d *damage) cells() []cell {
	if d.At < 0 {
		return []cell{{"! damage", d.Error}}
	}
	return []cell{{"! damage at byte " + number(d.At), d.Error}}
}

// content is a key or a value of a record. Its JSON is null, a string, or, if it is not UTF-8, {"base64": "..."}.
type content []byte

// MarshalJSON implements json.Marshaler.
func (c content) MarshalJSON() ([]byte, error) {
	switch {
	case c == nil:
		return []byte("null"), nil
	case utf8.Valid(c):
		return json.Marshal(string(c))
	}
	return json.Marshal(map[string]string{"base64": base64.StdEncoding.EncodeToString(c)})
}

// shownBytesMax is how much of a key or value people see.
const shownBytesMax = 200

// String shows the content in one line: quoted, in hexadecimal, or as null.
func (c content) String() string {
	if c == nil {
		return "null"
	}
	shown, rest := c, ""
	if len(c) > shownBytesMax {
		shown, rest = c[:shownBytesMax], "... of "+display.Bytes(int64(len(c)))
	}
	if utf8.Valid(c) {
		return strconv.Quote(strings.ToValidUTF8(string(shown), "")) + rest
	}
	return "0x" + fmt.Sprintf("%x", []byte(shown)) + rest
}

func number[N ~int | ~int32 | ~int64 | ~uint32 | ~uint64](n N) string { return fmt.Sprintf("%d", n) }

// span prints offsets, or entries, from the first to the last.
func span[N ~int64 | ~uint64](first, next N) string {
	if next <= first {
		return "-"
	}
	return fmt.Sprintf("%d-%d", first, next-1)
}

// moment prints Unix milliseconds, those of records too, which may be any number.
func moment(ms int64) string {
	if ms < 0 || ms > maxMs {
		return number(ms)
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

const maxMs = 253_402_300_799_999 // the year 9999 ends
