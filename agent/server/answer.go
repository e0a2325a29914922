package server

import (
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol/wire"
)

// Message returns the answer that is a ready response, whose version is set.
func Message(correlationID int32, response kmsg.Response) Answer {
	return &message{correlation: correlationID, response: response}
}

type message struct {
	correlation int32
	response    kmsg.Response
}

func (m *message) Ready() <-chan struct{} { return nil }

func (m *message) AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte) {
	start := len(scratch)
	scratch = wire.AppendResponse(scratch, m.correlation, m.response)
	return append(bufs, scratch[start:]), scratch
}

func (m *message) Release() {}

// Encoded is an answer that is encoded and framed already.
type Encoded []byte

// Ready implements [Answer].
func (e Encoded) Ready() <-chan struct{} { return nil }

// AppendTo implements [Answer].
func (e Encoded) AppendTo(bufs [][]byte, scratch []byte) ([][]byte, []byte) {
	return append(bufs, e), scratch
}

// Release implements [Answer].
func (e Encoded) Release() {}
