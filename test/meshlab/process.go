package meshlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/weir-mesh/weir/test/netlab"
)

// Process is a program running in a namespace, its output kept in a file.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // then: how
}

// start runs a program in a namespace, with the lab's resolv.conf.
func (m *Mesh) start(h *netlab.Host, name, program string, args ...string) (*Process, error) {
	cmd := m.Command(context.Background(), h, program, args...)
	return m.run(cmd, name)
}

// Command is a program in a namespace, with the lab's resolv.conf in place of
// the machine's.
func (m *Mesh) Command(ctx context.Context, h *netlab.Host, program string, args ...string) *exec.Cmd {
	// A mount namespace of its own; where the file cannot be mounted over (its
	// link leads nowhere), the C library asks 127.0.0.1, which does as well.
	script := `mount --bind "$0" /etc/resolv.conf 2>/dev/null; exec "$@"`
	all := append([]string{"--mount", "--propagation", "private", "sh", "-c", script, m.resolvConf(), program}, args...)
	cmd := h.Command(ctx, "unshare", all...)
	if _, err := exec.LookPath(program); err != nil {
		cmd.Err = err
	}
	return cmd
}

func (m *Mesh) run(cmd *exec.Cmd, name string) (*Process, error) {
	p := &Process{Name: name, cmd: cmd, done: make(chan struct{}), log: filepath.Join(m.Dir, name+".log")}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // an interrupt at the terminal is ours to handle
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.processes = append(m.processes, p)
	return p, nil
}

// Pid is the program's.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err tells how the program ended, once it has.
func (p *Process) Err() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Kill ends the program at once (SIGKILL), with all it started.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.Pid(), syscall.SIGKILL) // it may have ended before
	<-p.done
}

// Stop asks the program to end (SIGTERM) and waits at most the limit, then
// kills it and says so.
func (p *Process) Stop(limit time.Duration) error {
	_ = syscall.Kill(p.Pid(), syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM\n%s", p.Name, limit, p.Tail())
	}
}

// Log is all that the program printed.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Tail is the last lines that the program printed.
func (p *Process) Tail() string {
	lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-12):], "\n  ")
}
