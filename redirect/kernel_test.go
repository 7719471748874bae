package redirect

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/netlab"
)

func TestTrafficArrivesWithItsOriginalDestination(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		if res := f.apply(modeConfig(mode)); !res.Changed || res.Backend != mode || !res.IPv6 {
			t.Errorf("Apply says %+v", res)
		}
		out4, out6 := f.listen(f.app, "127.0.0.1:15001"), f.listen(f.app, "[::1]:15001")
		in := f.listen(f.app, ":15006") // one dual-stack socket, as a proxy has
		for _, to := range []netip.AddrPort{at(f.peer.Addr4(), 8080), addr("192.0.2.7:443"), addr("240.240.0.1:80"), addr("240.240.255.254:1")} {
			f.arrives(f.app, to, nil, out4)
		}
		for _, to := range []netip.AddrPort{at(f.peer.Addr6(), 8080), addr("[2001:db8::7]:443"), addr("[fd77:6569:7200::1]:80")} {
			f.arrives(f.app, to, nil, out6)
		}
		for _, own := range []netip.Addr{f.app.Addr4(), f.app.Addr6()} {
			f.arrives(f.peer, at(own, 8080), nil, in)
			f.arrives(f.peer, at(own, 1), nil, in)
			f.reachesDirectly(f.peer, at(own, 15006), nil, in) // explicit mode
		}
	})
}

func TestAConnectionToAVirtualAddressHasTheHostsOwnAddress(t *testing.T) {
	f := newFixture(t)
	f.apply(DefaultConfig())
	for _, tc := range []struct {
		listen, to string
		want       netip.Addr
	}{{"127.0.0.1:15001", "240.240.3.4:80", f.app.Addr4()}, {"[::1]:15001", "[fd77:6569:7200::9]:80", f.app.Addr6()}} {
		c := f.arrives(f.app, addr(tc.to), nil, f.listen(f.app, tc.listen))
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(); got != tc.want {
			t.Errorf("the app's socket says %s, want %s: apps publish what they see there", got, tc.want)
		}
	}
}

func TestWithLoopbackOnlyVirtualAddressesWorkToo(t *testing.T) {
	f := newFixture(t)
	f.command(f.app, "ip", "link", "set", "eth0", "down")
	f.command(f.app, "ip", "addr", "flush", "dev", "eth0")
	f.apply(DefaultConfig())
	f.arrives(f.app, addr("240.240.0.1:80"), nil, f.listen(f.app, "127.0.0.1:15001"))
	f.arrives(f.app, addr("[fd77:6569:7200::1]:80"), nil, f.listen(f.app, "[::1]:15001"))
}

func TestDNSIsCapturedWhereverItGoes(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		dns := map[bool]*net.UDPConn{false: f.listenUDP(f.app, "127.0.0.1:15053"), true: f.listenUDP(f.app, "[::1]:15053")}
		tcp := map[bool]*net.TCPListener{false: f.listen(f.app, "127.0.0.1:15053"), true: f.listen(f.app, "[::1]:15053")}
		for _, server := range []netip.AddrPort{at(f.peer.Addr4(), 53), addr("127.0.0.53:53"), addr("192.0.2.53:53"), at(f.peer.Addr6(), 53), addr("[::1]:53")} {
			v6 := server.Addr().Is6()
			f.arrives(f.app, server, nil, tcp[v6])
			if got := f.ask(f.app, netip.AddrPort{}, server, nil, dns[v6], "answer"); got != "answer" {
				t.Errorf("asked %s and got %q", server, got)
			}
		}
	})
}

// istio#33469: NAT decides once per five-tuple, and a port is soon used again.
func TestDNSPortsUsedAgainDoNotCrossBetweenAppAndProxy(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		proxy := UpstreamControl(DefaultConfig())
		for _, tc := range []struct {
			own, server netip.Addr
			loopback    string
		}{{f.app.Addr4(), f.peer.Addr4(), "127.0.0.1"}, {f.app.Addr6(), f.peer.Addr6(), "::1"}} {
			server := f.listenUDP(f.peer, at(tc.server, 53).String())
			captured := f.listenUDP(f.app, net.JoinHostPort(tc.loopback, "15053"))
			local := at(tc.own, 40053)
			for range 2 {
				if got := f.ask(f.app, local, at(tc.server, 53), nil, captured, "from the proxy"); got != "from the proxy" {
					t.Errorf("the app got %q", got)
				}
				if got := f.ask(f.app, local, at(tc.server, 53), proxy, server, "from the server"); got != "from the server" {
					t.Errorf("the proxy got %q", got)
				}
			}
		}
	})
}

// The same with a resolver on loopback, as systemd-resolved.
func TestTheProxyAsksAResolverOnLoopback(t *testing.T) {
	f := newFixture(t)
	f.apply(DefaultConfig())
	resolver := f.listenUDP(f.app, "127.0.0.53:53")
	captured := f.listenUDP(f.app, "127.0.0.1:15053")
	local := addr("127.0.0.1:40053")
	for range 2 {
		f.ask(f.app, local, addr("127.0.0.53:53"), UpstreamControl(DefaultConfig()), resolver, "x")
		f.ask(f.app, local, addr("127.0.0.53:53"), nil, captured, "x")
	}
}

func TestAnAppThatServesDNSIsReached(t *testing.T) {
	f := newFixture(t)
	f.apply(DefaultConfig())
	for _, own := range []netip.Addr{f.app.Addr4(), f.app.Addr6()} {
		if got := f.ask(f.peer, netip.AddrPort{}, at(own, 53), nil, f.listenUDP(f.app, at(own, 53).String()), "pong"); got != "pong" {
			t.Errorf("got %q", got)
		}
	}
}

func TestWhatIsIgnoredPasses(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		cfg := modeConfig(mode)
		cfg.InboundPortsToIgnore = []PortRange{{22, 23}}
		cfg.OutboundPortsToIgnore = []PortRange{{9000, 9001}}
		cfg.OutboundCIDRsToIgnore = prefixes("192.0.2.0/24", "240.0.0.0/4", "fd77::/16", f.peer.Addr6().String()+"/128")
		f.apply(cfg)
		out4, out6 := f.listen(f.app, "127.0.0.1:15001"), f.listen(f.app, "[::1]:15001")
		f.reachesDirectly(f.peer, at(f.app.Addr4(), 23), nil, f.listen(f.app, ":23"))
		f.reachesDirectly(f.app, at(f.peer.Addr4(), 9001), nil, f.listen(f.peer, ":9001"))
		f.reachesDirectly(f.app, at(f.peer.Addr6(), 8080), nil, f.listen(f.peer, ":8080"))
		f.arrives(f.app, at(f.peer.Addr4(), 8080), nil, out4)
		// The virtual ranges are covered by what is ignored, and redirected all the same.
		f.arrives(f.app, addr("240.240.0.1:9000"), nil, out4)
		f.arrives(f.app, addr("[fd77:6569:7200::1]:80"), nil, out6)
	})
}

func TestMarkedConnectionsPass(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		out := f.listen(f.app, "127.0.0.1:15001")
		server := f.listen(f.peer, ":8080")
		for _, to := range []netip.Addr{f.peer.Addr4(), f.peer.Addr6()} {
			f.reachesDirectly(f.app, at(to, 8080), UpstreamControl(DefaultConfig()), server)
		}
		f.nothingWaits(out)
	})
}

// The app calls its own service and the proxy chooses this endpoint: policy is
// applied inbound as for every caller, once.
func TestACallToTheOwnServicePassesInboundOnce(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		in := f.listen(f.app, ":15006")
		for _, tc := range []struct {
			own      netip.Addr
			loopback string
		}{{f.app.Addr4(), "127.0.0.1"}, {f.app.Addr6(), "::1"}} {
			out := f.listen(f.app, net.JoinHostPort(tc.loopback, "15001"))
			onAddress := f.listen(f.app, at(tc.own, 8080).String())
			onLoopback := f.listen(f.app, net.JoinHostPort(tc.loopback, "8081"))
			f.arrives(f.app, at(tc.own, 8080), nil, out)                                              // app → outbound
			f.arrives(f.app, at(tc.own, 8080), UpstreamControl(DefaultConfig()), in)                  // outbound → inbound
			f.reachesDirectly(f.app, at(tc.own, 8080), InboundControl(DefaultConfig()), onAddress)    // inbound → app
			f.reachesDirectly(f.app, addrOf(onLoopback), InboundControl(DefaultConfig()), onLoopback) // or there
			f.reachesDirectly(f.app, addrOf(onLoopback), nil, onLoopback)                             // loopback stays
			f.nothingWaits(in)
			f.nothingWaits(out)
		}
	})
}

func addrOf(l net.Listener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

func TestAnAppWithoutCapabilitiesCannotPass(t *testing.T) {
	f := newFixture(t)
	f.apply(DefaultConfig())
	bin := readableBinary(t)
	out := f.listen(f.app, "127.0.0.1:15001")
	served := make(chan struct{})
	go func() {
		defer close(served)
		if c := f.accept(out); c != nil {
			io.WriteString(c, "the proxy")
			c.Close()
		}
	}()
	// Root without capabilities, the worst case: it has the proxy's uid.
	if got := runAs(t, f.app, bin, noCapabilities, "dial", f.peer.Join(8080), "mark"); got != "refused" {
		t.Errorf("setting the mark gave %q", got)
	}
	if got := runAs(t, f.app, bin, noCapabilities, "dial", f.peer.Join(8080), "plain"); got != "the proxy" {
		t.Errorf("without the mark it met %q", got)
	}
	<-served
}

func TestInUIDModeUIDAndCodePointTogetherPass(t *testing.T) {
	if !manyUsers(t) {
		t.Skip("this user namespace has one user only (/proc/self/uid_map), and uid mode is not for root")
	}
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		cfg := modeConfig(mode)
		cfg.ProxyUID = uid(1337)
		f.apply(cfg)
		// What is seen on the wire: the code point must have been cleared.
		f.command(f.peer, "iptables", "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-m", "dscp", "!", "--dscp", "0", "-j", "DROP")
		greet(f, f.app, "127.0.0.1:15001", "outbound proxy")
		greet(f, f.app, ":15006", "inbound proxy")
		greet(f, f.peer, ":8080", "peer")
		greet(f, f.app, ":8080", "app")
		bin := readableBinary(t)
		for _, tc := range []struct{ user, to, how, want string }{
			{"1337", f.peer.Join(8080), "dscp", "peer"},
			{"1337", f.peer.Join(8080), "plain", "outbound proxy"}, // a uid shared by accident
			{"1338", f.peer.Join(8080), "dscp", "outbound proxy"},
			{"1337", f.app.Join(8080), "dscp", "inbound proxy"}, // own service
			{"1337", f.app.Join(8080), "inbound-dscp", "app"},
			{"1338", f.app.Join(8080), "inbound-dscp", "outbound proxy"},
		} {
			if got := runAs(t, f.app, bin, []string{"--reuid=" + tc.user, "--clear-groups"}, "dial", tc.to, tc.how); got != tc.want {
				t.Errorf("uid %s, %s, to %s met %q, want %q", tc.user, tc.how, tc.to, got, tc.want)
			}
		}
	})
}

func TestVirtualAddressesNeverLeaveTheMachine(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		f.listen(f.app, "0.0.0.0:8080") // listens on all local addresses, and these are not
		for _, to := range []string{"240.240.0.1:8080", "[fd77:6569:7200::1]:8080"} {
			_, err := f.dial(f.app, to, UpstreamControl(DefaultConfig()))
			if err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("the proxy dials %s: %v, want refused", to, err)
			}
			if _, err := f.dial(f.app, to, InboundControl(DefaultConfig())); err == nil {
				t.Errorf("the proxy's inbound side reached %s", to)
			}
			c, err := f.app.DialContext(t.Context(), "udp", to)
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			_, err = c.Write([]byte("x")) // EPERM, where the rejection is not an ICMP message
			if err == nil {
				_, err = c.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("UDP to %s: %v, want refused at once", to, err)
			}
			c.Close()
		}
		// From the wire: not answered, even though the peer routes the range here.
		in := f.listen(f.app, ":15006")
		f.command(f.peer, "ip", "route", "add", "240.240.0.0/16", "via", f.app.Addr4().String())
		f.command(f.peer, "ip", "-6", "route", "add", "fd77:6569:7200::/48", "via", f.app.Addr6().String())
		for _, to := range []string{"240.240.0.1:8080", "[fd77:6569:7200::1]:8080"} {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if _, err := f.peer.DialContext(ctx, "tcp", to); err == nil {
				t.Errorf("%s was reached from the wire", to)
			}
			cancel()
		}
		f.nothingWaits(in)
	})
}

// What a host forwards, for containers behind it, is not its app's.
func TestForwardedTrafficIsLeftAlone(t *testing.T) {
	f := newFixture(t)
	f.apply(DefaultConfig())
	in := f.listen(f.app, ":15006")
	f.command(f.app, "sysctl", "-w", "net.ipv4.ip_forward=1")
	f.command(f.peer, "ip", "route", "add", "198.51.100.0/24", "via", f.app.Addr4().String())
	// The app's host forwards it to the bridge, which knows no such address.
	if c, err := f.dial(f.peer, "198.51.100.1:80", nil); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("dial: %v, %v; want that the next hop refuses it", c, err)
	}
	f.nothingWaits(in)
}

// istio#38982: two connections from one address and port to two destinations
// become the same five-tuple behind the one port they are redirected to.
func TestOneSourcePortToTwoDestinationsBothArrive(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		out4, out6, in := f.listen(f.app, "127.0.0.1:15001"), f.listen(f.app, "[::1]:15001"), f.listen(f.app, ":15006")
		same := func(h *netlab.Host, local, to netip.AddrPort, l *net.TCPListener) {
			t.Helper()
			d := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local), Timeout: patience, Control: reuseAddr}
			c, err := h.Dial(t.Context(), d, "tcp", to.String())
			if err != nil {
				t.Errorf("%s to %s: %v", local, to, err)
				return
			}
			t.Cleanup(func() { c.Close() })
			a := f.accept(l)
			if got, err := OriginalDst(a); err != nil || got != to {
				t.Errorf("original destination %v, %v; want %s", got, err, to)
			}
		}
		for i := range uint16(3) {
			same(f.app, at(f.app.Addr4(), 41000), at(netip.MustParseAddr("192.0.2.1"), 80+i), out4)
			same(f.app, at(f.app.Addr6(), 41000), at(netip.MustParseAddr("2001:db8::1"), 80+i), out6)
			same(f.peer, at(f.peer.Addr4(), 41000), at(f.app.Addr4(), 80+i), in)
			same(f.peer, at(f.peer.Addr6(), 41000), at(f.app.Addr6(), 80+i), in)
		}
	})
}

func reuseAddr(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
}

// istio#36489: conntrack calls some segments invalid, NAT does not see those, and
// where they go then nobody expects them.
func TestInvalidSegmentsReachNobody(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		f.listen(f.app, ":8080") // its host would answer with a reset, or more
		var raw net.PacketConn
		if err := f.peer.Do(func() (err error) {
			raw, err = net.ListenPacket("ip4:tcp", f.peer.Addr4().String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		synFin := segment(f.peer.Addr4(), f.app.Addr4(), 40000, 8080, 0x03)
		syn := segment(f.peer.Addr4(), f.app.Addr4(), 40001, 15999, 0x02)
		for _, s := range [][]byte{synFin, syn} { // the second is answered, and shows that the first was not before
			if _, err := raw.WriteTo(s, &net.IPAddr{IP: f.app.Addr4().AsSlice()}); err != nil {
				t.Fatal(err)
			}
		}
		_ = raw.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 1500)
		n, _, err := raw.ReadFrom(buf)
		if err != nil || n < 4 || uint16(buf[2])<<8|uint16(buf[3]) != 40001 {
			t.Errorf("the answer is %x, %v; want one to port 40001", buf[:n], err)
		}
		tool := map[Mode]string{ModeNFT: "iptables-nft-save", ModeLegacy: "iptables-legacy-save"}[mode]
		if out := f.command(f.app, tool, "-c", "-t", "mangle"); !regexp.MustCompile(`\[1:\d+\] .*INVALID`).MatchString(out) {
			t.Errorf("not dropped by our rule:\n%s", out)
		}
	})
}

// segment is a TCP header without data, with its checksum.
func segment(src, dst netip.Addr, from, to uint16, flags byte) []byte {
	s := []byte{byte(from >> 8), byte(from), byte(to >> 8), byte(to), 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0}
	pseudo := append(append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...), 0, 6, 0, byte(len(s)))
	var sum uint32
	for b := append(pseudo, s...); len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	s[16], s[17] = byte(^sum>>8), byte(^sum)
	return s
}

// A connection that was open before the rules is cut: the kernel, which did not
// track it, takes its next packet for a first one and redirects it, and nobody knows
// it there. Where the kernel tracked it already, for rules of somebody else, it goes
// on as it was, past the proxy, until it ends.
func TestAConnectionFromBeforeTheRules(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		server, own := f.listen(f.peer, ":8080"), f.listen(f.app, ":8080")
		open := func() (conns [][2]net.Conn) {
			for _, c := range []struct {
				from *netlab.Host
				at   *net.TCPListener
				to   netip.Addr
			}{{f.app, server, f.peer.Addr4()}, {f.app, server, f.peer.Addr6()}, {f.peer, own, f.app.Addr4()}, {f.peer, own, f.app.Addr6()}} {
				conn, err := f.dial(c.from, at(c.to, 8080).String(), nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(patience))
				conns = append(conns, [2]net.Conn{conn, f.accept(c.at)})
			}
			return conns
		}
		before := open()
		f.apply(modeConfig(mode))
		for _, c := range before {
			_, err := io.WriteString(c[0], "x")
			if err == nil {
				_, err = c[0].Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s to %s, not tracked before: %v, want a reset", c[0].LocalAddr(), c[0].RemoteAddr(), err)
			}
		}
		f.remove()
		for _, tool := range []string{"iptables", "ip6tables"} {
			f.command(f.app, tool, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
		}
		before = open()
		f.apply(modeConfig(mode))
		for _, c := range before {
			go func() { _, _ = io.Copy(c[1], c[1]) }() // ends with the connection
			if _, err := io.WriteString(c[0], "x"); err != nil {
				t.Error(err)
			}
			if _, err := c[0].Read(make([]byte, 1)); err != nil {
				t.Errorf("%s to %s, tracked before: %v", c[0].LocalAddr(), c[0].RemoteAddr(), err)
			}
		}
	})
}
