package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// unitFiles are deploy/systemd's, with the programs where they are here.
func unitFiles(t *testing.T) (dir string, names []string) {
	t.Helper()
	dir = t.TempDir()
	files, err := filepath.Glob(filepath.Join(root, "deploy/systemd/*.service"))
	if err != nil || len(files) != 5 {
		t.Fatalf("units %v, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "/usr/local/bin", programs(t))
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		names = append(names, filepath.Base(f))
	}
	return dir, names
}

func TestTheUnitsAreGoodAndHardened(t *testing.T) {
	t.Parallel()
	dir, names := unitFiles(t)
	verify := append([]string{"verify", "--man=no"}, names...)
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", append(verify, "weir-proxy@users.service", "weir-init@users.service")...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for _, name := range names {
		// Out of 100, less is better; a unit without any hardening has 96. weir-init
		// is root, for iptables. The figures are in docs/PRIVILEGES.md.
		most := "16"
		if strings.HasPrefix(name, "weir-init") {
			most = "28"
		}
		cmd := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+most, name)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", name, err, out)
		}
	}
}

// exec is a unit's command, as systemd would start it: %i and variables replaced.
func execOf(t *testing.T, dir, unit, key, instance string, env map[string]string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, unit))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		command, ok := strings.CutPrefix(line, key+"=")
		if !ok {
			continue
		}
		var out []string
		for _, word := range strings.Fields(strings.ReplaceAll(command, "%i", instance)) {
			switch {
			case strings.HasPrefix(word, "${"): // one word
				out = append(out, env[strings.Trim(word, "${}")])
			case strings.HasPrefix(word, "$"): // split at blanks
				out = append(out, strings.Fields(env[word[1:]])...)
			default:
				out = append(out, word)
			}
		}
		return out
	}
	t.Fatalf("%s has no %s", unit, key)
	return nil
}

// TestTheUnitsCommandsWorkAsTheirUsers runs what the units would run, under a
// user and with the capabilities that they name. What systemd itself does (the
// filter of system calls, mounts) TestTheUnitsRunUnderSystemd tries.
func TestTheUnitsCommandsWorkAsTheirUsers(t *testing.T) {
	t.Parallel()
	m := start(t)
	dir, _ := unitFiles(t)
	users := newBackend(t, bare(t, m, "users"), "users", 8001)
	h := users.node.Host

	run := func(name string, words []string) {
		t.Helper()
		words[0] = m.Program(filepath.Base(words[0]))
		if out, err := users.node.Output(t.Context(), words[0], words[1:]...); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	before, err := users.node.Output(t.Context(), "iptables-save")
	if err != nil {
		t.Fatal(err)
	}
	run("weir-init", execOf(t, dir, "weir-init@.service", "ExecStart", "users", map[string]string{"WEIR_INIT_FLAGS": "--inbound-ports-to-ignore 22"}))

	token, err := m.API.CreateToken(t.Context(), policy.ServiceName{Namespace: "default", Name: "users"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(m.Dir, "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(state, "token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	give(t, state, file)
	words := execOf(t, dir, "weir-proxy@.service", "ExecStart", "users", map[string]string{
		"STATE_DIRECTORY":  state,
		"WEIR_PROXY_FLAGS": fmt.Sprintf("--control %s --service users --app-port 8001 --advertise %s", m.ControlAddr(), h.Addr4()),
	})
	words[0] = m.Program("weir-proxy")
	for i, w := range words {
		if w == "/etc/weir/proxy-users.token" {
			words[i] = file
		}
	}
	as := append(asUser("--bounding-set", "-all,+net_raw", "--inh-caps", "-all,+net_raw", "--ambient-caps", "-all,+net_raw"), words...)
	proxy, err := users.node.Start(t.Context(), "proxy-unit", 0, "setpriv", as...)
	if err != nil {
		t.Fatal(err)
	}
	await(t, m, "the endpoint of the unit's proxy", func() error {
		eps, err := m.API.Endpoints(t.Context(), usersService)
		if err == nil && len(eps) != 1 {
			err = fmt.Errorf("%d endpoints\n%s", len(eps), proxy.Tail())
		}
		return err
	})
	if err := proxy.Stop(45 * time.Second); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	run("weir-init --cleanup", execOf(t, dir, "weir-init@.service", "ExecStop", "users", nil))
	if after, err := users.node.Output(t.Context(), "iptables-save"); err != nil || rules(after) != rules(before) {
		t.Errorf("after the stop %v\n%s\nbefore\n%s", err, after, before)
	}
}

// asUser are setpriv's arguments for the units' users, where there are others than
// root.
func asUser(capabilities ...string) []string {
	if !meshlab.OtherUsers() {
		return []string{"--no-new-privs"}
	}
	uid := strconv.Itoa(meshlab.ProxyUID)
	return append([]string{"--no-new-privs", "--reuid", uid, "--regid", uid, "--clear-groups"}, capabilities...)
}

// give makes files those of the units' users.
func give(t *testing.T, files ...string) {
	t.Helper()
	for _, f := range files {
		if !meshlab.OtherUsers() {
			return
		}
		if err := os.Chown(f, meshlab.ProxyUID, meshlab.ProxyUID); err != nil {
			t.Fatal(err)
		}
	}
}

// rules are the lines of iptables-save that are rules.
func rules(save string) string {
	var out []string
	for line := range strings.Lines(save) {
		if strings.HasPrefix(line, "-A ") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// TestTheControlPlanesUnitIsReadyWhenItAnswers: as an unprivileged user, it waits
// for etcd, says so to systemd, and then that it is ready.
func TestTheControlPlanesUnitIsReadyWhenItAnswers(t *testing.T) {
	t.Parallel()
	m := startCluster(t, 1, 1)
	m.Etcd[0].Process.Kill()
	dir, _ := unitFiles(t)
	n := bare(t, m, "unit")
	state := filepath.Join(m.Dir, "unit-state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(state, "notify")
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	give(t, state, socket)
	words := execOf(t, dir, "weir-control.service", "ExecStart", "", map[string]string{
		"STATE_DIRECTORY": state, "WEIR_CONTROL_FLAGS": "--store " + m.EtcdURLs() + " --name unit --host " + n.Addr4().String(),
	})
	words[0] = m.Program("weir")
	as := append(append([]string{"NOTIFY_SOCKET=" + socket, "setpriv"}, asUser("--bounding-set", "-all", "--inh-caps", "-all")...), words...)
	control, err := n.Start(t.Context(), "control-unit", 0, "env", as...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	heard := func(what string) {
		t.Helper()
		for b := make([]byte, 4096); ; {
			n, err := listener.Read(b)
			if err != nil {
				t.Fatalf("systemd does not hear %q: %v\n%s", what, err, control.Tail())
			}
			if strings.Contains(string(b[:n]), what) {
				return
			}
		}
	}
	heard("STATUS=waiting for the store: ")
	if !strings.Contains(control.Log(), "waiting for the store (--store)") || !strings.Contains(control.Log(), "connection refused") {
		t.Errorf("the log says:\n%s", control.Tail())
	}
	if err := m.Etcd[0].Start(); err != nil {
		t.Fatal(err)
	}
	heard("READY=1")
	await(t, m, "it is among the control planes", func() error {
		out, err := n.Output(ctx, m.Program("weir"), "get", "status", "--token-file", filepath.Join(state, "admin.token"))
		if err != nil || !strings.Contains(out, n.Join(8081)) {
			return errors.Join(err, fmt.Errorf("weir get status: %s", out))
		}
		return nil
	})
	if err := control.Stop(20 * time.Second); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}
