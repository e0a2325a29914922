//go:build !linux

package servers

import "syscall"

// childAttributes is empty where the system cannot tie a child's life to its parent's.
func childAttributes() *syscall.SysProcAttr { return nil }
