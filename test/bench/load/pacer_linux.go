package load

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spinBelow is what a pacer waits by asking the clock again, since the
	// kernel needs about this long to wake a sleeper.
	spinBelow = 20 * time.Microsecond
	// timerSlack is how much later than asked the kernel may wake the thread;
	// its default of 50 us is for saving power.
	timerSlack = time.Microsecond
)

// pacer waits for points in time with the precision of the kernel's timers. Go
// wakes an idle program's timers by epoll_wait, in whole milliseconds, which is
// more than an acknowledgement takes. A pacer keeps its goroutine's thread to
// itself and belongs to that goroutine.
type pacer struct{ processors int }

// newPacer gives the scheduler one more processor, so that the sleeping thread
// does not hold up the goroutines that take the answers.
func newPacer() pacer {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) // without it, only less precise
	return pacer{processors: runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)}
}

// stop gives thread and processor back.
func (p pacer) stop() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // the default again
	runtime.GOMAXPROCS(p.processors)
	runtime.UnlockOSThread()
}

// until returns at that time, or at once when it is past.
func (p pacer) until(at time.Time) {
	for {
		left := time.Until(at)
		if left <= 0 {
			return
		}
		if left > spinBelow {
			request := unix.NsecToTimespec(int64(left - spinBelow))
			_ = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &request, nil) // EINTR: asks again
		}
	}
}
