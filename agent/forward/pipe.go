package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// pipeDepth is how many requests a pipe has under way; the other end takes no more (server.Config.PipelineMax).
const pipeDepth = 64

var (
	// errUnsent says that a request was not sent: it certainly did nothing.
	errUnsent = errors.New("not sent")
	// errLost says that a request was sent and its answer did not come: nobody knows what it did.
	errLost = errors.New("the connection ended before the answer came")

	errPipe = errors.New("no connection")
)

// pipe is a connection to another agent that carries the Produce requests of many clients, one behind the other: they arrive in the order in which they
// were sent, and so do the answers. When it breaks, so do all requests in it, and the next one is sent through a new pipe.
type pipe struct {
	queue  chan *call    // unbuffered: what is in it was taken
	broken chan struct{} // closed when nothing is taken any more
}

// call is one request in a pipe. The frame is not used any more once it is done.
type call struct {
	frame  []byte
	done   chan struct{}
	answer []byte // without its size
	err    error  // errUnsent or errLost
}

func newCall(frame []byte) *call { return &call{frame: frame, done: make(chan struct{})} }

func (c *call) fail(kind, err error) {
	c.err = fmt.Errorf("%w: %w", kind, err)
	close(c.done)
}

// pipe returns the pipe of a lane.
func (p *peer) pipe(lane uint32) *pipe {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := &p.pipes[lane%pipesMax]
	if *at != nil {
		select {
		case <-(*at).broken:
		default:
			return *at
		}
	}
	*at = &pipe{queue: make(chan *call), broken: make(chan struct{})}
	go (*at).run(p)
	return *at
}

// send sends a call, which is done when it is answered or has failed. It returns when the pipe has taken it, or will not before ctx ends.
func (p *pipe) send(ctx context.Context, c *call) {
	select {
	case <-p.broken:
		c.fail(errUnsent, errPipe)
		return
	default:
	}
	select {
	case p.queue <- c:
	case <-p.broken:
		c.fail(errUnsent, errPipe)
	case <-ctx.Done():
		c.fail(errUnsent, ctx.Err())
	}
}

// run carries calls until the connection ends, the agent is gone, or nothing was sent for a while.
func (p *pipe) run(to *peer) {
	c, err := to.dial(to.gone)
	if err != nil {
		close(p.broken)
		return
	}
	sent := make(chan *call, pipeDepth)
	var under atomic.Int32 // calls in sent
	read := make(chan struct{})
	go func() {
		defer close(read)
		p.read(c, sent, &under)
	}()
	p.write(c, sent, &under)
	c.close()
	<-read
}

// write sends what is queued. It ends when the pipe breaks, and breaks it when the connection fails, or nothing came for a while.
func (p *pipe) write(c *conn, sent chan<- *call, under *atomic.Int32) {
	defer close(sent)
	idle := time.NewTimer(idleMax)
	defer idle.Stop()
	for {
		select {
		case next := <-p.queue:
			// However long it takes: a leader whose WAL is full takes nothing, and one that is gone ends the connection.
			if _, err := c.nc.Write(next.frame); err != nil {
				next.fail(errLost, err)
				return
			}
			under.Add(1)
			sent <- next
			idle.Reset(idleMax)
		case <-idle.C:
			if under.Load() == 0 {
				return
			}
			idle.Reset(idleMax)
		case <-p.broken:
			return
		}
	}
}

// read finishes calls as their answers come. It reads even while nothing is under way, so that the end of the connection is noticed before
// a request is sent into it.
func (p *pipe) read(c *conn, sent <-chan *call, under *atomic.Int32) {
	var err error
	for {
		var n int
		if n, err = c.size(); err != nil {
			break
		}
		next, ok := <-sent
		if !ok {
			break
		}
		b := make([]byte, n)
		if _, err = io.ReadFull(c.from, b); err != nil {
			next.fail(errLost, err)
			break
		}
		under.Add(-1)
		next.answer = b
		close(next.done)
	}
	close(p.broken)
	c.close()
	for next := range sent {
		next.fail(errLost, err)
	}
}
