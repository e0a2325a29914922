package load

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const line = "4711 (a name) with ) S 1 4711 4711 0 -1 4194560 100 0 0 0 250 125 0 0 20 0 9 0 100 1000 200 18446744073709551615\n"
	cpu, err := parseStat(line)
	if err != nil || cpu != 3750*time.Millisecond {
		t.Errorf("processor time %v, error %v, want 3.75s", cpu, err)
	}
	for _, bad := range []string{"", "1 (x) S 1", strings.Replace(line, "250", "x", 1), strings.Replace(line, "125", "x", 1)} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestParseBusy(t *testing.T) {
	busy, err := parseBusy("cpu  100 20 30 4000 500 6 7 8 9 10\ncpu0 1 2 3\n")
	if want := (100 + 20 + 30 + 6 + 7 + 8) * 10 * time.Millisecond; err != nil || busy != want {
		t.Errorf("busy %v, error %v, want %v", busy, err, want)
	}
	for _, bad := range []string{"", "cpu 1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 3 4 x 6 7 8"} {
		if _, err := parseBusy(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestParseStatus(t *testing.T) {
	memory, ok := parseStatus("Name:\tjava\nVmPeak:\t 900 kB\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\nThreads:\t9\n")
	if want := (Memory{Resident: 200 << 10, Peak: 300 << 10}); !ok || memory != want {
		t.Errorf("memory %+v, %v, want %+v", memory, ok, want)
	}
	if _, ok := parseStatus("Name:\tkthreadd\n"); ok {
		t.Error("a status without memory was accepted")
	}
}

// TestOwnProcess reads the real files.
func TestOwnProcess(t *testing.T) {
	if _, err := os.Stat("/proc/stat"); err != nil {
		return // not Linux: nothing is reported there
	}
	own := []int{os.Getpid()}
	before, machineBefore, known := readCPU(own)
	for sum, began := 0, ownCPU(); ownCPU()-began < 50*time.Millisecond; {
		sum++
	}
	after, machineAfter, _ := readCPU(own)
	if used := after - before; !known || used < 30*time.Millisecond || machineAfter-machineBefore < 30*time.Millisecond {
		t.Errorf("50 ms of work: process %v, machine %v", used, machineAfter-machineBefore)
	}
	if memory, ok := ReadMemory(os.Getpid()); !ok || memory.Resident <= 0 || memory.Peak < memory.Resident {
		t.Errorf("memory %+v, %v", memory, ok)
	}
	if _, _, known := readCPU(nil); known {
		t.Error("no process has processor time")
	}
	if _, ok := ReadMemory(); ok {
		t.Error("no process has memory")
	}
	const nobody = 1 << 30 // above the largest id that Linux gives
	if _, _, known := readCPU([]int{os.Getpid(), nobody}); known {
		t.Error("a process that is not there has processor time")
	}
	if _, ok := ReadMemory(os.Getpid(), nobody); ok {
		t.Error("a process that is not there has memory")
	}
	one, _, _ := readCPU(own)
	if two, _, _ := readCPU([]int{own[0], own[0]}); two < 2*one {
		t.Errorf("twice the same process: %v, want at least twice %v", two, one)
	}
}
