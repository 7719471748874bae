package shortcut

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// firstPIDNamespace is how /proc/self/ns/pid reads where all processes of the
// machine are to be seen, PROC_PID_INIT_INO in include/linux/proc_ns.h.
const firstPIDNamespace = "pid:[4026531836]"

// living lists the cookies of the network namespaces that a process is in or that
// ip(8) has a name for. known is false where not all of them can be seen.
//
// A namespace that is removed takes its rules with it, but not its entry here.
// One that is kept in other ways, by an open file alone, would be taken for dead:
// the price is that its connections take the plain path.
func living() (cookies [][]byte, known bool) {
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != firstPIDNamespace {
		return nil, false
	}
	files, err := filepath.Glob("/proc/[0-9]*/ns/net")
	named, err2 := filepath.Glob("/run/netns/*")
	if err != nil || err2 != nil {
		return nil, false
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends in some namespace
		seen := map[uint64]bool{}
		for _, f := range append(named, files...) {
			if c := cookieOf(f, seen); c != nil {
				cookies = append(cookies, c)
			}
		}
	}()
	<-done
	return cookies, len(cookies) > 0
}

// cookieOf enters a namespace that was not seen yet. One that has just gone gives nothing.
func cookieOf(file string, seen map[uint64]bool) []byte {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || seen[st.Ino] || unix.Setns(fd, unix.CLONE_NEWNET) != nil {
		return nil
	}
	seen[st.Ino] = true
	c, _ := cookie()
	return c
}

// bury takes out namespaces that are gone.
func (s *set) bury() error {
	cookies, known := living()
	if !known {
		return nil
	}
	alive := func(c []byte) bool {
		for _, l := range cookies {
			if bytes.Equal(c, l) {
				return true
			}
		}
		return false
	}
	var dead [][]byte
	key, value := make([]byte, 8), make([]byte, nsSize)
	it := s.namespaces.Iterate()
	for it.Next(&key, &value) {
		if !alive(key) {
			dead = append(dead, bytes.Clone(key))
		}
	}
	for _, c := range dead {
		if err := s.namespaces.Delete(c); err != nil {
			return fmt.Errorf("take out a network namespace that is gone: %w", err)
		}
	}
	return it.Err()
}
