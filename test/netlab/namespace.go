package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// runDir is where ip(8) looks for named network namespaces.
const runDir = "/run/netns"

// namespace is a named network namespace.
type namespace struct {
	name  string
	inode uint64 // what /proc/PID/ns/net of a process inside has

	mu sync.RWMutex // held for reading while fd is in use
	fd netns.NsHandle
}

func (n *namespace) path() string              { return filepath.Join(runDir, n.name) }
func (n *namespace) handle() netns.NsHandle    { return n.fd }
func threadNamespace() (netns.NsHandle, error) { return netns.GetFromPath("/proc/thread-self/ns/net") }

// prepareRunDir makes runDir a shared mount, as ip(8) does. Without that, a later
// `ip netns add` binds the directory over itself, our names are then mounted
// twice, and unlinking them fails with "device or resource busy".
func prepareRunDir() error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return err
	}
	d, err := os.Open(runDir)
	if err != nil {
		return err
	}
	defer d.Close()
	// ip(8) takes the same lock: two at once would stack the mount.
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	share := func() error { return unix.Mount("", runDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point yet
		return err
	}
	if err := unix.Mount(runDir, runDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return share()
}

// makeNamespace makes a network namespace and gives it a name, as `ip netns add`.
func makeNamespace(name string) (*namespace, error) {
	ns := &namespace{name: name}
	f, err := os.OpenFile(ns.path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, err
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", ns.path(), "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount on %s: %w", ns.path(), err)
		}
		return nil
	})
	if err == nil {
		ns.fd, err = netns.GetFromPath(ns.path())
	}
	if err == nil {
		var st unix.Stat_t
		err = unix.Fstat(int(ns.fd), &st)
		ns.inode = st.Ino
	}
	if err != nil {
		return nil, errors.Join(err, unmountName(ns.path()))
	}
	return ns, nil
}

// do calls f on a thread in the namespace.
func (n *namespace) do(f func() error) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.fd.IsOpen() {
		return errClosed
	}
	return onThread(func() error {
		if err := netns.Set(n.fd); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.name, err)
		}
		return f()
	})
}

// remove takes the name away; the kernel removes the namespace with its last user.
func (n *namespace) remove() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.fd.IsOpen() {
		return nil
	}
	return errors.Join(n.fd.Close(), unmountName(n.path()))
}

func unmountName(path string) error {
	// EINVAL: the name was made but the mount on it was not.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// onThread calls f on an OS thread of its own choosing of namespaces, and puts
// the thread back into the one it came from. A panic or runtime.Goexit in f
// (t.FailNow) passes through.
func onThread(f func() error) error {
	runtime.LockOSThread()
	home, err := threadNamespace()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the thread's own namespace: %w", err)
	}
	defer func() {
		// A thread that cannot go home stays locked: it must not run other goroutines.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	return f()
}

// sysctl sets a value in the namespace of the calling thread: /proc/sys/net is
// that of the thread which opens the file.
func sysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s: %w", strings.ReplaceAll(name, "/", "."), err)
	}
	return nil
}

// sysctlIfThere is sysctl for what some kernels do not have.
func sysctlIfThere(name, value string) error {
	if err := sysctl(name, value); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// quietSysctls stops the kernel from making the wire busy, or addresses wait,
// for reasons no test is about. It must run before interfaces come up.
func quietSysctls() error {
	return errors.Join(
		sysctlIfThere("net/ipv6/conf/default/accept_ra", "0"),
		sysctlIfThere("net/ipv6/conf/all/accept_ra", "0"),
		sysctlIfThere("net/ipv6/conf/default/router_solicitations", "0"),
	)
}
