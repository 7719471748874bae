package shortcut

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

func TestWhatAnAppAndItsProxySayDoesNotPassThroughTCP(t *testing.T) {
	f := newFixture(t)
	for name, pair := range map[string]func() (app, proxy *net.TCPConn){
		"outbound":      f.outbound,
		"inbound":       func() (app, proxy *net.TCPConn) { proxy, app = f.inbound("127.0.0.1:8080"); return app, proxy },
		"inbound, host": func() (app, proxy *net.TCPConn) { proxy, app = f.inbound(f.host.Join(8080)); return app, proxy },
		"inbound, IPv6": func() (app, proxy *net.TCPConn) { proxy, app = f.inbound("[::1]:8080"); return app, proxy },
		"outbound, IPv6": func() (app, proxy *net.TCPConn) {
			l := f.listen("[::1]:15001")
			defer l.Close()
			return f.pair(net.Dialer{}, l)
		},
	} {
		t.Run(name, func(t *testing.T) {
			app, proxy := pair()
			for range 3 {
				say(t, app, "question")
				hear(t, proxy, "question")
				say(t, proxy, "answer")
				hear(t, app, "answer")
			}
			if a, p := segments(t, app), segments(t, proxy); a != 0 || p != 0 {
				t.Errorf("%d segments with data came to the app and %d to the proxy by TCP", a, p)
			}
			if p := priority(t, proxy); p != Priority {
				t.Errorf("the proxy's end has priority %#x", p)
			}
			if p := priority(t, app); p != 0 {
				t.Errorf("the app's end has priority %#x", p)
			}
		})
	}
}

func TestConnectionsOfOthersKeepThePlainPath(t *testing.T) {
	f := newFixture(t)
	other := f.lab.MustHost(t, "other")
	before := f.figures()
	for name, pair := range map[string]func() (a, b *net.TCPConn){
		"app to app": func() (a, b *net.TCPConn) { return f.pair(net.Dialer{}, f.listen("127.0.0.1:8081")) },
		"the proxy upstream": func() (a, b *net.TCPConn) {
			return f.pair(net.Dialer{Control: mark(0x77656972)}, f.listen("127.0.0.1:8082"))
		},
		"a namespace without": func() (a, b *net.TCPConn) {
			g := &fixture{t: t, lab: f.lab, host: other}
			return g.pair(net.Dialer{}, g.listen("127.0.0.1:15001"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair()
			say(t, a, "question")
			hear(t, b, "question")
			say(t, b, "answer")
			hear(t, a, "answer")
			if x, y := segments(t, a), segments(t, b); x != 1 || y != 1 {
				t.Errorf("%d and %d segments came by TCP, want one each way", x, y)
			}
		})
	}
	if after := f.figures(); after.Candidates != before.Candidates || after.Paired != before.Paired {
		t.Errorf("some were taken in: %+v, then %+v", before, after)
	}
}

func TestAConnectionToAnotherHostIsNoCandidate(t *testing.T) {
	f := newFixture(t)
	peer := f.lab.MustHost(t, "peer")
	l, err := peer.ListenTCP(":15001") // even to the proxy's port
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := f.host.DialContext(t.Context(), "tcp", peer.Join(15001))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := f.figures(); got.Candidates != 0 {
		t.Errorf("%+v", got)
	}
}

// The rules rewrite ports: two connections of one source port to two addresses
// come to one listener, and the second gets another source port there.
func TestConnectionsWhosePortsNATRewritesAreNotMixedUp(t *testing.T) {
	f := newFixture(t)
	for _, args := range [][]string{{"iptables", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", "192.0.2.0/24", "-j", "REDIRECT", "--to-ports", "15001"}} {
		if out, err := f.host.Command(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	l := f.listen("127.0.0.1:15001")
	byName := map[string]*net.TCPConn{}
	rewritten := false
	for i := range 20 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: f.host.Addr4().AsSlice(), Port: 20000}, Control: reuse}
		c, err := f.host.Dial(t.Context(), &d, "tcp", fmt.Sprintf("192.0.2.%d:80", i+1))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p, err := l.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		_ = p.SetDeadline(time.Now().Add(patience))
		_ = c.SetDeadline(time.Now().Add(patience))
		rewritten = rewritten || port(p.RemoteAddr()) != 20000
		byName[fmt.Sprintf("connection %2d", i)] = p
		say(t, c, fmt.Sprintf("connection %2d", i))
	}
	if !rewritten {
		t.Fatal("no port was rewritten, so nothing was tried")
	}
	for name, p := range byName {
		hear(t, p, name)
	}
}

func reuse(_, _ string, c syscall.RawConn) error {
	var inner error
	err := c.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	return errors.Join(err, inner)
}

func TestInstallingAgainChangesNothingAndMendsWhatDiffers(t *testing.T) {
	f := newFixture(t)
	f.outbound()
	if res := f.install(f.host); res.Changed {
		t.Error("it was installed already, and something changed")
	}
	if got := f.figures(); got.Paired != 1 {
		t.Errorf("the figures are lost: %+v", got)
	}
	f.do(f.host, func() error {
		other := config
		other.OutboundPort = 1
		res, err := Install(other)
		if err == nil && !res.Changed {
			t.Error("other settings changed nothing")
		}
		_, differs, err2 := Look(config)
		if differs == nil || !strings.Contains(differs.Error(), "port 1,") {
			t.Errorf("what differs: %v", differs)
		}
		return errors.Join(err, err2)
	})
	if res := f.install(f.host); !res.Changed {
		t.Error("the old settings again changed nothing")
	}
}

func TestProgramsThatWereDetachedAreNoticedAndAttachedAgain(t *testing.T) {
	f := newFixture(t)
	links, err := filepath.Glob("/sys/fs/bpf/weir/*/establish-*")
	if err != nil || len(links) == 0 {
		t.Fatal(links, err)
	}
	for _, l := range links {
		if err := os.Remove(l); err != nil { // the last name of a link: the kernel detaches it
			t.Fatal(err)
		}
	}
	f.do(f.host, func() error {
		_, differs, err := Look(config)
		if differs == nil {
			t.Error("nobody noticed")
		}
		return err
	})
	if res := f.install(f.host); !res.Changed {
		t.Error("nothing was mended")
	}
	f.outbound()
	if got := f.figures(); got.Paired != 1 {
		t.Errorf("%+v", got)
	}
}

func TestRemoveUnderTrafficLosesNothing(t *testing.T) {
	f := newFixture(t)
	other := f.lab.MustHost(t, "other")
	f.install(other)
	app, proxy := f.outbound()
	say(t, app, "before ")
	f.do(f.host, func() error {
		res, err := Remove()
		if !res.Changed {
			t.Error("nothing was removed")
		}
		return err
	})
	say(t, app, "after")
	hear(t, proxy, "before after")
	say(t, proxy, "answer")
	hear(t, app, "answer")
	if n := segments(t, proxy); n != 0 {
		t.Errorf("the connection that stood got %d segments", n)
	}
	// New ones are plain, and another namespace's are not.
	app, proxy = f.outbound()
	say(t, app, "plain")
	hear(t, proxy, "plain")
	if n := segments(t, proxy); n != 1 {
		t.Errorf("a new connection got %d segments", n)
	}
	g := &fixture{t: t, lab: f.lab, host: other}
	app, proxy = g.outbound()
	say(t, app, "short")
	hear(t, proxy, "short")
	if n := segments(t, proxy); n != 0 {
		t.Errorf("the other namespace's connection got %d segments", n)
	}
	f.do(f.host, func() error {
		if res, err := Remove(); res.Changed || err != nil {
			t.Errorf("removed a second time: %+v, %v", res, err)
		}
		if _, differs, err := Look(config); !errors.Is(differs, ErrNone) || err != nil {
			t.Errorf("there is %v, %v", differs, err)
		}
		return nil
	})
}

func TestANamespaceThatIsGoneIsForgotten(t *testing.T) {
	f := newFixture(t)
	var gone []byte
	lab, err := newLab(t)
	if err != nil {
		t.Fatal(err)
	}
	h := lab.MustHost(t, "short-lived")
	f.do(h, func() (err error) {
		if gone, err = cookie(); err != nil {
			return err
		}
		_, err = Install(config)
		return err
	})
	if err := lab.Close(); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(patience) // the kernel ends namespaces in the background
	for entryOf(t, gone) && time.Now().Before(until) {
		f.do(f.host, func() error { _, err := Install(config); return err })
	}
	if entryOf(t, gone) {
		t.Error("its entry is still there")
	}
	if got := f.figures(); got != (Figures{Handed: got.Handed, Plain: got.Plain, Last: got.Last}) {
		t.Errorf("the living one's figures: %+v", got)
	}
}

func entryOf(t *testing.T, self []byte) bool {
	t.Helper()
	at, err := openPins(false)
	if err != nil || at == nil {
		t.Fatal(at, err)
	}
	defer at.close()
	_, differs, err := at.look(self, config)
	if err != nil {
		t.Fatal(err)
	}
	return !errors.Is(differs, ErrNone)
}

func TestWithoutRoomInTheMapConnectionsArePlain(t *testing.T) {
	f := newFixture(t)
	at, err := openPins(true)
	if err != nil {
		t.Fatal(err)
	}
	k, err := readKernel()
	if err != nil {
		t.Fatal(err)
	}
	spec := collection(k)
	spec.Maps[mapSockets].MaxEntries = 2
	s, err := at.make(spec, "tiny")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	cgroup, _, err := findCgroup("")
	if err == nil {
		_, err = s.attach(cgroup)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // before the lock is given back
		if err := errors.Join(os.RemoveAll(s.dir), at.close()); err != nil {
			t.Error(err)
		}
	}()
	var self []byte
	f.do(f.host, func() (err error) {
		if self, err = cookie(); err == nil {
			_, err = at.forget(self, "tiny")
		}
		return err
	})
	if _, err := s.put(self, config); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		app, proxy := f.outbound()
		say(t, app, "question")
		hear(t, proxy, "question")
		say(t, proxy, "answer")
		hear(t, app, "answer")
		if n := segments(t, proxy); (n == 0) != (i == 0) {
			t.Errorf("connection %d: %d segments", i, n)
		}
	}
	var got Figures
	entry, err := s.entry(self)
	if err == nil {
		err = got.read(entry, s.figures)
	}
	if err != nil || got.Paired != 1 || got.Full < 3 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestKernelTLSIsRefusedToWhatTakesTheShortCutOnly(t *testing.T) {
	f := newFixture(t)
	app, proxy := f.outbound()
	ulp := func(c *net.TCPConn) error {
		return fd(t, c, func(fd int) (error, error) {
			return unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP, "none such"), nil
		})
	}
	for name, c := range map[string]*net.TCPConn{"app": app, "proxy": proxy} {
		if err := ulp(c); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain, _ := f.pair(net.Dialer{}, f.listen("127.0.0.1:8083"))
	if err := ulp(plain); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a plain connection: %v, want the kernel's own answer", err)
	}
}

// Where Multipath TCP is to be had, Go's listeners are of it, so an app's may be.
func TestAnAppThatListensWithMultipathTCPIsServed(t *testing.T) {
	f := newFixture(t)
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(true)
	var l net.Listener
	f.do(f.host, func() (err error) { l, err = lc.Listen(t.Context(), "tcp4", "127.0.0.1:8084"); return err })
	defer l.Close()
	proxy, app := f.pair(net.Dialer{Control: mark(inboundMark)}, l.(*net.TCPListener))
	for range 3 {
		say(t, proxy, "question")
		hear(t, app, "question")
		say(t, app, "answer")
		hear(t, proxy, "answer")
	}
	app.Close()
	if n, err := proxy.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("then %d, %v", n, err)
	}
}

func TestTheContextsAreAsTheKernelHasThem(t *testing.T) {
	needRights(t)
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		of, field string
		want      int16
	}{
		{"bpf_sock_ops", "op", opsOp}, {"bpf_sock_ops", "remote_port", opsRemotePort}, {"bpf_sock_ops", "local_port", opsLocalPort},
		{"bpf_sock_ops", "is_fullsock", opsFull}, {"bpf_sock_ops", "rcv_nxt", opsRcvNxt}, {"bpf_sock_ops", "snd_nxt", opsSndNxt},
		{"bpf_sock", "mark", sockMark}, {"bpf_sockopt", "level", sockoptLevel}, {"bpf_sockopt", "optname", sockoptName},
	} {
		if got, err := offset(spec, c.of, c.field); got != c.want || err != nil {
			t.Errorf("%s.%s is at %d (%v), not %d", c.of, c.field, got, err, c.want)
		}
	}
}

func TestTheCgroupIsNamedWhenItIsNone(t *testing.T) {
	if _, _, err := findCgroup("/proc"); err == nil || !strings.Contains(err.Error(), "/proc is not a directory of cgroup v2") {
		t.Error(err)
	}
	if _, _, err := findCgroup("/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestMountsAreReadWithTheirSpaces(t *testing.T) {
	got := parseMounts("36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw\n29 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\nnonsense\n")
	if len(got) != 2 || got[0] != (mount{"/mnt 2", "ext3", "/dev/root"}) || got[1] != (mount{"/sys/fs/cgroup", "cgroup2", "cgroup2"}) {
		t.Errorf("%+v", got)
	}
}
