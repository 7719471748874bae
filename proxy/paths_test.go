package proxy

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/h1"
)

// getAsIs asks for a target that is sent as it is.
func (r *ruled) getAsIs(target string) *http.Response {
	r.t.Helper()
	req := &http.Request{Method: "GET", URL: &url.URL{Scheme: "http", Host: "users", Opaque: "//users" + target}, Header: http.Header{}}
	resp, err := r.client.Do(req.WithContext(r.t.Context()))
	if err != nil {
		r.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp
}

func TestAPathThatServersReadDifferentlyIsNoWayAroundARule(t *testing.T) {
	for name, v := range map[string]version2{"HTTP1": false, "HTTP2": true} {
		t.Run(name, func(t *testing.T) {
			inHTTP2 = v
			t.Cleanup(func() { inHTTP2 = false })
			r := newRuled(t)
			r.rules(func(rule *policy.TrafficRule) {
				rule.MatchPath, rule.DirectResponse = "/secret*", &policy.DirectResponse{Status: 403}
			}, func(rule *policy.TrafficRule) {
				rule.MatchPath, rule.Rewrite = "/old/*", &policy.Rewrite{PathPrefix: "/new"}
			})
			for _, c := range []struct {
				target string
				status int
				word   string
				sees   string // what the service sees
			}{
				{"/public/x?a=/../b", 200, "", "/public/x?a=/../b"},
				{"/public//x%2Fy;z", 200, "", "/public//x%2Fy;z"}, // odd, and all one to the rules
				{"/public/./x/../y", 200, "", "/public/y"},
				{"/public/../secret", 403, "direct-response", ""},
				{"/%73ecret", 403, "direct-response", ""},
				{"/public/%2e%2E/secret", 403, "direct-response", ""},
				{"//secret", 400, "ambiguous-path", ""},
				{"/%2Fsecret", 400, "ambiguous-path", ""},
				{"/public%2F..%2Fsecret", 400, "ambiguous-path", ""},
				{"/public/..;/secret", 400, "ambiguous-path", ""},
				{"/;/secret", 400, "ambiguous-path", ""},
				{`/public\..\secret`, 400, "ambiguous-path", ""},
				{"/public%252F..%252Fsecret", 400, "ambiguous-path", ""},
				{"/%00/secret", 400, "bad-path", ""},
				{"/public%c0%afsecret", 400, "bad-path", ""},
				{"/public%", 400, "bad-path", ""},
				{"/old/./a%2Fb?q", 200, "", "/new/a%2Fb?q"},
			} {
				r.forget()
				resp := r.getAsIs(c.target)
				if word := resp.Header.Get("weir-error"); resp.StatusCode != c.status || word != c.word && c.word != "direct-response" {
					t.Errorf("%s: %d %q, want %d %q", c.target, resp.StatusCode, word, c.status, c.word)
				}
				var saw []string
				for _, req := range append(r.a.all(), r.b.all()...) {
					saw = append(saw, req.RequestURI)
				}
				if got := strings.Join(saw, " "); got != c.sees {
					t.Errorf("%s: the service saw %q, want %q", c.target, got, c.sees)
				}
			}
			r.rules() // where nothing looks at the path it is nobody's business
			for _, target := range []string{"/a/../b//c%2Fd;e", `/a\b`} {
				r.forget()
				r.getAsIs(target)
				if all := append(r.a.all(), r.b.all()...); len(all) != 1 || all[0].RequestURI != target {
					t.Errorf("%s: the service saw %d requests", target, len(all))
				}
			}
			if word := r.getAsIs("/%zz%00").Header.Get("weir-error"); word == string(badPath.word) {
				t.Error("a path was refused that no rule looks at")
			}
		})
	}
}

// spy is a script that keeps what was written to it.
type spy struct {
	*script
	wrote strings.Builder
}

func (s *spy) Write(b []byte) (int, error) { return s.wrote.Write(b) }

func TestAPathInwardsHasTheFormThatRulesSee(t *testing.T) {
	o := newPathIn(t)
	g := *o.p.guard.Load()
	for _, c := range []struct {
		byPath       bool
		target, sees string // "" is an answer of the proxy
	}{
		{false, "/a/../b%2f", "/a/../b%2f"},
		{true, "/a/../b%2f", "/b%2F"},
		{true, "/b", "/b"},
		{true, "/a%00", ""},
	} {
		g.byPath = c.byPath
		o.p.guard.Store(&g)
		up, client := &spy{script: o.up}, &spy{script: o.client}
		client.says = []byte("GET " + c.target + " HTTP/1.1\r\nHost: users\r\n\r\n")
		o.on(func() {
			o.client.left, o.up.left = 1, 1
			pool := o.p.apps[0].get(appKey{dst: netip.MustParseAddrPort("127.0.0.1:8080")}).h1
			for u := pool.Get(o.l.Now()); u != nil; u = pool.Get(o.l.Now()) {
				_ = u.Close()
			}
			pool.Put(o.l.Now(), h1.NewUpstream(up))
			o.p.h1.Serve(client, nil, func() bool { return false }, o.serve, func(error) {})
		})
		line, _, _ := strings.Cut(up.wrote.String(), " HTTP/1.1\r\n")
		if want := strings.TrimSuffix("GET "+c.sees, "GET "); line != want {
			t.Errorf("%+v: the app saw %q", c, line)
		}
		if refused := strings.HasPrefix(client.wrote.String(), "HTTP/1.1 400 "); refused != (c.sees == "") {
			t.Errorf("%+v: the caller heard %.60q", c, client.wrote.String())
		}
	}
}
