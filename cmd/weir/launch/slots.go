package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is where the runs of a machine keep what they tell each other. It is
// emptied by a reboot, as network namespaces are.
const Dir = "/run/weir/run"

// slots are the runs of one machine, each in a directory with its number. A run
// holds a lock on its slot for as long as it lives; the kernel lets go of it
// however the run ends. A slot that nobody holds is a leftover.
type slots struct {
	dir string
}

// slot is one run's place among the others.
type slot struct {
	number int // 1 and up; the address is made of it
	dir    string
	lock   *os.File
}

// Entry is what a run tells of itself.
type Entry struct {
	Number    int       `json:"number"`
	PID       int       `json:"pid"` // of weir run
	Service   string    `json:"service"`
	Namespace string    `json:"namespace"`
	Netns     string    `json:"netns"`     // file of the network namespace
	Joined    bool      `json:"joined"`    // the namespace is somebody else's
	Inode     uint64    `json:"inode"`     // of the network namespace
	Cleanup   []string  `json:"cleanup"`   // what removes the rules of a joined one
	Address   string    `json:"address"`   // "" in a joined one
	Ports     []string  `json:"ports"`     // as given
	Published []string  `json:"published"` // as given
	Command   []string  `json:"command"`   // the program and its arguments
	Started   time.Time `json:"started"`   // when weir run began
}

// exclusively calls f while no other run changes what the runs share: the slots,
// the bridge.
func (s slots) exclusively(f func() error) error {
	lock, err := s.lock()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // and with it the lock
	return f()
}

// lock takes the lock of the directory. The last run removes the file, so one that
// is locked may be one that has no name any more.
func (s slots) lock() (*os.File, error) {
	for {
		if err := os.MkdirAll(s.dir, 0o755); err != nil {
			return nil, err
		}
		path := filepath.Join(s.dir, "lock")
		lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory was removed in this moment
		}
		if err != nil {
			return nil, err
		}
		if err := flock(lock, unix.LOCK_EX); err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
		}
		mine, err := lock.Stat()
		if named, err2 := os.Stat(path); err == nil && err2 == nil && os.SameFile(mine, named) {
			return lock, nil
		}
		_ = lock.Close()
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// mark notes something that the runs share and the last one is to undo.
func (s slots) mark(what string) error { return os.WriteFile(filepath.Join(s.dir, what), nil, 0o644) }

func (s slots) marked(what string) bool {
	_, err := os.Stat(filepath.Join(s.dir, what))
	return err == nil
}

// remove takes the directory away, when no slot is left. The caller has the lock.
func (s slots) remove() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return err
	}
	err := os.Remove(filepath.Dir(s.dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil // somebody else has files there
	}
	return err
}

// take gives the lowest slot of 1..last that is free. What is left of a run that
// ended without cleaning up is handed to remove first, and its slot is free after.
func (s slots) take(last int, remove func(Entry) error) (*slot, error) {
	if err := s.sweep(remove); err != nil {
		return nil, err
	}
	for n := 1; n <= last; n++ {
		dir := s.path(n)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err == nil {
			err = flock(lock, unix.LOCK_EX) // weir run --list may have it for a moment
		}
		if err != nil {
			return nil, fmt.Errorf("lock slot %d: %w", n, err)
		}
		return &slot{number: n, dir: dir, lock: lock}, nil
	}
	return nil, fmt.Errorf("all %d addresses are in use by other runs; a larger --subnet has more", last)
}

// sweep removes what dead runs have left.
func (s slots) sweep(remove func(Entry) error) error {
	numbers, err := s.numbers()
	if err != nil {
		return err
	}
	for _, n := range numbers {
		live, err := s.alive(n)
		if err != nil {
			return err
		}
		if live {
			continue
		}
		e, err := s.entry(n)
		if err != nil {
			e = Entry{Number: n} // it ended before it had told anything
		}
		if err := remove(e); err != nil {
			return fmt.Errorf("remove what run %d (pid %d) has left: %w", n, e.PID, err)
		}
		if err := os.RemoveAll(s.path(n)); err != nil {
			return err
		}
	}
	return nil
}

// alive asks the slot's lock. A new descriptor of the same file is refused the
// lock even in the process that has it.
func (s slots) alive(n int) (bool, error) {
	lock, err := os.OpenFile(filepath.Join(s.path(n), "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }()
	err = flock(lock, unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// numbers lists the slots that are there, dead ones too, in order.
func (s slots) numbers() ([]int, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && e.IsDir() {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out, err
}

func (s slots) path(n int) string { return filepath.Join(s.dir, strconv.Itoa(n)) }

func (s slots) entry(n int) (e Entry, err error) {
	b, err := os.ReadFile(filepath.Join(s.path(n), "run.json"))
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(b, &e)
}

// live lists the runs that are alive and have told of themselves.
func (s slots) live() ([]Entry, error) {
	numbers, err := s.numbers()
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, n := range numbers {
		if live, err := s.alive(n); err != nil || !live {
			if errors.Is(err, fs.ErrPermission) {
				return nil, fmt.Errorf("%w; root may look", err)
			}
			continue
		}
		if e, err := s.entry(n); err == nil { // else it is about to
			out = append(out, e)
		}
	}
	return out, nil
}

// others tells whether there is any slot but this one.
func (s slots) others(than *slot) (bool, error) {
	numbers, err := s.numbers()
	return slices.ContainsFunc(numbers, func(n int) bool { return n != than.number }), err
}

// tell writes the slot's entry, at once or not at all.
func (s *slot) tell(e Entry) error {
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(s.dir, "run.json.new")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil { // arguments may be secrets
		return err
	}
	return os.Rename(tmp, filepath.Join(s.dir, "run.json"))
}

// free gives the slot back.
func (s *slot) free() error { return errors.Join(os.RemoveAll(s.dir), s.lock.Close()) }

// List tells of the runs of this machine.
func List() ([]Entry, error) { return slots{Dir}.live() }
