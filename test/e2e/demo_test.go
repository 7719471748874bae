package e2e

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// demoRun is one run of `weir demo`, with a temporary directory of its own.
type demoRun struct {
	*exec.Cmd
	tmp  string
	said *bufio.Reader // from until to interrupt
}

// demoCommand is `weir demo` as a user types it, or as an unprivileged user.
func demoCommand(t *testing.T, unprivileged bool, args ...string) *demoRun {
	t.Helper()
	// Not t.TempDir, which is closed to other users.
	dir, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	tmp := filepath.Join(dir, "tmp")
	// Sidecars run as another user and must get through to their files.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(tmp, 0o711)); err != nil {
		t.Fatal(err)
	}
	command := []string{filepath.Join(binDir(t), "weir")}
	if unprivileged {
		for _, name := range []string{"weir", "weir-proxy", "weir-init"} {
			program, err := os.ReadFile(filepath.Join(binDir(t), name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), program, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(tmp, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		command = []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", filepath.Join(dir, "weir")}
	}
	cmd := exec.CommandContext(t.Context(), command[0], append(command[1:], append([]string{"demo"}, args...)...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell does, for Ctrl-C
	return &demoRun{Cmd: cmd, tmp: tmp}
}

func binDir(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("WEIR_BIN"); bin != "" {
		return bin
	}
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// nothingLeft looks for what the demo should have removed.
func (d *demoRun) nothingLeft(t *testing.T, out string) {
	t.Helper()
	files, err := os.ReadDir(d.tmp)
	if err != nil || len(files) > 0 {
		t.Errorf("left in its temporary directory: %v, %v", files, err)
	}
	if m := regexp.MustCompile(`namespaces are (w-[0-9a-f]+-)\*`).FindStringSubmatch(out); m != nil {
		if left, _ := filepath.Glob("/run/netns/" + m[1] + "*"); len(left) > 0 {
			t.Errorf("namespaces left: %v", left)
		}
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), d.tmp) {
			t.Errorf("still running: %s", strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
}

// users are who the demo is run as: whoever runs the tests, and, where that is
// the machine's root, also somebody without privileges.
func users(t *testing.T, f func(t *testing.T, unprivileged bool)) {
	t.Helper()
	t.Run("as this user", func(t *testing.T) { f(t, false) })
	if idMap, err := os.ReadFile("/proc/self/uid_map"); err != nil || !strings.Contains(string(idMap), "4294967295") {
		t.Log("this run itself is in a user namespace, in which there is no other user")
		return
	}
	t.Run("without privileges", func(t *testing.T) { f(t, true) })
}

func TestTheDemoShowsThatEveryClaimHoldsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	users(t, func(t *testing.T, unprivileged bool) {
		d := demoCommand(t, unprivileged)
		out, err := d.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
		const claims = 14
		if n := strings.Count(string(out), "\nok   "); n != claims || !strings.Contains(string(out), "14 claims, all hold") {
			t.Errorf("%d claims hold, want %d", n, claims)
		}
		d.nothingLeft(t, string(out))
	})
}

func TestAnInterruptAtAnyTimeEndsTheDemoAndLeavesNothing(t *testing.T) {
	t.Parallel()
	users(t, func(t *testing.T, unprivileged bool) {
		for _, at := range []string{"weir demo", "weir control", "users-a: app", "ok   names", "ok   circuit breaker"} {
			t.Run("after "+at, func(t *testing.T) {
				d := demoCommand(t, unprivileged)
				out := d.until(t, at)
				out += d.interrupt(t, 1)
				if !strings.Contains(out, "weir: interrupted") {
					t.Errorf("it said\n%s", out)
				}
				d.nothingLeft(t, out)
			})
		}
	})
}

func TestTheDemoIsKeptUntilInterrupted(t *testing.T) {
	t.Parallel()
	d := demoCommand(t, false, "--keep")
	out := d.until(t, "ends it and removes everything")
	// What it says can be tried works as printed.
	for _, tried := range []struct{ what, want string }{
		{"a call through the mesh", "X-Caller: default/frontend"},
		{"one to version v2", "X-Version: v2"},
		{"one that is refused", "weir-error: no-rule"},
		{"its redirection", "WEIR_OUTPUT"},
		{"the services", "user-service"},
		{"the rules", "default/frontend"},
	} {
		_, command, _ := strings.Cut(out, tried.what)
		command, _, _ = strings.Cut(command, "\n")
		answer, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput()
		if err != nil || !strings.Contains(string(answer), tried.want) {
			t.Errorf("%s: %v\n%s", command, err, answer)
		}
	}
	out += d.interrupt(t, 0)
	if !strings.Contains(out, "all hold") {
		t.Errorf("it said\n%s", out)
	}
	d.nothingLeft(t, out)
}

// until starts the demo and reads what it says up to a line with the text.
func (d *demoRun) until(t *testing.T, text string) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d.Stdout, d.Stderr = w, w
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	t.Cleanup(func() { _ = r.Close() })
	lines := bufio.NewReader(r)
	d.said = lines
	var out strings.Builder
	for {
		line, err := lines.ReadString('\n')
		out.WriteString(line)
		if err != nil {
			t.Fatalf("it ended before %q, and said\n%s", text, out.String())
		}
		if strings.Contains(line, text) {
			return out.String()
		}
	}
}

// interrupt does what Ctrl-C at a terminal does, to all of the demo's own
// processes, twice as impatient users do; it gives what was said after.
func (d *demoRun) interrupt(t *testing.T, status int) string {
	t.Helper()
	for range 2 {
		_ = syscall.Kill(-d.Process.Pid, syscall.SIGINT) // the second may find it gone
	}
	rest, err := io.ReadAll(d.said)
	if err != nil {
		t.Error(err)
	}
	_ = d.Wait() // its status is looked at
	if got := d.ProcessState.ExitCode(); got != status {
		t.Errorf("exit status %d, want %d", got, status)
	}
	return string(rest)
}
