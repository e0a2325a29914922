package sim

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
)

// listener is where a node's clients connect.
type listener struct {
	conns chan net.Conn
	once  sync.Once
	over  chan struct{}
}

func newListener() *listener { return &listener{conns: make(chan net.Conn), over: make(chan struct{})} }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.over) })
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

// kafka is a client's connection to one node: requests are answered in their order.
type kafka struct {
	over chan struct{} // closed when nothing more will be answered
	end  func()
	send chan *exchange
}

// exchange is a request and, once done, its response; nil if the connection ended.
type exchange struct {
	request  kmsg.Request
	once     sync.Once
	done     chan struct{}
	response kmsg.Response
}

// finish tells who asked; nil for the end of the connection.
func (x *exchange) finish(response kmsg.Response) {
	x.once.Do(func() {
		x.response = response
		close(x.done)
	})
}

// answered reports whether an exchange is over.
func (x *exchange) answered() bool {
	select {
	case <-x.done:
		return true
	default:
		return false
	}
}

// inLineMax is how many requests wait for their answers; a client that has more, since it gave up on some, makes another connection.
const inLineMax = 8

// connect opens a connection, which may wait until the node accepts it.
func connect(l *listener) *kafka {
	ours, theirs := net.Pipe()
	k := &kafka{over: make(chan struct{}), send: make(chan *exchange, inLineMax)}
	var once sync.Once
	k.end = func() {
		once.Do(func() {
			close(k.over)
			_ = ours.Close()
			_ = theirs.Close()
		})
	}
	line := make(chan *exchange, inLineMax)
	go func() {
		defer k.end()
		select {
		case l.conns <- theirs:
		case <-l.over:
			return
		case <-k.over:
			return
		}
		k.write(ours, line)
	}()
	go func() {
		defer k.end()
		k.read(ours, line)
	}()
	return k
}

// ask sends a request behind those before.
func (k *kafka) ask(r kmsg.Request) *exchange {
	x := &exchange{request: r, done: make(chan struct{})}
	select {
	case k.send <- x:
	default:
		k.end()
	}
	go func() { // whoever waits learns that the connection has ended
		select {
		case <-x.done:
		case <-k.over:
			x.finish(nil)
		}
	}()
	return x
}

func (k *kafka) write(c net.Conn, line chan<- *exchange) {
	format := kmsg.NewRequestFormatter(kmsg.FormatterClientID("sim"))
	for n := int32(1); ; n++ {
		select {
		case x := <-k.send:
			select {
			case line <- x:
			case <-k.over:
				return
			}
			if _, err := c.Write(format.AppendRequest(nil, x.request, n)); err != nil {
				return
			}
		case <-k.over:
			return
		}
	}
}

func (k *kafka) read(c net.Conn, line <-chan *exchange) {
	for {
		var size [4]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		x := <-line
		response := x.request.ResponseKind()
		response.SetVersion(x.request.GetVersion())
		head := 4
		if x.request.IsFlexible() {
			head++ // no tags
		}
		if err := response.ReadFrom(b[head:]); err != nil {
			return
		}
		x.finish(response)
	}
}

var errConnection = errors.New("the connection ended")

// errorOf is the error of a code; nil for none.
func errorOf(code int16) error {
	if code == 0 {
		return nil
	}
	return protocol.ErrorCode(code).Err()
}

func (n *node) connection(client string) *kafka {
	if k := n.clients[client]; k != nil {
		select {
		case <-k.over:
		default:
			return k
		}
	}
	k := connect(n.listener)
	n.clients[client] = k
	return k
}

// hangUp ends all clients' connections.
func (n *node) hangUp() {
	for _, name := range slices.Sorted(maps.Keys(n.clients)) {
		n.clients[name].end()
	}
}
