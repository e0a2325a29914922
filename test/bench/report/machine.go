package report

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine describes the machine that this process runs on in one line: what every number depends on.
func Machine() string { return describeMachine().String() }

// machine is what the numbers depend on.
type machine struct {
	processor string
	cores     int
	memory    int64 // bytes
	kernel    string
}

// describeMachine reads what the system tells; what it does not tell stays empty.
func describeMachine() machine {
	m := machine{cores: runtime.NumCPU()}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.processor = field(string(info), "model name")
	}
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		kib, _, _ := strings.Cut(field(string(info), "MemTotal"), " ")
		if n, err := strconv.ParseInt(kib, 10, 64); err == nil {
			m.memory = n << 10
		}
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		version, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
		m.kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + version
	}
	return m
}

// field returns the first value of a name in a file of lines "name : value".
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (m machine) String() string {
	return fmt.Sprintf("%d cores (%s), %.0f GiB of memory, %s, %s", m.cores, m.processor, float64(m.memory)/(1<<30), m.kernel, runtime.Version())
}
