package proxy

import (
	"net/netip"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Each loop counts the flows it carries in a table of its own, and hands them
// over now and then: a call takes no lock. The feed sends what was handed over.

// handOverEvery is how long a flow may wait in its loop's table. A loop that
// carries nothing is not woken.
const handOverEvery = 2 * time.Second

// maxReportedFlows bounds one report; the rest follows in the next.
const maxReportedFlows = 500

// countFlow counts one call on its loop.
func (p *Proxy) countFlow(shard int, f *policy.Flow, target string, failed bool) {
	if p.flows[shard].Record(f, target, failed) {
		p.loops[shard].AfterFunc(handOverEvery, func() { p.pending.Add(p.flows[shard].Drain()) })
	}
}

// reportFlows adds what was handed over to a report.
func (p *Proxy) reportFlows(r *policy.Report) {
	r.Flows, r.FlowsLeftOut = p.pending.Take(maxReportedFlows)
}

// count counts one request to the app.
func (r *inboundRequests) count(x hop, status int) {
	if r.in.trusted || r.decided.Reason == policy.ByControl {
		return // the app itself, and who looks whether it is well
	}
	r.in.inboundFlow(&r.flow, r.decided)
	r.flow.Token = r.tokenAsked && r.noToken == ""
	r.flow.Protocol, r.flow.Method = x.protocol(), x.Method()
	r.in.p.countFlow(r.in.lc.Shard(), &r.flow, x.Target(), status == 0 || status >= 500)
	r.flow.Method = "" // it is the request's
}

// countOpaque counts one connection to the app.
func (i *inbound) countOpaque(v policy.Verdict, failed bool) {
	if v.Reason == policy.ByControl {
		return
	}
	var f policy.Flow
	i.inboundFlow(&f, v)
	f.Protocol = "tcp"
	i.p.countFlow(i.lc.Shard(), &f, "", failed)
}

// inboundFlow fills in what does not differ from request to request.
func (i *inbound) inboundFlow(f *policy.Flow, v policy.Verdict) {
	*f = policy.Flow{
		Direction: policy.FlowInbound, Source: i.caller.Name, Destination: i.p.cfg.Service, Port: i.dst.Port(),
		Allowed: v.Allow, Reason: v.Reason, Rule: v.Rule, Encryption: policy.EncryptedMTLS,
	}
	if !i.caller.Verified {
		f.SourceClass = addressClass(i.caller.Addr)
		f.Encryption, f.Why = policy.Plaintext, policy.WhyNoCertificate
	}
}

func addressClass(a netip.Addr) string {
	if a = a.Unmap(); a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return policy.ClassPrivate
	}
	return policy.ClassPublic
}

// count counts one request of the app. The path that it asked for tells which
// rule is meant for it, whatever the rule made of it.
func (o *outbound) count(x hop, status int) {
	o.p.outboundFlow(&o.flow, o.dest, o.service, o.endpoint)
	o.flow.Port = o.lc.OriginalDst().Port()
	o.flow.Protocol, o.flow.Method = x.protocol(), o.request.Method
	o.flow.Route, o.flow.Subset = o.route.Rule, o.route.Subset
	o.p.countFlow(o.lc.Shard(), &o.flow, o.request.Path, status == 0 || status >= 500)
	o.flow.Method = ""
}

// countRelay counts one connection of the app to a service; without an endpoint
// it failed.
func (p *Proxy) countRelay(shard int, port uint16, d *destination, e *endpoint, ownTLS bool) {
	var f policy.Flow
	p.outboundFlow(&f, d, d, e)
	f.Port, f.Protocol = port, "tcp"
	if e != nil && !e.mtls && ownTLS {
		f.Encryption = policy.EncryptedTLS
	}
	p.countFlow(shard, &f, "", e == nil)
}

// outboundFlow fills in who was asked for, who got it and how.
func (p *Proxy) outboundFlow(f *policy.Flow, asked, got *destination, e *endpoint) {
	*f = policy.Flow{Direction: policy.FlowOutbound, Source: p.cfg.Service, Destination: asked.svc.Name, Allowed: true, Routed: got.svc.Name}
	switch {
	case e == nil:
		f.Encryption, f.Why = policy.Plaintext, policy.WhyUnreached
	case e.mtls:
		f.Encryption = policy.EncryptedMTLS
	case e.host != "":
		f.Encryption, f.Why = policy.Plaintext, policy.WhyExternal
		if e.origin != nil {
			f.Encryption = policy.EncryptedTLS
		}
	case got.svc.Traffic.SendsPlaintext(p.cfg.Service, e.addr.Port()):
		f.Encryption, f.Why = policy.Plaintext, policy.WhyDisabled
	default:
		f.Encryption, f.Why = policy.Plaintext, policy.WhyNoProxy
	}
}
