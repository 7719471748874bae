package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/meshlab"
)

// The test binary is also what puts itself under deploy/seccomp.json, as a
// container engine does, and then becomes another program or tries what the
// profile forbids.
const (
	confineEnv = "WEIR_TEST_SECCOMP" // the profile's file
	becomeEnv  = "WEIR_TEST_BECOME"  // the program to become; without it, calls are tried
)

func init() {
	profile, program := os.Getenv(confineEnv), os.Getenv(becomeEnv)
	if profile == "" {
		return
	}
	_ = os.Unsetenv(confineEnv)
	_ = os.Unsetenv(becomeEnv)
	otherwise := seccomp.ActionErrno
	if program != "" {
		// What is not on the list would go unseen in a call whose error is not
		// looked at.
		otherwise = seccomp.ActionKillProcess
	}
	runtime.LockOSThread() // the filter is this thread's
	if err := confine(profile, otherwise); err != nil {
		fmt.Fprintln(os.Stderr, "confine:", err)
		os.Exit(3)
	}
	if program != "" {
		fmt.Fprintln(os.Stderr, "confine:", syscall.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ()))
		os.Exit(3)
	}
	for _, f := range forbidden {
		fmt.Printf("%s: %v\n", f.name, f.try())
	}
	os.Exit(0)
}

// profile is what is read of an OCI seccomp profile.
type profile struct {
	DefaultAction   string `json:"defaultAction"`
	DefaultErrnoRet int    `json:"defaultErrnoRet"`
	Syscalls        []struct {
		Names  []string `json:"names"`
		Action string   `json:"action"`
		Args   []any    `json:"args"`
	} `json:"syscalls"`
}

// allowed are the calls that the profile lets pass. One with more to it than a
// list is not understood.
func allowed(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var p profile
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if p.DefaultAction != "SCMP_ACT_ERRNO" || p.DefaultErrnoRet != int(unix.EPERM) {
		return nil, fmt.Errorf("%s: what is not listed gets %s %d, want EPERM", file, p.DefaultAction, p.DefaultErrnoRet)
	}
	var names []string
	for _, s := range p.Syscalls {
		if s.Action != "SCMP_ACT_ALLOW" || len(s.Args) > 0 {
			return nil, fmt.Errorf("%s: %v: not a list of what is allowed", file, s)
		}
		names = append(names, s.Names...)
	}
	return names, nil
}

func confine(file string, otherwise seccomp.Action) error {
	names, err := allowed(file)
	if err != nil {
		return err
	}
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	// Engines pass over what this machine's kind does not have, too.
	names = slices.DeleteFunc(names, func(n string) bool { _, ok := info.SyscallNames[n]; return !ok })
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Policy: seccomp.Policy{
		DefaultAction: otherwise,
		Syscalls:      []seccomp.SyscallGroup{{Action: seccomp.ActionAllow, Names: names}},
	}})
}

// forbidden are calls by which a program that was taken over would go on. Without
// the profile none gives EPERM for an unprivileged user in this way but mount,
// setns, bpf and module: those would for want of a capability.
var forbidden = []struct {
	name string
	try  func() error
}{
	{"ptrace", func() error { return rawCall(unix.SYS_PTRACE, unix.PTRACE_TRACEME) }},
	{"process_vm_readv", func() error { return rawCall(unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid())) }},
	{"execveat", func() error { return rawCall(unix.SYS_EXECVEAT, 0) }},
	{"fork", func() error { return rawCall(unix.SYS_CLONE3) }},
	{"mount", func() error { return unix.Mount("none", "/", "tmpfs", 0, "") }},
	{"unshare", func() error { return unix.Unshare(0) }},
	{"setns", func() error { return unix.Setns(0, 0) }},
	{"bpf", func() error { return rawCall(unix.SYS_BPF) }},
	{"init_module", func() error { return rawCall(unix.SYS_INIT_MODULE) }},
	{"io_uring_setup", func() error { return rawCall(unix.SYS_IO_URING_SETUP) }},
	{"keyctl", func() error { return rawCall(unix.SYS_KEYCTL) }},
	{"memfd_create", func() error { return rawCall(unix.SYS_MEMFD_CREATE) }},
	{"chmod", func() error { return rawCall(unix.SYS_FCHMODAT) }},
	{"mprotect", func() error { return rawCall(unix.SYS_MPROTECT) }},
	{"kill", func() error { return unix.Kill(os.Getpid(), 0) }},
	{"setuid", func() error { return rawCall(unix.SYS_SETRESUID, ^uintptr(0), ^uintptr(0), ^uintptr(0)) }},
}

func rawCall(nr uintptr, args ...uintptr) error {
	var a [3]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall(nr, a[0], a[1], a[2]); errno != 0 {
		return errno
	}
	return nil
}

func profileFile(t *testing.T) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join(root, "deploy/seccomp.json"))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestTheSeccompProfileRefusesWhatAProxyNeverDoes(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), confineEnv+"="+profileFile(t))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, f := range forbidden {
		if want := f.name + ": " + unix.EPERM.Error() + "\n"; !strings.Contains(string(out), want) {
			t.Errorf("want %q of:\n%s", want, out)
		}
	}
}

// TestTheUnitsAllowTheCallsOfTheProfile: one list, written twice.
func TestTheUnitsAllowTheCallsOfTheProfile(t *testing.T) {
	t.Parallel()
	want, err := allowed(profileFile(t))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	for _, unit := range []string{"weir-proxy.service", "weir-proxy@.service"} {
		var got []string
		for line := range strings.Lines(readDocument(t, "deploy/systemd/"+unit)) {
			if list, ok := strings.CutPrefix(line, "SystemCallFilter="); ok {
				got = append(got, strings.Fields(list)...)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s allows\n%v\ndeploy/seccomp.json\n%v", unit, got, want)
		}
	}
}

// confined is a program that puts weir-proxy under the profile and becomes it.
func confined(t *testing.T, m *meshlab.Mesh) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := os.ReadFile(profileFile(t))
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\n%s=%s %s=%s exec %s \"$@\"\n", confineEnv, m.Program("seccomp.json"), becomeEnv, m.Program("weir-proxy"), m.Program("confine"))
	for name, text := range map[string][]byte{"confine": b, "seccomp.json": profile, "confined": []byte(script)} {
		if err := os.WriteFile(m.Program(name), text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m.Program("confined")
}

// TestAMeshUnderTheSeccompProfile: here what the profile does not allow ends the
// proxy at once, and it serves HTTP/1, HTTP/2, TCP, TLS and DNS, gives profiles,
// takes new settings, restarts from its state and drains.
func TestAMeshUnderTheSeccompProfile(t *testing.T) {
	t.Parallel()
	m := start(t)
	program := confined(t, m)
	users := bare(t, m, "users")
	serve(t, users, "users", 8001, nil)
	echoServer(t, users, 9001, "")
	enter(t, m, users, meshlab.Workload{Host: "users", Service: "users", Ports: []string{"8001", "9001/tcp"}, Program: program})
	front := join(t, m, meshlab.Workload{Host: "front", Service: "front", Program: program, Proxy: []string{"--pprof", "--access-log", filepath.Join(m.Dir, "proxy-front", "access.log")}})
	allow(t, m, "front", "users")
	outside := bare(t, m, "outside")
	serve(t, outside, "outside", 8001, nil)
	for _, n := range []*meshlab.Node{users, front} {
		if got := statusOf(t, n.Proxy.Pid(), "Seccomp"); got != "2" {
			t.Fatalf("Seccomp: %s of the proxy of %s, want 2 (a filter)", got, n.Name())
		}
	}
	traffic := func() {
		t.Helper()
		await(t, m, "HTTP/1", func() error {
			if a := ask(t, front, "http://users:8001/"); a.Status != 200 {
				return fmt.Errorf("%d %s", a.Status, a.Body)
			}
			return nil
		})
		curl(t, front, "--http2-prior-knowledge", "http://users:8001/")
		big := strings.Repeat("spliced ", 1<<17)
		if got, err := echoed(t.Context(), front, "users:9001", big); err != nil || got != big {
			t.Errorf("%d of %d bytes came back: %v", len(got), len(big), err)
		}
		ask(t, front, "http://"+outside.Join(8001)+"/").want(t, 200, "", "")
	}
	traffic()
	set(t, m, `{"observability":{"access_logging":true},"services":{"users":{"timeout":7}}}`)
	traffic()
	for _, url := range []string{"metrics", "status", "debug/pprof/profile?seconds=1", "debug/pprof/heap", "debug/pprof/trace?seconds=1"} {
		curl(t, front, "-f", "-o", "/dev/null", "http://127.0.0.1:15000/"+url)
	}
	front.Proxy.Kill()
	if err := front.StartProxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	traffic()
	for _, n := range []*meshlab.Node{front, users} {
		if err := n.Proxy.Stop(30 * time.Second); err != nil {
			t.Errorf("SIGTERM of the proxy of %s: %v\n%s", n.Name(), err, n.Proxy.Tail())
		}
	}
}

// statusOf is a line of /proc/PID/status.
func statusOf(t *testing.T, pid int, key string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	t.Fatal(errors.New("/proc/PID/status has no " + key))
	return ""
}
