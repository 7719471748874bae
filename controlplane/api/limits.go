package api

import "github.com/weir-mesh/weir/policy"

// rateLimitBody is a rate limit as it is written and shown.
type rateLimitBody struct {
	Name      *string  `json:"name,omitempty" required:"false" doc:"in the RateLimit fields; left out, the rule's id"`
	Limit     int      `json:"limit" doc:"requests in the window" example:"100"`
	Window    *float64 `json:"window,omitempty" required:"false" doc:"seconds; left out, the mesh's window"`
	Key       *string  `json:"key,omitempty" required:"false" doc:"source, header:NAME, jwt:CLAIM, or several with commas between; left out, all requests together"`
	Algorithm *string  `json:"algorithm,omitempty" required:"false" doc:"sliding_window or token_bucket; left out, sliding_window"`
	Burst     *int     `json:"burst,omitempty" required:"false" doc:"depth of a token bucket; left out, limit"`
	Scope     *string  `json:"scope,omitempty" required:"false" doc:"proxy: each proxy counts for itself; mesh: all together; left out, proxy"`
}

// limit gives nil for nil.
func (b *rateLimitBody) limit() *policy.ServiceLimit {
	if b == nil {
		return nil
	}
	l := &policy.ServiceLimit{Limit: b.Limit}
	override(&l.Name, b.Name)
	override(&l.Window, b.Window)
	override(&l.Key, b.Key)
	override(&l.Algorithm, b.Algorithm)
	override(&l.Burst, b.Burst)
	override(&l.Scope, b.Scope)
	return l
}

func newRateLimitBody(l *policy.ServiceLimit) *rateLimitBody {
	if l == nil {
		return nil
	}
	return &rateLimitBody{
		Name: given(l.Name), Limit: l.Limit, Window: given(l.Window), Key: given(l.Key),
		Algorithm: given(l.Algorithm), Burst: given(l.Burst), Scope: given(l.Scope),
	}
}
