package proxy

import (
	"strings"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/balance"
)

// hashKey is what of a request consistent hashing goes by, made ready.
type hashKey struct {
	kind, name string // as policy.SplitHashKey gives them; kind "" is no hashing
}

func newHashKey(t *policy.Traffic) hashKey {
	if t.Strategy != string(balance.ConsistentHash) {
		return hashKey{}
	}
	kind, name := policy.SplitHashKey(t.HashKey)
	return hashKey{kind, name}
}

// fields are a request's.
type fields interface {
	Get(name string) (string, bool)
	Nth(name string, n int) (string, bool)
}

// hash gives the hash of a request: by its target and fields, or the caller, self.
// A request without the key has none to be told by, and goes where chance says.
func (k hashKey) hash(target string, f fields, self string, random uint64) uint64 {
	var value string
	ok := true
	switch k.kind {
	case "":
		return 0
	case "header":
		value, ok = f.Get(k.name)
	case "cookie":
		value, ok = cookie(f, k.name)
	case "query":
		value, ok = parameter(target, k.name)
	case "source":
		value = self
	default:
		value, _, _ = strings.Cut(target, "?")
	}
	if !ok {
		return random
	}
	return balance.HashString(value)
}

// ofConnection gives the hash of a connection, of which only the caller is known.
func (k hashKey) ofConnection(self string, random uint64) uint64 {
	if k.kind == "source" {
		return balance.HashString(self)
	}
	return random
}

// cookie finds a cookie's value (RFC 6265 section 4.2.1), without quotes around it.
func cookie(f fields, name string) (string, bool) {
	for n := 0; ; n++ {
		field, there := f.Nth("Cookie", n)
		if !there {
			return "", false
		}
		if value, ok := cookieIn(field, name); ok {
			return value, true
		}
	}
}

// cookieIn finds it in one field.
func cookieIn(rest, name string) (string, bool) {
	for rest != "" {
		var pair string
		pair, rest, _ = strings.Cut(rest, ";")
		n, value, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
		if !ok || n != name {
			continue
		}
		if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
			value = value[1 : len(value)-1]
		}
		return value, true
	}
	return "", false
}

// parameter finds the first value of a parameter in the query, as it is written.
func parameter(target, name string) (string, bool) {
	_, rest, _ := strings.Cut(target, "?")
	for rest != "" {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		if n, value, _ := strings.Cut(pair, "="); n == name {
			return value, true
		}
	}
	return "", false
}
