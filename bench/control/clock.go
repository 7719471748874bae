package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the CPU time of a process, user and system, from its CPU clock
// (clock_getcpuclockid(3), CPUCLOCK_SCHED): /proc/PID/stat counts in ticks of
// 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &ts); err != nil {
		return 0, fmt.Errorf("read the CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// resident is the resident memory of a process in bytes.
func resident(pid int) (int64, error) { return memory(pid, 1) }

// ofFiles is what of that are pages of files, such as etcd's database.
func ofFiles(pid int) (int64, error) { return memory(pid, 2) }

// memory reads a field of statm (proc_pid_statm(5)).
func memory(pid, field int) (int64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	fields := bytes.Fields(b)
	if len(fields) <= field {
		return 0, fmt.Errorf("read the memory of process %d: %q is no statm", pid, b)
	}
	pages, err := strconv.ParseInt(string(fields[field]), 10, 64)
	return pages * int64(os.Getpagesize()), err
}
