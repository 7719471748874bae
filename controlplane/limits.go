package controlplane

import (
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// inboundLimitsLocked adds the limits of a service that its own proxies count,
// and tells whether one of them goes by a token.
func (v *view) inboundLimitsLocked(in *policy.Inbound) (needsSecret bool) {
	traffic := v.state.Settings.TrafficFor(in.Service)
	for _, l := range traffic.Limits() {
		if l.CountedByReceiver() {
			in.RateLimits = append(in.RateLimits, l)
			needsSecret = needsSecret || l.NeedsToken()
		}
	}
	svc := v.state.Services.Get(in.Service)
	if svc == nil || !policy.LimitsByReceiver(svc.Rules) {
		return needsSecret
	}
	in.Routes = policy.WithWindows(svc.Rules, duration(v.state.Settings.Security.RateLimiting.Window))
	for i := range in.Routes {
		needsSecret = needsSecret || in.Routes[i].Limit(0).NeedsToken()
	}
	return needsSecret
}

// limitsInbound tells whether a change of a service's rules changes what its own
// proxies count.
func limitsInbound(old, now *store.Service) bool {
	return old != nil && policy.LimitsByReceiver(old.Rules) || now != nil && policy.LimitsByReceiver(now.Rules)
}
