package launch

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
)

// account is whom the program runs as.
type account struct {
	credential *credential // nil changes nothing
	name, home string      // "" where the machine does not know the user
}

// accountOf reads --user: NAME or UID, with :GROUP or :GID for another group. Empty
// stands for who called sudo, where somebody did, else for who runs this.
func accountOf(spec string) (account, error) {
	if spec == "" {
		uid, gid := os.Getenv("SUDO_UID"), os.Getenv("SUDO_GID")
		if os.Geteuid() != 0 || uid == "" || uid == "0" {
			return account{}, nil
		}
		spec = uid + ":" + gid
		if gid == "" {
			spec = uid
		}
	}
	who, group, _ := strings.Cut(spec, ":")
	a, err := lookUp(who, group != "")
	if err != nil {
		return a, fmt.Errorf("--user %q: %w", spec, err)
	}
	if group != "" {
		gid, err := groupID(group)
		if err != nil {
			return a, fmt.Errorf("--user %q: %w", spec, err)
		}
		a.credential.GID = gid
	}
	return a, nil
}

// lookUp finds a user by name or number. A number need not be known to the machine,
// if there is a group for it.
func lookUp(who string, groupGiven bool) (account, error) {
	u, err := user.Lookup(who)
	if err != nil {
		u, err = user.LookupId(who)
	}
	uid, numeric := strconv.ParseUint(who, 10, 32)
	if err != nil && numeric == nil && groupGiven {
		return account{credential: &credential{UID: uint32(uid)}}, nil
	}
	if err != nil {
		return account{}, fmt.Errorf("no such user; as a number it needs a group, UID:GID")
	}
	groups, err := u.GroupIds()
	if err != nil {
		return account{}, fmt.Errorf("groups of %s: %w", who, err)
	}
	var ids []uint32
	for _, s := range append([]string{u.Uid, u.Gid}, groups...) {
		id, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("the machine's id %q of %s is no number", s, who)
		}
		ids = append(ids, uint32(id))
	}
	c := &credential{UID: ids[0], GID: ids[1], Groups: ids[2:]}
	return account{credential: c, name: u.Username, home: u.HomeDir}, nil
}

func groupID(s string) (uint32, error) {
	if g, err := user.LookupGroup(s); err == nil {
		s = g.Gid
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("no group %s", s)
	}
	return uint32(n), nil
}

// environ is the program's environment: that of weir run, with the user's own
// HOME, USER and LOGNAME where the user is another, and what the flags set. Of two
// values for one name the later counts.
func (a account) environ(base, file, flags []string) []string {
	env := append([]string{}, base...)
	if a.name != "" {
		env = append(env, "HOME="+a.home, "USER="+a.name, "LOGNAME="+a.name)
	}
	env = append(append(env, file...), flags...)
	last := map[string]int{}
	for i, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		last[name] = i
	}
	out := env[:0]
	for i, kv := range env {
		if name, _, _ := strings.Cut(kv, "="); last[name] == i {
			out = append(out, kv)
		}
	}
	return out
}

// checkEnv takes KEY=VALUE.
func checkEnv(kv string) error {
	if name, _, ok := strings.Cut(kv, "="); !ok || name == "" || strings.ContainsAny(kv, "\x00") {
		return fmt.Errorf("%q: meant is KEY=VALUE", kv)
	}
	return nil
}

// readEnvFile reads lines of KEY=VALUE, taken as they are; empty ones and those
// that begin with # are passed over.
func readEnvFile(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []string
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if err := checkEnv(line); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		out = append(out, line)
	}
	return out, nil
}
