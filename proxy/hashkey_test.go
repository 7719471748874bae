package proxy

import (
	"testing"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/balance"
)

type fieldMap map[string]string

func (m fieldMap) Get(name string) (string, bool) { v, ok := m[name]; return v, ok }

func TestWhatARequestIsHashedBy(t *testing.T) {
	f := fieldMap{"X-User": "anna", "Cookie": `a=1; sid="s1"; b=; sid=other`}
	for _, c := range []struct{ key, target, want string }{
		{"", "/a/b?c=d", "/a/b"},
		{"path", "/a/b?c=d", "/a/b"},
		{"source", "/", "me"},
		{"header:X-User", "/", "anna"},
		{"cookie:sid", "/", "s1"},
		{"cookie:b", "/", ""},
		{"query:user", "/p?x=1&user=bob&user=eve", "bob"},
		{"query:user", "/p?user", ""},
		{"header:X-None", "/", "chance"},
		{"cookie:none", "/", "chance"},
		{"cookie:si", "/", "chance"},
		{"query:use", "/p?user=bob", "chance"},
		{"query:user", "/p", "chance"},
	} {
		k := newHashKey(&policy.Traffic{Strategy: string(balance.ConsistentHash), HashKey: c.key})
		want := balance.HashString(c.want)
		if c.want == "chance" {
			want = 77
		}
		if got := k.hash(c.target, f, "me", 77); got != want {
			t.Errorf("%s of %s is not the hash of %q", c.key, c.target, c.want)
		}
		if n := testing.AllocsPerRun(10, func() { k.hash(c.target, f, "me", 77) }); n != 0 {
			t.Errorf("%s: %v allocations", c.key, n)
		}
	}
	source := newHashKey(&policy.Traffic{Strategy: string(balance.ConsistentHash), HashKey: "source"})
	if got := source.ofConnection("me", 77); got != balance.HashString("me") {
		t.Error("a connection does not go by its caller")
	}
	if got := newHashKey(&policy.Traffic{Strategy: string(balance.ConsistentHash)}).ofConnection("me", 77); got != 77 {
		t.Error("a connection without a path does not go where chance says")
	}
	if got := newHashKey(&policy.Traffic{HashKey: "source"}).hash("/", f, "me", 77); got != 0 {
		t.Error("hashed for a strategy that does not")
	}
}

// FuzzCookie: whatever the header holds, a cookie that is found is a part of it.
func FuzzCookie(f *testing.F) {
	f.Add(`a=1; sid="s1"; b=`, "sid")
	f.Add(`;;=;a`, "a")
	f.Fuzz(func(t *testing.T, header, name string) {
		v, ok := cookie(fieldMap{"Cookie": header}, name)
		if !ok && v != "" || len(v) > len(header) {
			t.Errorf("%q in %q: %q, %v", name, header, v, ok)
		}
		if w, ok := parameter("/?"+header, name); !ok && w != "" || len(w) > len(header) {
			t.Errorf("%q in ?%q: %q", name, header, w)
		}
	})
}

func (m fieldMap) Nth(name string, n int) (string, bool) {
	v, ok := m[name]
	return v, ok && n == 0
}
