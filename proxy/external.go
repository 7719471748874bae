package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/resolve"
)

// Services outside the mesh have endpoints with a host name. This proxy looks it
// up, and not the control plane: from here is where the traffic goes, a name may
// lead elsewhere from elsewhere, and it goes on while the control plane is away.

// outside makes the resolver of hosts. It asks the name servers that DNS queries
// are forwarded to, past the redirection.
func (p *Proxy) newNames() (*resolve.Resolver, error) {
	servers := p.cfg.ResolvConf.Nameservers
	lookup := &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if n := len(servers); n > 0 {
			address = servers[rand.IntN(n)].String()
		}
		return p.toMesh.DialContext(ctx, network, address)
	}}
	return resolve.New(resolve.Config{
		Lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return lookup.LookupNetIP(ctx, "ip", host+".") // the dot: no search list
		},
		Changed: p.hostMoved, Log: p.log.Named("resolve"),
	})
}

// withAddresses gives a service's endpoints with an address each: one outside the
// mesh as often as its name has addresses, which are known already. missing are
// the names of which none are.
func (p *Proxy) withAddresses(svc *policy.Service) (targets []policy.Target, missing []string) {
	if !isExternal(svc) {
		return svc.Endpoints, nil
	}
	for _, t := range svc.Endpoints {
		if t.Host == "" {
			targets = append(targets, t)
			continue
		}
		addrs := p.names.Addrs(t.Host)
		if len(addrs) == 0 {
			missing = append(missing, t.Host)
		}
		for _, a := range addrs {
			at := t
			at.ID, at.IP = t.ID+"@"+a.String(), a.String()
			targets = append(targets, at)
		}
	}
	return targets, missing
}

func isExternal(svc *policy.Service) bool {
	for i := range svc.Endpoints {
		if svc.Endpoints[i].Host != "" {
			return true
		}
	}
	return false
}

// found waits for the addresses of a service's hosts, as far as none are known,
// and gives the service with them.
func (p *Proxy) found(l *loop.Loop, d *destination) *destination {
	if len(d.missing) == 0 {
		return d
	}
	l.Block(func() { d = p.lookUp(p.hard, d) })
	return d
}

// lookUp does it off the loop.
func (p *Proxy) lookUp(ctx context.Context, d *destination) *destination {
	name, some := d.svc.Name, false
	for _, host := range d.missing {
		if _, err := p.names.Want(ctx, host); err != nil {
			p.log.Debug("a host outside the mesh", zap.Stringer("service", name), zap.Error(err))
			continue
		}
		some = true
	}
	if some {
		p.compileAgain(name)
	}
	if again := p.dests.Load().byName[name]; again != nil {
		return again
	}
	return d
}

// compileAgain puts a service as it is known in force anew.
func (p *Proxy) compileAgain(name policy.ServiceName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.dests.Load().byName[name]
	if d == nil {
		return
	}
	if err := p.setServiceLocked(name, d.svc); err != nil {
		p.log.Warn("the new addresses of a host cannot be used; the old stay", zap.Stringer("service", name), zap.Error(err))
	}
}

// hostMoved puts new addresses of a host in force.
func (p *Proxy) hostMoved(host string) {
	for name, d := range p.dests.Load().byName {
		for i := range d.svc.Endpoints {
			if d.svc.Endpoints[i].Host == host {
				p.compileAgain(name)
				break
			}
		}
	}
}

// forgetHosts lets the resolver forget the names that no service has any more.
func (p *Proxy) forgetHosts() {
	inUse := map[string]bool{}
	for _, d := range p.dests.Load().byName {
		for i := range d.svc.Endpoints {
			if host := d.svc.Endpoints[i].Host; host != "" {
				inUse[host] = true
			}
		}
	}
	p.names.Keep(inUse)
}

// serviceFor finds the service that a host name is of, or that stands for the
// host.
func (p *Proxy) serviceFor(l *loop.Loop, host string) *destination {
	if name, ok := p.meshName(host); ok {
		if d := p.destination(l, name); d != nil {
			return d
		}
	}
	host, ok := outsideName(host)
	if !ok {
		return nil
	}
	var name policy.ServiceName
	l.Block(func() { name, ok = p.feed.ServiceFor(p.hard, host) })
	if !ok {
		return nil
	}
	return p.destination(l, name)
}

// lookupHost answers the DNS server about names that are of no service.
func (p *Proxy) lookupHost(ctx context.Context, host string) (v4, v6 netip.Addr, ok bool) {
	name, ok := p.feed.ServiceFor(ctx, host)
	if !ok {
		return v4, v6, false
	}
	return p.lookupName(ctx, name.Namespace, name.Name)
}

// origin is TLS that the proxy begins for the app.
type origin struct {
	from     policy.External // what cfg was made of
	protocol string
	cfg      *tls.Config
}

// systemRoots are read once, and not by the first handshake: it would hold up its
// loop for as long.
var systemRoots = sync.OnceValues(x509.SystemCertPool)

// newOrigin gives nil for an endpoint to which the app's bytes go as they are,
// and the old one where it is the same.
func newOrigin(t *policy.Target, old *origin) (*origin, error) {
	if t.TLS == "" {
		return nil, nil
	}
	if old != nil && old.from == t.External && old.protocol == t.Protocol {
		return old, nil
	}
	o := &origin{from: t.External, protocol: t.Protocol, cfg: &tls.Config{
		ServerName: t.TLSName(), MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true,
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}}
	switch t.Protocol {
	case "http":
		o.cfg.NextProtos = []string{"http/1.1"}
	case "http2", "grpc":
		o.cfg.NextProtos = []string{"h2"}
	}
	if t.CA == "" {
		roots, err := systemRoots()
		o.cfg.RootCAs = roots
		if err != nil {
			return nil, fmt.Errorf("tls: the system's roots cannot be read: %w; give the endpoint a ca", err)
		}
		return o, nil
	}
	o.cfg.RootCAs = x509.NewCertPool()
	if !o.cfg.RootCAs.AppendCertsFromPEM([]byte(t.CA)) {
		return nil, errors.New("ca: holds no certificate in PEM")
	}
	return o, nil
}

// outside takes over what an endpoint outside the mesh has of its own.
func (e *endpoint) outside(t *policy.Target, old *endpoint) (err error) {
	if t.Host == "" {
		return nil
	}
	e.host, e.hostField, e.external = t.Host, hostField(t), t.External
	var was *origin
	if old != nil {
		was = old.origin
	}
	e.origin, err = newOrigin(t, was)
	return err
}

// present says to an endpoint outside the mesh the name that its server expects,
// where the app called the service by the mesh's, or by another of its hosts. Who
// calls is not told to it.
func (o *outbound) present(x exchange, e *endpoint) {
	host := hostOnly(x.Host())
	if host == e.host {
		return
	}
	name, isMesh := o.p.meshName(host)
	if isMesh && name == o.service.svc.Name || o.service.hasHost(host) {
		x.Set("Host", e.hostField)
	}
}

// hostOnly is a Host field without its port (RFC 9112 section 3.2), in lower case.
func hostOnly(field string) string {
	if i := strings.LastIndexByte(field, ':'); i >= 0 && !strings.HasSuffix(field, "]") {
		field = field[:i]
	}
	return strings.ToLower(strings.TrimSuffix(field, "."))
}

func (d *destination) hasHost(host string) bool {
	for i := range d.svc.Endpoints {
		if d.svc.Endpoints[i].Host == host {
			return true
		}
	}
	return false
}

// hostField is the Host field for an endpoint: with the port where it is not the
// scheme's.
func hostField(t *policy.Target) string {
	usual := 80
	if t.TLS == policy.TLSOriginate {
		usual = 443
	}
	if t.Port == usual {
		return t.Host
	}
	return t.Host + ":" + strconv.Itoa(t.Port)
}

// outsideName is a name as one of a host outside the mesh is written.
func outsideName(host string) (string, bool) {
	host = hostOnly(host)
	if _, err := netip.ParseAddr(host); err == nil || !strings.Contains(host, ".") || len(host) > 253 {
		return "", false
	}
	return host, true
}

// speaksTLS tells whether an app speaks TLS itself, which is not to be wrapped
// again: a handshake record (RFC 8446 section 5.1).
func speaksTLS(peeked []byte) bool { return len(peeked) > 1 && peeked[0] == 0x16 && peeked[1] == 3 }
