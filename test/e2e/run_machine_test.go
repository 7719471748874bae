package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/netlab"
)

// runMachine is a place where weir run finds itself alone: a network namespace that
// it takes for the host's, and a /run of its own. A control plane is there.
type runMachine struct {
	t   *testing.T
	pid int // of a process that is there as long as the test
	dir string
	env []string
	api *api.Client
	net *netlab.Namespace
}

func newRunMachine(t *testing.T) *runMachine {
	t.Helper()
	m := &runMachine{t: t, dir: t.TempDir()}
	for dir := m.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // other users run programs here
			t.Fatal(err)
		}
	}
	const script = `mount -t tmpfs tmpfs /run && ip link set lo up && echo there && exec sleep 1000`
	holder := exec.Command("unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script)
	holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		t.Fatal(err)
	}
	m.pid = holder.Process.Pid
	if m.net, err = netlab.OpenNamespace(fmt.Sprintf("/proc/%d/ns/net", m.pid)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.net.Close() })
	m.env = append(os.Environ(), "PATH="+programs(t)+":"+os.Getenv("PATH"), "WEIR_TOKEN_FILE="+filepath.Join(m.dir, "control", "admin.token"))
	m.must("sh", "-c", "ip netns add first && ip netns delete first") // which prepares /run/netns
	m.startControl()
	return m
}

func (m *runMachine) startControl() {
	m.t.Helper()
	p := m.start("weir", "control", "--data-dir", filepath.Join(m.dir, "control"), "--grpc-addr", "127.0.0.1:8081")
	m.t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	m.api = &api.Client{BaseURL: "http://127.0.0.1:8080", HTTP: &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: m.dial}, Timeout: 15 * time.Second,
	}}
	m.await("the control plane", func() error {
		token, err := os.ReadFile(filepath.Join(m.dir, "control", "admin.token"))
		if err != nil {
			return err
		}
		m.api.Token = strings.TrimSpace(string(token))
		_, err = m.api.Status(m.t.Context())
		return err
	})
}

func (m *runMachine) dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = m.net.Do(func() error {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// command is a program on the machine, as one process.
func (m *runMachine) command(program string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(m.pid), "--mount", "--net", "--", "sh", "-c", `cd "$0" && exec "$@"`, m.dir, program}
	cmd := exec.CommandContext(m.t.Context(), "nsenter", append(enter, args...)...)
	cmd.Env = m.env
	return cmd
}

func (m *runMachine) start(program string, args ...string) *exec.Cmd {
	m.t.Helper()
	cmd := m.command(program, args...)
	log, err := os.OpenFile(filepath.Join(m.dir, program+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	return cmd
}

// output runs a program to its end and gives what it printed, on both streams.
func (m *runMachine) output(program string, args ...string) (string, error) {
	out, err := m.command(program, args...).CombinedOutput()
	return string(out), err
}

func (m *runMachine) must(program string, args ...string) string {
	m.t.Helper()
	out, err := m.output(program, args...)
	if err != nil {
		m.t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	return out
}

// write makes a file that everybody may read.
func (m *runMachine) write(name, text string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *runMachine) await(what string, ok func() error) {
	m.t.Helper()
	limit := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-limit:
			m.t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

func (m *runMachine) allow(from, to string, mtls policy.MTLSMode) {
	m.t.Helper()
	_, err := m.api.AddSecurityRule(m.t.Context(), policy.SecurityRule{
		SourceNamespace: policy.Any, SourceService: from, DestinationNamespace: policy.Any, DestinationService: to,
		AllowedMethods: []string{"*"}, MTLSMode: mtls,
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// running is a weir run in the background.
type running struct {
	m    *runMachine
	cmd  *exec.Cmd
	out  lockedBuffer
	done chan struct{}
	err  error
}

// run starts weir run, and does not wait for anything.
func (m *runMachine) run(args ...string) *running {
	m.t.Helper()
	r := &running{m: m, cmd: m.command("weir", append([]string{"run"}, args...)...), done: make(chan struct{})}
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	r.cmd.WaitDelay = 20 * time.Second
	if err := r.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() { r.err = r.cmd.Wait(); close(r.done) }()
	m.t.Cleanup(func() { _ = r.cmd.Process.Kill(); <-r.done })
	return r
}

// says waits until the run has printed a text.
func (r *running) says(text string) {
	r.m.t.Helper()
	r.m.await("the run prints "+text, func() error {
		if out := r.out.String(); !strings.Contains(out, text) {
			select {
			case <-r.done:
				r.m.t.Fatalf("it ended: %v\n%s", r.err, out)
			default:
			}
			return fmt.Errorf("it printed %q", out)
		}
		return nil
	})
}

func (r *running) signal(s syscall.Signal) {
	r.m.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.m.t.Fatal(err)
	}
}

// ends waits for the end and gives the exit status.
func (r *running) ends() int {
	r.m.t.Helper()
	select {
	case <-r.done:
	case <-time.After(30 * time.Second):
		r.m.t.Fatalf("the run does not end\n%s", r.out.String())
	}
	return r.cmd.ProcessState.ExitCode()
}

// traces is all that a run could leave behind on the machine, but processes.
func (m *runMachine) traces() string {
	m.t.Helper()
	return m.must("sh", "-c", "ip -o link | cut -d: -f2; ip route; ip netns; iptables-save; ls -A /run /run/netns; grep -c /run/netns/weir-run /proc/self/mountinfo; true")
}

// netns is the inode of a run's namespace, by the run's number.
func (m *runMachine) netns(n int) uint64 {
	m.t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(fmt.Sprintf("/proc/%d/root/run/netns/weir-run-%d", m.pid, n), &st); err != nil {
		m.t.Fatal(err)
	}
	return st.Ino
}

// inside lists the processes in a network namespace whose command line has a text.
func (m *runMachine) inside(netns uint64, text string) []int {
	m.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		m.t.Fatal(err)
	}
	var pids []int
	for _, path := range all {
		var st syscall.Stat_t
		if syscall.Stat(path, &st) != nil || st.Ino != netns {
			continue // it has ended, or is elsewhere
		}
		pid := strings.Split(path, "/")[2]
		args, err := os.ReadFile("/proc/" + pid + "/cmdline")
		if err == nil && strings.Contains(strings.ReplaceAll(string(args), "\x00", " "), text) {
			pids = append(pids, atoi(pid))
		}
	}
	return pids
}

// gone waits until no process is left in a namespace.
func (m *runMachine) gone(netns uint64) {
	m.t.Helper()
	m.await("the end of what ran in the namespace", func() error {
		if left := m.inside(netns, ""); len(left) > 0 {
			return fmt.Errorf("processes %v are left", left)
		}
		return nil
	})
}

// untouched checks, when the test ends, that the machine is as it was.
func (m *runMachine) untouched() func() {
	m.t.Helper()
	before := m.traces()
	return func() {
		m.t.Helper()
		if after := m.traces(); after != before {
			m.t.Errorf("what is there has changed from\n%s\nto\n%s", before, after)
		}
	}
}

func exitStatus(err error) int {
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return failed.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// lockedBuffer is what a program has printed so far.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
