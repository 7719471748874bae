package redirect

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netns"
)

// NamespacePath is the file of a network namespace given as a path, or as a name
// that `ip netns` knows.
func NamespacePath(s string) (string, error) {
	path := s
	if !strings.Contains(s, "/") {
		path = filepath.Join("/run/netns", s)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("redirect: network namespace %q: %w", s, err)
	}
	return path, nil
}

// InNamespace calls f on a thread in the network namespace that path stands for,
// a file like /run/netns/NAME or /proc/PID/ns/net; an empty path is the current
// one. Goroutines that f starts are not in the namespace; sockets that f opens stay in it.
func InNamespace(path string, f func() error) error {
	if path == "" {
		return f()
	}
	there, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("redirect: open namespace %s: %w", path, err)
	}
	defer there.Close()
	runtime.LockOSThread()
	home, err := netns.GetFromPath("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("redirect: open the thread's own namespace: %w", err)
	}
	defer func() {
		// A thread that cannot go home stays locked and ends with its goroutine.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	if err := netns.Set(there); err != nil {
		return fmt.Errorf("redirect: enter namespace %s (CAP_SYS_ADMIN is needed): %w", path, err)
	}
	return f()
}
