package launch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/netlab"
)

// bridgeName is the bridge that joins the runs of a machine.
const bridgeName = "weirbr0"

// subnet is the range of the bridge: its first address is the machine's own, run
// n has the one n after it.
type subnet struct{ netip.Prefix }

// parseSubnet takes a range of IPv4 addresses with room for one run at least.
func parseSubnet(s string) (subnet, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 29 {
		return subnet{}, fmt.Errorf("%q: meant is a range of IPv4 addresses from /8 to /29, like 10.79.0.0/24", s)
	}
	return subnet{p.Masked()}, nil
}

func (s subnet) gateway() netip.Addr { return s.Addr().Next() }

// last is the highest number of a run.
func (s subnet) last() int { return min(1<<(32-s.Bits())-3, 4000) }

func (s subnet) of(run int) netip.Addr {
	b := s.gateway().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += uint32(run)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func (s subnet) ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(s.Bits(), 32)}
}

// hardware is a MAC address made of the IP address: whoever has learned the one
// of an earlier run with this address is not wrong about this one.
func hardware(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x77, b[0], b[1], b[2], b[3]}
}

func portName(run int) string { return fmt.Sprintf("weirrun%d", run) }

// ensureBridge makes the bridge unless it is there.
func ensureBridge(s subnet) error {
	if br, err := netlink.LinkByName(bridgeName); err == nil {
		return sameSubnet(br, s)
	}
	if err := s.isFree(); err != nil {
		return err
	}
	snoop := false // nobody asks who listens, so snooping would drop what it has not heard of
	br := &netlink.Bridge{
		LinkAttrs:         netlink.LinkAttrs{Name: bridgeName, HardwareAddr: hardware(s.gateway())},
		MulticastSnooping: &snoop,
	}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add the bridge %s: %w", bridgeName, err)
	}
	// The bridge speaks IPv4; the setting goes with the interface.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+bridgeName+"/disable_ipv6", []byte("1"), 0) // a kernel without IPv6 has none
	if err := netlink.AddrAdd(br, &netlink.Addr{IPNet: s.ipNet(s.gateway())}); err != nil {
		return fmt.Errorf("give %s to %s: %w", s.gateway(), bridgeName, err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("bring up %s: %w", bridgeName, err)
	}
	return nil
}

func sameSubnet(br netlink.Link, s subnet) error {
	addrs, err := netlink.AddrList(br, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", bridgeName, err)
	}
	for _, a := range addrs {
		if a.IPNet.String() == s.ipNet(s.gateway()).String() {
			return nil
		}
	}
	return fmt.Errorf("the bridge %s, which other runs use, has %v and not %s/%d; all runs of a machine have one --subnet", bridgeName, addrs, s.gateway(), s.Bits())
}

// isFree looks whether the machine has a use for the range already.
func (s subnet) isFree() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, _ := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		if p := netip.PrefixFrom(a, bits); bits > 0 && p.Overlaps(s.Prefix) {
			return fmt.Errorf("the range %s is in use on this machine (a route to %s); --subnet names another", s.Prefix, p)
		}
	}
	return nil
}

// plug joins a namespace to the bridge: eth0 with an address, loopback, a default
// route by the machine.
func plug(ns *netlab.Namespace, s subnet, run int) error {
	br, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find %s: %w", bridgeName, err)
	}
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: portName(run), MasterIndex: br.Attrs().Index},
		PeerName:  "eth0", PeerHardwareAddr: hardware(s.of(run)), PeerNamespace: netlink.NsFd(ns.Handle()),
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add the pair %s and eth0: %w", portName(run), err)
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		return fmt.Errorf("bring up %s: %w", portName(run), err)
	}
	inside, err := netlink.NewHandleAt(ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer inside.Close()
	if err := address(inside, s, s.of(run)); err != nil {
		return err
	}
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer here.Close()
	return errors.Join(awaitUp(inside, "eth0"), awaitUp(here, portName(run)), awaitUp(here, bridgeName))
}

func address(inside *netlink.Handle, s subnet, a netip.Addr) error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := inside.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		if err := inside.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring up %s: %w", name, err)
		}
		if name == "lo" {
			continue
		}
		if err := inside.AddrAdd(link, &netlink.Addr{IPNet: s.ipNet(a)}); err != nil {
			return fmt.Errorf("give %s to %s: %w", a, name, err)
		}
	}
	if err := inside.RouteAdd(&netlink.Route{Gw: s.gateway().AsSlice()}); err != nil {
		return fmt.Errorf("add a default route by %s: %w", s.gateway(), err)
	}
	return nil
}

// awaitUp waits until the kernel has passed on that an interface has its carrier,
// which takes it milliseconds; before that the bridge drops what is sent.
func awaitUp(h *netlink.Handle, name string) error {
	const every, tries = time.Millisecond, 5000
	for range tries {
		link, err := h.LinkByName(name)
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

// removeLink deletes an interface; that there is none is no error.
func removeLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
			return nil
		}
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
