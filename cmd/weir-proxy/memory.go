package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settle is after joining, when what only the start needed is no more used.
	settle = time.Second
	// trimEvery is how often an idle process is looked at.
	trimEvery = time.Second
	// trimFrom is the least that is worth a collection (some ms of one CPU).
	trimFrom = 512 << 10
	// idlePart is of how much of the time an idle process uses the processor less.
	idlePart = 50
)

// keepSmall gives memory back, until ctx ends: once what joining the mesh took,
// then garbage, whenever the process is idle. Go itself collects at 8 MiB here,
// which the control plane's health checks alone fill in a few minutes.
func keepSmall(ctx context.Context, joined <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-joined:
	}
	select {
	case <-ctx.Done():
		return
	case <-time.After(settle):
	}
	debug.FreeOSMemory()
	dropCode()
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for last, used := readHeap(), cpuTime(); ; last, used = readHeap(), cpuTime() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		idle := cpuTime()-used < trimEvery/idlePart
		if h := readHeap(); idle && h.collections == last.collections && h.back() >= max(trimFrom, h.live/4) {
			debug.FreeOSMemory()
		}
	}
}

// cpuTime is what the process has used of the processors.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap is how the heap stands, in bytes.
type heap struct{ collections, live, objects, free uint64 }

// back is about what a collection would give back. No collection since the last
// look is part of what idle means: under load that allocates they come many a second.
func (h heap) back() uint64 { return h.objects - min(h.live, h.objects) + h.free }

func readHeap() heap {
	s := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	return heap{s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Uint64(), s[3].Value.Uint64()}
}

// dropCode takes the program's own pages out of the process. The kernel maps
// nearly all of the file while the program starts, and half of that only the
// start needs; what is used comes back from the page cache, 64 KiB or more for a
// minor fault (about 1 µs). Without /proc it does nothing.
func dropCode() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	for _, s := range cleanMappings(f, exe) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, s.from, s.to-s.from, unix.MADV_DONTNEED)
	}
}

type span struct{ from, to uintptr }

// cleanMappings are those mappings of a file, of all in smaps, that are read-only
// and hold no page of their own: one changed by a debugger's breakpoint or a
// uprobe would come back unchanged.
func cleanMappings(smaps io.Reader, file string) []span {
	var out []span
	var at span
	ours := false
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) < 2:
		case f[0] == "Anonymous:":
			if ours && f[1] == "0" {
				out = append(out, at)
			}
			ours = false
		case !strings.HasSuffix(f[0], ":"):
			ours = len(f) == 6 && f[5] == file && len(f[1]) == 4 && f[1][1] == '-' && at.parse(f[0])
		}
	}
	return out
}

func (s *span) parse(text string) bool {
	from, to, _ := strings.Cut(text, "-")
	a, err := strconv.ParseUint(from, 16, 64)
	b, err2 := strconv.ParseUint(to, 16, 64)
	*s = span{uintptr(a), uintptr(b)}
	return err == nil && err2 == nil && a < b
}
