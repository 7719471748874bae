// Package redirect plans, installs, checks and removes the iptables rules that send a network namespace's traffic to a proxy, and recovers a redirected socket's original destination.
// What listens on the ports and does something with the traffic it leaves to others.
//
// A [Config] becomes a [Plan], which is text: iptables-restore input per address
// family, and a route. Nothing but Plan.Apply, [Remove] and Plan.Verify touches
// the system, and they act on the network namespace of the calling thread
// ([InNamespace]).
//
// # What is redirected
//
// Outbound TCP goes to 127.0.0.1 or ::1 on OutboundPort, DNS on port 53 to DNSPort
// there, inbound TCP to InboundPort on the address of the interface it came in by.
// Forwarded traffic, UDP other than DNS and the loopback addresses are left alone.
//
// # How the proxy's own connections pass
//
// By a socket mark ([UpstreamControl], [InboundControl]). Setting one needs
// CAP_NET_ADMIN or, since Linux 5.17, CAP_NET_RAW, so an app without these cannot
// pass, whatever its uid. Note that container engines give CAP_NET_RAW to root by default;
// drop it where the app is not trusted.
//
// Where the proxy has neither capability, Config.ProxyUID lets pass what has
// both its uid and a DSCP code point that the proxy sets on its sockets. Sharing
// the uid by accident therefore does not bypass the proxy. A program that has
// the uid and sets the code point on purpose does: uid mode cannot close that,
// since neither needs a capability. Mark mode does.
//
// # What is left to the proxy
//
// Conntrack forgets a half-closed connection after 60 s of silence
// (nf_conntrack_tcp_timeout_close_wait), and with it where the last FIN should go.
// The sysctl is not changed, because after a crash nobody would change it back:
// connections that were redirected want TCP keepalive of less than [MaxKeepAlive].
package redirect

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// MaxKeepAlive is the silence after which conntrack forgets a half-closed
// connection unless the kernel is told otherwise. Keepalive must be shorter.
const MaxKeepAlive = 60 * time.Second

// Socket marks of the proxy. The first spells "weir".
const (
	DefaultMark        uint32 = 0x77656972
	DefaultInboundMark        = DefaultMark + 1
)

// Code points of the proxy's sockets in uid mode, from the pool for experimental
// and local use (RFC 2474 section 6, xxxx11). They are cleared before a packet leaves.
const (
	upstreamDSCP = 0x2b
	inboundDSCP  = 0x2f
)

// Mode says which of the kernel's two iptables back ends to use.
type Mode string

// The modes. ModeAuto follows the back end that already holds rules, else takes
// the one that works, nft first.
const (
	ModeAuto   Mode = "auto"
	ModeNFT    Mode = "nft"
	ModeLegacy Mode = "legacy"
)

// IPv6Mode says whether IPv6 is redirected too.
type IPv6Mode string

// The IPv6 modes. IPv6Auto redirects it where the kernel has IPv6 and says so
// where it has not; IPv6On fails there; IPv6Off lets it pass, and says so.
const (
	IPv6Auto IPv6Mode = "auto"
	IPv6On   IPv6Mode = "on"
	IPv6Off  IPv6Mode = "off"
)

// Config says what is to be redirected where. DefaultConfig has the usual values.
type Config struct {
	OutboundPort uint16 // where outbound TCP goes, on loopback
	InboundPort  uint16 // where inbound TCP goes
	DNSPort      uint16 // where DNS goes, UDP and TCP, on loopback
	AdminPort    uint16 // never redirected inbound, like the three above; 0 for none

	Mark        uint32 // of the proxy's connections to others; they pass
	InboundMark uint32 // of the proxy's connections to its own app; they pass, also to the namespace's own addresses

	// ProxyUID adds a second way to pass, by uid and DSCP, for a proxy that may
	// not set marks; see the package comment for what it cannot prevent. Not 0.
	ProxyUID *uint32

	Scope // what of all that; everything unless it says otherwise

	// PreserveSource brings the app's answers back to a proxy that connects to it
	// from its callers' addresses, which are not of this machine. It needs marks.
	PreserveSource bool

	DNS  bool // capture port 53
	IPv6 IPv6Mode
	Mode Mode

	// The virtual ranges: TCP to them is always redirected, all else to them is
	// rejected, and a route makes the kernel try. The zero value means none.
	VirtualIPv4 netip.Prefix
	VirtualIPv6 netip.Prefix
}

// DefaultConfig is weir's ports, marks and virtual ranges, with DNS.
func DefaultConfig() Config {
	return Config{
		OutboundPort: 15001,
		InboundPort:  15006,
		DNSPort:      15053,
		AdminPort:    15000,
		Mark:         DefaultMark,
		InboundMark:  DefaultInboundMark,
		DNS:          true,
		IPv6:         IPv6Auto,
		Mode:         ModeAuto,
		VirtualIPv4:  netip.MustParsePrefix("240.240.0.0/16"),
		VirtualIPv6:  netip.MustParsePrefix("fd77:6569:7200::/48"),
	}
}

// ConfigError is what NewPlan returns: which field cannot be, and why.
type ConfigError struct {
	Field   string // of Config
	Problem string
}

func (e *ConfigError) Error() string { return "redirect: " + e.Field + ": " + e.Problem }

func bad(field, format string, args ...any) error {
	return &ConfigError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// check names the first field that cannot be. It also brings lists into one
// order, so that the same settings give the same text.
func (c *Config) check() error {
	if err := c.checkPorts(); err != nil {
		return err
	}
	switch {
	case c.Mark == 0:
		return bad("Mark", "0 is the mark of every connection")
	case c.InboundMark == 0 || c.InboundMark == c.Mark:
		return bad("InboundMark", "%#x, want neither 0 nor Mark", c.InboundMark)
	case c.ProxyUID != nil && *c.ProxyUID == 0:
		return bad("ProxyUID", "0 would exempt what runs as root; a proxy that is root has marks")
	case c.PreserveSource && c.ProxyUID != nil:
		return bad("PreserveSource", "answers are told by the mark, which a proxy told by its uid does not set")
	case !slices.Contains([]Mode{ModeAuto, ModeNFT, ModeLegacy}, c.Mode):
		return bad("Mode", "%q, want auto, nft or legacy", c.Mode)
	case !slices.Contains([]IPv6Mode{IPv6Auto, IPv6On, IPv6Off}, c.IPv6):
		return bad("IPv6", "%q, want auto, on or off", c.IPv6)
	}
	if err := c.Scope.check(c.DNS); err != nil {
		return err
	}
	return c.checkAddresses()
}

func (c *Config) checkPorts() error {
	used := map[uint16]string{}
	for _, p := range []struct {
		field    string
		port     uint16
		optional bool
	}{
		{"OutboundPort", c.OutboundPort, false}, {"InboundPort", c.InboundPort, false},
		{"DNSPort", c.DNSPort, !c.DNS}, {"AdminPort", c.AdminPort, true},
	} {
		if p.port == 0 && p.optional {
			continue
		}
		if p.port == 0 {
			return bad(p.field, "0 is not a port")
		}
		if other, taken := used[p.port]; taken {
			return bad(p.field, "%d is the %s too", p.port, other)
		}
		used[p.port] = p.field
	}
	return nil
}

func (c *Config) checkAddresses() error {
	if v := c.VirtualIPv4; v.IsValid() && (!v.Addr().Is4() || v.Bits() == 0) {
		return bad("VirtualIPv4", "%s is not an IPv4 range", v)
	}
	if v := c.VirtualIPv6; v.IsValid() && (!v.Addr().Is6() || v.Addr().Is4In6() || v.Bits() == 0) {
		return bad("VirtualIPv6", "%s is not an IPv6 range", v)
	}
	if c.VirtualIPv4.IsValid() {
		c.VirtualIPv4 = c.VirtualIPv4.Masked()
	}
	if c.VirtualIPv6.IsValid() {
		c.VirtualIPv6 = c.VirtualIPv6.Masked()
	}
	return nil
}
