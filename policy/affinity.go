package policy

import (
	"strings"
	"time"
)

// Affinity keeps a client at one endpoint by a cookie, which the calling proxy
// makes and reads. The zero value is none.
type Affinity struct {
	Cookie string
	TTL    time.Duration // 0 is until the client ends its session
	Path   string
}

// AffinitySettings sets a service's Affinity.
type AffinitySettings struct {
	Cookie string  `json:"cookie"`
	TTL    float64 `json:"ttl,omitempty"`  // seconds; 0 is until the client ends its session
	Path   string  `json:"path,omitempty"` // "" is /
}

func (a *AffinitySettings) validate() Problems {
	var p Problems
	if !isToken(a.Cookie) || len(a.Cookie) > 128 {
		p.add("cookie", "%q is not the name of a cookie", a.Cookie)
	}
	if a.TTL != 0 && !(a.TTL >= 1 && a.TTL <= maxCookieAge) {
		p.add("ttl", "%v s is not in 1..%v s", a.TTL, maxCookieAge)
	}
	if a.Path != "" && (!isPath(a.Path) || strings.ContainsAny(a.Path, ";,")) {
		p.add("path", "%q is not a path that starts with /", a.Path)
	}
	return p
}

// maxCookieAge is the longest that browsers keep a cookie: 400 days
// (draft-ietf-httpbis-rfc6265bis section 5.5).
const maxCookieAge = 400 * 24 * 3600.0 // s

func (a *AffinitySettings) affinity() Affinity {
	if a == nil {
		return Affinity{}
	}
	out := Affinity{Cookie: a.Cookie, TTL: seconds(a.TTL), Path: a.Path}
	if out.Path == "" {
		out.Path = "/"
	}
	return out
}
