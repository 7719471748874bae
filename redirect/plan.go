package redirect

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
)

// Plan is the change that a Config asks for, as data.
type Plan struct {
	cfg    Config
	family [2]familyPlan // IPv4, IPv6
}

// familyPlan is what one address family needs.
type familyPlan struct {
	v6      bool
	tables  []table
	virtual netip.Prefix // range that wants a route; not valid for none
	answers uint32       // mark of what is routed to lo, whatever its destination; 0 for none
}

// table is our part of one iptables table: chains of ours, their rules, and the
// rules in the kernel's own chains that lead to them.
type table struct {
	name   string
	chains []string
	jumps  []string // "OUTPUT -p tcp ... -j WEIR_OUTPUT"
	rules  []string // "WEIR_OUTPUT -p tcp ... -j RETURN", in order
}

// chainPrefix begins the name of every chain of ours, and of no one else's.
const chainPrefix = "WEIR_"

// NewPlan works out the change. It is pure: the same cfg gives the same text.
// The error is a *ConfigError.
func NewPlan(cfg Config) (*Plan, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	p := &Plan{cfg: cfg}
	for i, v6 := range []bool{false, true} {
		w := newWriter(cfg, v6)
		p.family[i] = familyPlan{v6: v6, virtual: w.virtual, tables: w.write()}
		if cfg.PreserveSource {
			p.family[i].answers = cfg.InboundMark
		}
	}
	return p, nil
}

// families is what the plan has for a kernel with or without IPv6.
func (p *Plan) families(ipv6 bool) []familyPlan {
	if ipv6 && p.cfg.IPv6 != IPv6Off {
		return p.family[:]
	}
	return p.family[:1]
}

// Print writes the plan as it would be applied where nothing is installed:
// iptables-restore input and ip(8) commands, which a person can run. It fails
// only when w does.
func (p *Plan) Print(w io.Writer) error {
	var b bytes.Buffer
	for _, f := range p.families(p.cfg.IPv6 != IPv6Off) {
		fmt.Fprintf(&b, "# %s-restore --noflush\n", f.command())
		b.WriteString(change(nil, f.tables))
		if f.virtual.IsValid() {
			fmt.Fprintf(&b, "# %s\n", f.routeCommand())
		}
		for _, c := range f.answerCommands() {
			fmt.Fprintf(&b, "# %s\n", c)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// command is the family's iptables.
func (f familyPlan) command() string {
	if f.v6 {
		return "ip6tables"
	}
	return "iptables"
}

// answerCommands are the rule and the route of answers as a person would add them.
func (f familyPlan) answerCommands() []string {
	if f.answers == 0 {
		return nil
	}
	ip, all := "ip", "0.0.0.0/0"
	if f.v6 {
		ip, all = "ip -6", "::/0"
	}
	return []string{
		fmt.Sprintf("%s route add local %s dev lo table %d proto %d", ip, all, answersTable, routeProtocol),
		fmt.Sprintf("%s rule add priority %d fwmark %#x lookup %d protocol %d", ip, answersPriority, f.answers, answersTable, routeProtocol),
	}
}

// routeCommand is the route as a person would add it.
func (f familyPlan) routeCommand() string {
	if f.v6 {
		return fmt.Sprintf("ip -6 route add local %s dev lo proto %d", f.virtual, routeProtocol)
	}
	return fmt.Sprintf("ip route add %s dev lo proto %d", f.virtual, routeProtocol)
}
