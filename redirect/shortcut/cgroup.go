package shortcut

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is a line of mountinfo, proc_pid_mountinfo(5), as far as it is wanted.
type mount struct{ at, fsType, source string }

// mounts lists what is mounted for this process.
func mounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look for mounts: %w", err)
	}
	return parseMounts(string(b)), nil
}

func parseMounts(text string) (out []mount) {
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if ok && len(b) >= 5 && len(a) >= 2 {
			out = append(out, mount{at: unescape(b[4]), fsType: a[0], source: a[1]})
		}
	}
	return out
}

// unescape turns the octal escapes of mountinfo into the characters.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// find is where a file system is mounted that is still to be seen there, the
// preferred place first.
func find(ms []mount, fsType string, magic int64, preferred string) (mount, bool) {
	var found mount
	for _, m := range ms {
		var st unix.Statfs_t
		if m.fsType != fsType || unix.Statfs(m.at, &st) != nil || int64(st.Type) != magic { //nolint:unconvert // an int32 on some machines
			continue
		}
		if found.at == "" || m.at == preferred {
			found = m
		}
	}
	return found, found.at != ""
}

// findCgroup is the directory to attach to. Only processes below it take part.
func findCgroup(wanted string) (dir string, notes []string, err error) {
	if wanted != "" {
		var st unix.Statfs_t
		if err := unix.Statfs(wanted, &st); err != nil {
			return "", nil, fmt.Errorf("cgroup %s: %w", wanted, err)
		}
		if st.Type != unix.CGROUP2_SUPER_MAGIC {
			return "", nil, fmt.Errorf("%s is not a directory of cgroup v2", wanted)
		}
		return filepath.Clean(wanted), nil, nil
	}
	ms, err := mounts()
	if err != nil {
		return "", nil, err
	}
	// Beside cgroup v1 it is mounted below it, as a rule at "unified".
	m, ok := find(ms, "cgroup2", unix.CGROUP2_SUPER_MAGIC, "/sys/fs/cgroup")
	if !ok {
		return "", nil, errors.New("no cgroup v2 is mounted here: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified), or name its directory")
	}
	// Every cgroup has this file but the root of all.
	if _, err := os.Stat(filepath.Join(m.at, "cgroup.events")); err == nil {
		notes = append(notes, fmt.Sprintf("%s is one cgroup of many, and only processes in it have the short cut; name that of app and proxy with --cgroup", m.at))
	}
	return m.at, notes, nil
}

// inCgroup tells whether this process is in the cgroup or one below it.
func inCgroup(dir string) bool {
	pid := fmt.Sprint(os.Getpid())
	found := false
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // a cgroup that has just gone
		}
		b, _ := os.ReadFile(p)
		for line := range strings.Lines(string(b)) {
			if strings.TrimSpace(line) == pid {
				found = true
				return filepath.SkipAll
			}
		}
		return nil
	})
	return found
}
