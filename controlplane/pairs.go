package controlplane

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

const (
	// maxPairs bounds the pairs that rules allow and nobody used.
	maxPairs = 2000
	// unrenewed is how long before its end a workload's certificate should have been
	// renewed long ago: that is done at half of its life. Short ones have a quarter.
	unrenewed = time.Hour
)

// pairKey names who calls whom.
type pairKey struct {
	from api.Party
	to   policy.ServiceName
}

// pairs works out the list of pairs.
type pairs struct {
	view    *view
	now     time.Time
	proxies map[policy.ServiceName][]api.ProxyStatus
	all     map[pairKey]*api.Pair
	in, out map[pairKey]*talk
	leftOut int
}

// talk is what was counted of a pair on one side.
type talk struct{ calls, plaintext, denied, unnamed uint64 }

// Pairs implements api.Observed.
func (o observed) Pairs(since time.Time) api.PairList {
	recorded, known, _ := o.flows.Since(since, nil)
	p := &pairs{
		view: o.view, now: time.Now(), proxies: map[policy.ServiceName][]api.ProxyStatus{},
		all: map[pairKey]*api.Pair{}, in: map[pairKey]*talk{}, out: map[pairKey]*talk{},
	}
	proxies := o.Proxies()
	for _, s := range proxies {
		name := policy.ServiceName{Namespace: s.Namespace, Name: s.ServiceName}
		p.proxies[name] = append(p.proxies[name], s)
	}
	for i := range recorded {
		p.saw(&recorded[i].FlowCount)
	}
	p.allowed()
	out := api.PairList{Control: o.cfg.name(), Elsewhere: o.others(), Since: unix(known), LeftOut: p.leftOut}
	for key, pair := range p.all {
		p.judge(key, pair)
		out.Pairs = append(out.Pairs, *pair)
	}
	slices.SortFunc(out.Pairs, func(a, b api.Pair) int {
		return cmp.Or(strings.Compare(a.Source.String(), b.Source.String()), strings.Compare(a.Destination.String(), b.Destination.String()))
	})
	for i := range proxies {
		out.Attention = append(out.Attention, attendProxy(&proxies[i], o.cfg.Version, p.now, o.unrenewedFor())...)
	}
	return out
}

// list has a pair listed.
func (p *pairs) list(key pairKey) {
	if p.all[key] == nil {
		p.all[key] = &api.Pair{Source: key.from, Destination: api.PartyOf(key.to), Why: []string{}}
	}
}

// saw takes a flow in.
func (p *pairs) saw(f *policy.FlowCount) {
	key, side := pairKey{api.PartyOf(f.Source), f.Destination}, p.in
	if f.SourceClass != "" {
		key.from = api.Party{Class: f.SourceClass}
	}
	if f.Direction == policy.FlowOutbound {
		key.to, side = f.Routed, p.out
	}
	p.list(key)
	if side[key] == nil {
		side[key] = &talk{}
	}
	t := side[key]
	t.calls += f.Calls
	if f.Encryption == policy.Plaintext && f.Why != policy.WhyUnreached {
		t.plaintext += f.Calls
	}
	if !f.Allowed {
		t.denied += f.Calls
		if f.Reason == policy.MTLSRequired {
			t.unnamed += f.Calls
		}
	}
}

// allowed adds the pairs that rules allow, of services that are there.
func (p *pairs) allowed() {
	services := p.view.names()
	rules := p.view.rules()
	for i := range rules {
		r := &rules[i]
		for _, from := range services {
			if !r.AppliesFrom(from) {
				continue
			}
			for _, to := range services {
				if from == to || !r.AppliesTo(to) {
					continue
				}
				key := pairKey{api.PartyOf(from), to}
				if p.all[key] == nil && len(p.all) >= maxPairs {
					p.leftOut++
					continue
				}
				p.list(key)
			}
		}
	}
}

// judge says whether a pair's calls are encrypted, and what should be otherwise.
func (p *pairs) judge(key pairKey, pair *api.Pair) {
	seen := cmp.Or(p.in[key], p.out[key], &talk{})
	pair.Calls, pair.Plaintext, pair.Denied = seen.calls, seen.plaintext, seen.denied
	from := policy.ServiceName{Namespace: key.from.Namespace, Name: key.from.ServiceName}
	for _, s := range slices.Concat(p.proxies[from], p.proxies[key.to]) {
		if e := s.CertificateExpires; e > 0 && (pair.CertEnds == 0 || e < pair.CertEnds) {
			pair.CertEnds = e
		}
	}
	svc, known := p.view.Service(key.to)
	if known {
		pair.Encrypted, pair.Why = p.expect(from, svc, pair)
	} else {
		pair.Encrypted, pair.Why = "no", []string{"the service is not registered any more"}
	}
	mode := p.view.settings().MTLSMode
	switch {
	case seen.unnamed > 0:
		attend(pair, "%d calls without a certificate were refused (mtls_mode strict)", seen.unnamed)
	case seen.plaintext > seen.denied && pair.Encrypted == "yes":
		attend(pair, "%d calls came in plain text", seen.plaintext-seen.denied)
	case seen.plaintext > seen.denied && key.from.Class != "" && mode == policy.Strict:
		attend(pair, "%d calls in plain text were allowed although mtls_mode is strict", seen.plaintext-seen.denied)
	}
}

func attend(pair *api.Pair, format string, args ...any) {
	pair.Attention = append(pair.Attention, fmt.Sprintf(format, args...))
}

// expect tells how a caller reaches a service as things are.
func (p *pairs) expect(from policy.ServiceName, svc *policy.Service, pair *api.Pair) (encrypted string, why []string) {
	switch {
	case from == policy.ServiceName{}:
		return "no", []string{"the caller shows no certificate"}
	case svc.Traffic.MTLS == policy.Disabled && len(svc.Traffic.PortModes) == 0:
		return "no", []string{"mtls_mode is disabled"}
	}
	var yes, no int
	for i := range svc.Endpoints {
		e := &svc.Endpoints[i]
		switch {
		case e.Host != "" && e.TLS != "":
			yes, why = yes+1, append(why, "tls to "+e.Host+", outside the mesh")
		case e.Host != "":
			no, why = no+1, append(why, "external: "+e.Host+" is outside the mesh")
		case e.Meshed && svc.Traffic.Mode(uint16(e.Port)) == policy.Disabled:
			no, why = no+1, append(why, fmt.Sprintf("mtls_mode of port %d is disabled", e.Port))
		case e.Meshed && svc.Traffic.SendsPlaintext(from, uint16(e.Port)):
			no, why = no+1, append(why, "a security rule disables mTLS for this caller")
		case e.Meshed:
			yes++
		default:
			text := fmt.Sprintf("no proxy beside endpoint %s", e.Addr())
			no, why = no+1, append(why, text)
			attend(pair, "%s", text)
		}
	}
	slices.Sort(why)
	why = slices.Compact(why)
	if len(p.proxies[from]) == 0 {
		text := "no proxy beside the caller"
		if pair.Calls > 0 {
			text += " is connected"
		}
		why = append(why, text)
		if yes > 0 && svc.Traffic.MTLS == policy.Strict {
			attend(pair, "%s, and mtls_mode strict lets nobody in without", text)
		}
		return "no", why
	}
	switch {
	case yes+no == 0:
		return "no", []string{"the service has no endpoint"}
	case no == 0 && len(why) == 0:
		return "yes", []string{"both have proxies"}
	case no == 0:
		return "yes", why
	case yes == 0:
		return "no", why
	}
	return "partly", why
}

// attendProxy tells what of a proxy needs attention.
func attendProxy(p *api.ProxyStatus, version string, now time.Time, soon time.Duration) (out []string) {
	for _, r := range p.Resources {
		if r.Refused != "" {
			out = append(out, fmt.Sprintf("proxy %s refused a change of %s and keeps what it had: %s", p.ID, r.Type, r.Refused))
		}
	}
	if p.Version != version && p.Version != "" {
		out = append(out, fmt.Sprintf("proxy %s is of version %s, the control plane of %s", p.ID, p.Version, version))
	}
	if e := p.CertificateExpires; e > 0 && time.Unix(int64(e), 0).Sub(now) < soon {
		out = append(out, fmt.Sprintf("the certificate of proxy %s ends at %s and was not renewed", p.ID, time.Unix(int64(e), 0).UTC().Format(time.RFC3339)))
	}
	return out
}

func (p *plane) unrenewedFor() time.Duration {
	if p.cfg.LeafTTL > 0 {
		return min(unrenewed, p.cfg.LeafTTL/4)
	}
	return unrenewed
}

// names lists the services that have endpoints, in order.
func (v *view) names() []policy.ServiceName {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var out []policy.ServiceName
	for name, s := range v.state.Services.All() {
		if len(s.Endpoints) > 0 {
			out = append(out, name)
		}
	}
	slices.SortFunc(out, compareNames)
	return out
}

func (v *view) rules() []policy.SecurityRule {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.state.Security
}
