package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Inside is the first process of a run's PID namespace: it starts the program,
// passes signals to it, reaps what the program leaves, and ends last. With it the
// kernel ends all that is left in the namespace. fd is its end of a socket to
// weir run. What it returns is only of interest if it could do nothing at all.
func Inside(fd int) error {
	// The thread that drops capabilities is to be the one that starts the program.
	runtime.LockOSThread()
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "weir run")
	conn, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("descriptor %d is no socket of weir run: %w", fd, err)
	}
	_ = f.Close()
	in := &inside{orders: json.NewDecoder(conn), events: json.NewEncoder(conn)}
	in.deafen()
	var first order
	if err := in.orders.Decode(&first); err != nil {
		return fmt.Errorf("hear from weir run: %w", err)
	}
	if first.Start == nil {
		return errors.New("weir run named no program")
	}
	if status, err := in.start(first.Start); err != nil {
		return in.events.Encode(event{Failed: err.Error(), Status: status})
	}
	if err := in.events.Encode(event{Started: true}); err != nil {
		return err
	}
	go in.obey()
	in.reap(first.Start.Grace)
	return nil
}

type inside struct {
	orders *json.Decoder
	events *json.Encoder
	pid    int // of the program
}

// deafen takes the signals that come to the program's process group, which this
// process leads, and drops them. Those that weir run was to ignore (nohup) stay so,
// for the program too.
func (in *inside) deafen() {
	for _, s := range passed {
		if !signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
}

func (in *inside) start(p *program) (status int, err error) {
	if err := mounts(p); err != nil {
		return statusOwn, err
	}
	if err := dropCapabilities(); err != nil {
		return statusOwn, err
	}
	if p.Dir != "" {
		if err := os.Chdir(p.Dir); err != nil {
			return statusOwn, fmt.Errorf("--dir: %w", err)
		}
	}
	path := p.Args[0]
	if !strings.Contains(path, "/") {
		if path, err = exec.LookPath(path); err != nil && !errors.Is(err, exec.ErrDot) {
			return statusNotFound, fmt.Errorf("%s is not in PATH", p.Args[0])
		}
	}
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{}}
	if c := p.Credential; c != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.Groups}
	}
	in.pid, _, err = syscall.StartProcess(path, p.Args, attr)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return statusNotFound, fmt.Errorf("%s: %w", path, err)
	case err != nil:
		return statusNotExecutable, fmt.Errorf("%s: %w", path, err)
	}
	return 0, nil
}

// obey does what weir run orders, until it is gone.
func (in *inside) obey() {
	for {
		var o order
		if err := in.orders.Decode(&o); err != nil || o.End {
			os.Exit(0) // weir run has ended, and so does all that is here
		}
		if o.Signal != 0 {
			in.pass(syscall.Signal(o.Signal), o.Group)
		}
	}
}

// pass signals the program, or the process group that it is in now.
func (in *inside) pass(s syscall.Signal, group bool) {
	to := in.pid
	if group {
		if pgid, err := syscall.Getpgid(in.pid); err == nil && pgid > 1 {
			to = -pgid
		} else if err == nil {
			to = 0 // ours
		}
	}
	_ = syscall.Kill(to, s) // it may have ended in this moment
}

// reap waits for every child, the program's orphans too, tells what becomes of the
// program, and returns when nothing is left or what is left had its grace.
func (in *inside) reap(grace time.Duration) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil: // ECHILD: nobody is left
			return
		case pid != in.pid:
		case status.Stopped():
			_ = in.events.Encode(event{Stopped: int(status.StopSignal())})
		default:
			_ = in.events.Encode(event{Ended: true, Status: exitStatus(status)})
			in.endOthers(grace)
		}
	}
}

// exitStatus is what a shell would have in $?.
func exitStatus(s syscall.WaitStatus) int {
	if s.Signaled() {
		return statusSignal + int(s.Signal())
	}
	return s.ExitStatus()
}

// endOthers asks all else here to end, and sees to it after the grace.
func (in *inside) endOthers(grace time.Duration) {
	_ = syscall.Kill(-1, syscall.SIGTERM) // ESRCH: there is nobody
	_ = syscall.Kill(-1, syscall.SIGCONT) // a stopped process does not hear the other
	time.AfterFunc(grace, func() { os.Exit(0) })
}

// mounts makes this mount namespace show what belongs to the namespaces of the
// program: its processes, its resolver.
func mounts(p *program) error {
	// What is mounted outside later on is seen here, nothing goes the other way.
	if err := unix.Mount("none", "/", "none", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc of the program's own: %w (in a container this takes --privileged)", err)
	}
	if err := showResolver(p); err != nil {
		return err
	}
	return hideNameCaches()
}

func showResolver(p *program) error {
	file, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if errors.Is(err, fs.ErrNotExist) && !p.Search {
		return nil // the C library asks 127.0.0.1, which the rules capture too
	}
	if err != nil {
		return fmt.Errorf("--dns-search needs an /etc/resolv.conf to put another in its place: %w", err)
	}
	if err := unix.Mount(p.ResolvConf, file, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show the program another %s: %w", file, err)
	}
	return nil
}

// nameCaches are the sockets by which the C library asks a service of the machine
// for names, which knows nothing of the mesh, before it asks by DNS.
var nameCaches = []string{
	"/run/systemd/resolve/io.systemd.Resolve", // nss-resolve
	"/run/nscd/socket", "/var/run/nscd/socket",
}

func hideNameCaches() error {
	for _, socket := range nameCaches {
		err := unix.Mount("/dev/null", socket, "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("hide %s: %w", socket, err)
		}
	}
	return nil
}

// dropCapabilities takes from this thread, and so from what it starts, what a
// program of root could get past the proxy with: setting marks, changing rules.
func dropCapabilities() error {
	for _, c := range []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop a capability: %w", err)
		}
	}
	return nil
}
