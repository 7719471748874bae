package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// boot makes a machine of the namespaces that it runs in: this one's files under
// an overlay, where nothing that is written stays, and only what a container
// engine would give. $0 is where the programs are, $1 the units'
// directory, $2 an empty one.
const boot = `set -e
T=$2
mount -t tmpfs none $T
mkdir $T/upper $T/work $T/root
mount -t overlay overlay -o lowerdir=/,upperdir=$T/upper,workdir=$T/work $T/root
R=$T/root
mkdir $R/programs $R/units $R/old
mount --bind "$0" $R/programs
mount --bind "$1" $R/units
mount -t proc proc $R/proc
mount -t sysfs sysfs $R/sys
mount -t cgroup2 none $R/sys/fs/cgroup
mount -t tmpfs none $R/run
mount -t tmpfs none $R/tmp
mount -t tmpfs none $R/dev
mkdir $R/dev/pts $R/dev/shm $R/dev/mqueue $R/dev/hugepages
mount -t devpts devpts $R/dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx $R/dev/ptmx
for d in null zero full random urandom tty; do touch $R/dev/$d; mount --bind /dev/$d $R/dev/$d; done
ln -s null $R/dev/console
mount -t tmpfs none $R/etc/systemd/system
printf '[Unit]\nDescription=nothing but what is asked for\n' >$R/etc/systemd/system/quiet.target
install $R/programs/weir $R/programs/weir-init $R/programs/weir-proxy $R/usr/local/bin/
ip link set lo up
cd $R
pivot_root . old
umount -l /old
exec env -i container=weir-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=quiet.target
`

// machine is a running systemd with nothing on it but what the test installs.
type machine struct {
	t   *testing.T
	pid string // systemd's
}

// bootMachine starts systemd as the first process of namespaces of its own, and
// ends all of it with the test.
func bootMachine(t *testing.T) *machine {
	t.Helper()
	// systemd wants a group of its own to manage, and mounts; a user namespace
	// gives neither where another systemd runs the machine.
	if ids, err := os.ReadFile("/proc/self/uid_map"); os.Geteuid() != 0 || err != nil || !strings.Contains(string(ids), "4294967295") {
		t.Skip("systemd as the first process of a machine needs root, and this is not the machine's")
	}
	group := newGroup(t)
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--cgroup", "--uts", "--ipc", "--net", "--propagation", "private",
		"sh", "-c", boot, programs(t), filepath.Join(root, "deploy/systemd"), t.TempDir())
	log, err := os.Create(filepath.Join(t.TempDir(), "boot.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		removeGroup(t, group)
	})
	m := &machine{t: t}
	m.await("systemd", func() error {
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("it ended: %s", text)
		default:
		}
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		if err == nil && len(strings.Fields(string(children))) != 1 {
			err = fmt.Errorf("children %q", children)
		}
		if err != nil {
			return err
		}
		m.pid = strings.Fields(string(children))[0]
		_, err = m.try("systemctl", "is-system-running")
		return err
	})
	return m
}

// newGroup makes a control group below the root of the machine's hierarchy.
func newGroup(t *testing.T) *os.File {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^\d+ \d+ \S+ / (\S+) .* - cgroup2 `).FindSubmatch(mounts)
	if m == nil {
		t.Fatalf("no cgroup2 is mounted, which systemd needs:\n%s", mounts)
	}
	dir, err := os.MkdirTemp(string(m[1]), "weir-test-")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// removeGroup removes a group with those below, once their processes are gone.
func removeGroup(t *testing.T, group *os.File) {
	defer group.Close()
	var dirs []string
	_ = filepath.WalkDir(group.Name(), func(path string, d fs.DirEntry, _ error) error { // what cannot be read cannot be removed either
		if d != nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, dir := range slices.Backward(dirs) {
		for err := syscall.Rmdir(dir); err != nil; err = syscall.Rmdir(dir) {
			select {
			case <-ctx.Done():
				t.Errorf("%s stays: %v", dir, err)
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
}

// try runs a command on the machine.
func (m *machine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"-t", m.pid, "-m", "-p", "-C", "-u", "-i", "-n", "-r", "-w",
		"env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *machine) await(what string, ok func() error) {
	m.t.Helper()
	limit := time.After(60 * time.Second)
	for err := ok(); err != nil; err = ok() {
		select {
		case <-limit:
			m.t.Fatalf("%s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// answered wants a status of the app's port, as somebody outside the mesh.
func (m *machine) answered(status, text string) error {
	out, err := m.try("curl", "-q", "-s", "-i", "--max-time", "5", "http://10.0.0.2:8001/")
	if err == nil && (!strings.Contains(out, " "+status+" ") || !strings.Contains(out, text)) {
		err = errors.New(out)
	}
	return err
}

// TestTheUnitsRunUnderSystemd installs the units as the README does, and lets a
// systemd run them: their users, file systems and filters of system calls are in
// force. A control plane that is killed comes back; what was redirected is as
// before in the end.
func TestTheUnitsRunUnderSystemd(t *testing.T) {
	m := bootMachine(t)
	m.run("sh", "-c", `set -e
		cp /units/*.service /etc/systemd/system/
		cp /units/weir.sysusers /usr/lib/sysusers.d/weir.conf
		systemd-sysusers
		systemctl daemon-reload
		ip netns add users
		ip link add weir0 type veth peer name eth0 netns users
		ip addr add 10.0.0.1/24 dev weir0
		ip link set weir0 up
		ip -n users addr add 10.0.0.2/24 dev eth0
		ip -n users link set eth0 up
		ip -n users link set lo up
		mkdir -p /srv/www
		echo here >/srv/www/index.html
		printf '[Service]\nExecStart=python3 -m http.server --directory /srv/www 8001\nNetworkNamespacePath=/run/netns/users\n' >/run/systemd/system/app.service
		systemctl start app`)
	m.await("the app", func() error { return m.answered("200", "here") })

	m.run("systemctl", "enable", "--now", "weir-control") // returns when it is ready
	weir := func(args ...string) (string, error) {
		return m.try(append(append([]string{"weir"}, args...), "--token-file", "/var/lib/weir/admin.token")...)
	}
	if out, err := weir("get", "status"); err != nil || !strings.Contains(out, "healthy: ") {
		t.Fatalf("ready, it answers %q, %v", out, err)
	}
	if owner := m.run("stat", "-c", "%U %a", "/var/lib/weir", "/var/lib/weir/admin.token"); owner != "weir 700\nweir 600" {
		t.Errorf("its files are those of %s", owner)
	}

	m.run("sh", "-c", `set -e
		mkdir /etc/weir
		weir token create --service users --token-file /var/lib/weir/admin.token >/etc/weir/proxy-users.token
		chgrp weir-proxy /etc/weir/proxy-users.token
		chmod 640 /etc/weir/proxy-users.token
		echo 'WEIR_PROXY_FLAGS=--control 10.0.0.1:8081 --service users --app-port 8001' >/etc/weir/proxy-users.env
		systemctl start weir-proxy@users`) // and with it weir-init@users
	m.await("the proxy before the app", func() error { return m.answered("403", "weir-error: mtls-required") })
	endpoint := func() error {
		out, err := weir("get", "endpoints")
		if err == nil && !strings.Contains(out, "10.0.0.2:8001") {
			err = errors.New(out)
		}
		return err
	}
	m.await("the endpoint", endpoint)
	m.confinesTheProxy()

	m.run("systemctl", "kill", "--signal=KILL", "weir-control")
	m.await("systemd to start it again", func() error {
		if n := m.run("systemctl", "show", "weir-control", "-p", "NRestarts", "--value"); n != "1" {
			return fmt.Errorf("it was started again %s times", n)
		}
		return nil
	})
	m.await("the endpoint, still", endpoint)

	m.run("systemctl", "stop", "weir-proxy@users")
	m.await("its endpoint to go", func() error {
		if endpoint() == nil {
			return errors.New("it is there")
		}
		return nil
	})
	m.run("systemctl", "stop", "weir-init@users", "weir-control")
	if err := m.answered("200", "here"); err != nil {
		t.Errorf("without the redirection: %v", err)
	}
	for _, unit := range []string{"weir-control", "weir-init@users", "weir-proxy@users"} {
		if got := m.run("systemctl", "show", unit, "-p", "ActiveState,Result", "--value"); got != "success\ninactive" {
			t.Errorf("%s ended as %q", unit, got)
		}
	}
}

// confinesTheProxy wants the unit's rights in force: one capability, the filter
// of system calls, and no program but the proxy to start.
func (m *machine) confinesTheProxy() {
	m.t.Helper()
	status := m.run("sh", "-c", `cat /proc/$(systemctl show weir-proxy@users -p MainPID --value)/status`)
	for _, want := range []string{"CapEff:\t0000000000002000", "CapBnd:\t0000000000002000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			m.t.Errorf("the proxy's status has no %q:\n%s", want, status)
		}
	}
	m.run("sh", "-c", `set -e
		sed 's|^ExecStart=.*|ExecStart=/usr/bin/true|; s/^Type=.*/Type=oneshot/; s/^Restart=.*/Restart=no/' \
			/etc/systemd/system/weir-proxy@.service >/run/systemd/system/other@.service
		systemctl daemon-reload`)
	_, err := m.try("systemctl", "start", "other@users")
	if status := m.run("systemctl", "show", "other@users", "-p", "ExecMainStatus", "--value"); err == nil || status != "203" {
		m.t.Errorf("another program under the proxy's unit: %v, status %s, want 203 (it cannot be executed)", err, status)
	}
}
