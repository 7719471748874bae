package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/weir-mesh/weir/test/meshlab"
)

func TestRunIsTheProgramItself(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	m.write("vars", "# of a file\nA=0\n\nB=of the file\n")
	m.write("fourth", "of the fourth descriptor\n")
	for _, c := range []struct {
		args   []string
		stdin  string
		status int
		want   string
	}{
		{args: []string{"--", "sh", "-c", "exit 7"}, status: 7},
		{args: []string{"--", "sh", "-c", "kill -9 $$"}, status: 137},
		{args: []string{"--", "sh", "-c", "kill -TERM $$"}, status: 143},
		{args: []string{"--", "no-such-program"}, status: 127, want: "no-such-program is not in PATH"},
		{args: []string{"--", "./no-such-program"}, status: 127},
		{args: []string{"--", "/etc/passwd"}, status: 126},
		{args: []string{"--dir", "/nowhere", "--", "true"}, status: 125, want: "--dir"},
		{args: []string{"--", "cat"}, stdin: "through\nstdin\n", want: "through\nstdin\n"},
		{args: []string{"--", "pwd"}, want: m.dir + "\n"},
		{args: []string{"--dir", "/usr/bin", "--", "pwd"}, want: "/usr/bin\n"},
		{args: []string{"--env", "A=1=2", "--env-file", "vars", "--", "sh", "-c", `echo "$A,$B,$C"`}, want: "1=2,of the file,kept\n"},
		{args: []string{"--dns-search", "shop,example.org", "--", "grep", "^search", "/etc/resolv.conf"}, want: "search shop example.org\n"},
		{args: []string{"sh", "-c", "echo its own $1", "--", "--service"}, want: "its own --service\n"},
		{args: []string{"--", "sh", "-c", "cat <&3"}, want: "of the fourth descriptor\n"},
	} {
		cmd := m.command("weir", append([]string{"run", "--service", "one"}, c.args...)...)
		cmd.Env = append(cmd.Env, "C=kept")
		fourth, err := os.Open(filepath.Join(m.dir, "fourth"))
		if err != nil {
			t.Fatal(err)
		}
		cmd.ExtraFiles = []*os.File{fourth}
		var stdout, stderr bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.stdin), &stdout, &stderr
		status := exitStatus(cmd.Run())
		fourth.Close()
		if status != c.status {
			t.Errorf("%v: exit status %d, want %d\n%s", c.args, status, c.status, stderr.String())
		}
		if got := stdout.String(); c.status == 0 && got != c.want {
			t.Errorf("%v printed %q, want %q\n%s", c.args, got, c.want, stderr.String())
		}
		if !strings.Contains(stderr.String(), c.want) && c.status != 0 {
			t.Errorf("%v said %q, which lacks %q", c.args, stderr.String(), c.want)
		}
	}
}

func TestRunPassesEachSignalOnOnce(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	const program = `
import os, signal
names = ("HUP", "INT", "QUIT", "USR1", "USR2", "WINCH", "TSTP")
def heard(n, _): print("heard", signal.Signals(n).name, flush=True)
for n in names: signal.signal(getattr(signal, "SIG" + n), heard)
print("there", flush=True)
while True: signal.pause()
`
	r := m.run("--service", "one", "--", "python3", "-c", program)
	want := "there\n"
	r.says(want) // the whole line: a handler may print in the middle of one
	for _, s := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGTSTP, syscall.SIGINT} {
		r.signal(s)
		want += "heard " + map[syscall.Signal]string{
			syscall.SIGUSR1: "SIGUSR1", syscall.SIGHUP: "SIGHUP", syscall.SIGINT: "SIGINT", syscall.SIGQUIT: "SIGQUIT",
			syscall.SIGUSR2: "SIGUSR2", syscall.SIGWINCH: "SIGWINCH", syscall.SIGTSTP: "SIGTSTP",
		}[s] + "\n"
		r.says(want)
	}
	r.signal(syscall.SIGTERM)
	if status := r.ends(); status != 143 {
		t.Errorf("exit status %d, want 143", status)
	}
	if got := r.out.String(); got != want {
		t.Errorf("it printed %q, want %q", got, want)
	}
}

func TestRunEndsWhatTheProgramLeaves(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	for n, c := range []struct{ what, grace, child, want string }{
		{"is asked first", "30s", `trap 'echo asked; exit' TERM; touch $0; while :; do sleep 0.05; done`, "asked"},
		{"is killed after the grace", "1s", `trap '' TERM; touch $0; exec setsid sleep 1000`, "over"},
		{"is woken to be asked", "30s", `trap 'echo asked; exit' TERM; touch $0; kill -STOP $$; sleep 1000`, "asked"},
	} {
		// The program ends when its child is there and the test has looked.
		ready, leave := fmt.Sprintf("ready-%d", n), fmt.Sprintf("leave-%d", n)
		const script = `sh -c "$1" $2 & until [ -e $2 ]; do sleep 0.02; done; echo over; until [ -e $3 ]; do sleep 0.02; done`
		r := m.run("--service", "one", "--grace", c.grace, "--", "sh", "-c", script, "sh", c.child, ready, leave)
		r.says("over")
		netns := m.netns(1)
		m.write(leave, "")
		if status := r.ends(); status != 0 {
			t.Errorf("%s: exit status %d\n%s", c.what, status, r.out.String())
		}
		if left := m.inside(netns, ""); len(left) > 0 {
			t.Errorf("%s: %v are left", c.what, left)
		}
		if !strings.Contains(r.out.String(), c.want) {
			t.Errorf("%s: it printed %q", c.what, r.out.String())
		}
	}
}

func TestRunIsOfTheUserWhoCallsSudo(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	if !meshlab.OtherUsers() { // the kernel shows so: no other uid is mapped
		out, err := m.output("weir", "run", "--service", "one", "--user", "12:34", "--", "id")
		if exitStatus(err) != 126 || !strings.Contains(out, "invalid argument") {
			t.Errorf("a user that this namespace does not know: %v\n%s", err, out)
		}
		return
	}
	for _, c := range []struct {
		sudo []string
		args []string
		want string
	}{
		{[]string{"SUDO_UID=1234", "SUDO_GID=2345"}, nil, "1234 2345 2345 "},
		{[]string{"SUDO_UID=65534", "SUDO_GID=65534"}, nil, "65534 65534 65534 nobody"},
		{[]string{"SUDO_UID=1234", "SUDO_GID=2345"}, []string{"--user", "0"}, "0 0 0 root"},
		{nil, []string{"--user", "nobody:12"}, "65534 12 12 65534 nobody"},
		{nil, []string{"--user", "77:88"}, "77 88 88 "},
	} {
		args := append([]string{"run", "--service", "one"}, c.args...)
		cmd := m.command("weir", append(args, "--", "sh", "-c", "echo $(id -u) $(id -g) $(id -G) $USER")...)
		cmd.Env = append(cmd.Env, "USER=")
		cmd.Env = append(cmd.Env, c.sudo...)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != strings.TrimSpace(c.want) {
			t.Errorf("%v %v: %v, %q, want %q", c.sudo, c.args, err, got, c.want)
		}
	}
	out := m.must("weir", "run", "--service", "one", "--", "grep", "CapBnd", "/proc/self/status")
	if strings.HasSuffix(strings.TrimSpace(out), "ffffffff") {
		t.Errorf("a program of root keeps what it could get past the proxy with: %s", out)
	}
}

func TestRunSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"--service", "one", "--control", "127.0.0.1:1", "--", "true"}, 125, `start one with "weir control"`},
		{[]string{"--service", "one", "--server", "http://127.0.0.1:1", "--", "true"}, 125, "--token-file names one"},
		{[]string{"--service", "one", "--token-file", "/nowhere", "--", "true"}, 125, "--token-file: open /nowhere"},
		{[]string{"--service", "one", "--netns", "nowhere", "--", "true"}, 125, "/run/netns/nowhere"},
		{[]string{"--service", "one"}, 2, "no program is named"},
		{[]string{"--", "true"}, 2, "--service is missing"},
		{[]string{"--service", "one", "--publish", "80", "--", "true"}, 2, "HOST:PORT:PORT"},
		{[]string{"--service", "one", "--publish", "localhost:80:80", "--", "true"}, 2, "HOST:PORT:PORT"},
		{[]string{"--service", "one", "--env", "A", "--", "true"}, 2, "KEY=VALUE"},
		{[]string{"--service", "one", "--user", "no-such-user", "--", "true"}, 2, "no such user"},
		{[]string{"--service", "one", "--subnet", "10.0.0.0/31", "--", "true"}, 2, "--subnet"},
		{[]string{"--service", "one", "--port", "x", "--", "true"}, 2, "--port"},
	} {
		out, err := m.output("weir", append([]string{"run"}, c.args...)...)
		if got := exitStatus(err); got != c.status || !strings.Contains(out, c.want) {
			t.Errorf("%v: exit status %d, want %d\n%s", c.args, got, c.status, out)
		}
	}
	cmd := m.command("weir", "run", "--service", "one", "--", "true")
	cmd.Env = append(cmd.Env, "WEIR_TOKEN_FILE="+m.write("wrong.token", "wrong\n"))
	if out, err := cmd.CombinedOutput(); exitStatus(err) != 125 || !strings.Contains(string(out), "admin token") {
		t.Errorf("with a wrong admin token: %v\n%s", err, out)
	}
}

// A signal while weir run waits for a control plane that says nothing ends it, and
// nothing is left.
func TestRunIsEndedWhileItWaits(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	var silent net.Listener
	if err := m.net.Do(func() (err error) { silent, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for s, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		r := m.run("--service", "one", "--control", silent.Addr().String(), "--", "sh", "-c", "echo never")
		m.await("its proxy", func() error {
			if _, err := m.output("sh", "-c", "ip netns | grep -q weir-run-1"); err != nil || len(m.inside(m.netns(1), "weir-proxy")) == 0 {
				return errors.New("there is none")
			}
			return nil
		})
		r.signal(s)
		if got := r.ends(); got != want || strings.Contains(r.out.String(), "never") {
			t.Errorf("%v: exit status %d, want %d\n%s", s, got, want, r.out.String())
		}
	}
}
