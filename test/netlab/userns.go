package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideEnv tells the re-executed program that it is in the user namespace.
const insideEnv = "WEIR_NETLAB_INSIDE"

// Main runs the tests of a package from its TestMain, and does not return. For a
// user who may not make namespaces it runs the test binary again in a user
// namespace. Each of after is called when the tests have passed, for instance to
// look for goroutines left behind; its error fails the run.
func Main(m interface{ Run() int }, after ...func() error) {
	done, err := Reexec()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(max(1, exit.ExitCode()))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if done {
		os.Exit(0)
	}
	code := m.Run()
	for _, f := range after {
		if code != 0 {
			break
		}
		if err := f(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Reexec gives a program what it takes to make network namespaces. Where the
// process may already, it returns false at once. Else it runs the same program
// with the same arguments in a new user, network and mount namespace, in which
// the user is root and /run is empty, passes signals on, waits for it and
// returns true: the caller has nothing left to do but end. The child's failure
// is an *exec.ExitError.
func Reexec() (done bool, err error) {
	if os.Getenv(insideEnv) != "" {
		return false, settle()
	}
	if mayMakeNamespaces() {
		return false, nil
	}
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("netlab: find this program: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL, // with us goes the only way to stop it by Ctrl-C
	}
	// The kernel sends Pdeathsig when the thread that made the child ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return false, fmt.Errorf("netlab: enter a user namespace: %w%s", err, hint(err))
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	ended := make(chan struct{})
	passed := make(chan struct{})
	go func() {
		defer close(passed)
		passSignals(signals, cmd.Process, ended)
	}()
	err = cmd.Wait()
	signal.Stop(signals)
	close(ended)
	<-passed
	return true, err
}

func passSignals(signals <-chan os.Signal, to *os.Process, ended <-chan struct{}) {
	for {
		select {
		case s := <-signals:
			_ = to.Signal(s) // it may have ended in this moment
		case <-ended:
			return
		}
	}
}

// settle makes the fresh namespaces usable: names for network namespaces and
// the lock of iptables want a writable /run, and loopback wants to be up before
// the net package looks what the machine can do, which it does once.
func settle() error {
	if err := unix.Mount("none", "/", "none", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("netlab: make mounts private: %w%s", err, hint(err))
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("netlab: mount an empty /run: %w%s", err, hint(err))
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("netlab: bring up loopback: %w", err)
	}
	// A program that this one runs may want to decide anew.
	return os.Unsetenv(insideEnv)
}

// mayMakeNamespaces looks at the capabilities in force.
func mayMakeNamespaces() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return os.Geteuid() == 0
	}
	want := uint32(1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN)
	return data[0].Effective&want == want
}

// hint says what to allow when the kernel refuses.
func hint(err error) string {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return "; the kernel allows no more namespaces: sysctl -w user.max_user_namespaces=10000 user.max_net_namespaces=10000"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return "; run as root, or allow user namespaces: sysctl -w kernel.unprivileged_userns_clone=1 (Debian)" +
			" or kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); in a container: --privileged"
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		return "; the kernel is built without user or network namespaces"
	}
	return ""
}

// hasIPv6 says whether the kernel has IPv6 at all.
func hasIPv6() bool {
	_, err := os.Stat("/proc/thread-self/net/if_inet6")
	return err == nil
}
