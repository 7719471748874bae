package redirect

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What the proxy sends to the app in the name of a caller, the app answers to that
// caller. The packet is marked in mangle OUTPUT (rules.go), which has the kernel
// look for its route again; the mark leads to a table of ours in which every
// address is this machine's own.
const (
	answersTable    = 119
	answersPriority = 119 // after the local table, which is 0, before main, which is 32766
)

// answersRoute is that table.
func (f familyPlan) answersRoute(lo int) *netlink.Route {
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	scope := netlink.SCOPE_HOST
	if f.v6 {
		all, scope = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}, netlink.SCOPE_UNIVERSE
	}
	return &netlink.Route{Dst: all, LinkIndex: lo, Type: unix.RTN_LOCAL, Table: answersTable, Scope: scope, Protocol: routeProtocol}
}

// answersRule leads to it.
func (f familyPlan) answersRule() *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Mark, r.Table, r.Protocol = family(f.v6), answersPriority, f.answers, answersTable, routeProtocol
	return r
}

func family(v6 bool) int {
	if v6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// ourRules lists the routing rules that carry our mark.
func ourRules(v6 bool) ([]netlink.Rule, error) {
	all, err := netlink.RuleList(family(v6))
	if err != nil {
		return nil, explain("list routing rules", err)
	}
	var out []netlink.Rule
	for _, r := range all {
		if r.Protocol == routeProtocol {
			r.Family = family(v6)
			out = append(out, r)
		}
	}
	return out, nil
}

// rules makes the routing rules that carry our mark be those of the plan: what is
// there too much goes at once, what is missing is added by the returned function,
// when the table is there that it leads to.
func (c *routeChange) rules(f familyPlan) (add func()) {
	have, err := ourRules(f.v6)
	if err != nil {
		c.err = err
		return func() {}
	}
	missing := f.answers != 0
	for i := range have {
		r := &have[i]
		if missing && r.Mark == f.answers && r.Table == answersTable && r.Priority == answersPriority {
			missing = false
			continue
		}
		c.step("delete "+ruleText(r), func() error { return netlink.RuleDel(r) }, func() error { return netlink.RuleAdd(r) })
	}
	return func() {
		if r := f.answersRule(); missing {
			c.step("add "+ruleText(r), func() error { return netlink.RuleAdd(r) }, func() error { return netlink.RuleDel(r) })
		}
	}
}

func ruleText(r *netlink.Rule) string {
	return fmt.Sprintf("routing rule for mark %#x", r.Mark)
}
