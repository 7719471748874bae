package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/meshlab"
)

// privileged is a host whose sidecars are started by hand, each with rights of
// its own.
type privileged struct {
	*meshlab.Mesh
	node, front *meshlab.Node
	state       string
	uid         string
}

// TestTheProxyRunsWithWhatItsModeNeedsAndNoMore is the table of
// docs/PRIVILEGES.md: with these rights a proxy serves, without them it says
// which are missing and how to give them.
func TestTheProxyRunsWithWhatItsModeNeedsAndNoMore(t *testing.T) {
	t.Parallel()
	if !otherUsers() {
		t.Skip("there is no other user than root in this user namespace, and capabilities are this namespace's")
	}
	m := newPrivileged(t)
	const netRaw, netAdmin, bindService = 1 << unix.CAP_NET_RAW, 1 << unix.CAP_NET_ADMIN, 1 << unix.CAP_NET_BIND_SERVICE
	for _, c := range []struct {
		name         string
		caps         string // of setpriv
		init, proxy  []string
		bits         uint64 // in effect
		bindableOnly bool   // the capability is the program file's, not the user's
		ends         string // it does not start, and says so
		warns        string
	}{
		{name: "marks", caps: "-all,+net_raw", bits: netRaw},
		{name: "marks before Linux 5.17", caps: "-all,+net_admin", bits: netAdmin},
		{name: "marks, of the file", caps: "-all", bits: netRaw, bindableOnly: true},
		{name: "no mark, the uid", caps: "-all", init: []string{"--proxy-uid", m.uid}, proxy: []string{"--mark", "none"}},
		{name: "a port below 1024", caps: "-all,+net_raw,+net_bind_service", init: []string{"--dns-port", "53"}, proxy: []string{"--dns-port", "53"}, bits: netRaw | bindService},
		{name: "more than needed", caps: "-all,+net_raw,+sys_ptrace", bits: netRaw | 1<<unix.CAP_SYS_PTRACE, warns: `"capabilities":["CAP_SYS_PTRACE"]`},
		{name: "marks, and nothing", caps: "-all", ends: "the proxy needs CAP_NET_RAW (before Linux 5.17 CAP_NET_ADMIN) and nothing else. Give it with `AmbientCapabilities=CAP_NET_RAW`"},
		{name: "a port below 1024, and nothing", caps: "-all,+net_raw", proxy: []string{"--dns-port", "53"}, ends: "need CAP_NET_BIND_SERVICE"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := m.run(t, c.caps, c.bindableOnly, c.init, c.proxy)
			if c.ends != "" {
				select {
				case <-p.Done():
				case <-time.After(30 * time.Second):
					t.Fatal("it runs")
				}
				if !strings.Contains(p.Tail(), c.ends) {
					t.Errorf("it does not say %q:\n%s", c.ends, p.Tail())
				}
				return
			}
			m.serves(t, p)
			eff, err := strconv.ParseUint(statusOf(t, p.Pid(), "CapEff"), 16, 64)
			if err != nil || eff != c.bits {
				t.Errorf("CapEff %#x, %v, want %#x", eff, err, c.bits)
			}
			uid := strings.Join([]string{m.uid, m.uid, m.uid, m.uid}, " ")
			if got := statusOf(t, p.Pid(), "Uid"); got != uid {
				t.Errorf("it runs as %s, want %s", got, uid)
			}
			if said := strings.Contains(p.Log(), "does not need"); said != (c.warns != "") || !strings.Contains(p.Log(), c.warns) {
				t.Errorf("of what it does not need (%q) it says:\n%s", c.warns, p.Tail())
			}
			if err := p.Stop(30 * time.Second); err != nil {
				t.Errorf("SIGTERM: %v", err)
			}
		})
	}
}

func newPrivileged(t *testing.T) *privileged {
	m := &privileged{Mesh: start(t), uid: strconv.Itoa(meshlab.ProxyUID)}
	m.node = bare(t, m.Mesh, "users")
	serve(t, m.node, "users", 8001, nil)
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "front", Ports: []string{"8001"}})
	serve(t, m.front, "front", 8001, nil)
	allow(t, m.Mesh, "front", "users")
	allow(t, m.Mesh, "users", "front")
	token, err := m.API.CreateToken(t.Context(), usersService, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m.state = filepath.Join(m.Dir, "state")
	if err := os.Mkdir(m.state, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.state, "token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	give(t, m.state, file)
	return m
}

// run installs the redirection anew and starts a sidecar as the proxy's user,
// with these capabilities and none that it could get.
func (m *privileged) run(t *testing.T, caps string, ofFile bool, init, flags []string) *meshlab.Process {
	t.Helper()
	for _, args := range [][]string{{"--cleanup"}, init} {
		if out, err := m.node.Output(t.Context(), m.Program("weir-init"), args...); err != nil {
			t.Fatalf("weir-init %v: %v\n%s", args, err, out)
		}
	}
	program := m.Program("weir-proxy")
	as := []string{"--reuid", m.uid, "--regid", m.uid, "--clear-groups", "--inh-caps", caps, "--ambient-caps", caps}
	if ofFile {
		program = withFileCapability(t, m.Mesh)
	} else {
		as = append(as, "--bounding-set", caps, "--no-new-privs")
	}
	args := slices.Concat(as, []string{program, "--control", m.ControlAddr(), "--service", "users", "--token-file", filepath.Join(m.state, "token"),
		"--state-dir", m.state, "--app-port", "8001", "--advertise", m.node.Addr4().String(), "--resolv-conf", filepath.Join(m.Dir, "resolv.conf"),
		"--drain-delay", "10ms", "--drain-timeout", "5s"}, flags)
	p, err := m.node.Start(t.Context(), "proxy-"+strings.ReplaceAll(t.Name(), "/", "-"), 0, "setpriv", args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serves wants traffic in both directions, by name and with mTLS.
func (m *privileged) serves(t *testing.T, p *meshlab.Process) {
	t.Helper()
	for _, pair := range []struct {
		from *meshlab.Node
		to   string
	}{{m.front, "users"}, {m.node, "front"}} {
		await(t, m.Mesh, "a request to "+pair.to, func() error {
			select {
			case <-p.Done():
				t.Fatalf("the proxy ended: %v\n%s", p.Err(), p.Tail())
			default:
			}
			out, err := pair.from.Output(t.Context(), "curl", "-sS", "-f", "--max-time", "10", "http://"+pair.to+":8001/")
			if err != nil || !strings.Contains(out, `"X-Source-Service"`) {
				return fmt.Errorf("%q, %w\n%s", out, err, p.Tail())
			}
			return nil
		})
	}
}

// withFileCapability is the proxy's program as `setcap cap_net_raw+ep` leaves it.
func withFileCapability(t *testing.T, m *meshlab.Mesh) string {
	t.Helper()
	b, err := os.ReadFile(m.Program("weir-proxy"))
	if err != nil {
		t.Fatal(err)
	}
	path := m.Program("weir-proxy-with-file-capability")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	// struct vfs_cap_data, linux/capability.h: magic with the effective bit, then
	// permitted and inheritable, low words and high ones.
	var attr []byte
	for _, word := range []uint32{0x02000001, 1 << unix.CAP_NET_RAW, 0, 0, 0} {
		attr = binary.LittleEndian.AppendUint32(attr, word)
	}
	if err := unix.Setxattr(path, "security.capability", attr, 0); err != nil {
		t.Fatalf("set the file's capability: %v", err)
	}
	return path
}
