package main

import (
	"fmt"
	"strings"
	"time"
)

// setting is on what and with what a page's numbers were made.
type setting struct {
	contest
	machine string
	began   time.Time
	took    time.Duration
}

// write says it, and what the load was.
func (s setting) write(b *strings.Builder, load string) {
	fmt.Fprintf(b, "- Machine: %s\n", s.machine)
	for _, contender := range s.contenders {
		fmt.Fprintf(b, "- %s %s\n", contender.name, contender.version)
	}
	fmt.Fprintf(b, "- %s, %d rounds, %v in all. Clients and broker share the machine.\n", s.began.UTC().Format("2006-01-02 15:04 UTC"), s.rounds, s.took.Round(time.Second))
	fmt.Fprintf(b, "- Load: %s\n\n", load)
}

// names are the contenders'.
func (s setting) names() [2]string { return [2]string{s.contenders[0].name, s.contenders[1].name} }
