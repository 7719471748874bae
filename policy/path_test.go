package policy

import (
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestAPathIsReadInOneForm(t *testing.T) {
	for _, c := range []struct{ in, want string }{ // want "" is refused
		{"*", "*"},
		{"/", "/"},
		{"/?", "/?"},
		{"/a/b.c?d=/../e", "/a/b.c?d=/../e"},
		{"/.well-known/x", "/.well-known/x"},
		{"/..a/.b./c..", "/..a/.b./c.."},
		{"/%C3%A9%20x", "/%C3%A9%20x"},
		{"/a/./b", "/a/b"},
		{"/a/../b", "/b"},
		{"/a/..", "/"},
		{"/a/.", "/a/"},
		{"/a/b/../", "/a/"},
		{"/../../b", "/b"},
		{"/..?q", "/?q"},
		{"/a//../b", "/a/b"},
		{"/a//b", "/a//b"},
		{"//a", "//a"},
		{"/%2e%2E/a/%2e/b", "/a/b"},
		{"/%73%65cret%7e%2D", "/secret~-"},
		{"/a%2fb%5cc%3b", "/a%2Fb%5Cc%3B"},
		{"/a%2F..%2Fb", "/a%2F..%2Fb"},
		{"/a;x/../b", "/b"},
		{"/a/..;/b", "/a/..;/b"},
		{`/a\..\b`, `/a\..\b`},
		{"/%252e%252e", "/%252e%252e"},
		{"/a?%zz%00", "/a?%zz%00"},
		{"/a%00", ""},
		{"/a%", ""},
		{"/a%4", ""},
		{"/a%zz", ""},
		{"/%%32e%%32e/", ""},
		{"/%c0%af", ""},
		{"/%C1%9C", ""},
		{"/%e0%80%af", ""},
		{"/%f0%80%80%af", ""},
		{"/%c0%20propos", "/%C0%20propos"}, // Latin-1 is no overlong encoding
	} {
		var r PathReader
		ok := r.Read(c.in)
		switch {
		case ok != (c.want != ""):
			t.Errorf("%s: read %v, as %s", c.in, ok, r.Target())
		case ok && (r.Target() != c.want || r.Normal() != (c.in == c.want)):
			t.Errorf("%s: %s, normal %v, want %s", c.in, r.Target(), r.Normal(), c.want)
		}
	}
}

func TestThePathsThatServersReadAreAllFound(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []string // among the readings
	}{
		{"/a/b", nil},
		{"/%C3%A9%20", nil},
		{"/a/.b/..c", nil},
		{"/a//b?x//y", []string{"/a/b"}},
		{"/a%2Fb", []string{"/a/b"}},
		{"/a%2F..%2Fb", []string{"/b"}},
		{"/a/..;x/b", []string{"/b"}},
		{"/a;x/b", []string{"/a/b"}},
		{`/a\..\b`, []string{"/b"}},
		{"/a%5Cb", []string{`/a\b`, "/a/b"}},
		{"/a%252fb", []string{"/a/b"}},
		{"/a%252e%252e/b", []string{"/a../b"}},
		{"/x/%252e%252e/b", []string{"/b"}},
		{"/a%40b", []string{"/a@b"}},
		{"/secret%2Fx;/..%5C..%5Cpub", []string{"/secret/x;/..\\..\\pub", "/pub"}}, // not every server has every habit
	} {
		var r PathReader
		if !r.Read(c.in) {
			t.Errorf("%s is refused", c.in)
			continue
		}
		all := readings(&r)
		for _, w := range c.want {
			if !slices.Contains(all, w) {
				t.Errorf("%s: %q lacks %s", c.in, all, w)
			}
		}
		if r.Odd() != (c.want != nil) || len(all) > 0 && !r.Odd() || len(all) > 31 {
			t.Errorf("%s: odd is %v, with %d readings", c.in, r.Odd(), len(all))
		}
	}
}

func readings(r *PathReader) (all []string) {
	for n := 0; ; n++ {
		s, ok := r.Reading(n)
		if !ok {
			return all
		}
		all = append(all, s)
	}
}

func TestAPlainPathCostsNothing(t *testing.T) {
	var r PathReader
	if n := testing.AllocsPerRun(100, func() {
		if !r.Read("/orders/17/.x/caf%C3%A9?full=1/../2%") || r.Odd() || !r.Normal() {
			t.Error("it is not plain")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// servers are models, by the library and slowly, of how servers find what a path names.
var servers = map[string]func(string) string{
	"nginx": func(p string) string { return path.Clean(decodedPath(p)) },
	"goFileServer": func(p string) string {
		u, err := url.ParseRequestURI(p)
		if err != nil {
			return ""
		}
		return path.Clean("/" + u.Path)
	},
	"tomcat": func(p string) string {
		return path.Clean(decodedPath(regexp.MustCompile(`;[^/]*`).ReplaceAllString(p, "")))
	},
	"iis":   func(p string) string { return path.Clean(strings.ReplaceAll(decodedPath(p), `\`, "/")) },
	"twice": func(p string) string { return path.Clean(decodedPath(decodedPath(p))) },
	"raw":   path.Clean,
}

func decodedPath(p string) string {
	var out strings.Builder
	for p != "" {
		if s, err := url.PathUnescape(p[:min(3, len(p))]); err == nil && p[0] == '%' {
			out.WriteString(s)
			p = p[3:]
			continue
		}
		out.WriteByte(p[0])
		p = p[1:]
	}
	return out.String()
}

// FuzzPath: the form is the form of itself, it names the same to a file server as
// what came, and each server's path is one of the readings.
func FuzzPath(f *testing.F) {
	for _, s := range []string{
		"/a/../b?c", "/%2e%2e/%2Fx", "/a;b/..;/c", `/\..\x`, "//a///b", "/%252e/", "/a%c0%af", "*", "/%41%7e", "/a/.;/..%2f%5c", "/x%3b/y",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		for i := range len(in) { // what the engines let through
			if in[i] <= ' ' || in[i] >= 0x7f || in[i] == '#' {
				return
			}
		}
		var r, again PathReader
		if in == "" || in[0] != '/' || len(in) > 200 || !r.Read(in) {
			return
		}
		if !again.Read(r.Target()) || again.Target() != r.Target() || !again.Normal() {
			t.Fatalf("%q is read as %q, and that as %q", in, r.Target(), again.Target())
		}
		was, _, _ := strings.Cut(in, "?")
		now, query, has := strings.Cut(r.Target(), "?")
		if _, q, h := strings.Cut(in, "?"); q != query || h != has {
			t.Fatalf("%q has become %q", in, r.Target())
		}
		if a, b := path.Clean(pathDots(was)), path.Clean(pathDots(now)); a != b {
			t.Fatalf("%q names %q, its form %q names %q", was, a, now, b)
		}
		all := append(readings(&r), now)
		for name, server := range servers {
			got := server(now)
			if name != "raw" { // as rules write it
				got = string(escape([]byte(got)))
			}
			if got != "" && !slices.ContainsFunc(all, func(s string) bool { return path.Clean(s) == got }) {
				t.Fatalf("%s takes %q for %q, which is not among %q", name, now, got, all)
			}
		}
	})
}

// pathDots resolves what RFC 3986 says of a path and nothing else: slashes that are
// doubled or escaped stay.
func pathDots(p string) string {
	u := strings.NewReplacer("//", "/\x00/").Replace(p)
	u = strings.NewReplacer("//", "/\x00/").Replace(u)
	u = regexp.MustCompile(`%[0-9a-fA-F]{2}`).ReplaceAllStringFunc(u, func(e string) string {
		if s, _ := url.PathUnescape(e); isUnreserved(s[0]) {
			return s
		}
		return strings.ToUpper(e)
	})
	return u
}
