package cost

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
	// With money, if it is known, in the last cell.
	priced := func(month *float64, cells ...string) {
		if month != nil {
			cells = append(cells, fmt.Sprintf("%.2f", *month))
		}
		line(cells...)
	}
	heads := func(cells ...string) {
		if r.Prices != nil {
			cells = append(cells, r.Prices.Currency+"/MONTH")
		}
		line(cells...)
	}
	line(fmt.Sprintf("cluster %s, %s, etcd at revision %d", r.Name, r.ID, r.Revision))
	line()
	line("OBJECTS", "COUNT", "BYTES")
	for _, o := range r.Objects {
		line(string(o.Kind), number(o.Count), display.Bytes(o.Bytes))
	}
	line()
	heads("NODE", "ZONE", "SINCE", "PUT", "GET", "HEAD", "LIST", "DELETE", "PUT BYTES", "GET BYTES", "PRODUCED", "CONSUMED")
	for _, a := range r.Agents {
		since := "-"
		if a.Told {
			since = time.Duration(a.Seconds * float64(time.Second)).Round(time.Second).String()
		}
		priced(a.Month, append([]string{strconv.Itoa(int(a.Node)), display.OrDash(a.Zone), since},
			append(a.Requests.cells(), display.Bytes(a.PutBytes), display.Bytes(a.GetBytes), display.Bytes(a.Produced), display.Bytes(a.Consumed))...)...)
	}
	line()
	heads("TOPIC", "STORED", "PRODUCED", "CONSUMED", "~PUT", "~GET", "~HEAD", "~LIST", "~DELETE")
	for _, topic := range r.Topics {
		name := topic.Name
		if topic.Kind != Named {
			name = "(" + string(topic.Kind) + ")"
		}
		priced(topic.Month, append([]string{name, display.Bytes(topic.Stored), display.Bytes(topic.Produced), display.Bytes(topic.Consumed)}, topic.Requests.cells()...)...)
	}
	total := &r.Total
	priced(total.Month, append([]string{"all", display.Bytes(total.Stored), display.Bytes(total.Produced), display.Bytes(total.Consumed)}, total.Requests.cells()...)...)
	line()
	if total.PerWrittenGiB != nil {
		line(fmt.Sprintf("%.0f requests for each GiB that was produced", *total.PerWrittenGiB))
	}
	line("requests of topics are apportioned by the bytes that were produced, those to read by what was consumed too")
	if p := r.Prices; p != nil {
		line(fmt.Sprintf("a month: what is stored now, and requests at the pace since each agent started; prices: %s", p.Source))
	} else {
		line("--prices FILE for money; deploy/prices.yaml is one to fill in")
	}
	return t.Flush()
}

func (r *Requests) cells() []string {
	return []string{number(r.Put), number(r.Get), number(r.Head), number(r.List), number(r.Delete)}
}

func number(n int64) string { return strconv.FormatInt(n, 10) }
