package wire

import (
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weir-mesh/weir/policy"
)

// handle puts what a rule does with requests into its message.
func (r *TrafficRule) handle(h *policy.Handling) {
	if w := h.Rewrite; w != nil {
		r.Rewrite = &Rewrite{PathPrefix: w.PathPrefix, Path: w.Path, Host: w.Host}
	}
	r.RequestHeaders, r.ResponseHeaders = fromHeaderChanges(h.RequestHeaders), fromHeaderChanges(h.ResponseHeaders)
	if d := h.Redirect; d != nil {
		r.Redirect = &Redirect{Status: natural(d.Status), Scheme: d.Scheme, Host: d.Host, Path: d.Path, PathPrefix: d.PathPrefix}
	}
	if d := h.DirectResponse; d != nil {
		r.DirectResponse = &DirectResponse{Status: natural(d.Status), Body: d.Body, ContentType: d.ContentType}
	}
	if m := h.Mirror; m != nil {
		r.Mirror = &Mirror{Service: m.Service, Subset: m.Subset, Percent: m.Percent}
	}
	if g := h.Hedge; g != nil {
		r.Hedge = &Hedge{AfterSeconds: g.After, Percentile: g.Percentile, Percent: g.Percent}
	}
	r.Fault = fromFault(h.Fault)
	r.PerTryTimeoutSeconds, r.IdleTimeoutSeconds = h.PerTryTimeout, h.IdleTimeout
	r.RetryOn, r.RetryDelaySeconds, r.RetryMaxDelaySeconds = h.RetryOn, h.RetryDelay, h.RetryMaxDelay
	for _, code := range h.RetryStatusCodes {
		r.RetryStatusCodes = append(r.RetryStatusCodes, natural(code))
	}
}

// natural is what a message can hold of a number that Validate refuses below 0.
func natural(n int) uint32 { return uint32(max(n, 0)) }

// handling converts back; what is wrong with it is found by Validate.
func (r *TrafficRule) handling() policy.Handling {
	h := policy.Handling{
		RequestHeaders: r.GetRequestHeaders().policy(), ResponseHeaders: r.GetResponseHeaders().policy(), Fault: r.GetFault().policy(),
		PerTryTimeout: r.GetPerTryTimeoutSeconds(), IdleTimeout: r.GetIdleTimeoutSeconds(),
		RetryOn: r.GetRetryOn(), RetryDelay: r.RetryDelaySeconds, RetryMaxDelay: r.GetRetryMaxDelaySeconds(),
	}
	if w := r.GetRewrite(); w != nil {
		h.Rewrite = &policy.Rewrite{PathPrefix: w.GetPathPrefix(), Path: w.GetPath(), Host: w.GetHost()}
	}
	if d := r.GetRedirect(); d != nil {
		h.Redirect = &policy.Redirect{Status: int(d.GetStatus()), Scheme: d.GetScheme(), Host: d.GetHost(), Path: d.GetPath(), PathPrefix: d.GetPathPrefix()}
	}
	if d := r.GetDirectResponse(); d != nil {
		h.DirectResponse = &policy.DirectResponse{Status: int(d.GetStatus()), Body: d.GetBody(), ContentType: d.GetContentType()}
	}
	if m := r.GetMirror(); m != nil {
		h.Mirror = &policy.Mirror{Service: m.GetService(), Subset: m.GetSubset(), Percent: m.Percent}
	}
	if g := r.GetHedge(); g != nil {
		h.Hedge = &policy.Hedge{After: g.GetAfterSeconds(), Percentile: g.GetPercentile(), Percent: g.Percent}
	}
	for _, code := range r.GetRetryStatusCodes() {
		h.RetryStatusCodes = append(h.RetryStatusCodes, int(code))
	}
	return h
}

func fromHeaderChanges(h *policy.HeaderChanges) *HeaderChanges {
	if h == nil {
		return nil
	}
	return &HeaderChanges{Remove: h.Remove, Set: h.Set, Add: h.Add}
}

func (h *HeaderChanges) policy() *policy.HeaderChanges {
	if h == nil {
		return nil
	}
	return &policy.HeaderChanges{Remove: h.GetRemove(), Set: h.GetSet(), Add: h.GetAdd()}
}

func fromFault(f *policy.Fault) *Fault {
	if f == nil {
		return nil
	}
	out := &Fault{Header: f.Header}
	if d := f.Delay; d != nil {
		out.Delay = &FaultDelay{Seconds: d.Seconds, Percent: d.Percent}
	}
	if a := f.Abort; a != nil {
		out.Abort = &FaultAbort{Status: natural(a.Status), GrpcStatus: natural(a.GRPCStatus), Percent: a.Percent}
	}
	return out
}

func (f *Fault) policy() *policy.Fault {
	if f == nil {
		return nil
	}
	out := &policy.Fault{Header: f.GetHeader()}
	if d := f.GetDelay(); d != nil {
		out.Delay = &policy.FaultDelay{Seconds: d.GetSeconds(), Percent: d.Percent}
	}
	if a := f.GetAbort(); a != nil {
		out.Abort = &policy.FaultAbort{Status: int(a.GetStatus()), GRPCStatus: int(a.GetGrpcStatus()), Percent: a.Percent}
	}
	return out
}

func fromAffinity(a policy.Affinity) *Affinity {
	if a.Cookie == "" {
		return nil
	}
	return &Affinity{Cookie: a.Cookie, Ttl: durationpb.New(a.TTL), Path: a.Path}
}

func (a *Affinity) policy() policy.Affinity {
	if a.GetCookie() == "" {
		return policy.Affinity{}
	}
	return policy.Affinity{Cookie: a.GetCookie(), TTL: duration(a.GetTtl()), Path: a.GetPath()}
}
