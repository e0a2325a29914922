package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// clockTicksPerSecond is the unit of /proc/PID/stat, which Linux fixes at
	// 100 for user space (USER_HZ) on every architecture Go runs on.
	clockTicksPerSecond = 100

	// Brokers have settled when each used at most settledCPU in settleInterval:
	// what was acknowledged has been flushed, and what it costs is on the bill.
	settleInterval = time.Second
	settledCPU     = 30 * time.Millisecond
)

// Cost is what a phase took.
type Cost struct {
	Elapsed time.Duration `json:"elapsed_ns"`
	// ServerCPU is the broker's processor time from the start of the phase
	// until the broker is idle again; nil without a process to look at.
	ServerCPU *time.Duration `json:"server_cpu_ns,omitempty"`
	// ClientCPU is the generator's own.
	ClientCPU time.Duration `json:"client_cpu_ns"`
	// OthersShare is the part, 0 to 1, of the machine's processor time that
	// neither broker nor generator used: what else ran beside them and slowed
	// them down. Nil without a process to look at.
	OthersShare *float64 `json:"others_share,omitempty"`
	// Objects is nil for a broker without such counters.
	Objects *ObjectRequests `json:"objects,omitempty"`
}

// meter measures a phase from startMeter to stop.
type meter struct {
	target  Target
	settle  time.Duration // how long the broker may take to become idle
	began   time.Time
	server  time.Duration
	client  time.Duration
	busy    time.Duration // of the whole machine
	known   bool          // server and busy could be read
	objects *ObjectRequests
}

func startMeter(ctx context.Context, cfg Config) meter {
	target := cfg.Target
	m := meter{target: target, settle: cfg.Duration, objects: ReadObjectRequests(ctx, target.MetricsURL)}
	m.server, m.busy, m.known = readCPU(target.PIDs)
	m.client = ownCPU()
	m.began = time.Now()
	return m
}

// stop ends the phase: time and the generator's own cost at once, the broker's
// processor time and object requests after it has settled.
func (m meter) stop(ctx context.Context) (Cost, error) {
	cost := Cost{Elapsed: time.Since(m.began), ClientCPU: ownCPU() - m.client}
	server, busy, known := readCPU(m.target.PIDs)
	if !m.known || !known {
		return cost, nil
	}
	others := busy - m.busy - (server - m.server) - cost.ClientCPU
	share := max(0, others.Seconds()/(cost.Elapsed.Seconds()*float64(runtime.NumCPU())))
	cost.OthersShare = &share

	if err := awaitSettled(ctx, m.target.PIDs, m.settle); err != nil {
		return Cost{}, err
	}
	if server, err := processesCPU(m.target.PIDs); err == nil {
		server -= m.server
		cost.ServerCPU = &server
	}
	if now := ReadObjectRequests(ctx, m.target.MetricsURL); now != nil && m.objects != nil {
		delta := now.Minus(*m.objects)
		cost.Objects = &delta
	}
	return cost, nil
}

// awaitSettled returns when the processes have become idle, or after limit when they
// have not: what they then still do counts in the next phase. It takes at least
// a second.
func awaitSettled(ctx context.Context, pids []int, limit time.Duration) error {
	ticker := time.NewTicker(settleInterval)
	defer ticker.Stop()
	deadline := time.Now().Add(max(limit, settleInterval))
	before, err := processesCPU(pids)
	if err != nil {
		return err
	}
	for time.Now().Before(deadline) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the broker to settle: %w", ctx.Err())
		case <-ticker.C:
		}
		now, err := processesCPU(pids)
		if err != nil {
			return err
		}
		if now-before <= time.Duration(len(pids))*settledCPU {
			return nil
		}
		before = now
	}
	return nil
}

// readCPU returns the processor time of processes and of the whole machine. It
// is false without processes, and where there is no /proc.
func readCPU(pids []int) (processes, machine time.Duration, known bool) {
	if len(pids) == 0 {
		return 0, 0, false
	}
	processes, err := processesCPU(pids)
	if err != nil {
		return 0, 0, false
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, false
	}
	machine, err = parseBusy(string(stat))
	return processes, machine, err == nil
}

// parseBusy adds up the first line of /proc/stat but for idle and iowait, and
// for guest time, which user time includes. Time that a hypervisor took away
// (steal) counts as busy.
func parseBusy(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	const idleAt, waitAt, stealAt = 4, 5, 8
	if len(fields) <= stealAt || fields[0] != "cpu" {
		return 0, fmt.Errorf("%w: first line %q", errStat, line)
	}
	var ticks int64
	for i, field := range fields[1 : stealAt+1] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%w: first line %q", errStat, line)
		}
		if i+1 != idleAt && i+1 != waitAt {
			ticks += n
		}
	}
	return time.Duration(ticks) * (time.Second / clockTicksPerSecond), nil
}

// processesCPU adds up the processor time of several processes.
func processesCPU(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		used, err := processCPU(pid)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// processCPU returns the processor time, user and system, that all threads of
// a process have used.
func processCPU(pid int) (time.Duration, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read the broker's processor time: %w", err)
	}
	return parseStat(string(stat))
}

var errStat = errors.New("malformed stat in /proc")

// parseStat reads fields 14 and 15 of proc(5). The second field, the command's
// name in parentheses, may hold anything, so the count begins after the last
// parenthesis.
func parseStat(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const userAt, systemAt = 14 - 3, 15 - 3 // the first field here is the third
	if len(fields) <= systemAt {
		return 0, errStat
	}
	user, err := strconv.ParseInt(fields[userAt], 10, 64)
	if err != nil {
		return 0, errStat
	}
	system, err := strconv.ParseInt(fields[systemAt], 10, 64)
	if err != nil {
		return 0, errStat
	}
	return time.Duration(user+system) * (time.Second / clockTicksPerSecond), nil
}

// ownCPU returns the processor time of this process.
func ownCPU() time.Duration {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// Memory is what processes hold, in bytes. The page cache of their files is not
// in it. Peak adds up what each held at most, which need not have been at one
// time.
type Memory struct {
	Resident int64 `json:"resident_bytes"`
	Peak     int64 `json:"peak_bytes"`
}

// ReadMemory adds up the memory of processes. It is false when there are none,
// or one cannot be read.
func ReadMemory(pids ...int) (sum Memory, ok bool) {
	for _, pid := range pids {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			return Memory{}, false
		}
		one, ok := parseStatus(string(status))
		if !ok {
			return Memory{}, false
		}
		sum.Resident += one.Resident
		sum.Peak += one.Peak
	}
	return sum, len(pids) > 0
}

// parseStatus reads VmRSS and VmHWM, which proc(5) gives in KiB.
func parseStatus(status string) (memory Memory, ok bool) {
	found := 0
	for line := range strings.Lines(status) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "VmRSS:":
			memory.Resident = kib << 10
			found++
		case "VmHWM:":
			memory.Peak = kib << 10
			found++
		}
	}
	return memory, found == 2
}
