package redirect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeProtocol marks our routes (rtm_protocol), so that they are found again
// whatever the range was. 119 is free in /etc/iproute2/rt_protos.
const routeProtocol = 119

// route is the route that makes the kernel try to reach a virtual range: without
// one, connect(2) is answered "network is unreachable" before nat OUTPUT is asked.
//
// In IPv4 it is an ordinary route by way of lo. A local one would do too, but
// would make each virtual address the source of connections to it, which apps
// that ask their socket for their own address then publish; and would hand what
// arrives for the range to listeners on 0.0.0.0. A packet that is not redirected
// is dropped on lo as a martian. With no address but loopback's the kernel has
// no source of the scope it wants, so there the route's scope is host.
// In IPv6 the kernel refuses what lo routes (it answers "unreachable"), unless the
// route is local; it chooses a good source there.
func (f familyPlan) route(lo int) (*netlink.Route, error) {
	r := &netlink.Route{
		Dst:       &net.IPNet{IP: f.virtual.Addr().AsSlice(), Mask: net.CIDRMask(f.virtual.Bits(), f.virtual.Addr().BitLen())},
		LinkIndex: lo,
		Protocol:  routeProtocol,
	}
	if f.v6 {
		r.Type, r.Table, r.Scope = unix.RTN_LOCAL, unix.RT_TABLE_LOCAL, netlink.SCOPE_UNIVERSE
		return r, nil
	}
	r.Type, r.Table, r.Scope = unix.RTN_UNICAST, unix.RT_TABLE_MAIN, netlink.SCOPE_LINK
	addr, err := anyAddress()
	if !addr.IsValid() {
		r.Scope = netlink.SCOPE_HOST
	}
	return r, err
}

// anyAddress is an IPv4 address of the namespace that is not a loopback one, if there is any.
func anyAddress() (netip.Addr, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && !ip.IsLoopback() && a.Scope <= unix.RT_SCOPE_LINK {
			return ip, nil
		}
	}
	return netip.Addr{}, nil
}

// ourRoutes lists the routes that carry our mark.
func ourRoutes(v6 bool) ([]netlink.Route, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Protocol: routeProtocol}
	routes, err := netlink.RouteListFiltered(family(v6), filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, explain("list routes", err)
	}
	return routes, nil
}

func sameRoute(a, b *netlink.Route) bool {
	return a.Dst.String() == b.Dst.String() && a.Type == b.Type && a.Table == b.Table && (a.Scope == b.Scope || a.Type == unix.RTN_LOCAL)
}

// wanted are the routes of the plan.
func (f familyPlan) wanted() ([]*netlink.Route, error) {
	if !f.virtual.IsValid() && f.answers == 0 {
		return nil, nil
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, explain("find lo", err)
	}
	var want []*netlink.Route
	if f.virtual.IsValid() {
		r, err := f.route(lo.Attrs().Index)
		if err != nil {
			return nil, err
		}
		want = append(want, r)
	}
	if f.answers != 0 {
		want = append(want, f.answersRoute(lo.Attrs().Index))
	}
	return want, nil
}

// setRoutes makes the routes, and the routing rules, that carry our mark be those
// of the plan. It returns how to put back what was before, and whether anything
// changed.
func setRoutes(f familyPlan) (undo func() error, changed bool, note string, err error) {
	have, err := ourRoutes(f.v6)
	if err != nil {
		return nil, false, "", err
	}
	want, err := f.wanted()
	if err != nil {
		return nil, false, "", err
	}
	var c routeChange
	addRules := c.rules(f)
	for i := range have {
		at := slices.IndexFunc(want, func(w *netlink.Route) bool { return sameRoute(&have[i], w) })
		if at < 0 {
			c.drop(&have[i])
		} else {
			want = slices.Delete(want, at, at+1) // it is there
		}
	}
	for _, r := range want {
		c.add(r)
	}
	addRules()
	if c.err != nil && f.v6 && addressesOff() {
		return c.undo, c.changed, "IPv6 is switched off in this namespace (disable_ipv6): rules are in place, the virtual range has no route", nil
	}
	if c.err != nil {
		return nil, false, "", errors.Join(c.err, c.undo())
	}
	return c.undo, c.changed, "", nil
}

// addressesOff says whether IPv6 is there but switched off on lo.
func addressesOff() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// routeChange does steps until one fails and remembers how to undo them.
type routeChange struct {
	back    []func() error
	changed bool
	err     error
}

func (c *routeChange) add(r *netlink.Route) {
	c.step("add route "+r.Dst.String(), func() error { return netlink.RouteAdd(r) }, func() error { return netlink.RouteDel(r) })
}

func (c *routeChange) drop(r *netlink.Route) {
	c.step("delete route "+r.Dst.String(), func() error { return netlink.RouteDel(r) }, func() error { return netlink.RouteAdd(r) })
}

func (c *routeChange) step(what string, do, back func() error) {
	if c.err != nil {
		return
	}
	err := do()
	if errors.Is(err, unix.EEXIST) {
		c.err = fmt.Errorf("%s: another route or rule for the same is there, of someone else: choose another virtual range, or other marks", what)
		return
	}
	if err != nil {
		c.err = explain(what, err)
		return
	}
	c.changed = true
	c.back = append(c.back, func() error { return explain("put back after "+what, back()) })
}

func (c *routeChange) undo() error {
	var errs []error
	for i := len(c.back) - 1; i >= 0; i-- {
		errs = append(errs, c.back[i]())
	}
	return errors.Join(errs...)
}
