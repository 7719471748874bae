package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// typed is a shell with job control on a terminal of its own.
type typed struct {
	m    *runMachine
	tty  *os.File
	out  lockedBuffer
	done chan struct{}
}

func (m *runMachine) shell() *typed {
	m.t.Helper()
	cmd := m.command("bash", "--norc", "--noprofile", "-i")
	cmd.Env = append(cmd.Env, "PS1=prompt> ", "TERM=dumb", "HISTFILE=", "BASH_SILENCE_DEPRECATION_WARNING=1")
	tty, err := pty.Start(cmd)
	if err != nil {
		m.t.Fatal(err)
	}
	s := &typed{m: m, tty: tty, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_, _ = io.Copy(&s.out, tty)
	}()
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = tty.Close()
		<-s.done
		if m.t.Failed() {
			m.t.Logf("the terminal:\n%s", s.out.String())
		}
	})
	s.sees(0, "prompt> ")
	return s
}

// types writes to the terminal and gives where in the output that was.
func (s *typed) types(text string) (from int) {
	s.m.t.Helper()
	from = len(s.out.String())
	if _, err := io.WriteString(s.tty, text); err != nil {
		s.m.t.Fatal(err)
	}
	return from
}

// sees waits until the terminal shows a text after some point.
func (s *typed) sees(from int, text string) {
	s.m.t.Helper()
	s.m.await("the terminal shows "+text, func() error {
		if out := s.out.String()[from:]; !strings.Contains(out, text) {
			return fmt.Errorf("it shows %q", out)
		}
		return nil
	})
}

const keys = `import os, signal, sys
def heard(n, _): print("heard-" + signal.Signals(n).name, flush=True)
for n in (signal.SIGINT, signal.SIGWINCH, signal.SIGCONT): signal.signal(n, heard)
print("there", os.get_terminal_size().columns, flush=True)
for line in sys.stdin: print("read-" + line.strip() + "-%d" % os.get_terminal_size().columns, flush=True)
print("end-of-input")
`

func TestRunHasTheTerminalAsAShellsJobHas(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	m.write("keys.py", keys)
	s := m.shell()
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: 24, Cols: 99}); err != nil {
		t.Fatal(err)
	}
	at := s.types("weir run --service tty -- python3 keys.py; echo status-$?\n")
	s.sees(at, "there 99")
	at = s.types("one\n")
	s.sees(at, "read-one-99")
	at = s.types("\x03") // the key of SIGINT
	s.sees(at, "heard-SIGINT")
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: 24, Cols: 101}); err != nil {
		t.Fatal(err)
	}
	s.sees(at, "heard-SIGWINCH")
	at2 := s.types("two\n")
	s.sees(at2, "read-two-101")
	if out := s.out.String()[at:]; strings.Count(out, "heard-SIGINT") != 1 || strings.Count(out, "heard-SIGWINCH") != 1 {
		t.Errorf("each of the signals is heard once: %q", out)
	}

	at = s.types("\x1a") // the key of SIGTSTP
	s.sees(at, "Stopped")
	s.sees(at, "prompt> ")
	at = s.types("echo the shell is $((6*7))\n")
	s.sees(at, "the shell is 42")
	at = s.types("fg\n")
	s.sees(at, "heard-SIGCONT")
	at2 = s.types("three\n")
	s.sees(at2, "read-three-101")
	if out := s.out.String()[at:]; strings.Count(out, "heard-SIGCONT") != 1 {
		t.Errorf("SIGCONT is heard once: %q", out)
	}

	at = s.types("\x1a")
	s.sees(at, "prompt> ")
	at = s.types("bg\n")
	s.sees(at, "heard-SIGCONT")
	m.await("the job stops, as it reads in the background", func() error {
		at := s.types("jobs; echo ju''st looked\n")
		s.sees(at, "just looked")
		if !strings.Contains(s.out.String()[at:], "Stopped") {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	at = s.types("fg\n")
	s.sees(at, "heard-SIGCONT")
	at = s.types("four\n")
	s.sees(at, "read-four-101")
	at = s.types("\x1c") // the key of SIGQUIT
	s.sees(at, "prompt> ")
	at = s.types("weir run --service tty -- sh -c 'kill -QUIT $$'; echo status-$?\n")
	s.sees(at, "status-131")
}

func TestRunInAPipelineLeavesTheTerminalToOthers(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	s := m.shell()
	// The key reaches all processes of the program, whose group has not got the terminal.
	at := s.types("weir run --service tty -- bash -c 'echo there; sleep 1000; echo never' | cat; echo status-${PIPESTATUS[0]}\n")
	s.sees(at, "there\r")
	at = s.types("\x03")
	s.sees(at, "prompt> ")
	if out := s.out.String()[at:]; strings.Contains(out, "never") {
		t.Errorf("the shell of the program went on: %q", out)
	}
	// A program that reads the terminal all the same gets it when it asks.
	at = s.types("weir run --service tty -- sh -c 'echo there; read line; echo got-$line' | cat\n")
	s.sees(at, "there\r")
	at = s.types("words\n")
	s.sees(at, "got-words")
	s.sees(at, "prompt> ")
	// A shell in a run has job control of its own.
	at = s.types("weir run --service tty -- env PS1='in''ner> ' bash --norc --noprofile -i\n")
	s.sees(at, "inner> ")
	at = s.types("sh -c 'echo at''work; sleep 1000'\n")
	s.sees(at, "atwork")
	at = s.types("\x1a")
	s.sees(at, "Stopped")
	at = s.types("fg\n")
	s.sees(at, "sleep 1000")
	at = s.types("\x03")
	s.sees(at, "inner> ")
	at = s.types("exit 9\n")
	s.sees(at, "prompt> ")
	at = s.types("echo status-$?\n")
	s.sees(at, "status-9")
}

func TestRunUnderNohupStaysDeafToAHangup(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	out := m.must("sh", "-c", `trap '' HUP; exec weir run --service one -- sh -c 'kill -HUP $$; echo alive'`)
	if out != "alive\n" {
		t.Errorf("%q", out)
	}
}
