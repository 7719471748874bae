package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ownersExist looks whether this machine has the users, groups and cgroups of the
// plan: the owner match refuses ids that the user namespace has not, the cgroup
// match directories that are not there, with EINVAL and without saying which.
func (c *Config) ownersExist() error {
	if c.ProxyUID != nil {
		if err := idsExist("ProxyUID", "/proc/self/uid_map", []IDRange{{*c.ProxyUID, *c.ProxyUID}}); err != nil {
			return err
		}
	}
	return errors.Join(
		idsExist("UIDsToIgnore", "/proc/self/uid_map", c.UIDsToIgnore),
		idsExist("GIDsToIgnore", "/proc/self/gid_map", c.GIDsToIgnore),
		cgroupsExist(c.CgroupsToIgnore),
	)
}

// idsExist wants the ends of each range in the map.
func idsExist(field, path string, want []IDRange) error {
	if len(want) == 0 {
		return nil
	}
	m, err := os.Open(path)
	if err != nil {
		return nil // no user namespaces: all ids are there
	}
	defer m.Close()
	var have [][2]uint64
	for s := bufio.NewScanner(m); s.Scan(); {
		var inside, outside, n uint64
		if _, err := fmt.Sscan(s.Text(), &inside, &outside, &n); err == nil {
			have = append(have, [2]uint64{inside, inside + n})
		}
	}
	for _, r := range want {
		for _, id := range []uint32{r.First, r.Last} {
			found := false
			for _, h := range have {
				found = found || h[0] <= uint64(id) && uint64(id) < h[1]
			}
			if !found {
				return fmt.Errorf("%s: this user namespace has no id %d (%s)", field, id, path)
			}
		}
	}
	return nil
}

// cgroupsExist looks below the mount of cgroup v2.
func cgroupsExist(want []string) error {
	if len(want) == 0 {
		return nil
	}
	mount := cgroup2Mount()
	if mount == "" {
		return errors.New("CgroupsToIgnore: cgroup v2 is not mounted here (/proc/self/mounts)")
	}
	for _, path := range want {
		if _, err := os.Stat(filepath.Join(mount, path)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("CgroupsToIgnore: there is no %s below %s; the rule is bound to a directory, so make it first", path, mount)
		}
	}
	return nil
}

func cgroup2Mount() string {
	m, err := os.Open("/proc/self/mounts")
	if err != nil {
		return ""
	}
	defer m.Close()
	for s := bufio.NewScanner(m); s.Scan(); {
		var dev, dir, kind string
		if _, err := fmt.Sscan(s.Text(), &dev, &dir, &kind); err == nil && kind == "cgroup2" {
			return dir
		}
	}
	return ""
}
