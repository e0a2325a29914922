package tidy

import (
	"bytes"
	"fmt"
	"regexp"
)

// phrases are what no file of the repository contains. Each pattern is written so that it does not match itself.
var phrases = []struct {
	pattern *regexp.Regexp
	rule    string
}{
	{regexp.MustCompile(`\b(TO[D]O|FIX[M]E|XX[X])\b`), "unfinished: do it, or open an issue"},
	{regexp.MustCompile(`(^|[\s"'` + "`" + `(=:])/(wor[k]|roo[t]|hom[e])/[a-z]`), "a path of somebody's machine"},
	{
		regexp.MustCompile(`\b(proxy\.golan[g]|sum\.golan[g]|registry\.npmj[s]|registry\.yarnpk[g]|(files\.)?pypi(\.or[g]|thonhosted)|repo1?\.mave[n]|deb\.debia[n]|GOPROX[Y]=|--index-ur[l]|--extra-index-ur[l])`),
		"the host of a package registry: it is the machine's to choose",
	},
	{regexp.MustCompile(`^(<{7}|>{7}) `), "a conflict that was not resolved"},
}

// text checks what any file says, line by line.
func (c *checker) text(name string, content []byte) {
	if bytes.IndexByte(content, 0) >= 0 {
		return // not text
	}
	number := 0
	for line := range bytes.Lines(content) {
		number++
		for _, p := range phrases {
			if p.pattern.Match(line) {
				c.report(fmt.Sprintf("%s:%d", name, number), "%s", p.rule)
			}
		}
	}
}
