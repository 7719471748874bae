package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Status is how a check of Verify ended.
type Status string

// A check is skipped where it cannot be made here, and its detail says why.
const (
	OK      Status = "ok"
	Failed  Status = "failed"
	Skipped Status = "skipped"
)

// Check is one thing that Verify looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`         // what was seen
	Todo   string `json:"todo,omitempty"` // what to do about a failure
}

// Report is what Verify saw.
type Report struct {
	Checks []Check `json:"checks"`
}

// OK says that no check failed.
func (r Report) OK() bool {
	for _, c := range r.Checks {
		if c.Status == Failed {
			return false
		}
	}
	return true
}

// Print writes the report for a person to read, a line for each check.
func (r Report) Print(w io.Writer) error {
	var b strings.Builder
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-8s%s: %s\n", c.Status, c.Name, c.Detail)
		if c.Todo != "" {
			fmt.Fprintf(&b, "        %s\n", c.Todo)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) add(name string, s Status, todo, format string, args ...any) {
	if s != Failed {
		todo = ""
	}
	r.Checks = append(r.Checks, Check{Name: name, Status: s, Detail: fmt.Sprintf(format, args...), Todo: todo})
}

const (
	todoApply = "run weir-init again with the same settings"
	todoProxy = "start the proxy, or free the port for this check"
)

// verifyPatience is how long a connection within the machine may take.
const verifyPatience = 2 * time.Second

// Verify compares the rules with the plan and makes real connections through
// them, in the network namespace of the calling thread. Where a port of the
// proxy is free, Verify listens there itself and sees where each connection was
// going; where it is taken, presumably by the proxy, it sees that something
// answers for an address that nobody has. Inbound connections come from a namespace that
// exists for the moment, by an interface pair weir-verify0. The error says that
// it could not look at all; what is wrong with the redirection is in the report.
func (p *Plan) Verify(ctx context.Context) (Report, error) {
	unlock, err := lockNamespace(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("redirect: verify: %w", err)
	}
	defer unlock()
	var r Report
	ipv6 := hasIPv6()
	both := lookBoth(ctx, ipv6)
	if both[0].err != nil && both[1].err != nil {
		return Report{}, fmt.Errorf("redirect: verify: %w", errors.Join(both[0].err, both[1].err))
	}
	p.verifyRules(&r, both, ipv6)
	for _, f := range p.families(ipv6) {
		v := verifier{ctx: ctx, cfg: p.cfg, f: f, report: &r}
		if why := v.outsideScope(); why != "" {
			r.add(v.name("outbound"), Skipped, "", "%s", why)
		} else {
			v.outbound()
			v.dns()
		}
		v.ownService()
		v.inbound()
	}
	return r, nil
}

func (p *Plan) verifyRules(r *Report, both [2]installed, ipv6 bool) {
	in := both[0]
	if in.ours() == 0 {
		in = both[1]
	}
	if both[0].ours() > 0 && both[1].ours() > 0 {
		r.add("back ends", Failed, todoApply, "weir's rules are in both, and both are in force")
	}
	want := p.families(ipv6)
	for i, f := range in.families {
		name := "rules " + familyName(f.v6)
		var tables []table
		if i < len(want) {
			tables = want[i].tables
		}
		switch {
		case same(f.ours, tables):
			r.add(name, OK, "", "as planned, back end %s", in.backend)
		case len(f.ours) == 0:
			r.add(name, Failed, todoApply, "none is installed")
		default:
			r.add(name, Failed, todoApply, "they differ from the plan in the %s back end: %s", in.backend, difference(f.ours, tables))
		}
	}
}

// difference names the first rule that is missing, else the first that is not planned.
func difference(have, want []table) string {
	lines := func(ts []table) map[string]string {
		out := map[string]string{}
		for _, t := range ts {
			for _, r := range append(append([]string{}, t.jumps...), t.rules...) {
				out[t.name+canonical(r)] = "-t " + t.name + " -A " + r
			}
		}
		return out
	}
	h, w := lines(have), lines(want)
	for _, t := range want {
		for _, r := range append(append([]string{}, t.jumps...), t.rules...) {
			if _, ok := h[t.name+canonical(r)]; !ok {
				return "missing: -t " + t.name + " -A " + r
			}
		}
	}
	for _, t := range have {
		for _, r := range append(append([]string{}, t.jumps...), t.rules...) {
			if _, ok := w[t.name+canonical(r)]; !ok {
				return "not planned: -t " + t.name + " -A " + r
			}
		}
	}
	return "the order"
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// verifier makes the connections of one family.
type verifier struct {
	ctx    context.Context
	cfg    Config
	f      familyPlan
	report *Report
}

func (v *verifier) name(what string) string { return what + " " + familyName(v.f.v6) }

func (v *verifier) network(proto string) string {
	if v.f.v6 {
		return proto + "6"
	}
	return proto + "4"
}

func (v *verifier) loopback(port uint16) netip.AddrPort {
	if v.f.v6 {
		return netip.AddrPortFrom(netip.IPv6Loopback(), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}

// elsewhere is an address that nobody has (RFC 5737, RFC 3849, RFC 9637), or one
// of a destination to include, that the plan redirects.
func (v *verifier) elsewhere() (netip.Addr, bool) {
	candidates := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("203.0.113.1")}
	if v.f.v6 {
		candidates = []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("3fff::1")}
	}
	if only := v.cfg.OutboundCIDRsToInclude; len(only) > 0 {
		candidates = nil
		for _, p := range (&writer{v6: v.f.v6}).ofFamily(only) {
			candidates = append(candidates, lastAddr(p), p.Addr())
		}
	}
	for _, a := range candidates {
		if !slices.ContainsFunc(v.cfg.OutboundCIDRsToIgnore, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// freePort is a port of those included that ignored does not hold and that is no
// port of the proxy. None included are all.
func (v *verifier) freePort(included, ignored []PortRange) (uint16, bool) {
	taken, _ := mergePorts(slices.Concat((&writer{cfg: v.cfg}).ownPorts(), ignored, []PortRange{{53, 53}}))
	for port := uint16(80); port != 79; port++ { // round the end
		if port != 0 && !contains(taken, port) && (len(included) == 0 || contains(included, port)) {
			return port, true
		}
	}
	return 0, false
}

// outsideScope says why connections of this process would not be redirected.
func (v *verifier) outsideScope() string {
	has := func(rs []IDRange, id int) bool {
		return slices.ContainsFunc(rs, func(r IDRange) bool { return r.First <= uint32(id) && uint32(id) <= r.Last })
	}
	if id := os.Geteuid(); has(v.cfg.UIDsToIgnore, id) {
		return fmt.Sprintf("this check runs as user %d, who is ignored", id)
	}
	if id := os.Getegid(); has(v.cfg.GIDsToIgnore, id) {
		return fmt.Sprintf("this check runs as group %d, which is ignored", id)
	}
	own, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(own)) {
		path, v2 := strings.CutPrefix(strings.TrimSpace(line), "0::/")
		for _, ignored := range v.cfg.CgroupsToIgnore {
			if v2 && (path == ignored || strings.HasPrefix(path, ignored+"/")) {
				return fmt.Sprintf("this check runs in the cgroup %s, which is ignored", path)
			}
		}
	}
	return ""
}

func (v *verifier) outbound() {
	port, ok := v.freePort(v.cfg.OutboundPortsToInclude, v.cfg.OutboundPortsToIgnore)
	to, reachable := v.elsewhere()
	if !ok || !reachable {
		v.report.add(v.name("outbound"), Skipped, "", "every port or test address is ignored")
	} else {
		v.tcpIfRouted(v.name("outbound"), netip.AddrPortFrom(to, port), v.loopback(v.cfg.OutboundPort))
	}
	if v.f.virtual.IsValid() {
		v.route()
		v.tcp(v.name("virtual address"), netip.AddrPortFrom(lastAddr(v.f.virtual), 80), v.loopback(v.cfg.OutboundPort), nil)
	}
}

// route looks for the route that makes the kernel try.
func (v *verifier) route() {
	name := v.name("route")
	have, err := ourRoutes(v.f.v6)
	if err != nil {
		v.report.add(name, Failed, todoApply, "%v", err)
		return
	}
	for _, r := range have {
		if r.Dst != nil && r.Dst.String() == v.f.virtual.String() {
			v.report.add(name, OK, "", "%s is routed to lo", v.f.virtual)
			return
		}
	}
	v.report.add(name, Failed, todoApply, "there is none for %s", v.f.virtual)
}

// lastAddr is the address of a range that is given out last.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (v *verifier) ownService() {
	name := v.name("own service")
	own, err := v.ownAddress()
	if err != nil || !own.IsValid() {
		v.report.add(name, Skipped, "", "no address but loopback's")
		return
	}
	port, _ := v.freePort(nil, nil)
	mark := func(_, _ string, c syscall.RawConn) error {
		var inner error
		err := c.Control(func(fd uintptr) { inner = setMark(int(fd), v.cfg.Mark) })
		return errors.Join(err, inner)
	}
	v.tcp(name, netip.AddrPortFrom(own, port), netip.AddrPortFrom(netip.Addr{}, v.cfg.InboundPort), mark)
}

func (v *verifier) ownAddress() (netip.Addr, error) {
	if !v.f.v6 {
		return anyAddress()
	}
	// The source for an address elsewhere; connecting UDP sends nothing.
	c, err := (&net.Dialer{}).DialContext(v.ctx, "udp6", "[2001:db8::1]:9")
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	if a.IsLoopback() {
		return netip.Addr{}, nil
	}
	return a, nil
}

type control = func(network, address string, c syscall.RawConn) error

// tcp dials to and looks whether that arrives at the port of ours.
func (v *verifier) tcp(name string, to, ours netip.AddrPort, ctl control) {
	v.tcpFrom(name, to, ours, func() (net.Conn, error) {
		d := net.Dialer{Timeout: verifyPatience, Control: ctl}
		return d.DialContext(v.ctx, v.network("tcp"), to.String())
	})
}

// tcpIfRouted skips what the kernel refuses to begin before nat is asked.
func (v *verifier) tcpIfRouted(name string, to, ours netip.AddrPort) {
	if _, err := netlink.RouteGet(to.Addr().AsSlice()); err != nil {
		v.report.add(name, Skipped, "", "no route to %s, so nothing leaves: %v", to, err)
		return
	}
	v.tcp(name, to, ours, nil)
}

func (v *verifier) tcpFrom(name string, to, ours netip.AddrPort, dial func() (net.Conn, error)) {
	l, err := v.listen(ours)
	busy := errors.Is(err, unix.EADDRINUSE)
	if err != nil && !busy {
		v.report.add(name, Skipped, "", "cannot listen on port %d: %v", ours.Port(), err)
		return
	}
	if l != nil {
		defer l.Close()
	}
	c, err := dial()
	if busy && errors.Is(err, unix.ECONNRESET) {
		// The proxy took it and then refused: it knows no service there.
		v.report.add(name, OK, "", "port %d is in use, and something there answers for %s", ours.Port(), to)
		return
	}
	if err != nil {
		todo := todoApply
		if busy {
			todo = todoProxy
		}
		v.report.add(name, Failed, todo, "%s did not arrive at port %d: %v", to, ours.Port(), err)
		return
	}
	defer c.Close()
	if busy {
		v.report.add(name, OK, "", "port %d is in use, and something answers for %s", ours.Port(), to)
		return
	}
	v.arrival(name, l, to, ours.Port())
}

func (v *verifier) listen(at netip.AddrPort) (*net.TCPListener, error) {
	addr := at.String()
	if !at.Addr().IsValid() {
		addr = fmt.Sprintf(":%d", at.Port())
	}
	l, err := (&net.ListenConfig{}).Listen(v.ctx, v.network("tcp"), addr)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// arrival accepts on this goroutine: the kernel has completed the handshake already.
func (v *verifier) arrival(name string, l *net.TCPListener, to netip.AddrPort, port uint16) {
	_ = l.SetDeadline(time.Now().Add(verifyPatience))
	c, err := l.AcceptTCP()
	if err != nil {
		v.report.add(name, Failed, todoApply, "something answers for %s, but not port %d", to, port)
		return
	}
	defer c.Close()
	got, err := OriginalDst(c)
	if err != nil || got != to {
		v.report.add(name, Failed, todoApply, "arrived at port %d, but as a connection to %v instead of %s (%v)", port, got, to, err)
		return
	}
	v.report.add(name, OK, "", "a connection to %s arrived at port %d", to, port)
}
