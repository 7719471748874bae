package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The pair by which inbound connections of Verify come.
const (
	verifyHere  = "weir-verify0"
	verifyThere = "weir-verify1"
)

// inbound connects from a namespace outside, because what comes over loopback
// does not pass PREROUTING's nat.
func (v *verifier) inbound() {
	name := v.name("inbound")
	port, ok := v.freePort(v.cfg.InboundPortsToInclude, v.cfg.InboundPortsToIgnore)
	if !ok {
		v.report.add(name, Skipped, "", "every port is ignored")
		return
	}
	here, there := netip.MustParseAddr("169.254.119.1"), netip.MustParseAddr("169.254.119.2")
	if v.f.v6 {
		here, there = netip.MustParseAddr("fd77:6569:7201::1"), netip.MustParseAddr("fd77:6569:7201::2")
	}
	outside, err := newNamespace()
	if err != nil {
		v.report.add(name, Skipped, "", "cannot make a namespace to connect from (CAP_SYS_ADMIN is needed): %v", err)
		return
	}
	defer outside.Close()
	remove, err := joinOutside(outside, here, there)
	if err != nil {
		v.report.add(name, Skipped, "", "cannot make an interface to connect by: %v", err)
		return
	}
	defer remove()
	to := netip.AddrPortFrom(here, port)
	v.tcpFrom(name, to, netip.AddrPortFrom(netip.Addr{}, v.cfg.InboundPort), func() (c net.Conn, err error) {
		err = inHandle(outside, func() (err error) {
			d := net.Dialer{Timeout: verifyPatience}
			c, err = d.DialContext(v.ctx, v.network("tcp"), to.String())
			return err
		})
		return c, err
	})
}

// newNamespace makes one without a name; it ends with its last user.
func newNamespace() (netns.NsHandle, error) {
	fresh := netns.None()
	err := InNamespace("/proc/thread-self/ns/net", func() (err error) { // to come back to
		fresh, err = netns.New()
		return err
	})
	return fresh, err
}

func inHandle(ns netns.NsHandle, f func() error) error {
	return InNamespace(fmt.Sprintf("/proc/self/fd/%d", int(ns)), f)
}

// joinOutside connects the namespace of this thread with outside.
func joinOutside(outside netns.NsHandle, here, there netip.Addr) (remove func(), err error) {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: verifyHere}, PeerName: verifyThere, PeerNamespace: netlink.NsFd(outside)}
	if old, err := netlink.LinkByName(verifyHere); err == nil {
		_ = netlink.LinkDel(old) // of a run that was killed
	}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, err
	}
	remove = func() { _ = netlink.LinkDel(pair) } // with the pair go its addresses and routes
	err = errors.Join(
		inHandle(outside, func() error { return addressUp(verifyThere, there) }),
		addressUp(verifyHere, here),
		inHandle(outside, func() error { return awaitUp(verifyThere) }),
		awaitUp(verifyHere),
	)
	if err != nil {
		remove()
		return nil, err
	}
	return remove, nil
}

// awaitUp waits until the kernel has noticed, in the background, that an interface
// has its carrier. What is sent before is lost, and sent again only after a second.
func awaitUp(name string) error {
	for end := time.Now().Add(verifyPatience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err != nil || link.Attrs().OperState == netlink.OperUp {
			return err
		}
	}
	return fmt.Errorf("%s has no carrier", name)
}

func addressUp(name string, a netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen()-2, a.BitLen())}, Scope: unix.RT_SCOPE_LINK}
	if a.Is6() {
		addr.Scope, addr.Flags = unix.RT_SCOPE_UNIVERSE, unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(link, addr)
}
