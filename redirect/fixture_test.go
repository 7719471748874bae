package redirect

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/netlab"
)

// fixture is an app's host whose traffic is redirected, and a peer. In place of
// a proxy stand listeners that the tests accept from.
type fixture struct {
	t         *testing.T
	app, peer *netlab.Host
}

// patience bounds what takes microseconds when it works.
const patience = 10 * time.Second

func newFixture(t *testing.T) *fixture {
	lab := netlab.New(t)
	return &fixture{t: t, app: lab.MustHost(t, "app"), peer: lab.MustHost(t, "peer")}
}

// bothBackEnds runs a story on each of the kernel's back ends.
func bothBackEnds(t *testing.T, story func(t *testing.T, f *fixture, mode Mode)) {
	for _, mode := range []Mode{ModeNFT, ModeLegacy} {
		t.Run(string(mode), func(t *testing.T) { story(t, newFixture(t), mode) })
	}
}

func (f *fixture) apply(cfg Config) Result {
	f.t.Helper()
	p, err := NewPlan(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	var res Result
	if err := InNamespace(f.app.Path(), func() (err error) { res, err = p.Apply(f.t.Context()); return err }); err != nil {
		f.t.Fatal(err)
	}
	return res
}

func (f *fixture) remove() Result {
	f.t.Helper()
	var res Result
	if err := InNamespace(f.app.Path(), func() (err error) { res, err = Remove(f.t.Context()); return err }); err != nil {
		f.t.Fatal(err)
	}
	return res
}

func (f *fixture) listen(h *netlab.Host, addr string) *net.TCPListener {
	f.t.Helper()
	l, err := h.ListenTCP(addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { l.Close() })
	return l
}

func (f *fixture) listenUDP(h *netlab.Host, addr string) *net.UDPConn {
	f.t.Helper()
	c, err := h.ListenUDP(addr)
	if err != nil {
		f.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	f.t.Cleanup(func() { c.Close() })
	return c
}

func (f *fixture) dial(h *netlab.Host, to string, ctl control) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	c, err := h.Dial(ctx, &net.Dialer{Control: ctl}, "tcp", to)
	if err == nil {
		f.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// arrives dials and wants the connection at l, having gone to the dialled address.
func (f *fixture) arrives(from *netlab.Host, to netip.AddrPort, ctl control, l *net.TCPListener) (dialled net.Conn) {
	f.t.Helper()
	dialled, err := f.dial(from, to.String(), ctl)
	if err != nil {
		f.t.Errorf("%s dials %s: %v", from.Name(), to, err)
		return nil
	}
	c := f.accept(l)
	if c == nil {
		f.t.Errorf("a connection to %s did not arrive at %s", to, l.Addr())
		return dialled
	}
	if got, err := OriginalDst(c); err != nil || got != to {
		f.t.Errorf("the original destination is %v, %v; want %s", got, err, to)
	}
	return dialled
}

func (f *fixture) accept(l *net.TCPListener) *net.TCPConn {
	_ = l.SetDeadline(time.Now().Add(patience))
	c, err := l.AcceptTCP()
	if err != nil {
		return nil
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// nothingWaits says that no connection is in l's queue.
func (f *fixture) nothingWaits(l *net.TCPListener) {
	f.t.Helper()
	_ = l.SetDeadline(time.Now().Add(time.Millisecond))
	if c, err := l.Accept(); err == nil {
		f.t.Errorf("a connection from %s came to %s", c.RemoteAddr(), l.Addr())
		c.Close()
	}
}

// reachesDirectly dials and wants to meet l itself, with nothing in between.
func (f *fixture) reachesDirectly(from *netlab.Host, to netip.AddrPort, ctl control, l *net.TCPListener) {
	f.t.Helper()
	if _, err := f.dial(from, to.String(), ctl); err != nil {
		f.t.Errorf("%s dials %s: %v", from.Name(), to, err)
		return
	}
	c := f.accept(l)
	if c == nil {
		f.t.Errorf("a connection to %s did not arrive at %s", to, l.Addr())
		return
	}
	if got, err := OriginalDst(c); err != ErrNotRedirected {
		f.t.Errorf("a direct connection has original destination %v, %v", got, err)
	}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// command runs a program in a host and returns what it wrote.
func (f *fixture) command(h *netlab.Host, name string, args ...string) string {
	f.t.Helper()
	out, err := h.Command(f.t.Context(), name, args...).Output()
	if err != nil {
		stderr := ""
		if exit, ok := err.(*exec.ExitError); ok {
			stderr = string(exit.Stderr)
		}
		f.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr)
	}
	return string(out)
}

// restore loads rules as someone else would.
func (f *fixture) restore(tool, rules string) {
	f.t.Helper()
	cmd := f.app.Command(f.t.Context(), tool, "--noflush")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("%s: %v\n%s", tool, err, out)
	}
}

var saveTools = []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"}

var (
	counters   = regexp.MustCompile(`\[\d+:\d+\]`)
	emptyTable = regexp.MustCompile(`\*\w+\n(:\w+ ACCEPT \[0:0\]\n)*COMMIT\n`)
	timestamp  = regexp.MustCompile(`(?m)^# (Generated|Completed|Warning).*\n`)
)

// saved is all rules of the app's host in both back ends, and its routes. Tables
// in which there is nothing do not count: iptables makes them and never removes them.
func (f *fixture) saved() string {
	f.t.Helper()
	var b strings.Builder
	for _, tool := range saveTools {
		out := timestamp.ReplaceAllString(counters.ReplaceAllString(f.command(f.app, tool), "[0:0]"), "")
		fmt.Fprintf(&b, "%s\n%s", tool, emptyTable.ReplaceAllString(out, ""))
	}
	b.WriteString(f.routes())
	return b.String()
}

// routes is all routes and routing rules of the app's host, but for those that the
// kernel adds when it likes.
func (f *fixture) routes() string {
	f.t.Helper()
	var b strings.Builder
	for _, family := range []string{"-4", "-6"} {
		b.WriteString(f.command(f.app, "ip", family, "rule", "show"))
		for line := range strings.Lines(f.command(f.app, "ip", family, "route", "show", "table", "all")) {
			if !strings.Contains(line, "fe80:") && !strings.Contains(line, "multicast") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func modeConfig(mode Mode) Config { return with(func(c *Config) { c.Mode = mode }) }

// ask sends a datagram from one port, wants it to arrive at l and answers there.
func (f *fixture) ask(from *netlab.Host, local, server netip.AddrPort, ctl control, l *net.UDPConn, answer string) string {
	f.t.Helper()
	d := &net.Dialer{Control: ctl}
	if local.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	}
	c, err := from.Dial(f.t.Context(), d, "udp", server.String())
	if err != nil {
		f.t.Errorf("%s: %v", server, err)
		return ""
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "question"); err != nil {
		f.t.Error(err)
	}
	buf := make([]byte, 64)
	n, who, err := l.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "question" {
		f.t.Errorf("at %s: %q, %v", l.LocalAddr(), buf[:n], err)
		return ""
	}
	if _, err := l.WriteToUDPAddrPort([]byte(answer), who); err != nil {
		f.t.Error(err)
	}
	if n, err = c.Read(buf); err != nil { // connected: only from server's address
		f.t.Errorf("no answer from %s: %v", server, err)
	}
	return string(buf[:n])
}

// greet listens and tells everyone who it is, until the test ends.
func greet(f *fixture, h *netlab.Host, addr, who string) {
	l := f.listen(h, addr)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, who)
			c.Close()
		}
	}()
	f.t.Cleanup(func() { l.Close(); <-done })
}
