package policy

import "time"

// Outliers says when an endpoint that does worse than the others of its service
// is left out for a while.
type Outliers struct {
	Enabled        bool
	Interval       time.Duration // over which endpoints are compared, and between two comparisons
	MinHosts       int           // endpoints with enough requests, below which nothing is compared
	MinRequests    int           // of an endpoint in an interval, below which it is not compared
	RateFactor     float64       // standard deviations below the others' mean success rate
	RateMargin     float64       // and at least so much below it, 0..1
	LatencyFactor  float64       // times the others' latency; 0 does not compare latencies
	LatencyMargin  time.Duration // and at least so much above it
	BaseEjection   time.Duration // how long the first ejection lasts; the n-th n times as long
	MaxEjection    time.Duration // and no ejection longer than this
	MaxEjectedPart int           // per cent of the endpoints that may be out at once; one always may, all never
}

// OutlierDetection sets the detection of outliers for the mesh. Seconds are
// numbers.
type OutlierDetection struct {
	Enabled            bool    `json:"enabled"`
	Interval           float64 `json:"interval"`
	MinimumHosts       int     `json:"minimum_hosts"`
	RequestVolume      int     `json:"request_volume"`
	SuccessRateStdev   float64 `json:"success_rate_stdev_factor"`
	SuccessRateMargin  float64 `json:"success_rate_margin"` // per cent
	LatencyFactor      float64 `json:"latency_factor"`
	LatencyMargin      float64 `json:"latency_margin"`
	BaseEjectionTime   float64 `json:"base_ejection_time"`
	MaxEjectionTime    float64 `json:"max_ejection_time"`
	MaxEjectionPercent int     `json:"max_ejection_percent"`
}

// ServiceOutliers sets it for one service; what is left out is the mesh's.
type ServiceOutliers struct {
	Enabled            *bool    `json:"enabled,omitempty"`
	Interval           *float64 `json:"interval,omitempty"`
	MinimumHosts       *int     `json:"minimum_hosts,omitempty"`
	RequestVolume      *int     `json:"request_volume,omitempty"`
	SuccessRateStdev   *float64 `json:"success_rate_stdev_factor,omitempty"`
	SuccessRateMargin  *float64 `json:"success_rate_margin,omitempty"`
	LatencyFactor      *float64 `json:"latency_factor,omitempty"`
	LatencyMargin      *float64 `json:"latency_margin,omitempty"`
	BaseEjectionTime   *float64 `json:"base_ejection_time,omitempty"`
	MaxEjectionTime    *float64 `json:"max_ejection_time,omitempty"`
	MaxEjectionPercent *int     `json:"max_ejection_percent,omitempty"`
}

// defaultOutliers are Envoy's where it has the same setting, but for the number of
// hosts: an endpoint is compared with the others, itself left out, and three
// are enough for that.
func defaultOutliers() OutlierDetection {
	return OutlierDetection{
		Interval: 10, MinimumHosts: 3, RequestVolume: 100, SuccessRateStdev: 1.9, SuccessRateMargin: 10,
		LatencyFactor: 3, LatencyMargin: 0.01, BaseEjectionTime: 30, MaxEjectionTime: 300, MaxEjectionPercent: 10,
	}
}

// over lays a service's own values over the mesh's.
func (v *ServiceOutliers) over(o OutlierDetection) OutlierDetection {
	if v == nil {
		return o
	}
	take(&o.Enabled, v.Enabled)
	take(&o.Interval, v.Interval)
	take(&o.MinimumHosts, v.MinimumHosts)
	take(&o.RequestVolume, v.RequestVolume)
	take(&o.SuccessRateStdev, v.SuccessRateStdev)
	take(&o.SuccessRateMargin, v.SuccessRateMargin)
	take(&o.LatencyFactor, v.LatencyFactor)
	take(&o.LatencyMargin, v.LatencyMargin)
	take(&o.BaseEjectionTime, v.BaseEjectionTime)
	take(&o.MaxEjectionTime, v.MaxEjectionTime)
	take(&o.MaxEjectionPercent, v.MaxEjectionPercent)
	return o
}

func take[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func (o *OutlierDetection) validate() Problems {
	var p Problems
	p.secondsIn("interval", o.Interval, 1)
	p.intIn("minimum_hosts", o.MinimumHosts, 3, 1_000_000)
	p.intIn("request_volume", o.RequestVolume, 1, 1_000_000)
	p.numberIn("success_rate_stdev_factor", o.SuccessRateStdev, 0, 100)
	p.numberIn("success_rate_margin", o.SuccessRateMargin, 1, 100)
	if o.LatencyFactor != 0 {
		p.numberIn("latency_factor", o.LatencyFactor, 1.1, 1000)
	}
	p.secondsIn("latency_margin", o.LatencyMargin, 0)
	p.secondsIn("base_ejection_time", o.BaseEjectionTime, 0.1)
	p.secondsIn("max_ejection_time", o.MaxEjectionTime, 0.1)
	if o.MaxEjectionTime < o.BaseEjectionTime {
		p.add("max_ejection_time", "%v s is less than base_ejection_time, %v s", o.MaxEjectionTime, o.BaseEjectionTime)
	}
	p.intIn("max_ejection_percent", o.MaxEjectionPercent, 1, 100)
	return p
}

func (p *Problems) numberIn(path string, got, low, high float64) {
	if !(got >= low && got <= high) { // also refuses NaN
		p.add(path, "%v is not in %v..%v", got, low, high)
	}
}

func (o *OutlierDetection) outliers() Outliers {
	return Outliers{
		Enabled: o.Enabled, Interval: seconds(o.Interval), MinHosts: o.MinimumHosts, MinRequests: o.RequestVolume,
		RateFactor: o.SuccessRateStdev, RateMargin: o.SuccessRateMargin / 100,
		LatencyFactor: o.LatencyFactor, LatencyMargin: seconds(o.LatencyMargin),
		BaseEjection: seconds(o.BaseEjectionTime), MaxEjection: seconds(o.MaxEjectionTime), MaxEjectedPart: o.MaxEjectionPercent,
	}
}
