package policy

import (
	"fmt"
	"net/netip"
	"strings"
)

// ServiceName names a service of the mesh. It is comparable and used as a key.
type ServiceName struct {
	Namespace string
	Name      string
}

// ControlPlane is the name under which the control plane itself calls
// workloads, for health checks. No workload can have it.
var ControlPlane = ServiceName{Namespace: "weir-system", Name: "control"}

// String gives "namespace/name", the form used in messages and resource names.
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// IsZero tells whether no service is named.
func (n ServiceName) IsZero() bool { return n == ServiceName{} }

// SPIFFE gives the service's SPIFFE ID in a trust domain.
func (n ServiceName) SPIFFE(trustDomain string) string {
	return "spiffe://" + trustDomain + "/ns/" + n.Namespace + "/sa/" + n.Name
}

// Validate checks that both parts are DNS labels (RFC 1123 section 2.1), which
// is what a name in DNS, a certificate and a SPIFFE ID can hold.
func (n ServiceName) Validate() error {
	if err := checkLabel("namespace", n.Namespace); err != nil {
		return err
	}
	return checkLabel("service", n.Name)
}

// ParseServiceName reads "namespace/name", "name.namespace" or "name"; the last
// is in the namespace given.
func ParseServiceName(s, namespace string) (ServiceName, error) {
	n := ServiceName{Namespace: namespace, Name: s}
	if ns, name, ok := strings.Cut(s, "/"); ok {
		n = ServiceName{Namespace: ns, Name: name}
	} else if name, ns, ok := strings.Cut(s, "."); ok {
		n = ServiceName{Namespace: ns, Name: name}
	}
	if err := n.Validate(); err != nil {
		return ServiceName{}, fmt.Errorf("service name %q: %w", s, err)
	}
	return n, nil
}

// ParseSPIFFEPath reads the path of a SPIFFE ID, "/ns/<namespace>/sa/<service>".
func ParseSPIFFEPath(path string) (ServiceName, error) {
	parts := strings.Split(path, "/")
	if len(parts) != 5 || parts[0] != "" || parts[1] != "ns" || parts[3] != "sa" {
		return ServiceName{}, fmt.Errorf("SPIFFE ID path %q is not /ns/<namespace>/sa/<service>", path)
	}
	n := ServiceName{Namespace: parts[2], Name: parts[4]}
	if err := n.Validate(); err != nil {
		return ServiceName{}, fmt.Errorf("SPIFFE ID path %q: %w", path, err)
	}
	return n, nil
}

func checkLabel(what, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is empty", what)
	case len(s) > 63:
		return fmt.Errorf("%s %q is longer than 63 characters", what, s)
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("%s %q starts or ends with a hyphen", what, s)
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("%s %q may hold only a-z, 0-9 and hyphens", what, s)
		}
	}
	return nil
}

// The ranges that virtual addresses of services are taken from: class E, which
// no network routes, and a unique local prefix (RFC 4193).
var (
	VirtualIPv4 = netip.MustParsePrefix("240.240.0.0/16")
	VirtualIPv6 = netip.MustParsePrefix("fd77:6569:7200::/48")
)

// MaxVirtual is the largest index VirtualAddrs takes: the IPv4 range without
// its first and last address.
const MaxVirtual = 1<<16 - 2

// VirtualAddrs gives the addresses with an index, 1..MaxVirtual.
func VirtualAddrs(index int) (v4, v6 netip.Addr, err error) {
	if index < 1 || index > MaxVirtual {
		return v4, v6, fmt.Errorf("virtual address %d is not in 1..%d: the range %s is used up", index, MaxVirtual, VirtualIPv4)
	}
	a4, a6 := VirtualIPv4.Addr().As4(), VirtualIPv6.Addr().As16()
	a4[2], a4[3] = byte(index>>8), byte(index)
	a6[14], a6[15] = byte(index>>8), byte(index)
	return netip.AddrFrom4(a4), netip.AddrFrom16(a6), nil
}

// IsVirtual tells whether an address is of the virtual ranges.
func IsVirtual(a netip.Addr) bool {
	a = a.Unmap()
	return VirtualIPv4.Contains(a) || VirtualIPv6.Contains(a)
}
