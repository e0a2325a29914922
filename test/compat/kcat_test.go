package compat

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// kcat translates the drivers' verbs into kcat's command line.
type kcat struct {
	bootstrap string
	program   string
}

// kcatFormat prints a record as drivers do.
const kcatFormat = `record\t%p\t%o\t%k\t%s\n`

func (k kcat) records(ctx context.Context, args ...string) ([]record, error) {
	argv := append([]string{k.program, "-q", "-b", k.bootstrap, "-f", kcatFormat}, args...)
	printed, err := run(ctx, nil, "", argv...)
	if err != nil {
		return nil, err
	}
	return parseRecords(printed)
}

func (k kcat) produce(ctx context.Context, topic, codec string, idempotent bool, records []record) error {
	_, err := run(ctx, nil, lines(records), k.program, "-P", "-b", k.bootstrap, "-t", topic, "-K", `\t`, "-z", codec,
		"-X", "enable.idempotence="+strconv.FormatBool(idempotent), "-X", "linger.ms=20")
	return err
}

// consume reads one topic after the other, which is all that kcat does without a group.
func (k kcat) consume(ctx context.Context, topics []string, _ int, sees isolation) ([]record, error) {
	var all []record
	for _, topic := range topics {
		records, err := k.records(ctx, "-C", "-t", topic, "-p", "0", "-o", "beginning", "-e", "-X", "isolation.level="+string(sees))
		if err != nil {
			return nil, err
		}
		all = append(all, records...)
	}
	return all, nil
}

func (k kcat) resume(ctx context.Context, topic, group string, maximum int) ([]record, error) {
	return k.records(ctx, "-c", strconv.Itoa(maximum), "-X", "auto.offset.reset=earliest", "-G", group, topic)
}

func (k kcat) seek(ctx context.Context, topic string, since time.Time, maximum int, sees isolation) ([]record, error) {
	return k.records(ctx, "-C", "-t", topic, "-p", "0", "-o", "s@"+strconv.FormatInt(since.UnixMilli(), 10), "-c", strconv.Itoa(maximum),
		"-X", "isolation.level="+string(sees))
}

func (k kcat) admin(context.Context, string) (string, error) {
	return "", errors.New("kcat does not administer topics")
}

var (
	kcatRebalance = regexp.MustCompile(`^% Group \S+ rebalanced \(memberid \S+\): (assigned|revoked): (.*)`)
	kcatPartition = regexp.MustCompile(`\[(\d+)\]`)
)

func (k kcat) member(t *testing.T, topic, group string) (*member, error) {
	parse := func(line string) (*event, error) {
		rebalance := kcatRebalance.FindStringSubmatch(line)
		if rebalance == nil {
			return parseEvent(line)
		}
		e := &event{assigned: []int{}}
		if rebalance[1] == "revoked" {
			return e, nil
		}
		for _, found := range kcatPartition.FindAllStringSubmatch(rebalance[2], -1) {
			partition, err := strconv.Atoi(found[1])
			if err != nil {
				return nil, fmt.Errorf("parse assignment: %w", err)
			}
			e.assigned = append(e.assigned, partition)
		}
		return e, nil
	}
	return startMember(t.Context(), t, nil, parse, k.program, "-u", "-b", k.bootstrap, "-f", kcatFormat,
		"-X", "auto.offset.reset=earliest", "-X", "heartbeat.interval.ms=500", "-X", "session.timeout.ms=10000", "-G", group, topic)
}

// version is the line in which kcat says what it was built with.
func (k kcat) version(ctx context.Context) (string, error) {
	printed, err := run(ctx, nil, "", k.program, "-V")
	if err != nil {
		return "", err
	}
	found := regexp.MustCompile(`Version (\S+) .*librdkafka (\S+)`).FindStringSubmatch(printed)
	if found == nil {
		return "", fmt.Errorf("no version in %q", strings.TrimSpace(printed))
	}
	return found[1] + ", librdkafka " + found[2], nil
}
