package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// PortRange is the ports from First to Last, both included.
type PortRange struct{ First, Last uint16 }

// String is "80" or, in the notation of iptables, "8000:8100".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d:%d", r.First, r.Last)
}

// ParsePortRanges reads a list like "22,8000-8100". Empty text is no range. The
// error names the part that is wrong.
func ParsePortRanges(s string) ([]PortRange, error) {
	if s == "" {
		return nil, nil
	}
	var out []PortRange
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		a, errA := strconv.ParseUint(first, 10, 16)
		b, errB := strconv.ParseUint(last, 10, 16)
		if errA != nil || errB != nil || a == 0 || b < a {
			return nil, fmt.Errorf("%q is not a port from 1 to 65535 or a range like 8000-8100", part)
		}
		out = append(out, PortRange{uint16(a), uint16(b)})
	}
	return out, nil
}

// ParsePrefixes reads a list like "10.0.0.0/8,2001:db8::1"; an address is a range
// of one. Empty text is no range. The error names the part that is wrong.
func ParsePrefixes(s string) ([]netip.Prefix, error) {
	if s == "" {
		return nil, nil
	}
	var out []netip.Prefix
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		p, err := netip.ParsePrefix(part)
		if a, addrErr := netip.ParseAddr(part); addrErr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is not an address or a range like 10.0.0.0/8", part)
		}
		out = append(out, p)
	}
	return out, nil
}

// mergePorts sorts ranges and joins those that overlap or touch.
func mergePorts(in []PortRange) ([]PortRange, error) {
	for _, r := range in {
		if r.First == 0 || r.Last < r.First {
			return nil, fmt.Errorf("%d-%d is not a range of ports", r.First, r.Last)
		}
	}
	sorted := slices.SortedFunc(slices.Values(in), func(a, b PortRange) int { return int(a.First) - int(b.First) })
	var out []PortRange
	for _, r := range sorted {
		if n := len(out); n > 0 && int(r.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, r.Last)
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

func contains(rs []PortRange, port uint16) bool {
	return slices.ContainsFunc(rs, func(r PortRange) bool { return r.First <= port && port <= r.Last })
}

// multiport groups ranges into arguments of the multiport match, which takes 15
// ports, and a range counts for two.
func multiport(rs []PortRange) []string {
	const room = 15
	var groups []string
	var group []string
	used := 0
	for _, r := range rs {
		cost := 1
		if r.First != r.Last {
			cost = 2
		}
		if used+cost > room {
			groups, group, used = append(groups, strings.Join(group, ",")), nil, 0
		}
		group, used = append(group, r.String()), used+cost
	}
	if len(group) > 0 {
		groups = append(groups, strings.Join(group, ","))
	}
	return groups
}
