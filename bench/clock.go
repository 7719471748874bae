package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// cpuTime is the CPU time that a process has used, user and system, of all its
// threads, ended ones too, in nanoseconds. It reads the process's CPU clock
// (clock_getcpuclockid(3), CPUCLOCK_SCHED): /proc/PID/stat counts in ticks of
// 10 ms, and /proc/PID/task/*/schedstat forgets threads that ended.
func cpuTime(pid int) (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
	}
	return ts.Nano(), nil
}

// family is a process and all below it, the workers of nginx for instance.
func family(root int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, ok := parentOf(pid); ok {
			children[parent] = append(children[parent], pid)
		}
	}
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, children[pids[i]]...)
	}
	return pids, nil
}

// parentOf reads the fourth field of stat, which stands two after the name's
// closing bracket; the name itself may hold anything.
func parentOf(pid int) (int, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false // it has ended
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0, false
	}
	parent, err := strconv.Atoi(string(fields[1]))
	return parent, err == nil
}

// resident is the resident memory of a process in bytes.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0, fmt.Errorf("read the memory of process %d: %q is no statm", pid, b)
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize()), err
}

// busy is the CPU time that the machine has used for anything, in nanoseconds.
func busy() (int64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	var ticks int64
	for i, f := range bytes.Fields(line) {
		v, err := strconv.ParseInt(string(f), 10, 64)
		if err == nil && slices.Contains([]int{1, 2, 3, 6, 7, 8}, i) { // user nice system irq softirq steal
			ticks += v
		}
	}
	const tick = 10_000_000 // USER_HZ is 100 on every architecture of Linux that Go knows
	return ticks * tick, nil
}

// twoCPUs are the CPUs of the measurement: one for generator and backend, one
// for the proxies.
func twoCPUs() (load, proxy int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, 0, fmt.Errorf("ask for this process's CPUs: %w", err)
	}
	var have []int
	for cpu := 0; len(have) < 2 && cpu < 1024; cpu++ {
		if set.IsSet(cpu) {
			have = append(have, cpu)
		}
	}
	if len(have) < 2 {
		return 0, 0, fmt.Errorf("a proxy and its load need a CPU each; there is %d", len(have))
	}
	return have[0], have[1], nil
}

// onCPU calls f on a thread that is bound to one CPU and has a priority (nice).
// Programs that f starts inherit both, as with taskset(1), and before their first
// instruction: the Go runtime and HAProxy count their CPUs when they start.
func onCPU(cpu, nice int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("ask for the thread's CPUs: %w", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("bind to CPU %d: %w", cpu, err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err != nil {
		return fmt.Errorf("set the priority: %w", err)
	}
	err := f()
	if e := unix.Setpriority(unix.PRIO_PROCESS, 0, 0); err == nil && e != nil {
		err = fmt.Errorf("set the priority back: %w", e)
	}
	if e := unix.SchedSetaffinity(0, &before); err == nil && e != nil {
		err = fmt.Errorf("release from CPU %d: %w", cpu, e)
	}
	return err
}
