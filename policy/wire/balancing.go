package wire

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weir-mesh/weir/policy"
)

func fromBalancing(b policy.Balancing) *Balancing {
	return &Balancing{
		LoadFactor: b.LoadFactor, PreferZone: b.PreferZone, SlowStart: durationpb.New(b.SlowStart),
		Aggression: b.Aggression, Panic: uint32(max(b.Panic, 0)),
	}
}

func (b *Balancing) policy() policy.Balancing {
	return policy.Balancing{
		LoadFactor: b.GetLoadFactor(), PreferZone: b.GetPreferZone(), SlowStart: duration(b.GetSlowStart()),
		Aggression: b.GetAggression(), Panic: int(b.GetPanic()),
	}
}

// fromOutliers gives nil where they are not looked for: that is most services.
func fromOutliers(o policy.Outliers) *Outliers {
	if !o.Enabled {
		return nil
	}
	return &Outliers{
		Interval: durationpb.New(o.Interval), MinHosts: uint32(max(o.MinHosts, 0)), MinRequests: uint32(max(o.MinRequests, 0)),
		RateFactor: o.RateFactor, RateMargin: o.RateMargin, LatencyFactor: o.LatencyFactor, LatencyMargin: durationpb.New(o.LatencyMargin),
		BaseEjection: durationpb.New(o.BaseEjection), MaxEjection: durationpb.New(o.MaxEjection), MaxEjectedPart: uint32(max(o.MaxEjectedPart, 0)),
	}
}

func (o *Outliers) policy() policy.Outliers {
	if o == nil {
		return policy.Outliers{}
	}
	return policy.Outliers{
		Enabled: true, Interval: duration(o.GetInterval()), MinHosts: int(o.GetMinHosts()), MinRequests: int(o.GetMinRequests()),
		RateFactor: o.GetRateFactor(), RateMargin: o.GetRateMargin(), LatencyFactor: o.GetLatencyFactor(), LatencyMargin: duration(o.GetLatencyMargin()),
		BaseEjection: duration(o.GetBaseEjection()), MaxEjection: duration(o.GetMaxEjection()), MaxEjectedPart: int(o.GetMaxEjectedPart()),
	}
}

func fromOverload(o policy.Overload) *Overload {
	return &Overload{
		Concurrent: uint32(max(o.Concurrent, 0)), Pending: uint32(max(o.Pending, 0)), Connections: uint32(max(o.Connections, 0)),
	}
}

func (o *Overload) policy() policy.Overload {
	return policy.Overload{Concurrent: int(o.GetConcurrent()), Pending: int(o.GetPending()), Connections: int(o.GetConnections())}
}

// fromOrder gives nil where an operator wants nothing.
func fromOrder(o policy.CircuitOrder) *CircuitOrder {
	if o == (policy.CircuitOrder{}) {
		return nil
	}
	return &CircuitOrder{State: o.State, Number: o.Number}
}

func (o *CircuitOrder) policy() policy.CircuitOrder {
	return policy.CircuitOrder{State: o.GetState(), Number: o.GetNumber()}
}

func fromCircuits(circuits []policy.CircuitState) []*Circuit {
	var out []*Circuit
	for i := range circuits {
		c := &circuits[i]
		out = append(out, &Circuit{
			Service: FromName(c.Service), Endpoint: c.Endpoint, State: c.State, Failures: uint32(max(c.Failures, 0)),
			Since: unixMilli(c.Since), Forced: c.Forced, Ejected: c.Ejected,
		})
	}
	return out
}

// maxName bounds what a proxy may call something in its report.
const maxName = 253

// circuitsOf takes no more than a proxy may report, and nothing that cannot be.
func circuitsOf(circuits []*Circuit) []policy.CircuitState {
	var out []policy.CircuitState
	for _, c := range circuits[:min(len(circuits), policy.MaxReportedCircuits)] {
		if max(len(c.GetEndpoint()), len(c.GetService().GetNamespace()), len(c.GetService().GetName())) > maxName {
			continue
		}
		switch c.GetState() {
		case "closed", "half_open", "open":
		default:
			continue
		}
		s := policy.CircuitState{
			Service: c.GetService().Policy(), Endpoint: c.GetEndpoint(), State: c.GetState(), Failures: int(c.GetFailures()),
			Forced: c.GetForced(), Ejected: c.GetEjected(),
		}
		if ms := c.GetSince(); ms != 0 {
			s.Since = time.UnixMilli(ms)
		}
		out = append(out, s)
	}
	return out
}

func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
