package policy

import (
	"maps"
	"slices"
	"strconv"
)

// NamespaceRules are what holds for the services of one namespace in the place of
// the mesh's settings. Zero values leave those in force.
type NamespaceRules struct {
	MTLSMode      MTLSMode `json:"mtls_mode,omitempty"`
	DefaultPolicy string   `json:"default_policy,omitempty"` // deny or allow
}

// Modes are the mTLS modes of a service's ports.
type Modes struct {
	MTLS      MTLSMode
	PortModes map[uint16]MTLSMode // of those that differ; may be nil
}

// Mode is the mode of a port.
func (m Modes) Mode(port uint16) MTLSMode {
	if own, ok := m.PortModes[port]; ok {
		return own
	}
	return m.MTLS
}

// Mode is the mode of a port.
func (in *Inbound) Mode(port uint16) MTLSMode { return Modes{in.MTLS, in.PortModes}.Mode(port) }

// Mode is the mode of a port.
func (t *Traffic) Mode(port uint16) MTLSMode { return Modes{t.MTLS, t.PortModes}.Mode(port) }

// Equal tells whether two are the same.
func (m Modes) Equal(o Modes) bool { return m.MTLS == o.MTLS && maps.Equal(m.PortModes, o.PortModes) }

// TakesPlaintext tells whether a connection without mTLS may be let in, to whatever
// port.
func (in *Inbound) TakesPlaintext() bool {
	for _, m := range in.PortModes {
		if m != Strict {
			return true
		}
	}
	return in.MTLS != Strict || slices.ContainsFunc(in.Rules, func(r InboundRule) bool { return r.MTLSMode == Permissive || r.MTLSMode == Disabled })
}

// NeedsAddresses tells whether a rule of the service's is to know its sources'
// addresses: callers without a certificate are told by nothing else. A rule that
// allows does where mTLS is disabled; one that denies or audits wherever it may be
// left out.
func (in *Inbound) NeedsAddresses(r *SecurityRule) bool {
	if r.Does() != Allow {
		return !r.FromAnyone() && in.TakesPlaintext()
	}
	if r.MTLSMode != "" {
		return r.MTLSMode == Disabled
	}
	for _, m := range in.PortModes {
		if m == Disabled {
			return true
		}
	}
	return in.MTLS == Disabled
}

// ModesFor gives the modes of a service: the most specific setting wins, of the
// port, the service, the namespace, the mesh.
func (s *Settings) ModesFor(name ServiceName) Modes {
	m := Modes{MTLS: s.MTLSMode}
	if own := s.Namespaces[name.Namespace].MTLSMode; own != "" {
		m.MTLS = own
	}
	service, ok := s.ServiceSettings(name)
	if !ok {
		return m
	}
	if service.MTLSMode != "" {
		m.MTLS = service.MTLSMode
	}
	for text, mode := range service.MTLSPorts {
		if port, err := strconv.ParseUint(text, 10, 16); err == nil {
			if m.PortModes == nil {
				m.PortModes = map[uint16]MTLSMode{}
			}
			m.PortModes[uint16(port)] = mode
		}
	}
	return m
}

// AnyMode tells whether one of the modes is set anywhere.
func (s *Settings) AnyMode(modes ...MTLSMode) bool {
	set := slices.Contains(modes, s.MTLSMode)
	for _, n := range s.Namespaces {
		set = set || slices.Contains(modes, n.MTLSMode)
	}
	for _, v := range s.Services {
		set = set || slices.Contains(modes, v.MTLSMode)
		for _, m := range v.MTLSPorts {
			set = set || slices.Contains(modes, m)
		}
	}
	return set
}

// AllowsByDefault tells what holds for calls to services of a namespace that no
// rule decides about. Whatever is not known to allow denies.
func (s *Settings) AllowsByDefault(namespace string) bool {
	if own := s.Namespaces[namespace].DefaultPolicy; own != "" {
		return own == "allow"
	}
	return s.DefaultPolicy == "allow"
}

func (s *Settings) validateNamespaces(p *Problems) {
	for _, name := range slices.Sorted(maps.Keys(s.Namespaces)) {
		n, path := s.Namespaces[name], join("namespaces", name)
		p.addErr(path, checkLabel("namespace", name))
		if n.MTLSMode != "" {
			checkMode(p, join(path, "mtls_mode"), n.MTLSMode)
		}
		if n.DefaultPolicy != "" {
			p.oneOf(join(path, "default_policy"), n.DefaultPolicy, "deny", "allow")
		}
	}
}

func (v *ServiceSettings) validateModes() Problems {
	var p Problems
	if v.MTLSMode != "" {
		checkMode(&p, "mtls_mode", v.MTLSMode)
	}
	for _, text := range slices.Sorted(maps.Keys(v.MTLSPorts)) {
		path := join("mtls_ports", text)
		if port, err := strconv.Atoi(text); err != nil || port < 1 || port > 65535 || strconv.Itoa(port) != text {
			p.add(path, "%q is not a port in 1..65535", text)
		}
		checkMode(&p, path, v.MTLSPorts[text])
	}
	return p
}

func checkMode(p *Problems, path string, m MTLSMode) {
	p.oneOf(path, string(m), string(Strict), string(Permissive), string(Disabled))
}

// Looser gives the one of two modes that takes more: what Strict takes Permissive
// takes, and what that takes Disabled does.
func (m MTLSMode) Looser(o MTLSMode) MTLSMode {
	for _, mode := range []MTLSMode{Disabled, Permissive} {
		if m == mode || o == mode {
			return mode
		}
	}
	return Strict
}
