package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/varve-io/varve/test/bench/report"
)

// scaleMarkdown is the page about many partitions.
func (r results) scaleMarkdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %d partitions on three agents, %d of them in use\n\n", r.plan.many, r.plan.manyBusy)
	b.WriteString("Written by `go run ./test/bench/cluster --only scale`; `test/bench/gaps` says how waits are measured. Not to be edited.\n\n")
	r.writeSubject(&b)
	r.writeTime(&b, "")
	b.WriteString("\n")
	r.writeScaled(&b)
	report.WriteAims(&b, []report.Outcome{r.scaleOutcome()})
	return b.String()
}

func (r results) writeScaled(b *strings.Builder) {
	m := r.scaled
	if m == nil {
		return
	}
	fmt.Fprintf(b, "Each partition has a record; %.1f MB/s of 1 KiB records go to the %d in use. Waits are of the record that waited longest.\n\n"+
		"| | |\n| --- | --: |\n", r.plan.manyRateBytes/1e6, r.plan.manyBusy)
	mib := func(bytes float64) string { return fmt.Sprintf("%.1f MiB", bytes/(1<<20)) }
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	milliseconds := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", 1000*d.Seconds()) }
	grown := float64(m.memoryAfter.Resident) - float64(m.memoryBefore.Resident)
	for _, row := range [][2]string{
		{
			fmt.Sprintf("creating them, %d in a topic, until each has a leader", idleTopicPartitions),
			fmt.Sprintf("%s (%.0f per second)", seconds(m.created), float64(r.plan.many)/m.created.Seconds()),
		},
		{"answer to a request for the metadata of all", milliseconds(m.metadata)},
		{"answer to a request for the metadata of those in use", milliseconds(m.metadataBusy)},
		{"memory of the agent that holds most, empty", mib(float64(m.memoryBefore.Resident))},
		{"memory of the agent that holds most, under load", mib(float64(m.memoryAfter.Resident))},
		{"what it grew by, for each partition of the cluster", fmt.Sprintf("%.1f KiB", grown/float64(r.plan.many)/(1<<10))},
		{"etcd's database before, in use (file)", mib(m.etcdBefore.used) + " (" + mib(m.etcdBefore.file) + ")"},
		{"etcd's database under load, in use (file)", mib(m.etcdAfter.used) + " (" + mib(m.etcdAfter.file) + ")"},
		{"start of all agents, after all had left: until they are ready and lead", seconds(m.cold)},
		{fmt.Sprintf("drain of an agent that led %d of those in use: from SIGTERM to the exit", m.left.led), seconds(m.left.took)},
		{"drain: longest wait", seconds(m.left.Wait)},
		{"start of an agent: until it is ready", seconds(m.back.took)},
		{fmt.Sprintf("start of an agent: longest wait while it takes its share of %d", m.back.led), seconds(m.back.Wait)},
		{fmt.Sprintf("kill -9 of an agent that led %d: longest wait", m.killed.led), seconds(m.killed.Wait)},
		{"start after kill -9: until it is ready", seconds(m.again.took)},
		{fmt.Sprintf("start after kill -9: longest wait while it takes its share of %d", m.again.led), seconds(m.again.Wait)},
	} {
		fmt.Fprintf(b, "| %s | %s |\n", row[0], row[1])
	}
	b.WriteString("\n")
	writeKept(b, m.kept, m.failed)
}
