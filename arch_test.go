package weir_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"
)

const module = "github.com/weir-mesh/weir"

// mayImport is the import table of ARCHITECTURE.md: which packages of ours each
// package may import, tests included where the name ends in _test only. A key
// ending in /... stands for what lies below it.
var mayImport = map[string][]string{
	"":            {},
	"policy":      {},
	"policy/wire": {"policy"},
	"redirect":    {},

	"redirect/shortcut": {},

	"proxy":           {"policy", "policy/wire", "proxy/..."},
	"proxy/balance":   {},
	"proxy/breaker":   {},
	"proxy/outlier":   {},
	"proxy/detect":    {"proxy/loop"},
	"proxy/dns":       {},
	"proxy/feed":      {"policy", "policy/wire"},
	"proxy/flows":     {"policy"},
	"proxy/gate":      {"proxy/loop"},
	"proxy/h1":        {"proxy/loop"},
	"proxy/h2":        {"proxy/loop", "proxy/h2/hpack"},
	"proxy/h2/hpack":  {},
	"proxy/identity":  {"policy", "policy/wire"},
	"proxy/jwt":       {},
	"proxy/listen":    {"proxy/loop"},
	"proxy/loop":      {},
	"proxy/ratelimit": {},
	"proxy/relay":     {"proxy/loop"},
	"proxy/resolve":   {},
	"proxy/retry":     {},
	"proxy/secure":    {"proxy/loop"},
	"proxy/spire":     {},
	"proxy/telemetry": {},
	"proxy/translate": {},
	"proxy/wsframe":   {"proxy/loop"},

	"controlplane":             {"policy", "policy/wire", "controlplane/..."},
	"controlplane/api":         {"policy"},
	"controlplane/api/apitest": {"policy", "controlplane/api"},
	"controlplane/ca":          {"policy", "policy/wire"},
	"controlplane/flows":       {"policy"},
	"controlplane/health":      {"policy"},
	"controlplane/meshfile":    {"policy"},
	"controlplane/publish":     {"policy", "policy/wire"},
	"controlplane/shares":      {"policy"},
	"controlplane/store":       {"policy"},
	"controlplane/tokenreview": {"policy"},

	"cmd/weir":        {"policy", "controlplane", "controlplane/api", "controlplane/meshfile", "cmd/weir/demo", "cmd/weir/launch"},
	"cmd/weir/launch": {"test/netlab"},
	"cmd/weir/demo":   {"controlplane/api", "policy", "test/meshlab", "test/netlab"},
	"cmd/weir-proxy":  {"policy", "proxy", "proxy/dns", "redirect"},
	"cmd/weir-init":   {"redirect", "redirect/shortcut"},

	"deploy/release": {},

	"bench":         {"controlplane/api", "policy", "test/meshlab", "test/netlab"},
	"bench/control": {"controlplane/api", "policy", "proxy/feed", "test/meshlab"},

	"test/netlab":  {},
	"test/meshlab": {"controlplane/api", "policy", "test/netlab"},
	"test/e2e":     {"controlplane", "controlplane/api", "policy", "proxy", "test/meshlab", "test/netlab"},
}

// testMayImport is what tests may import besides.
var testMayImport = []string{"test/netlab", "proxy/secure", "controlplane/api/apitest"}

// oneDoor names the only packages that may import a heavy dependency. Tests may
// bring their own peers.
var oneDoor = map[string][]string{
	"go.etcd.io/etcd":                        {"controlplane/store"},
	"github.com/envoyproxy/go-control-plane": {"controlplane/publish"},
	"github.com/prometheus/client_golang":    {"proxy/telemetry"},
	"github.com/danielgtaylor/huma":          {"controlplane/api"},
	"github.com/quic-go/quic-go":             {"proxy/tunnel"},
	"github.com/coreos/go-iptables":          {"redirect"},
	"github.com/cilium/ebpf":                 {"redirect/shortcut"},
	"github.com/golang-jwt/jwt":              {"proxy/jwt"},
	"github.com/go-jose/go-jose":             {"proxy/jwt"},
	"golang.org/x/net/dns":                   {"proxy/dns"},
	"k8s.io":                                 {"controlplane/kube"},

	"github.com/spiffe/go-spiffe/v2/workloadapi": {"proxy/spire"},
}

type source struct {
	pkg, file string // both relative to the module's root
	test      bool
	doc       string
	name      string
	imports   []string
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		s := source{pkg: path.Dir(filepath.ToSlash(p)), file: p, test: strings.HasSuffix(p, "_test.go"), name: f.Name.Name, doc: f.Doc.Text()}
		if s.pkg == "." {
			s.pkg = ""
		}
		for _, i := range f.Imports {
			s.imports = append(s.imports, strings.Trim(i.Path.Value, `"`))
		}
		out = append(out, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPackagesImportOnlyWhatTheTableAllows(t *testing.T) {
	for _, s := range sources(t) {
		allowed, known := mayImport[s.pkg]
		if !known {
			t.Errorf("%s: package %s is not in the import table; a new package is added there with a reason", s.file, s.pkg)
			continue
		}
		if s.test {
			allowed = append(append([]string{s.pkg}, testMayImport...), allowed...)
		}
		for _, imp := range s.imports {
			ours, ok := strings.CutPrefix(imp, module+"/")
			if ok && !permits(allowed, ours) {
				t.Errorf("%s imports %s; %s may import only %v", s.file, ours, s.pkg, allowed)
			}
		}
	}
}

func TestHeavyDependenciesHaveOneDoor(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, imp := range s.imports {
			for dep, doors := range oneDoor {
				if (imp == dep || strings.HasPrefix(imp, dep+"/")) && !permits(doors, s.pkg) {
					t.Errorf("%s imports %s; only %v may", s.file, imp, doors)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItDoes(t *testing.T) {
	docs := map[string]string{}
	for _, s := range sources(t) {
		if s.test || s.pkg == "" {
			continue
		}
		want := "Package " + s.name + " "
		if s.name == "main" {
			want = "Command " + path.Base(s.pkg) + " "
		}
		if strings.HasPrefix(s.doc, want) {
			docs[s.pkg] = s.doc
		} else if _, ok := docs[s.pkg]; !ok {
			docs[s.pkg] = ""
		}
	}
	var names []string
	for pkg := range docs {
		names = append(names, pkg)
	}
	sort.Strings(names)
	for _, pkg := range names {
		if docs[pkg] == "" {
			t.Errorf("%s has no doc comment that begins with its name and says what it does", pkg)
		}
		for _, vague := range []string{"util", "utils", "common", "helpers", "types", "pkg", "misc"} {
			if path.Base(pkg) == vague {
				t.Errorf("%s: the name %q says nothing", pkg, vague)
			}
		}
	}
}

func permits(allowed []string, pkg string) bool {
	for _, a := range allowed {
		if below, ok := strings.CutSuffix(a, "/..."); ok && strings.HasPrefix(pkg, below+"/") {
			return true
		}
		if a == pkg {
			return true
		}
	}
	return false
}
