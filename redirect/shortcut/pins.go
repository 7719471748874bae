package shortcut

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// What must outlive weir-init is kept by files on a BPF file system (bpffs):
//
//	weir/VERSION/namespaces, sockets, figures   maps
//	weir/VERSION/establish, refuse              programs, for further cgroups
//	weir/VERSION/establish-N, refuse-N          their links to the cgroup with inode N
//
// The files are also the record of what is installed: removing them removes it.
// VERSION is a digest of the programs, so that those of another weir-init go on
// until the last namespace has left them.
const (
	pinDir   = "weir"
	standard = "/sys/fs/bpf" // made by the kernel for this, and used by systemd, bpftool and others
	ourMount = "weir"        // source of a bpffs that we mounted
)

// pins is the open directory, locked against other weir-inits.
type pins struct {
	fs  *os.File // the root of the bpffs, which carries the lock
	dir string
}

// openPins finds the directory, or makes it. Without create and a directory it is nil.
func openPins(create bool) (*pins, error) {
	ms, err := mounts()
	if err != nil {
		return nil, err
	}
	m, ok := find(ms, "bpf", unix.BPF_FS_MAGIC, standard)
	switch {
	case ok:
	case create:
		if err := mountBPF(); err != nil {
			return nil, err
		}
		m.at = standard
	default:
		return nil, nil
	}
	p := &pins{dir: filepath.Join(m.at, pinDir)}
	if _, err := os.Stat(p.dir); err != nil && !create {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			return nil, nil // who may not look cannot have installed anything
		}
		return nil, err
	}
	if p.fs, err = os.Open(m.at); err != nil {
		if errors.Is(err, os.ErrPermission) && !create {
			return nil, nil
		}
		return nil, err
	}
	if err := unix.Flock(int(p.fs.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", m.at, err), p.fs.Close())
	}
	if create {
		if err := os.MkdirAll(p.dir, 0o700); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	return p, nil
}

func (p *pins) close() error { return p.fs.Close() }

// mountBPF mounts a bpffs where everybody has one. In a mount namespace that is
// only ours it would go, and take the programs with it, when we end.
func mountBPF() error {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	parents, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", os.Getppid()))
	if err != nil || err2 != nil || ours != parents {
		return fmt.Errorf("no BPF file system is to be seen here: mount the host's %s into this container; on a host use weir-init --netns instead of ip netns exec", standard)
	}
	if err := unix.Mount(ourMount, standard, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF file system at %s: %w", standard, err)
	}
	return nil
}

// set is the programs and maps of one version.
type set struct {
	name, dir                    string
	namespaces, sockets, figures *ebpf.Map
	establish, refuse            *ebpf.Program
}

func (s *set) close() {
	for _, m := range []*ebpf.Map{s.namespaces, s.sockets, s.figures} {
		_ = m.Close() // nil is fine
	}
	_ = s.establish.Close()
	_ = s.refuse.Close()
}

func (s *set) files() (ms map[string]**ebpf.Map, ps map[string]**ebpf.Program) {
	return map[string]**ebpf.Map{"namespaces": &s.namespaces, "sockets": &s.sockets, "figures": &s.figures},
		map[string]**ebpf.Program{"establish": &s.establish, "refuse": &s.refuse}
}

// set opens the programs and maps of this version, or makes them, and sees that
// they are attached to the cgroup.
func (p *pins) set(k kernel, cgroup string) (s *set, made bool, err error) {
	spec := collection(k)
	name := version(spec)
	s, err = p.open(name)
	if errors.Is(err, os.ErrNotExist) {
		made = true
		s, err = p.make(spec, name)
	}
	if err != nil {
		return nil, false, err
	}
	attached, err := s.attach(cgroup)
	if err != nil {
		s.close()
		return nil, false, err
	}
	return s, made || attached, nil
}

func collection(k kernel) *ebpf.CollectionSpec {
	return &ebpf.CollectionSpec{
		Maps:     mapSpecs(),
		Programs: map[string]*ebpf.ProgramSpec{"establish": establish(), "hand": hand(k), "refuse": refuse()},
	}
}

// version tells programs and maps apart that differ.
func version(spec *ebpf.CollectionSpec) string {
	h := sha256.New()
	for _, name := range []string{"establish", "hand", "refuse"} {
		fmt.Fprintf(h, "%v\n", spec.Programs[name].Instructions)
	}
	for _, name := range []string{mapNamespaces, mapAnnounced, mapWaiting, mapSockets, mapEnds, mapFigures} {
		fmt.Fprintf(h, "%v\n", spec.Maps[name])
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

func (p *pins) open(name string) (*set, error) {
	s := &set{name: name, dir: filepath.Join(p.dir, name)}
	ms, ps := s.files()
	var errs []error
	for file, to := range ms {
		m, err := ebpf.LoadPinnedMap(filepath.Join(s.dir, file), nil)
		*to = m
		errs = append(errs, err)
	}
	for file, to := range ps {
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(s.dir, file), nil)
		*to = prog
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		s.close()
		return nil, fmt.Errorf("open what is installed: %w", err)
	}
	return s, nil
}

// make loads everything and keeps it under another name until it is whole.
func (p *pins) make(spec *ebpf.CollectionSpec, name string) (*set, error) {
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the programs: %w", err)
	}
	defer c.Close()
	s := &set{name: name, dir: filepath.Join(p.dir, name)}
	s.namespaces, s.sockets, s.figures = c.DetachMap(mapNamespaces), c.DetachMap(mapSockets), c.DetachMap(mapFigures)
	s.establish, s.refuse = c.DetachProgram("establish"), c.DetachProgram("refuse")
	if err := p.keep(s, c.Programs["hand"]); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (p *pins) keep(s *set, hand *ebpf.Program) error {
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: s.sockets.FD(), Program: hand, Attach: ebpf.AttachSkMsgVerdict})
	if err != nil {
		return fmt.Errorf("attach to the map of sockets: %w", err)
	}
	unfinished := s.dir + "-new"                                                                  // a dot is not allowed in names
	err = errors.Join(os.RemoveAll(s.dir), os.RemoveAll(unfinished), os.Mkdir(unfinished, 0o700)) // of a weir-init that was killed
	ms, ps := s.files()
	for file, m := range ms {
		err = errors.Join(err, (*m).Pin(filepath.Join(unfinished, file)))
	}
	for file, prog := range ps {
		err = errors.Join(err, (*prog).Pin(filepath.Join(unfinished, file)))
	}
	if err == nil {
		err = os.Rename(unfinished, s.dir)
	}
	if err != nil {
		return fmt.Errorf("keep the programs: %w", errors.Join(err, os.RemoveAll(unfinished)))
	}
	return nil
}

// attach links the programs to a cgroup, beside those of others, unless they are.
func (s *set) attach(cgroup string) (changed bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return false, fmt.Errorf("cgroup %s: %w", cgroup, err)
	}
	for _, a := range []struct {
		name string
		prog *ebpf.Program
		to   ebpf.AttachType
	}{{"refuse", s.refuse, ebpf.AttachCGroupSetsockopt}, {"establish", s.establish, ebpf.AttachCGroupSockOps}} {
		file := filepath.Join(s.dir, a.name+"-"+strconv.FormatUint(st.Ino, 10))
		if linked(file, st.Ino) {
			continue
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
		l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: a.to, Program: a.prog})
		if err != nil {
			return false, fmt.Errorf("attach to cgroup %s: %w", cgroup, err)
		}
		if err := errors.Join(l.Pin(file), l.Close()); err != nil {
			return false, fmt.Errorf("keep the link to cgroup %s: %w", cgroup, err)
		}
		changed = true
	}
	return changed, nil
}

// linked tells whether a link is there and was not detached behind our back.
func linked(file string, cgroup uint64) bool {
	l, err := link.LoadPinnedLink(file, nil)
	if err != nil {
		return false
	}
	defer l.Close()
	info, err := l.Info()
	return err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == cgroup
}

// versions lists what is installed, whole or not.
func (p *pins) versions() ([]string, error) {
	all, err := os.ReadDir(p.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // another one removed the last while we waited for the lock
		return nil, err
	}
	var out []string
	for _, e := range all {
		out = append(out, e.Name())
	}
	return out, nil
}

// forget takes a namespace out of all versions but one.
func (p *pins) forget(self []byte, but string) (changed bool, err error) {
	names, err := p.versions()
	for _, name := range names {
		if name == but {
			continue
		}
		m, e := ebpf.LoadPinnedMap(filepath.Join(p.dir, name, "namespaces"), nil)
		if errors.Is(e, os.ErrNotExist) {
			continue
		}
		if e == nil {
			e = errors.Join(m.Delete(self), m.Close())
			changed = changed || e == nil
		}
		if !errors.Is(e, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, e)
		}
	}
	return changed, err
}

// removeUnused removes namespaces that are gone, versions that no namespace uses,
// then what is empty.
func (p *pins) removeUnused() error {
	names, err := p.versions()
	used := false
	for _, name := range names {
		dir := filepath.Join(p.dir, name)
		m, e := ebpf.LoadPinnedMap(filepath.Join(dir, "namespaces"), nil)
		if e != nil && !errors.Is(e, os.ErrNotExist) {
			return errors.Join(err, e)
		}
		if e == nil {
			e = (&set{namespaces: m}).bury()
			var key, value []byte
			inUse := m.Iterate().Next(&key, &value)
			err = errors.Join(err, e, m.Close())
			if inUse {
				used = true
				continue
			}
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if used || err != nil {
		return err
	}
	if err := os.Remove(p.dir); err != nil {
		return err
	}
	return p.unmount()
}

// unmount takes away a bpffs that we mounted, if nobody else has begun to use it.
func (p *pins) unmount() error {
	ms, err := mounts()
	if err != nil {
		return err
	}
	m, ok := find(ms, "bpf", unix.BPF_FS_MAGIC, standard)
	if !ok || m.source != ourMount || m.at != filepath.Dir(p.dir) {
		return nil
	}
	files, err := os.ReadDir(m.at)
	for _, f := range files {
		if f.Name() != "maps.debug" && f.Name() != "progs.debug" { // the kernel's own, in each
			return err
		}
	}
	if err == nil {
		err = unix.Unmount(m.at, unix.MNT_DETACH) // the lock still holds it open
	}
	return err
}

// look reads the entry of a namespace, wherever it is.
func (p *pins) look(self []byte, cfg Config) (f Figures, differs, err error) {
	names, err := p.versions()
	if err != nil {
		return f, nil, err
	}
	for _, name := range names {
		s, err := p.open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return f, nil, err
		}
		defer s.close()
		entry, err := s.entry(self)
		if err != nil {
			return f, nil, err
		}
		if entry != nil {
			err := f.read(entry, s.figures)
			return f, errors.Join(settingsDiffer(entry, cfg), s.detached(cfg.Cgroup)), err
		}
	}
	return f, ErrNone, nil
}

// detached tells whether someone has taken the programs away.
func (s *set) detached(cgroup string) error {
	dir, _, err := findCgroup(cgroup)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	for _, name := range []string{"establish", "refuse"} {
		if !linked(filepath.Join(s.dir, name+"-"+strconv.FormatUint(st.Ino, 10)), st.Ino) {
			return fmt.Errorf("the programs are not attached to cgroup %s", dir)
		}
	}
	got, err := link.QueryPrograms(link.QueryOptions{Target: s.sockets.FD(), Attach: ebpf.AttachSkMsgVerdict})
	if err == nil && len(got.Programs) == 0 {
		return errors.New("the program that hands messages over was detached")
	}
	return nil
}
