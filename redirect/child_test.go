package redirect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/netlab"
)

// childEnv makes the test binary a program that does one thing: "dial", "apply".
const childEnv = "WEIR_REDIRECT_CHILD"

// child connects to os.Args[1] in the way os.Args[2] says, or applies a plan, and
// prints what came of it. "refused" here means that the kernel did not let it do so.
func child(what string) int {
	err := func() error {
		if what == "apply" {
			p, err := NewPlan(DefaultConfig())
			if err != nil {
				return err
			}
			_, err = p.Apply(context.Background())
			return err
		}
		cfg := DefaultConfig()
		d := net.Dialer{Timeout: 3 * time.Second}
		switch os.Args[2] {
		case "mark":
			d.Control = UpstreamControl(cfg)
		case "dscp":
			cfg.ProxyUID = uid(1)
			d.Control = UpstreamControl(cfg)
		case "inbound-dscp":
			cfg.ProxyUID = uid(1)
			d.Control = InboundControl(cfg)
		}
		c, err := d.Dial("tcp", os.Args[1])
		if err != nil {
			return err
		}
		defer c.Close()
		buf := make([]byte, 64)
		n, err := c.Read(buf)
		fmt.Print(string(buf[:n]))
		return err
	}()
	switch {
	case errors.Is(err, ErrNotPermitted):
		fmt.Print("not permitted: ", err)
	case errors.Is(err, syscall.EPERM):
		fmt.Print("refused")
	case err != nil:
		fmt.Print("error: ", err)
	}
	return 0
}

// readableBinary is this test binary where every user can run it.
func readableBinary(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp("", "redirect-*.test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(f.Name()) })
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o755), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// runAs runs the child by setpriv(1) with the given options.
func runAs(t *testing.T, h *netlab.Host, bin string, setpriv []string, what string, args ...string) string {
	t.Helper()
	cmd := h.Command(t.Context(), "setpriv", append(append(setpriv, bin), args...)...)
	return output(t, cmd, what)
}

func output(t *testing.T, cmd *exec.Cmd, what string) string {
	t.Helper()
	cmd.Env = append(os.Environ(), childEnv+"="+what)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

var noCapabilities = []string{"--bounding-set=-all", "--inh-caps=-all"}

// manyUsers says whether there are other users than root here, which in a user
// namespace of a single id there are not.
func manyUsers(t *testing.T) bool {
	t.Helper()
	m, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(m))
	return len(f) != 3 || f[2] != "1"
}

// kernelPlans is the golden plans that this user namespace can install: the owner
// match wants its uid to exist (/proc/self/uid_map).
func kernelPlans(t *testing.T) map[string]Config {
	t.Helper()
	plans := maps.Clone(goldenPlans)
	delete(plans, "cgroup") // wants its directory; see TestACgroupIsLeftAlone
	if !manyUsers(t) {
		t.Log("there is one user only (/proc/self/uid_map): without the plans that name others")
		delete(plans, "uid")
		delete(plans, "scope")
	}
	return plans
}

func TestOwnersThatAreNotHereAreNamed(t *testing.T) {
	there := with(func(c *Config) { c.UIDsToIgnore, c.GIDsToIgnore = []IDRange{{0, 0}}, []IDRange{{0, 0}} })
	if err := there.ownersExist(); err != nil {
		t.Error(err)
	}
	// -1 is nobody's: the kernel keeps it to mean "none".
	for want, change := range map[string]func(*Config){
		"ProxyUID: this user namespace has no id 4294967295":     func(c *Config) { c.ProxyUID = uid(noID) },
		"UIDsToIgnore: this user namespace has no id 4294967295": func(c *Config) { c.UIDsToIgnore = []IDRange{{0, noID}} },
		"GIDsToIgnore: this user namespace has no id 4294967295": func(c *Config) { c.GIDsToIgnore = []IDRange{{noID, noID}} },
		"CgroupsToIgnore: ": func(c *Config) { c.CgroupsToIgnore = []string{"weir-is-not-there"} },
	} {
		cfg := with(change)
		if err := cfg.ownersExist(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s…", err, want)
		}
	}
}
