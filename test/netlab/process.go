package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// endGrace is how long a killed process may take to be gone: the kernel frees
// its memory and sockets first.
const endGraceMillis = 10_000

// endProcesses kills every process, but this one, whose network namespace is one
// of hosts, and waits until they are gone. It looks again until none is left,
// because a process may fork while it is being looked at.
func endProcesses(hosts []*Host) error {
	for range 20 {
		pids, err := processesIn(hosts)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := endProcess(pid, hosts); err != nil {
				return fmt.Errorf("process %d: %w", pid, err)
			}
		}
	}
	return errors.New("new ones appear faster than they can be ended")
}

// processesIn lists the processes in the namespaces of hosts, from /proc.
func processesIn(hosts []*Host) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && isIn(pid, hosts) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isIn says whether a process is in a namespace of hosts. One that has ended is
// in none, and one of another user is not ours to see.
func isIn(pid int, hosts []*Host) bool {
	var st unix.Stat_t
	if unix.Stat("/proc/"+strconv.Itoa(pid)+"/ns/net", &st) != nil {
		return false
	}
	for _, h := range hosts {
		if h.ns.inode == st.Ino {
			return true
		}
	}
	return false
}

// endProcess kills by pidfd, and looks at the namespace once more when it holds
// one: the number may have passed to another process in the meantime.
func endProcess(pid int, hosts []*Host) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !isIn(pid, hosts) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} // readable once it has ended
	for {
		n, err := unix.Poll(fds, endGraceMillis)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errors.New("still there 10 s after SIGKILL")
		}
		return err
	}
}

// leftovers names what a closed lab should have removed and has not.
func leftovers(l *Lab) []string {
	var left []string
	entries, err := os.ReadDir(runDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		left = append(left, err.Error())
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "w-"+l.id+"-") {
			left = append(left, "namespace "+filepath.Join(runDir, e.Name()))
		}
	}
	pids, err := processesIn(append([]*Host{l.bridge}, l.hosts...))
	if err != nil {
		left = append(left, err.Error())
	}
	for _, pid := range pids {
		left = append(left, fmt.Sprintf("process %d", pid))
	}
	return left
}
