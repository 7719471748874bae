package api_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
)

const meshYAML = `# everything there is
kind: Endpoint
namespace: default
service: web
spec: {id: web-1, ip: 10.0.0.1, port: 80, labels: {version: v1}}
---
---
# a document after an empty one
kind: TrafficRule
service: web
spec:
  match_headers: &canary
    x-canary: "true"
  destination_subset: v2
---
kind: TrafficRule
namespace: default
service: web
spec:
  timeout: 30
...
---
kind: SecurityRule
spec:
  source_namespace: default
  source_service: web
  destination_namespace: default
  destination_service: orders
  allowed_methods: [GET]
--- {"kind": "Config", "spec": {"global_timeout": 5, "security": {"cors": {"enabled": true}}}}
`

// madeID is an id that apply gave a rule, made of what the rule does.
var madeID = regexp.MustCompile(`(?m) [a-z2-7]{10}$`)

func results(t *testing.T, c *api.Client, docs []api.Document) string {
	t.Helper()
	got, err := c.Apply(t.Context(), docs, false)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range got.Results {
		out = append(out, r.Document+" "+r.Result+" "+r.ID)
		for _, w := range r.Warnings {
			out = append(out, "warning: "+w)
		}
	}
	return madeID.ReplaceAllString(strings.Join(out, "\n"), " (made)")
}

func TestAFileIsAppliedAndAppliedAgain(t *testing.T) {
	c := serve(t, newMesh())
	docs, err := api.ReadDocuments("mesh.yaml", []byte(meshYAML))
	if err != nil {
		t.Fatal(err)
	}
	first := results(t, c, docs)
	if want := `Endpoint default/web/web-1 added web-1
TrafficRule default/web added (made)
TrafficRule default/web added (made)
SecurityRule default/web -> default/orders added (made)
Config changed 
warning: security.cors: kept, but not acted on by this version`; first != want {
		t.Errorf("first:\n%s\nwant:\n%s", first, want)
	}
	if again := results(t, c, docs); strings.NewReplacer(" added ", " unchanged ", " changed ", " unchanged ").Replace(first) != again {
		t.Errorf("again:\n%s", again)
	}
}

func TestJSONIsReadToo(t *testing.T) {
	for name, text := range map[string]string{
		"stream":       "{\"kind\":\"Config\",\"spec\":{}}\n{\"kind\":\"Config\",\n\t\"spec\":{\"egress\":\"deny\"}}",
		"list":         `[{"kind":"Config","spec":{}},{"kind":"Config","spec":{"egress":"deny"}}]`,
		"list in YAML": "- kind: Config\n  spec: {}\n- kind: Config\n  spec: {egress: deny}\n",
	} {
		docs, err := api.ReadDocuments(name, []byte(text))
		if err != nil || len(docs) != 2 {
			t.Errorf("%s: %d documents, %v", name, len(docs), err)
		}
	}
	_, err := api.ReadDocuments("f.json", []byte("{\"kind\":\"Config\",\"spec\":{}}\n\t{\"kind\":\"Config\",\n\t\"spec\":{\"egres\":\"deny\"}}"))
	if want := `f.json:3:10: spec.egres: unknown setting; did you mean "egress"?`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestEveryMistakeInAFileIsNamedWithItsPlace(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no document", "# nothing\n", ""},
		{"not an object", "hello\n", `f:1:1: "hello" is not an object`},
		{"syntax", "kind: Config\nspec: [1\n", `f:2:7: sequence end token ']' not found`},
		{"syntax in the second", "kind: Config\nspec: {}\n---\nkind: Config\nspec: {}\nspec: {}\n", `f:6:1: mapping key "spec" already defined at [3:1]`},
		{"unknown alias", "kind: Config\nspec: *nope\n", `f:1:1: could not find alias "nope"`},
		{"not JSON", "kind: Config\nspec: {global_timeout: .inf}\n", `f:1:1: a value has no form in JSON: json: unsupported value: +Inf`},
		{"no kind", "spec: {}\n", `f:1:1: kind: is missing`},
		{"unknown kind", "kind: Trafficrule\nspec: {}\n", `f:1:1: kind: "Trafficrule" is unknown; did you mean "TrafficRule"?`},
		{"unknown key", "kind: Config\nspecs: {}\n", "f:1:1: spec: is missing\nf:2:1: specs: unknown field; did you mean \"spec\"?"},
		{"Config with a service", "kind: Config\nservice: web\nspec: {}\n", `f:2:1: service: a document of kind Config has none`},
		{"Config of nothing", "kind: Config\nspec:\n", `f:2:1: spec: null is not an object`},
		{"setting", "kind: Config\nspec:\n  load_balancing:\n    stratgy: random\n", `f:4:5: spec.load_balancing.stratgy: unknown setting; did you mean "strategy"?`},
		{"setting's range", "kind: Config\nspec:\n  global_timeout: -1\n", `f:2:1: spec.resilience.timeout.default: -1 s is not in 0.001..86400 s`},
		{"rule without a service", "kind: TrafficRule\nspec: {}\n", `f:1:1: service: service is empty`},
		{"rule's field", "kind: TrafficRule\nservice: web\nspec:\n  wieght: 1\n", `f:4:3: spec.wieght: unknown field; did you mean "weight"?`},
		{"rule's range, and a bad name", "kind: TrafficRule\nservice: Web\nspec:\n  weight: -1\n  match_headers:\n    \"a b\": x\n", "f:2:1: service: service \"Web\" may hold only a-z, 0-9 and hyphens\nf:4:3: spec.weight: -1 is not in 0..1000000\nf:6:5: spec.match_headers.a b: \"a b\" is not a header name"},
		{"spec is a list", "kind: TrafficRule\nservice: web\nspec: [1]\n", `f:3:1: spec: [1] is not an object`},
		{"element of a list", "kind: SecurityRule\nspec:\n  source_namespace: a\n  source_service: b\n  destination_namespace: c\n  destination_service: d\n  allowed_methods:\n  - GET\n  - 5\n", `f:9:5: spec.allowed_methods[1]: 5 is not a string`},
		{"missing fields", "kind: SecurityRule\nspec:\n  source_namespace: a\n  source_service: b\n", "f:2:1: spec.destination_namespace: is missing\nf:2:1: spec.destination_service: is missing"},
		{"endpoint of two services", "kind: Endpoint\nservice: web\nspec: {id: a, ip: 10.0.0.1, port: 80, service_name: other}\n", `f:2:1: service: "web" is not spec.service_name, "other"`},
		{"endpoint of none", "kind: Endpoint\nspec: {id: a, ip: 10.0.0.1, port: 80}\n", `f:1:1: service: is missing`},
		{"endpoint's range", "kind: Endpoint\nservice: web\nspec: {id: a, ip: 10.0.0.1, port: 70000}\n", `f:3:29: spec.port: 70000 is not in 1..65535`},
		{"number that does not fit", "kind: Endpoint\nservice: web\nspec: {id: a, ip: 10.0.0.1, port: 18446744073709551615}\n", `f:3:29: spec.port: 18446744073709551615 does not fit into int`},
		{"two documents", "kind: Config\nspec: {a: 1}\n---\nkind: Nothing\nspec: {}\n", "f:2:8: spec.a: unknown setting; known here: circuit_breaker_enabled, default_policy, default_retry_attempts, egress, global_timeout, load_balancing, mtls_mode, namespaces, observability, resilience, security, services\nf:4:1: kind: \"Nothing\" is unknown; known here: Endpoint, TrafficRule, SecurityRule, Config, ExternalService"},
	} {
		t.Run(c.name, func(t *testing.T) {
			docs, err := api.ReadDocuments("f", []byte(c.text))
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != c.want || len(docs) != 0 {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestMergesAndAliasesAreResolved(t *testing.T) {
	docs, err := api.ReadDocuments("f", []byte("kind: TrafficRule\nservice: web\nspec:\n  <<: &base {weight: 7, destination_subset: v1}\n  match_headers: &h {a: b}\n"))
	if err != nil || len(docs) != 1 {
		t.Fatal(docs, err)
	}
	m := newMesh()
	if got := results(t, serve(t, m), docs); got != "TrafficRule default/web added (made)" {
		t.Fatal(got)
	}
	if r := m.TrafficRules(web)[0]; r.Weight != 7 || r.DestinationSubset != "v1" {
		t.Errorf("%+v", r)
	}
}
