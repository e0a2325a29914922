// Package display writes what the commands that report on a cluster (status, fsck, cost, inspect) have in common: numbers of bytes and empty cells
// for people, and reports for machines.
package display

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// Bytes is a number of bytes in the largest binary unit of which there is one, up to TiB: 1536 is "1.5 KiB".
func Bytes(n int64) string {
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	value, unit := float64(n)/(1<<10), 0
	for value >= 1<<10 && unit < len(units)-1 {
		value, unit = value/(1<<10), unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

const units = "KMGT"

// OrDash is s, or a dash if that is empty.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// JSON writes a report for machines, indented.
func JSON(w io.Writer, report any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(report)
}
