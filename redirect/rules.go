package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// writer turns a Config into rules for one address family. The rules are in the
// form in which iptables-save prints them, so that the two can be compared.
type writer struct {
	cfg      Config
	v6       bool
	loopback string       // the range that never leaves the machine
	virtual  netip.Prefix // not valid for none
	cur      *table
}

func newWriter(cfg Config, v6 bool) *writer {
	if v6 {
		return &writer{cfg: cfg, v6: true, loopback: "::1/128", virtual: cfg.VirtualIPv6}
	}
	return &writer{cfg: cfg, loopback: "127.0.0.0/8", virtual: cfg.VirtualIPv4}
}

// write lists the tables with nat last: what keeps redirected traffic whole is
// there before any is redirected.
func (w *writer) write() []table {
	var out []table
	for _, t := range []struct {
		name  string
		write func()
	}{{"raw", w.raw}, {"mangle", w.mangle}, {"filter", w.filter}, {"nat", w.nat}} {
		w.cur = &table{name: t.name}
		t.write()
		if len(w.cur.chains) > 0 {
			out = append(out, *w.cur)
		}
	}
	return out
}

// chain begins a chain of ours that the kernel's chain hook leads to.
func (w *writer) chain(name, hook, match, why string) {
	w.cur.chains = append(w.cur.chains, name)
	w.cur.jumps = append(w.cur.jumps, spec(hook, match, why, name))
}

// rule adds a rule to the chain that was begun last.
func (w *writer) rule(match, target, why string) {
	w.cur.rules = append(w.cur.rules, spec(w.cur.chains[len(w.cur.chains)-1], match, why, target))
}

func spec(chain, match, why, target string) string {
	if match != "" {
		match += " "
	}
	return fmt.Sprintf(`%s %s-m comment --comment "weir: %s" -j %s`, chain, match, why, target)
}

func redirectTo(port uint16) string { return fmt.Sprintf("REDIRECT --to-ports %d", port) }
func markIs(mark uint32) string     { return fmt.Sprintf("-m mark --mark %#x", mark) }
func uidIs(uid uint32, d int) string {
	return fmt.Sprintf("-m owner --uid-owner %d -m dscp --dscp %#x", uid, d)
}

// passes are the ways in which a connection to others shows that it is the proxy's.
func (w *writer) passes() []string {
	p := []string{markIs(w.cfg.Mark)}
	if w.cfg.ProxyUID != nil {
		p = append(p, uidIs(*w.cfg.ProxyUID, upstreamDSCP))
	}
	return p
}

// raw gives DNS conntrack zones of its own. NAT decides once per five-tuple, and a
// UDP port is used again within seconds: in one zone, an app's query from a port
// that the proxy used just before would bypass the proxy, and the proxy's from a
// port of the app would come back to itself. Zone 1 is the proxy and the servers,
// zone 2 the apps and the proxy. TCP needs none: a SYN replaces a closed entry.
func (w *writer) raw() {
	if !w.cfg.DNS {
		return
	}
	const toServer, fromServer = "-p udp -m udp --dport 53", "-p udp -m udp --sport 53"
	w.chain("WEIR_DNS_IN", "PREROUTING", "-p udp", "conntrack zones of DNS")
	w.rule(fromServer, "CT --zone 1", "a server answers the proxy")
	w.rule(toServer, "CT --zone 1", "a server here is asked from elsewhere")

	w.chain("WEIR_DNS_OUT", "OUTPUT", "-p udp", "conntrack zones of DNS")
	for _, pass := range w.passes() {
		w.rule(toServer+" "+pass, "CT --zone 1", "the proxy asks a server")
		w.rule(toServer+" "+pass, "RETURN", "the proxy asks a server")
	}
	for _, outside := range w.cfg.outside(toServer) {
		w.rule(outside, "CT --zone 1", "to be ignored, its DNS too")
		w.rule(outside, "RETURN", "to be ignored, its DNS too")
	}
	w.rule(toServer, "CT --zone 2", "an app asks, the proxy will answer")
	w.rule(fmt.Sprintf("-p udp -m udp --sport %d", w.cfg.DNSPort), "CT --zone 2", "the proxy answers an app")
	w.rule(fromServer, "CT --zone 1", "a server here answers")
}

func (w *writer) mangle() {
	w.chain("WEIR_PREROUTING", "PREROUTING", "", "before redirection")
	// What conntrack finds invalid skips NAT, reaches the app instead of the
	// proxy, and the app answers it with a reset.
	w.rule("-p tcp -m conntrack --ctstate INVALID", "DROP", "NAT does not see invalid packets, the app would reset them")
	if w.virtual.IsValid() {
		w.rule(fmt.Sprintf("! -i lo -d %s", w.virtual), "DROP", "virtual addresses are of this machine only")
	}
	if w.cfg.PreserveSource {
		// The mark of a packet that leaves decides its route; the connection
		// remembers it for the packets of the app, which has no mark.
		mark := w.cfg.InboundMark
		w.chain("WEIR_ANSWERS", "OUTPUT", "-p tcp", "answers to callers whose address the proxy took")
		w.rule(markIs(mark), fmt.Sprintf("CONNMARK --set-xmark %#x/0xffffffff", mark), "the proxy connects to the app")
		w.rule(fmt.Sprintf("-m connmark --mark %#x", mark), fmt.Sprintf("MARK --set-xmark %#x/0xffffffff", mark), "the app answers, to the proxy and not to the wire")
	}
	if w.cfg.ProxyUID == nil {
		return
	}
	w.chain("WEIR_POSTROUTING", "POSTROUTING", "", "after redirection")
	for _, d := range []int{upstreamDSCP, inboundDSCP} {
		w.rule(uidIs(*w.cfg.ProxyUID, d), "DSCP --set-dscp 0x00", "the code point has served")
	}
}

// filter sees only what nat has not redirected.
func (w *writer) filter() {
	if !w.virtual.IsValid() {
		return
	}
	unreachable := "REJECT --reject-with icmp-port-unreachable"
	if w.v6 {
		unreachable = "REJECT --reject-with icmp6-port-unreachable"
	}
	w.chain("WEIR_VIRTUAL", "OUTPUT", fmt.Sprintf("-d %s", w.virtual), "virtual addresses never leave the machine")
	w.rule("-p tcp", "REJECT --reject-with tcp-reset", "the proxy itself must not use them")
	w.rule("", unreachable, "only TCP and DNS have a proxy")
}

func (w *writer) nat() {
	w.inbound()
	w.outbound()
}

// inbound redirects what is addressed to this namespace. What it only forwards,
// for containers behind it, is not its app's.
func (w *writer) inbound() {
	w.chain("WEIR_INBOUND", "PREROUTING", "-p tcp -m addrtype --dst-type LOCAL", "inbound")
	own, _ := mergePorts(w.ownPorts()) // they were checked
	for _, ports := range multiport(own) {
		w.rule("-p tcp -m multiport --dports "+ports, "RETURN", "ports of the proxy itself")
	}
	for _, name := range w.cfg.InterfacesToIgnore {
		w.rule("-i "+name, "RETURN", "interfaces to ignore")
	}
	for _, cidr := range w.ofFamily(w.cfg.InboundCIDRsToIgnore) {
		w.rule("-s "+cidr.String(), "RETURN", "callers to ignore")
	}
	for _, ports := range multiport(w.cfg.InboundPortsToIgnore) {
		w.rule("-p tcp -m multiport --dports "+ports, "RETURN", "ports to ignore")
	}
	why := "all else to the inbound port"
	if len(w.cfg.InboundPortsToInclude) > 0 {
		why = "ports to include"
	}
	for _, match := range tcpPorts(w.cfg.InboundPortsToInclude) {
		w.rule(match, redirectTo(w.cfg.InboundPort), why)
	}
}

func (w *writer) ownPorts() []PortRange {
	var out []PortRange
	for _, p := range []uint16{w.cfg.OutboundPort, w.cfg.InboundPort, w.cfg.DNSPort, w.cfg.AdminPort} {
		if p != 0 {
			out = append(out, PortRange{p, p})
		}
	}
	return out
}

// outbound is decided by the first rule that matches.
func (w *writer) outbound() {
	w.chain("WEIR_OUTPUT", "OUTPUT", "", "outbound")
	w.proxyToApp()
	for _, pass := range w.passes() {
		w.proxyToOthers(pass)
	}
	for _, outside := range w.cfg.outside("") {
		w.rule(outside, "RETURN", "to be ignored, its DNS too")
	}
	if w.cfg.DNS {
		// Before loopback: resolvers are often there (127.0.0.53).
		for _, proto := range []string{"udp", "tcp"} {
			w.rule(fmt.Sprintf("-p %s -m %s --dport 53", proto, proto), redirectTo(w.cfg.DNSPort), "DNS, also to a resolver on loopback")
		}
	}
	w.rule("-d "+w.loopback, "RETURN", "loopback stays")
	if w.virtual.IsValid() {
		w.rule(fmt.Sprintf("-d %s -p tcp", w.virtual), redirectTo(w.cfg.OutboundPort), "virtual addresses, whatever is ignored")
	}
	for _, ports := range multiport(w.cfg.OutboundPortsToIgnore) {
		w.rule("-p tcp -m multiport --dports "+ports, "RETURN", "ports to ignore")
	}
	for _, cidr := range w.ofFamily(w.cfg.OutboundCIDRsToIgnore) {
		w.rule("-d "+cidr.String(), "RETURN", "destinations to ignore")
	}
	why := "all else to the outbound port"
	if len(w.cfg.OutboundPortsToInclude)+len(w.cfg.OutboundCIDRsToInclude) > 0 {
		why = "to include"
	}
	for _, match := range w.cfg.included(w.v6) {
		w.rule(match, redirectTo(w.cfg.OutboundPort), why)
	}
}

// ofFamily are the ranges of the family that is written.
func (w *writer) ofFamily(in []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(in), func(p netip.Prefix) bool { return p.Addr().Is6() != w.v6 })
}

func (w *writer) proxyToApp() {
	const why = "the proxy hands on to its own app"
	w.rule(markIs(w.cfg.InboundMark), "RETURN", why)
	if w.cfg.ProxyUID != nil {
		w.rule(uidIs(*w.cfg.ProxyUID, inboundDSCP), "RETURN", why)
	}
}

func (w *writer) proxyToOthers(pass string) {
	if w.virtual.IsValid() {
		w.rule(strings.TrimSpace(fmt.Sprintf("-d %s %s", w.virtual, pass)), "RETURN", "the proxy must not dial virtual addresses, filter rejects it")
	}
	// The app called its own service and the proxy chose this very endpoint.
	// Policy and identity are applied inbound, as for any other caller.
	w.rule(fmt.Sprintf("! -d %s -o lo -p tcp %s", w.loopback, pass), redirectTo(w.cfg.InboundPort), "own service, by the inbound port")
	w.rule(pass, "RETURN", "the proxy connects to others")
}
