package agent

import "sync"

// members tells everybody who wants to know that something changed about agents, shards, moves or the controller. It may be used concurrently.
type members struct {
	mu   sync.Mutex
	told []chan struct{}
}

// subscribe returns a channel of capacity 1, which holds one signal however often something changed, and one to begin with.
func (m *members) subscribe() <-chan struct{} {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = append(m.told, c)
	return c
}

func (m *members) tell() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.told {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
