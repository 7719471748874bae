package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { Main(m, func() error { return goleak.Find() }) }

// serve answers each connection with its greeting and closes it.
func serve(t *testing.T, h *Host, addr, greeting string) *net.TCPListener {
	t.Helper()
	l, err := h.ListenTCP(addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, greeting)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l
}

func greeting(ctx context.Context, h *Host, addr string) (string, error) {
	c, err := h.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func wantGreeting(t *testing.T, h *Host, addr, want string) {
	t.Helper()
	if got, err := greeting(t.Context(), h, addr); err != nil || got != want {
		t.Errorf("%s asked %s and got %q, %v; want %q", h.Name(), addr, got, err, want)
	}
}

func TestHostsReachEachOtherByBothFamilies(t *testing.T) {
	lab := New(t)
	web, app := lab.MustHost(t, "web"), lab.MustHost(t, "app")
	serve(t, web, ":8080", "hello from web")
	serve(t, lab.Bridge(), ":8080", "hello from the bridge")
	for _, a := range []netip.Addr{web.Addr4(), web.Addr6()} {
		wantGreeting(t, app, netip.AddrPortFrom(a, 8080).String(), "hello from web")
	}
	for _, a := range []netip.Addr{lab.Bridge().Addr4(), lab.Bridge().Addr6()} {
		wantGreeting(t, app, netip.AddrPortFrom(a, 8080).String(), "hello from the bridge")
	}
	wantGreeting(t, web, "127.0.0.1:8080", "hello from web")
	wantGreeting(t, web, "[::1]:8080", "hello from web")
}

func TestTheCallersNamespaceIsNeverChanged(t *testing.T) {
	before := linkNames(t)
	lab := New(t)
	lab.MustHost(t, "a")
	lab.MustHost(t, "b")
	if after := linkNames(t); after != before {
		t.Errorf("interfaces here were %s and are now %s", before, after)
	}
}

func linkNames(t *testing.T) string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " ")
}

func TestAnAddressOfNoHostIsRefusedByTheBridge(t *testing.T) {
	lab := New(t)
	app := lab.MustHost(t, "app")
	for _, addr := range []string{"192.0.2.1:80", "[2001:db8::1]:80"} {
		_, err := greeting(t.Context(), app, addr)
		if !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) {
			t.Errorf("dial %s: %v, want unreachable", addr, err)
		}
	}
}

func TestManyGoroutinesEachInTheirOwnNamespace(t *testing.T) {
	lab := New(t)
	const n = 6
	hosts := make([]*Host, n)
	for i := range hosts {
		hosts[i] = lab.MustHost(t, fmt.Sprintf("h%d", i))
		serve(t, hosts[i], "127.0.0.1:80", hosts[i].Name())
	}
	errs := make(chan error, n*20)
	for i := range n * 20 {
		go func() {
			h := hosts[i%n]
			got, err := greeting(t.Context(), h, "127.0.0.1:80")
			if err == nil && got != h.Name() {
				err = fmt.Errorf("%s reached %s", h.Name(), got)
			}
			errs <- err
		}()
	}
	for range n * 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestHTTPTransportDialsByNameFromTheNamespace(t *testing.T) {
	lab := New(t)
	web, app := lab.MustHost(t, "web"), lab.MustHost(t, "app")
	nameserver(t, lab.Bridge(), web.Addr4())

	l, err := web.ListenTCP(":80")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host+" at your service") })}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()

	tr := &http.Transport{DialContext: app.DialContext}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://web.lab.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != "web.lab.test at your service" {
		t.Errorf("got %q", b)
	}
}

// nameserver answers every A question with one address, and others with none.
func nameserver(t *testing.T, h *Host, a netip.Addr) {
	t.Helper()
	c, err := h.ListenUDP(":53")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: a.As4()},
				}}
			}
			out, _ := m.Pack()
			_, _ = c.WriteTo(out, from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
}

func TestCommandRunsInTheNamespaceUnderItsOwnPid(t *testing.T) {
	lab := New(t)
	app := lab.MustHost(t, "app")
	cmd := app.Command(t.Context(), "sh", "-c", "readlink /proc/self/ns/net; echo $$; exec sleep 600")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	sc.Scan()
	if want := fmt.Sprintf("net:[%d]", app.ns.inode); sc.Text() != want {
		t.Errorf("the program is in %s, want %s", sc.Text(), want)
	}
	sc.Scan()
	if want := fmt.Sprint(cmd.Process.Pid); sc.Text() != want {
		t.Errorf("the program's pid is %s, cmd has %s", sc.Text(), want)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("Wait: %v, want that SIGTERM ended it", err)
	}
}

func TestCommandSaysWhichProgramIsMissing(t *testing.T) {
	app := New(t).MustHost(t, "app")
	err := app.Command(t.Context(), "no-such-program").Run()
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("Run: %v", err)
	}
}

func TestPartitionStopsOneWayOnlyBetweenTheTwoAndHeals(t *testing.T) {
	lab := New(t)
	a, b, c := lab.MustHost(t, "a"), lab.MustHost(t, "b"), lab.MustHost(t, "c")
	serve(t, a, ":80", "a")
	heal, err := lab.Partition(a, b)
	if err != nil {
		t.Fatal(err)
	}
	wantGreeting(t, c, a.Join(80), "a")
	for _, addr := range []netip.Addr{a.Addr4(), a.Addr6()} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if got, err := greeting(ctx, b, netip.AddrPortFrom(addr, 80).String()); err == nil {
			t.Errorf("across the partition came %q", got)
		}
		cancel()
	}
	for range 2 { // the second has no effect
		if err := heal(); err != nil {
			t.Fatal(err)
		}
	}
	for _, addr := range []netip.Addr{a.Addr4(), a.Addr6()} {
		// ARP may be in its pause after failing; the kernel's own retries cure that.
		wantGreeting(t, b, netip.AddrPortFrom(addr, 80).String(), "a")
	}
	if _, err := lab.Partition(a, a); err == nil {
		t.Error("a host was parted from itself")
	}
}

func TestCloseEndsProcessesThatIgnoreSignals(t *testing.T) {
	lab, err := Open(t.Context(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	app, err := lab.Host("app")
	if err != nil {
		t.Fatal(err)
	}
	// The shell forks a child that this process never sees.
	cmd := app.Command(t.Context(), "sh", "-c", "trap '' TERM INT HUP; sleep 600 & echo up; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	bufio.NewScanner(out).Scan()
	l, err := app.ListenTCP(":80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	for range 2 {
		if err := lab.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the shell ended well, want killed")
	}
	for _, left := range leftovers(lab) {
		t.Errorf("left behind: %s", left)
	}
	if err := app.Do(func() error { return nil }); !errors.Is(err, errClosed) {
		t.Errorf("Do after Close: %v", err)
	}
	if _, err := lab.Host("late"); !errors.Is(err, errClosed) {
		t.Errorf("Host after Close: %v", err)
	}
}

func TestTwoLabsOfOneIDExcludeEachOther(t *testing.T) {
	lab, err := Open(t.Context(), Options{ID: "twice"})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	if _, err := Open(t.Context(), Options{ID: "twice"}); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Open: %v, want that it exists", err)
	}
	lab.MustHost(t, "a")
	if _, err := lab.Host("a"); !errors.Is(err, os.ErrExist) {
		t.Errorf("second host a: %v, want that it exists", err)
	}
	if err := lab.Close(); err != nil {
		t.Error(err)
	}
}

func TestBadHostNamesAreRefused(t *testing.T) {
	lab := New(t)
	for _, name := range []string{"", "../x", "Web", "a b", strings.Repeat("x", 21)} {
		if _, err := lab.Host(name); err == nil {
			t.Errorf("host name %q was taken", name)
		}
	}
}

func TestWithoutRootTheSameTestsRunInAUserNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("this run itself is one; nothing to add")
		return
	}
	if m, err := os.ReadFile("/proc/self/uid_map"); err != nil || strings.HasSuffix(strings.TrimSpace(string(m)), " 1") {
		t.Logf("this run is in a user namespace already (%s), %v; nothing to add", m, err)
		return
	}
	// The binary is copied: the directory go test made is closed to others.
	bin, err := os.CreateTemp("", "netlab-*.test")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(bin.Name())
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bin.Write(self); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bin.Chmod(0o755), bin.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin.Name(), "-test.v", "-test.run=BothFamilies|Partition|CloseEnds|UnderItsOwnPid")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS") != 4 {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	failing := exec.CommandContext(t.Context(), bin.Name(), "-test.run=NoSuchTest", "-test.nosuchflag")
	failing.Dir = "/"
	failing.SysProcAttr = cmd.SysProcAttr
	if err := failing.Run(); err == nil || failing.ProcessState.ExitCode() != 2 {
		t.Errorf("the child's failure arrived as %v, want exit status 2", err)
	}
}
