package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/netlab"
)

// passed are the signals that weir run passes on to the program.
var passed = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
	syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGWINCH,
}

// byTerminal are those that a terminal sends to all processes of a job.
var byTerminal = map[os.Signal]bool{syscall.SIGINT: true, syscall.SIGQUIT: true, syscall.SIGTSTP: true, syscall.SIGWINCH: true}

// job is the program as weir run has it: the process that leads its namespaces and
// its process group (see Inside), and the terminal, which weir run passes to and
// fro as a shell does.
type job struct {
	tty    *terminal
	leader int // the first process, and its group
	events chan event
	orders *json.Encoder
	ended  <-chan error
	wants  bool // the terminal: it had it, or asked for it
	held   int  // the group that had it when it was taken back last; 0 is the leader's
}

// startJob starts the program in the namespace, and gives it the terminal before
// its first instruction.
func startJob(ns *netlab.Namespace, p *program, env []string) (*job, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	here := os.NewFile(uintptr(ends[0]), "program")
	conn, err := net.FileConn(here)
	_ = here.Close()
	if err != nil {
		return nil, errors.Join(err, unix.Close(ends[1]))
	}
	// Above what a shell or systemd passes to a program, which is left in its place.
	const high = 200
	there, err := unix.FcntlInt(uintptr(ends[1]), unix.F_DUPFD, high)
	_ = unix.Close(ends[1])
	if err != nil {
		return nil, fmt.Errorf("number a descriptor: %w", err)
	}
	j := &job{tty: openTerminal(), events: make(chan event), orders: json.NewEncoder(conn)}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "run-inside", strconv.Itoa(there))
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = os.Stdin, os.Stdout, os.Stderr, env
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		Setpgid:    true,
		Pdeathsig:  syscall.SIGKILL, // without its mesh the program does not run on
	}
	j.ended, err = startIn(ns, cmd, nil)
	_ = unix.Close(there)
	if err != nil {
		return nil, fmt.Errorf("start a process in namespaces of its own: %w", err)
	}
	j.leader = cmd.Process.Pid
	go j.listen(json.NewDecoder(conn))
	if j.tty.wanted() {
		j.wants = true
		_ = j.tty.give(j.leader) // else it is stopped when it asks, and gets it then
	}
	return j, j.orders.Encode(order{Start: p})
}

// listen hands on what the first process tells, until it has ended.
func (j *job) listen(from *json.Decoder) {
	defer close(j.events)
	for {
		var e event
		if from.Decode(&e) != nil {
			return
		}
		j.events <- e
	}
}

// startError is a program that could not be started.
type startError struct {
	text   string
	status int
}

func (e *startError) Error() string { return e.text }

// attend passes signals on and follows the job, until all of it has ended. It
// gives the program's exit status as a shell has it.
func (j *job) attend(signals <-chan os.Signal) (status int, err error) {
	defer j.tty.take()
	status = -1
	for {
		select {
		case s := <-signals:
			j.pass(s, status >= 0)
		case e, ok := <-j.events:
			switch {
			case !ok:
				if how := <-j.ended; status < 0 && err == nil {
					err = fmt.Errorf("the first process of the program's namespaces has ended (%s), and the program with it", howEnded(how))
				}
				return status, err
			case e.Failed != "":
				err = &startError{e.Failed, e.Status}
			case e.Ended:
				status = e.Status
				j.tty.take()
			case e.Stopped != 0:
				j.stopped(syscall.Signal(e.Stopped))
			}
		}
	}
}

// pass hands one signal on, once. Who asks to end again when the program has ended
// already does not wait for what it has left running.
func (j *job) pass(s os.Signal, programEnded bool) {
	o := order{Signal: int(s.(syscall.Signal))}
	switch {
	case programEnded:
		o = order{End: s != syscall.SIGCONT && s != syscall.SIGWINCH}
	case s == syscall.SIGCONT:
		j.resume()
		o.Group = true
	case byTerminal[s]:
		// With the terminal lent, its keys reach the program without us.
		o.Group = j.tty.ours()
	}
	_ = j.orders.Encode(o) // it may have ended in this moment
}

// stopped stops weir run as the program was, so that the shell sees its job
// stopped. A program that was stopped for want of the terminal gets it, if it is ours.
func (j *job) stopped(by syscall.Signal) {
	if by == syscall.SIGTTIN || by == syscall.SIGTTOU {
		j.wants = true
		if j.tty.ours() && j.tty.give(j.leader) == nil {
			_ = j.orders.Encode(order{Signal: int(syscall.SIGCONT), Group: true})
			return
		}
	}
	if group := j.tty.take(); group != 0 {
		j.held = group
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	// Here or a little later all threads stand still, until SIGCONT, which pass hears of.
}

// resume gives the terminal back to whom it was taken from, if the job came to the
// foreground.
func (j *job) resume() {
	if !j.wants || !j.tty.ours() {
		return
	}
	if j.held == 0 || j.tty.give(j.held) != nil { // that group has ended
		_ = j.tty.give(j.leader)
	}
}
