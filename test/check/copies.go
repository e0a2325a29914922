package check

import "fmt"

// Copy is a record of an output log that was made of one of an input log.
type Copy struct {
	Offset int64
	Source ID
}

// Copies compares an output log with the input log of which a group of transactional copiers made it. Each record of the input must have
// one copy, and the copies the order of the input: who takes over from a copier begins where the last committed
// transaction ended. Both are as they were read at read_committed from start to end. O(n).
func Copies(log int32, input []Record, output []Copy) []Finding {
	var findings []Finding
	report := func(kind Kind, id ID, offset int64, format string, args ...any) {
		findings = append(findings, Finding{Kind: kind, Log: log, ID: id, Offset: offset, Detail: fmt.Sprintf(format, args...)})
	}
	sources := make(map[ID]int, len(input))
	for i, r := range input {
		sources[r.ID] = i
	}
	copied := make([]bool, len(input))
	last := -1
	for _, c := range output {
		source, ok := sources[c.Source]
		switch {
		case !ok:
			report(Foreign, c.Source, c.Offset, "a copy of what is not in the input")
			continue
		case copied[source]:
			report(Repeated, c.Source, c.Offset, "a second copy of offset %d", input[source].Offset)
			continue
		case source < last:
			report(Reordered, c.Source, c.Offset, "the copy of offset %d comes after that of offset %d", input[source].Offset, input[last].Offset)
		}
		copied[source] = true
		last = max(last, source)
	}
	for i, r := range input {
		if !copied[i] {
			report(Unprocessed, r.ID, r.Offset, "no copy of this offset")
		}
	}
	return findings
}
