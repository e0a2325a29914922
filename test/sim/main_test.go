package sim

import (
	"os"
	"runtime"
	"testing"
)

// TestMain runs one goroutine at a time. Between two decisions of the scheduler several may become runnable, such as an agent that drops a segment and the
// keeper that looks for one; on more processors their order would depend on the machine's load, and a seed would not decide everything.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
