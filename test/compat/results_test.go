package compat

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// outcome is what came out of one check. The zero value is success.
type outcome struct {
	err          error
	notAvailable string // why the client cannot do this at all
}

// results gathers outcomes while checks run, several at a time.
type results struct {
	mu    sync.Mutex
	cells map[string]map[feature]outcome
	tools []toolResult
}

// toolResult is the outcome of one use of a command-line tool, or of an application.
type toolResult struct {
	tool, does string
	err        error
}

func newResults() *results { return &results{cells: map[string]map[feature]outcome{}} }

func (r *results) set(client string, f feature, o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cells[client] == nil {
		r.cells[client] = map[feature]outcome{}
	}
	r.cells[client][f] = o
}

func (r *results) addTool(result toolResult) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tools = append(r.tools, result)
}

// ok tells whether a check has run and succeeded.
func (r *results) ok(client string, f feature) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	o, ran := r.cells[client][f]
	return ran && o.err == nil && o.notAvailable == ""
}

// write writes the table, if every check has run; a run of some of them leaves the last whole table alone.
func (r *results) write(subjects []subject) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, of := range subjects {
		for _, f := range features() {
			if _, ran := r.cells[of.name][f]; !ran {
				return nil
			}
		}
	}
	name, broker, command := "RESULTS.md", "Varve", "go test ./test/compat"
	if *target == "kafka" {
		name, broker, command = "RESULTS.kafka.md", "Apache Kafka, the oracle", "go test ./test/compat -target kafka"
	}
	var b strings.Builder
	n := notes{numbers: map[string]int{}}
	fmt.Fprintf(&b, "# Kafka clients on %s\n\nWritten by `%s` (%s, %s/%s); do not edit. The package comment in doc.go says how it works.\n\n",
		broker, command, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	b.WriteString("| |")
	for _, of := range subjects {
		fmt.Fprintf(&b, " %s |", of.name)
	}
	b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(subjects)) + "\n| version |")
	for _, of := range subjects {
		fmt.Fprintf(&b, " %s |", of.version)
	}
	b.WriteString("\n")
	for _, f := range features() {
		fmt.Fprintf(&b, "| %s |", f)
		for _, of := range subjects {
			switch o := r.cells[of.name][f]; {
			case o.notAvailable != "":
				fmt.Fprintf(&b, " n/a%s |", n.note(o.notAvailable))
			case o.err != nil:
				b.WriteString(n.failed(of.name, string(f), o.err) + " |")
			default:
				b.WriteString(" ok |")
			}
		}
		b.WriteString("\n")
	}
	b.WriteString("\nWhat a cell stands for:\n\n")
	for _, f := range []feature{
		"produce CODEC", produceIdempotent, "consume CODEC", groupOfTwo, commitResume, seekByTime, administer,
		transactional, fencing, copyRestarted, copyByTwo, readIsolated,
	} {
		fmt.Fprintf(&b, "- %s: %s.\n", f, explained[f])
	}
	r.writeTools(&b, &n)
	if len(n.numbers) > 0 {
		b.WriteString("\n## Notes\n\n" + n.text.String())
	}
	if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// writeTools writes the tables of tools and applications. The caller holds the lock.
func (r *results) writeTools(b *strings.Builder, n *notes) {
	var scripts, others []toolResult
	for _, result := range r.tools {
		if strings.HasPrefix(result.tool, "kafka-") {
			scripts = append(scripts, result)
		} else {
			others = append(others, result)
		}
	}
	// Those of one name have run one after the other, those of several at the same time.
	slices.SortStableFunc(others, func(x, y toolResult) int { return strings.Compare(x.tool, y.tool) })
	table := func(title string, results []toolResult) {
		b.WriteString("\n## " + title + "\n\n| | does | result |\n| --- | --- | --- |\n")
		for _, result := range results {
			cell := " ok"
			if result.err != nil {
				cell = n.failed(result.tool, result.does, result.err)
			}
			fmt.Fprintf(b, "| %s | %s |%s |\n", result.tool, result.does, cell)
		}
	}
	table("Apache Kafka's command-line tools", scripts)
	table("Applications and administrators", others)
}

// notes are footnotes, numbered as they come.
type notes struct {
	numbers map[string]int // by text
	text    strings.Builder
}

// note returns the mark of a footnote.
func (n *notes) note(text string) string {
	number, made := n.numbers[text]
	if !made {
		number = len(n.numbers) + 1
		n.numbers[text] = number
		fmt.Fprintf(&n.text, "%d. %s\n", number, oneLine(text))
	}
	return fmt.Sprintf("<sup>%d</sup>", number)
}

// failed returns the cell of a failure.
func (n *notes) failed(who, what string, err error) string {
	return " **FAIL**" + n.note(fmt.Sprintf("%s, %s: %v", who, what, err))
}

// oneLine makes an error's text fit into a list.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	const maximum = 400
	if len(text) > maximum {
		text = text[:maximum] + "..."
	}
	return strings.ReplaceAll(text, "|", `\|`)
}
