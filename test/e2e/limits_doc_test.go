package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// limitExamples reads the YAML examples of docs/LIMITS.md by the headings above
// them.
func limitExamples(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/LIMITS.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	heading, block, inside := "", "", false
	for line := range strings.Lines(string(text)) {
		switch {
		case !inside && strings.HasPrefix(line, "#"):
			heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
		case !inside && strings.HasPrefix(line, "```yaml"):
			inside, block = true, ""
		case inside && strings.HasPrefix(line, "```"):
			inside = false
			for n := 2; out[heading] != ""; n++ {
				heading = fmt.Sprintf("%s %d", strings.TrimRight(heading, " 0123456789"), n)
			}
			out[heading] = block
		case inside:
			block += line
		}
	}
	return out
}

// limitMesh is two frontends before "orders".
type limitMesh struct {
	*meshlab.Mesh
	orders, front, other *meshlab.Node
}

func newLimitMesh(t *testing.T) *limitMesh {
	m := &limitMesh{Mesh: start(t)}
	app := newBackend(t, bare(t, m.Mesh, "orders"), "orders", 8002)
	m.orders = app.node
	enter(t, m.Mesh, app.node, meshlab.Workload{Host: "orders", Service: "orders", Ports: []string{"8002"}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	m.other = join(t, m.Mesh, meshlab.Workload{Host: "other", Service: "other"})
	allow(t, m.Mesh, "frontend", "orders")
	allow(t, m.Mesh, "other", "orders")
	set(t, m.Mesh, fmt.Sprintf(`{"security":{"jwt_secret":%q},"load_balancing":{"health_check":{"enabled":false}}}`, jwtSecret))
	for _, n := range []*meshlab.Node{m.front, m.other} {
		await(t, m.Mesh, "the service", func() error {
			if a := ask(t, n, "http://orders/"); a.Status != 200 {
				return fmt.Errorf("%d", a.Status)
			}
			return nil
		})
	}
	return m
}

// apply puts an example in force and waits until a proxy that enforces it has it.
func (m *limitMesh) apply(t *testing.T, text string) {
	t.Helper()
	docs, err := api.ReadDocuments("example", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	stored, err := m.API.Apply(t.Context(), docs, false)
	if err != nil {
		t.Fatal(err)
	}
	m.taken(t, stored.Revision)
}

// taken waits until the proxies have a revision: those of the callers the service,
// or that of the service its own rules.
func (m *limitMesh) taken(t *testing.T, revision int64) {
	t.Helper()
	await(t, m.Mesh, fmt.Sprintf("revision %d", revision), func() error {
		proxies, err := m.API.Proxies(t.Context())
		if err != nil {
			return err
		}
		took := map[string]bool{}
		for _, p := range proxies {
			for _, r := range p.Resources {
				took[p.ServiceName+" "+r.Type] = int64(atoi(r.Version)) >= revision
			}
		}
		if !took["orders inbound"] && !(took["frontend service"] && took["other service"]) {
			return fmt.Errorf("%v", took)
		}
		return nil
	})
}

// clear takes an example away.
func (m *limitMesh) clear(t *testing.T) {
	t.Helper()
	name := policy.ServiceName{Namespace: "default", Name: "orders"}
	rules, err := m.API.TrafficRules(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if err := m.API.DeleteTrafficRule(t.Context(), name, r.ID); err != nil {
			t.Fatal(err)
		}
	}
	set(t, m.Mesh, `{"services":{"orders":null}}`)
	for _, n := range []*meshlab.Node{m.front, m.other} {
		await(t, m.Mesh, "no limit", func() error {
			if a := ask(t, n, "http://orders/search"); a.Header.Get("RateLimit-Policy") != "" {
				return fmt.Errorf("%v", a.Header)
			}
			return nil
		})
	}
}

// want asks from a node and compares the statuses.
func (m *limitMesh) want(t *testing.T, n *meshlab.Node, want []int, args ...string) (last answer) {
	t.Helper()
	var got []int
	for range want {
		last = ask(t, n, args...)
		got = append(got, last.Status)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v from %s: %v, want %v (%s)", args, n.Host.Name(), got, want, last.Header.Get("RateLimit"))
	}
	return last
}

func token(t *testing.T, claims jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(jwtSecret))
	if err != nil {
		t.Fatal(err)
	}
	return "Authorization: Bearer " + s
}

const url = "http://orders/"

var limitStories = map[string]func(*testing.T, *limitMesh){
	"Of a service": func(t *testing.T, m *limitMesh) {
		a := m.want(t, m.front, []int{200, 200, 200, 429}, url)
		if a.Header.Get("Retry-After") == "" || a.Header.Get("RateLimit-Policy") != `"default";q=3;w=600` {
			t.Errorf("%v", a.Header)
		}
		m.want(t, m.other, []int{200, 200, 200, 429}, url) // each proxy counts for itself
	},
	"Several": func(t *testing.T, m *limitMesh) {
		if a := m.want(t, m.front, []int{200}, url); a.Header.Get("RateLimit-Policy") != `"burst";q=2;w=600` || !strings.HasPrefix(a.Header.Get("RateLimit"), `"burst";r=1;`) {
			t.Errorf("%v is not the tightest", a.Header)
		}
		m.want(t, m.front, []int{200, 429, 429}, url)
	},
	"Of a route": func(t *testing.T, m *limitMesh) {
		if a := m.want(t, m.front, []int{200, 200, 429}, url+"search?q=1"); a.Header.Get("RateLimit-Policy") != `"search";q=2;w=600` {
			t.Errorf("%v", a.Header)
		}
		m.want(t, m.front, []int{200, 200, 200, 200}, url)
	},
	"Token bucket": func(t *testing.T, m *limitMesh) {
		m.want(t, m.front, []int{200, 200, 200, 200, 429}, url)
	},
	"By header": func(t *testing.T, m *limitMesh) {
		m.want(t, m.front, []int{200, 200, 429}, "-H", "X-Tenant: a", url)
		m.want(t, m.front, []int{200, 200, 429}, "-H", "X-Tenant: b", url)
	},
	"By caller": func(t *testing.T, m *limitMesh) {
		m.want(t, m.front, []int{200, 200, 429}, url)
		m.want(t, m.other, []int{200, 200, 429}, url)
	},
	"By claim": func(t *testing.T, m *limitMesh) {
		m.want(t, m.front, []int{200, 200, 429}, "-H", token(t, jwt.MapClaims{"org": "a"}), url)
		m.want(t, m.other, []int{429}, "-H", token(t, jwt.MapClaims{"org": "a", "sub": "another"}), url)
		m.want(t, m.front, []int{200, 200, 429}, "-H", token(t, jwt.MapClaims{"org": 7}), url)
		m.want(t, m.front, []int{200, 200}, url)
		m.want(t, m.front, []int{429}, "-H", "Authorization: Bearer forged", url) // like one without
	},
	"Several things at once": func(t *testing.T, m *limitMesh) {
		for _, n := range []*meshlab.Node{m.front, m.other} {
			m.want(t, n, []int{200, 200, 429}, "-H", "X-Tenant: a", url)
			m.want(t, n, []int{200, 200, 429}, "-H", "X-Tenant: b", url)
		}
	},
	"Of a route, by caller": func(t *testing.T, m *limitMesh) {
		m.want(t, m.front, []int{200, 429}, url+"export")
		m.want(t, m.other, []int{200, 429}, url+"export")
		m.want(t, m.front, []int{200, 200}, url)
	},
	"One limit for the whole mesh": func(t *testing.T, m *limitMesh) {
		passed := 0
		for range 8 {
			for _, n := range []*meshlab.Node{m.front, m.other} {
				if ask(t, n, url).Status == 200 {
					passed++
				}
			}
		}
		// Each may take a tenth of the limit, or one request, before it has a share.
		if passed < 4 || passed > 8 {
			t.Errorf("%d requests passed", passed)
		}
		// What one had left goes to the other.
		await(t, m.Mesh, "the rest of the limit to be used", func() error {
			if ask(t, m.front, url).Status == 200 {
				passed++
			}
			if passed < 6 {
				return fmt.Errorf("%d passed", passed)
			}
			return nil
		})
		m.want(t, m.front, []int{429, 429}, url)
		m.want(t, m.other, []int{429, 429}, url)
	},
	"One limit for the whole mesh, by header": func(t *testing.T, m *limitMesh) {
		for _, tenant := range []string{"X-Tenant: a", "X-Tenant: b"} {
			passed := 0
			// All of it comes to one proxy, whose even part is half of it.
			await(t, m.Mesh, "the tenant to have all of its limit", func() error {
				if ask(t, m.front, "-H", tenant, url).Status == 200 {
					passed++
				}
				if passed < 20 {
					return fmt.Errorf("%d passed", passed)
				}
				return nil
			})
			m.want(t, m.front, []int{429, 429}, "-H", tenant, url)
		}
	},
	"Services outside the mesh": func(t *testing.T, m *limitMesh) {
		m.external(t, "payments", "api.example.com", `"tls":"originate"`)
	},
	"Services outside the mesh 2": func(t *testing.T, m *limitMesh) {
		m.external(t, "mirror", "mirror.example.com", `"port":8080`)
	},
}

// external looks an example of a service outside up. That it can be reached is
// TestAServiceOutsideTheMesh's.
func (m *limitMesh) external(t *testing.T, service, host, has string) {
	t.Helper()
	docs, err := m.API.ExportExternalServices(t.Context(), policy.ServiceName{Namespace: "default", Name: service}, "")
	b, _ := json.Marshal(docs)
	if err != nil || !strings.Contains(string(b), has) {
		t.Fatalf("%s, %v", b, err)
	}
	await(t, m.Mesh, host+" to have a virtual address", func() error {
		if got := dig(t, m.front, "+short", "A", host); !strings.HasPrefix(got, "240.240.") {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

func TestTheExamplesOfLimitsDoWhatTheySay(t *testing.T) {
	t.Parallel()
	all := limitExamples(t)
	m := newLimitMesh(t)
	for name := range limitStories {
		if all[name] == "" {
			t.Errorf("there is no example %q", name)
		}
	}
	for name, text := range all {
		story := limitStories[name]
		if story == nil {
			t.Errorf("the example %q is not tried", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			if strings.Contains(text, "kind: ExternalService") {
				docs, err := api.ReadDocuments(name, []byte(text))
				if err == nil {
					_, err = m.API.Apply(t.Context(), docs, false)
				}
				if err != nil {
					t.Fatal(err)
				}
			} else {
				m.apply(t, text)
				defer m.clear(t)
			}
			story(t, m)
		})
	}
}
