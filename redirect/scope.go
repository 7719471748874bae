package redirect

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Scope narrows what is redirected. The zero value is all TCP, and DNS.
//
// What is ignored passes even where it is included. The virtual ranges go to the
// proxy whatever ports and destinations are named here; what is ignored by its
// user, group, cgroup or interface is not in the mesh at all, DNS included, and
// cannot reach them.
type Scope struct {
	InboundPortsToIgnore  []PortRange    // TCP ports that reach the app directly
	InboundPortsToInclude []PortRange    // only these go to the proxy; none is all
	InboundCIDRsToIgnore  []netip.Prefix // callers that reach the app directly, by their address

	OutboundPortsToIgnore  []PortRange    // TCP ports that are dialled directly
	OutboundPortsToInclude []PortRange    // only these go to the proxy; none is all
	OutboundCIDRsToIgnore  []netip.Prefix // destinations that are dialled directly; DNS to them is captured all the same
	OutboundCIDRsToInclude []netip.Prefix // only these go to the proxy; none is all

	UIDsToIgnore       []IDRange // whose connections are left alone
	GIDsToIgnore       []IDRange // by the process's group, not its supplementary ones
	CgroupsToIgnore    []string  // directories below the mount of cgroup v2, like system.slice/backup.service; what is below them, too
	InterfacesToIgnore []string  // what comes in or goes out by them is left alone; a + at the end stands for any rest
}

// IDRange is the user or group ids from First to Last, both included.
type IDRange struct{ First, Last uint32 }

// String is "1000" or "1000-1010", as iptables has it.
func (r IDRange) String() string {
	if r.First == r.Last {
		return strconv.FormatUint(uint64(r.First), 10)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// ParseIDRanges reads a list like "0,1000-1010". Empty text is no range. The error
// names the part that is wrong.
func ParseIDRanges(s string) ([]IDRange, error) {
	if s == "" {
		return nil, nil
	}
	var out []IDRange
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 32)
		b, errB := strconv.ParseUint(last, 10, 32)
		if errA != nil || errB != nil || b < a || b == noID {
			return nil, fmt.Errorf("%q is not an id or a range like 1000-1010", part)
		}
		out = append(out, IDRange{uint32(a), uint32(b)})
	}
	return out, nil
}

// noID is (uid_t)-1, which is nobody's.
const noID = 1<<32 - 1

// ParseNames reads a list like "tun0,wg+". Empty text is none.
func ParseNames(s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	out := strings.Split(s, ",")
	for i := range out {
		if out[i] = strings.TrimSpace(out[i]); out[i] == "" {
			return nil, fmt.Errorf("there is an empty name in %q", s)
		}
	}
	return out, nil
}

// check names the first field that cannot be, and brings lists into one order.
func (s *Scope) check(dns bool) error {
	var err error
	for _, p := range []struct {
		field string
		list  *[]PortRange
	}{
		{"InboundPortsToIgnore", &s.InboundPortsToIgnore}, {"InboundPortsToInclude", &s.InboundPortsToInclude},
		{"OutboundPortsToIgnore", &s.OutboundPortsToIgnore}, {"OutboundPortsToInclude", &s.OutboundPortsToInclude},
	} {
		if *p.list, err = mergePorts(*p.list); err != nil {
			return bad(p.field, "%v", err)
		}
	}
	if dns && contains(s.OutboundPortsToIgnore, 53) {
		return bad("OutboundPortsToIgnore", "53 is ignored and captured at once; set DNS off to leave it alone")
	}
	for _, c := range []struct {
		field string
		list  *[]netip.Prefix
	}{
		{"InboundCIDRsToIgnore", &s.InboundCIDRsToIgnore}, {"OutboundCIDRsToIgnore", &s.OutboundCIDRsToIgnore},
		{"OutboundCIDRsToInclude", &s.OutboundCIDRsToInclude},
	} {
		if *c.list, err = mergeCIDRs(c.field, *c.list); err != nil {
			return err
		}
	}
	return s.checkOwners()
}

func (s *Scope) checkOwners() error {
	for _, o := range []struct {
		field string
		list  *[]IDRange
	}{{"UIDsToIgnore", &s.UIDsToIgnore}, {"GIDsToIgnore", &s.GIDsToIgnore}} {
		for _, r := range *o.list {
			if r.Last < r.First || r.Last == noID {
				return bad(o.field, "%d-%d is not a range of ids", r.First, r.Last)
			}
		}
		*o.list = sorted(*o.list, func(a, b IDRange) int { return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last)) })
	}
	for _, name := range s.InterfacesToIgnore {
		if err := checkInterface(name); err != nil {
			return bad("InterfacesToIgnore", "%v", err)
		}
	}
	for i, path := range s.CgroupsToIgnore {
		if strings.ContainsAny(path, "\"\\\n") || strings.Trim(path, "/") == "" {
			return bad("CgroupsToIgnore", "%q, want a directory below the mount of cgroup v2, like system.slice/backup.service", path)
		}
		if i == 0 {
			s.CgroupsToIgnore = slices.Clone(s.CgroupsToIgnore)
		}
		s.CgroupsToIgnore[i] = strings.Trim(path, "/")
	}
	s.InterfacesToIgnore = sorted(s.InterfacesToIgnore, strings.Compare)
	s.CgroupsToIgnore = sorted(s.CgroupsToIgnore, strings.Compare)
	return nil
}

// checkInterface goes by the kernel's own rule for names, IFNAMSIZ included.
func checkInterface(name string) error {
	bare := strings.TrimSuffix(name, "+")
	switch {
	case name == "lo" || bare == "" || bare == "l" && name != bare:
		return fmt.Errorf("%q: virtual addresses and the proxy's own ways go by lo", name)
	case len(name) > 15 || bare == "." || bare == ".." || strings.ContainsAny(bare, "/: \t\n\"\\+!"):
		return fmt.Errorf("%q is not the name of an interface", name)
	}
	return nil
}

func mergeCIDRs(field string, in []netip.Prefix) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(in))
	for _, p := range in {
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, bad(field, "%s is not a range of IPv4 or IPv6 addresses", p)
		}
		if p.Bits() == 0 {
			return nil, bad(field, "%s is everything", p)
		}
		out = append(out, p.Masked())
	}
	return sorted(out, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) }), nil
}

// sorted is a list in order, without what is there twice.
func sorted[T comparable](in []T, order func(a, b T) int) []T {
	return slices.Compact(slices.SortedFunc(slices.Values(in), order))
}

// outside are the matches of what is not in the mesh at all, going out: proto is
// a match of their protocol, or nothing.
func (s *Scope) outside(proto string) []string {
	var out []string
	add := func(format string, arg any) { out = append(out, strings.TrimSpace(proto+" "+fmt.Sprintf(format, arg))) }
	for _, r := range s.UIDsToIgnore {
		add("-m owner --uid-owner %v", r)
	}
	for _, r := range s.GIDsToIgnore {
		add("-m owner --gid-owner %v", r)
	}
	for _, path := range s.CgroupsToIgnore {
		add(`-m cgroup --path "%s"`, path)
	}
	for _, name := range s.InterfacesToIgnore {
		out = append(out, strings.TrimSpace("-o "+name+" "+proto))
	}
	return out
}

// included are the matches of TCP that goes to the proxy when it leaves.
func (s *Scope) included(v6 bool) []string {
	to := []string{""}
	if len(s.OutboundCIDRsToInclude) > 0 {
		to = nil
		for _, c := range s.OutboundCIDRsToInclude {
			if c.Addr().Is6() == v6 {
				to = append(to, "-d "+c.String()+" ")
			}
		}
	}
	var out []string
	for _, d := range to {
		for _, p := range tcpPorts(s.OutboundPortsToInclude) {
			out = append(out, d+p)
		}
	}
	return out
}

// tcpPorts are the matches of TCP to these ports, or to any where none is named.
func tcpPorts(rs []PortRange) []string {
	if len(rs) == 0 {
		return []string{"-p tcp"}
	}
	out := multiport(rs)
	for i := range out {
		out[i] = "-p tcp -m multiport --dports " + out[i]
	}
	return out
}
