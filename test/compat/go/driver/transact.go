package driver

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// AbortedOf is how many transactions of the verb copy there are for each that it aborts.
const AbortedOf = 3

// Transactional is a client library that has transactions. Each method is a verb, but for Transactions, which makes the
// producer of the verb transact.
type Transactional interface {
	Transactions(ctx context.Context, job Job) (Producer, error)
	Copy(ctx context.Context, job Job, out *Output) error
}

// Producer is a transactional producer that has been initialized. Each method is a step of the verb transact.
type Producer interface {
	Begin() error
	// Send may return before the record has been acknowledged; Flush waits for that, and so do Commit and Abort.
	Send(ctx context.Context, topic string, r Record) error
	Flush(ctx context.Context) error
	Offset(ctx context.Context, group, topic string, partition int32, offset int64) error
	Commit(ctx context.Context) error
	Abort(ctx context.Context) error
	Close() error
}

// Stall says that the verb copy stands in the midst of a transaction, and waits there for good.
func (o *Output) Stall(ctx context.Context) error {
	o.Line("stalled")
	<-ctx.Done()
	return ctx.Err()
}

// transact does what in says, step by step.
func transact(ctx context.Context, client Transactional, job Job, in io.Reader, out *Output) error {
	producer, err := client.Transactions(ctx, job)
	if err != nil {
		return err
	}
	out.Line("ready")
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if err := step(ctx, producer, strings.Split(lines.Text(), "\t")); err != nil {
			out.Line("refused\t%s", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		out.Line("done")
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read steps: %w", err)
	}
	return producer.Close()
}

func step(ctx context.Context, p Producer, parts []string) error {
	switch {
	case parts[0] == "begin":
		return p.Begin()
	case parts[0] == "send" && len(parts) == 5:
		partition, err := strconv.ParseInt(parts[2], 10, 32)
		if err != nil {
			return fmt.Errorf("parse partition: %w", err)
		}
		return p.Send(ctx, parts[1], Record{Partition: int32(partition), Key: []byte(parts[3]), Value: []byte(parts[4])})
	case parts[0] == "flush":
		return p.Flush(ctx)
	case parts[0] == "offset" && len(parts) == 5:
		partition, err := strconv.ParseInt(parts[3], 10, 32)
		if err != nil {
			return fmt.Errorf("parse partition: %w", err)
		}
		offset, err := strconv.ParseInt(parts[4], 10, 64)
		if err != nil {
			return fmt.Errorf("parse offset: %w", err)
		}
		return p.Offset(ctx, parts[1], parts[2], int32(partition), offset)
	case parts[0] == "commit":
		return p.Commit(ctx)
	case parts[0] == "abort":
		return p.Abort(ctx)
	}
	return fmt.Errorf("unknown step %q", parts)
}
