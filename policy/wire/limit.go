package wire

import (
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weir-mesh/weir/policy"
)

func fromRateLimit(l policy.RateLimit) *RateLimit {
	return &RateLimit{
		Limit: uint32(max(l.Limit, 0)), Window: durationpb.New(l.Window), Key: l.Key,
		Name: l.Name, Burst: uint32(max(l.Burst, 0)), Mesh: l.Mesh,
	}
}

func (l *RateLimit) policy() policy.RateLimit {
	return policy.RateLimit{
		Limit: int(l.GetLimit()), Window: duration(l.GetWindow()), Key: l.GetKey(),
		Name: l.GetName(), Burst: int(l.GetBurst()), Mesh: l.GetMesh(),
	}
}

func fromRateLimits(limits []policy.RateLimit) []*RateLimit {
	var out []*RateLimit
	for _, l := range limits {
		out = append(out, fromRateLimit(l))
	}
	return out
}

func toRateLimits(limits []*RateLimit) []policy.RateLimit {
	var out []policy.RateLimit
	for _, l := range limits {
		out = append(out, l.policy())
	}
	return out
}

// fromRuleLimit gives a rule's limit, whose window is to be its own.
func fromRuleLimit(r *policy.TrafficRule) *RateLimit {
	if r.RateLimit == nil {
		return nil
	}
	l := r.Limit(0)
	l.Name = r.RateLimit.Name // what follows from the rule's id is not said twice
	return fromRateLimit(l)
}

// rule gives it back as a rule has it.
func (l *RateLimit) rule() *policy.ServiceLimit {
	if l == nil {
		return nil
	}
	in := l.policy()
	out := &policy.ServiceLimit{Name: in.Name, Limit: in.Limit, Window: in.Window.Seconds(), Key: in.Key}
	if in.Burst > 0 {
		out.Algorithm, out.Burst = policy.TokenBucket, in.Burst
	}
	if in.Mesh {
		out.Scope = policy.ScopeMesh
	}
	return out
}
