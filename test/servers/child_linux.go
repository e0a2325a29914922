package servers

import "syscall"

// childAttributes makes a server die with the test process, so that a test that is killed leaves none behind.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
