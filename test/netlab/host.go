package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is one network namespace of a Lab.
type Host struct {
	lab   *Lab
	name  string
	ns    *namespace
	addr4 netip.Addr
	addr6 netip.Addr // not valid where the kernel has no IPv6
}

func hostAddr4(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(n)}) }

// hostAddr6 is fd00:77::n, in hexadecimal as addresses are.
func hostAddr6(n int) netip.Addr {
	if !hasIPv6() {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x77, 15: byte(n)})
}

// Name is the name given to Lab.Host.
func (h *Host) Name() string { return h.name }

// Path is the file that stands for the namespace, below /run/netns.
func (h *Host) Path() string { return h.ns.path() }

// Netns is the namespace's name for ip(8), the last part of Path.
func (h *Host) Netns() string { return h.ns.name }

// Addr4 is the host's IPv4 address, in 10.77.0.0/24.
func (h *Host) Addr4() netip.Addr { return h.addr4 }

// Addr6 is the host's IPv6 address, in fd00:77::/64, and not valid when the
// kernel has no IPv6.
func (h *Host) Addr6() netip.Addr { return h.addr6 }

// Do calls f on a thread that is in the host's namespace. Sockets that f opens
// belong to the namespace and may be used from anywhere afterwards. Goroutines
// that f starts are not in the namespace.
func (h *Host) Do(f func() error) error { return h.ns.do(f) }

// join connects the host to the bridge by a pair whose bridge end is called port.
func (h *Host) join(port string) error {
	if err := h.Do(quietSysctls); err != nil {
		return err
	}
	bridge, err := h.lab.links.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find %s: %w", bridgeName, err)
	}
	pair := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: port, MasterIndex: bridge.Attrs().Index},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(h.ns.handle()),
	}
	if err := h.lab.links.LinkAdd(pair); err != nil {
		return fmt.Errorf("add the pair %s and eth0: %w", port, err)
	}
	// The bridge's end first: eth0 then has its carrier when it comes up.
	if err := h.lab.links.LinkSetUp(pair); err != nil {
		return fmt.Errorf("bring up %s: %w", port, err)
	}
	links, err := netlink.NewHandleAt(h.ns.handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer links.Close()
	if err := h.address(links, "eth0"); err != nil {
		return err
	}
	if err := h.defaultRoutes(links); err != nil {
		return err
	}
	return errors.Join(awaitUp(links, "eth0"), awaitUp(h.lab.links, port), awaitUp(h.lab.links, bridgeName))
}

// awaitUp waits until the kernel has passed on that an interface has its
// carrier, which it does in the background, in milliseconds. Before that the
// bridge drops, and the first question of ARP is asked again only after a second.
func awaitUp(links *netlink.Handle, name string) error {
	const every, tries = time.Millisecond, 5000
	for range tries {
		link, err := links.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		time.Sleep(every)
	}
	return fmt.Errorf("%s has no carrier after %v", name, tries*every)
}

// address brings loopback and the named interface up and gives it the host's addresses.
func (h *Host) address(links *netlink.Handle, name string) error {
	for _, n := range []string{"lo", name} {
		link, err := links.LinkByName(n)
		if err != nil {
			return fmt.Errorf("find %s: %w", n, err)
		}
		if err := links.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up %s: %w", n, err)
		}
		if n == "lo" {
			continue
		}
		for addr, bits := range map[netip.Addr]int{h.addr4: 24, h.addr6: 64} {
			if !addr.IsValid() {
				continue
			}
			a := &netlink.Addr{IPNet: ipNet(addr, bits)}
			if addr.Is6() {
				a.Flags = unix.IFA_F_NODAD // usable at once; nobody else is on this bridge
			}
			if err := links.AddrAdd(link, a); err != nil {
				return fmt.Errorf("give %s to %s: %w", addr, n, err)
			}
		}
	}
	return nil
}

func (h *Host) defaultRoutes(links *netlink.Handle) error {
	for _, via := range []netip.Addr{h.lab.bridge.addr4, h.lab.bridge.addr6} {
		if !via.IsValid() {
			continue
		}
		zero := netip.IPv4Unspecified()
		if via.Is6() {
			zero = netip.IPv6Unspecified()
		}
		if err := links.RouteAdd(&netlink.Route{Dst: ipNet(zero, 0), Gw: via.AsSlice()}); err != nil {
			return fmt.Errorf("add a default route by %s: %w", via, err)
		}
	}
	return nil
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

// Command is exec.CommandContext for a program that runs in the namespace. The
// process that starts is nsenter(1), which becomes the program without a fork:
// cmd.Process is the program, signals reach it, cgroups and mounts are untouched.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + h.Path(), "--", name}, args...)...)
	if _, err := exec.LookPath(name); err != nil {
		cmd.Err = err // else the error would be nsenter's exit status 127
	}
	return cmd
}

// ListenTCP listens on addr, "ADDRESS:PORT" with an IP address or none and
// port 0 for any, in the namespace.
func (h *Host) ListenTCP(addr string) (*net.TCPListener, error) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("netlab: listen in %s: %w", h.name, err)
	}
	var l *net.TCPListener
	if err := h.Do(func() (err error) { l, err = net.ListenTCP("tcp", a); return err }); err != nil {
		return nil, fmt.Errorf("netlab: listen in %s: %w", h.name, err)
	}
	return l, nil
}

// ListenUDP is ListenTCP for UDP.
func (h *Host) ListenUDP(addr string) (*net.UDPConn, error) {
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("netlab: listen in %s: %w", h.name, err)
	}
	var c *net.UDPConn
	if err := h.Do(func() (err error) { c, err = net.ListenUDP("udp", a); return err }); err != nil {
		return nil, fmt.Errorf("netlab: listen in %s: %w", h.name, err)
	}
	return c, nil
}

// DialContext connects from the namespace. It has the signature of
// http.Transport.DialContext. A name is resolved by the host's Resolver, its
// addresses are tried in that order.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return h.Dial(ctx, &net.Dialer{}, network, address)
}

// Dial is DialContext with a dialer of the caller's, for its local address, Control and so on.
func (h *Host) Dial(ctx context.Context, d *net.Dialer, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := h.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		var c net.Conn
		// A literal address keeps net.Dialer on this goroutine, and so on this thread.
		err := h.Do(func() (err error) {
			c, err = d.DialContext(ctx, network, net.JoinHostPort(a.String(), port))
			return err
		})
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (h *Host) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	if host == "" || host == "localhost" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	return h.Resolver().LookupNetIP(ctx, "ip", host)
}

// Resolver is a resolver that asks the lab's name server from within the
// namespace. The machine's /etc/hosts is read too, its list of servers is not used.
func (h *Host) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return h.DialContext(ctx, network, h.lab.nameserver.String())
	}}
}

// Join is the address of a port on the host, for IPv4: "10.77.0.n:port".
func (h *Host) Join(port int) string { return net.JoinHostPort(h.addr4.String(), strconv.Itoa(port)) }
