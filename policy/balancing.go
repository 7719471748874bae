package policy

import (
	"strings"
	"time"
)

// ZoneLabel is the label that says which zone an endpoint, or a proxy, is in.
const ZoneLabel = "zone"

// Balancing is how an endpoint is chosen, beyond the strategy.
type Balancing struct {
	LoadFactor float64       // consistent_hash: no endpoint takes more than its share times this; 0 is no bound
	PreferZone bool          // endpoints of the caller's zone come first
	SlowStart  time.Duration // in which the share of a new endpoint grows to the whole; 0 is at once
	Aggression float64       // how early in that time it grows: 1 is evenly, more is earlier
	Panic      int           // per cent of usable endpoints below which all are used; 0 is never
}

// The two values of the setting locality.
const (
	localityPrefer = "prefer"
	localityIgnore = "ignore"
)

// Bounds of the settings.
const (
	maxLoadFactor = 100.0
	maxAggression = 100.0
)

// The kinds of a hash key with a name: "header:NAME" and so on.
var namedHashKeys = []string{"header:", "cookie:", "query:"}

// SplitHashKey gives the kind of a hash key ("path", "source", "header", "cookie"
// or "query") and the name it goes by, "" for the first two. The empty key is the
// path.
func SplitHashKey(key string) (kind, name string) {
	if key == "" {
		return "path", ""
	}
	kind, name, _ = strings.Cut(key, ":")
	return kind, name
}

// checkHashKey tells what is wrong with a hash key.
func checkHashKey(p *Problems, path, key string) {
	switch key {
	case "", "path", "source":
		return
	}
	for _, kind := range namedHashKeys {
		if name, ok := strings.CutPrefix(key, kind); ok && isHashName(kind, name) {
			return
		}
	}
	p.add(path, "%q is not path, source, header:NAME, cookie:NAME or query:NAME", key)
}

// isHashName tells whether a header, a cookie (RFC 6265 section 4.1.1) or a
// parameter of a query can be called so. Parameters are compared as they are
// written, so those that need escapes are left out.
func isHashName(kind, name string) bool {
	if kind == "query:" {
		return name != "" && !hasControl(name) && !strings.ContainsAny(name, " &=#%+?")
	}
	return isToken(name)
}

func (l *LoadBalancing) validateBalancing(p *Problems) {
	p.oneOf("load_balancing.locality", l.Locality, localityPrefer, localityIgnore)
	p.secondsIn("load_balancing.slow_start", l.SlowStart, 0)
	checkAggression(p, "load_balancing.slow_start_aggression", l.SlowStartAggression)
	p.intIn("load_balancing.panic_threshold", l.PanicThreshold, 0, 100)
	checkLoadFactor(p, "load_balancing.hash_load_factor", l.HashLoadFactor)
}

func (v *ServiceSettings) validateBalancing(p *Problems) {
	checkHashKey(p, "hash_key", v.HashKey)
	if v.Locality != "" {
		p.oneOf("locality", v.Locality, localityPrefer, localityIgnore)
	}
	if v.SlowStart != nil {
		p.secondsIn("slow_start", *v.SlowStart, 0)
	}
	if v.SlowStartAggression != 0 {
		checkAggression(p, "slow_start_aggression", v.SlowStartAggression)
	}
	if v.PanicThreshold != nil {
		p.intIn("panic_threshold", *v.PanicThreshold, 0, 100)
	}
	if v.HashLoadFactor != nil {
		checkLoadFactor(p, "hash_load_factor", *v.HashLoadFactor)
	}
}

// checkLoadFactor: with less than 1 there would not be room for all requests,
// with 1 a request would look for the last place.
func checkLoadFactor(p *Problems, path string, got float64) {
	if got != 0 && !(got >= 1.01 && got <= maxLoadFactor) {
		p.add(path, "%v is not 0 (no bound) or in 1.01..%v", got, maxLoadFactor)
	}
}

func checkAggression(p *Problems, path string, got float64) {
	if !(got >= 0.01 && got <= maxAggression) {
		p.add(path, "%v is not in 0.01..%v", got, maxAggression)
	}
}

func (l *LoadBalancing) balancing() Balancing {
	return Balancing{
		LoadFactor: l.HashLoadFactor, PreferZone: l.Locality == localityPrefer,
		SlowStart: seconds(l.SlowStart), Aggression: l.SlowStartAggression, Panic: l.PanicThreshold,
	}
}

func (v *ServiceSettings) overlayBalancing(b *Balancing) {
	if v.Locality != "" {
		b.PreferZone = v.Locality == localityPrefer
	}
	if v.SlowStart != nil {
		b.SlowStart = seconds(*v.SlowStart)
	}
	if v.SlowStartAggression != 0 {
		b.Aggression = v.SlowStartAggression
	}
	if v.PanicThreshold != nil {
		b.Panic = *v.PanicThreshold
	}
	if v.HashLoadFactor != nil {
		b.LoadFactor = *v.HashLoadFactor
	}
}
