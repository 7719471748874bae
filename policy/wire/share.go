package wire

import "github.com/weir-mesh/weir/policy"

func fromLimitRef(r policy.LimitRef) *LimitRef {
	return &LimitRef{Service: FromName(r.Service), Rule: r.Rule, Name: r.Name}
}

func (r *LimitRef) policy() policy.LimitRef {
	return policy.LimitRef{Service: r.GetService().Policy(), Rule: r.GetRule(), Name: r.GetName()}
}

// FromDemands converts what a proxy wants of limits of the whole mesh.
func FromDemands(demands []policy.Demand) []*Demand {
	out := make([]*Demand, len(demands))
	for i, d := range demands {
		out[i] = &Demand{Limit: fromLimitRef(d.Limit), Rate: d.Rate, Used: d.Used}
		for _, k := range d.Keys {
			out[i].Keys = append(out[i].Keys, &KeyDemand{Key: k.Key, Rate: k.Rate, Used: k.Used})
		}
	}
	return out
}

// PolicyDemands converts back.
func (f *Figures) PolicyDemands() []policy.Demand {
	out := make([]policy.Demand, len(f.GetDemands()))
	for i, d := range f.GetDemands() {
		out[i] = policy.Demand{Limit: d.GetLimit().policy(), Rate: d.GetRate(), Used: d.GetUsed()}
		for _, k := range d.GetKeys() {
			out[i].Keys = append(out[i].Keys, policy.KeyDemand{Key: k.GetKey(), Rate: k.GetRate(), Used: k.GetUsed()})
		}
	}
	return out
}

// FromShares converts a proxy's shares.
func FromShares(shares []policy.Share) []*Share {
	out := make([]*Share, len(shares))
	for i, s := range shares {
		out[i] = &Share{Limit: fromLimitRef(s.Limit), Requests: s.Requests}
		for _, k := range s.Keys {
			out[i].Keys = append(out[i].Keys, &KeyShare{Key: k.Key, Requests: k.Requests})
		}
	}
	return out
}

// PolicyShares converts back.
func (r *AttachResponse) PolicyShares() []policy.Share {
	out := make([]policy.Share, len(r.GetShares()))
	for i, s := range r.GetShares() {
		out[i] = policy.Share{Limit: s.GetLimit().policy(), Requests: s.GetRequests()}
		for _, k := range s.GetKeys() {
			out[i].Keys = append(out[i].Keys, policy.KeyShare{Key: k.GetKey(), Requests: k.GetRequests()})
		}
	}
	return out
}
