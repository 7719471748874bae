package launch

import (
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// terminal is the controlling terminal, which one process group at a time has:
// what is typed and the signals of its keys go there. The zero value is none.
type terminal struct {
	file *os.File
	own  int // the group of weir run
	lent int // the group of the program, or one it has made; 0 as long as it is ours
}

// openTerminal gives nil where there is none.
func openTerminal() *terminal {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	return &terminal{file: f, own: unix.Getpgrp()}
}

// ours tells whether weir run is the foreground job.
func (t *terminal) ours() bool { return t != nil && t.holder() == t.own }

// holder is the group that has the terminal, 0 when it is gone.
func (t *terminal) holder() int {
	pgid, err := unix.IoctlGetInt(int(t.file.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return 0
	}
	return pgid
}

// wanted tells whether the program gets the terminal before it asks: not where its
// input or output is a pipe, as others of the pipeline may be about to ask.
func (t *terminal) wanted() bool { return t.ours() && isTerminal(0) && isTerminal(1) }

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// give lends the terminal to a group.
func (t *terminal) give(pgid int) error {
	if err := t.set(pgid); err != nil {
		return err
	}
	t.lent = pgid
	return nil
}

// take gets a terminal back that was lent, and remembers which of the program's
// groups had it. What another job has it leaves.
func (t *terminal) take() (held int) {
	if t == nil || t.lent == 0 {
		return 0
	}
	held = t.holder()
	if err := t.set(t.own); err != nil {
		held = 0
	}
	t.lent = 0
	return held
}

// set is tcsetpgrp(3). Who has not got the terminal is sent SIGTTOU by it, and
// stopped, unless the signal is blocked.
func (t *terminal) set(pgid int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var block, before unix.Sigset_t
	block.Val[(unix.SIGTTOU-1)/64] |= 1 << ((unix.SIGTTOU - 1) % 64)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &before); err != nil {
		return err
	}
	err := unix.IoctlSetPointerInt(int(t.file.Fd()), unix.TIOCSPGRP, pgid)
	return errors.Join(err, unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil))
}
