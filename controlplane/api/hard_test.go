package api_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// Bodies of a million bytes, made to cost as much as they can: each is refused,
// in a short answer, for memory in proportion to its size.
func TestHardBodiesAreRefusedInProportion(t *testing.T) {
	m := newMesh()
	h, err := m.Serve(config(m))
	check(t, err)
	size := 1_000_000
	if raceEnabled {
		size /= 10 // it is ten times as slow
	}
	repeat := func(head, unit, tail string) string {
		return head + strings.Repeat(unit, (size-len(head)-len(tail))/len(unit)) + tail
	}
	var names, methods strings.Builder
	for i := range size / 17 {
		fmt.Fprintf(&names, `,"field%d":1`, i)
		fmt.Fprintf(&methods, `,"me thod%d"`, i)
	}
	for name, body := range map[string]string{
		"deep lists":       repeat("", "[", ""),
		"deep objects":     repeat("", `{"a":`, ""),
		"closed and deep":  strings.Repeat("[", size/2) + strings.Repeat("]", size/2),
		"many fields":      `{"x":1` + names.String() + `}`,
		"one long name":    repeat(`{"`, "n", `":1}`),
		"one long value":   repeat(`{"id":"`, "v", `","service_name":"web","namespace":"default","ip":"10.0.0.1","port":80}`),
		"many bad methods": `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d","allowed_methods":["GET"` + methods.String() + `]}`,
		"nothing but zero": strings.Repeat("0", size),
		"not UTF-8":        repeat(`{"a":"`, "\xff", `"}`),
		"escapes":          repeat(`{"`, `\u0000`, `":1}`),
	} {
		for _, call := range []string{"POST /services/register", "POST /security-rules", "PUT /config", "POST /apply"} {
			method, path, _ := strings.Cut(call, " ")
			req, err := http.NewRequest(method, api.BasePath+path, strings.NewReader(body))
			check(t, err)
			req.Header.Set("Authorization", "Bearer "+token)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			w := &sink{}
			h.ServeHTTP(w, req)
			runtime.ReadMemStats(&after)
			if w.status != 400 && w.status != 413 || w.body.Len() > 40<<10 || !json.Valid([]byte(w.body.String())) {
				t.Errorf("%s to %s: %d, %d bytes", name, call, w.status, w.body.Len())
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 400*uint64(size) {
				t.Errorf("%s to %s: %d bytes were allocated for %d", name, call, used, size)
			}
		}
	}
	if m.stored() != 0 {
		t.Error("something was stored")
	}
}

func TestThousandsOfRulesAreAppliedListedAndTakenBack(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	many := 10_000
	if raceEnabled {
		many = 1_000
	}
	docs := make([]string, many)
	for i := range docs {
		docs[i] = fmt.Sprintf(`{"kind":"TrafficRule","service":"web","spec":{"match_path":"/%d"}}`, i)
	}
	body := `{"documents":[` + strings.Join(docs, ",") + `]}`
	var out api.Stored
	got := send(t, c, "POST", "/api/v1/apply", body)
	if err := json.Unmarshal([]byte(got.body), &out); err != nil || got.status != 200 || len(out.Results) != many || out.Results[many-1].Result != "added" {
		t.Fatalf("%d %.200s", got.status, got.body)
	}
	if again := send(t, c, "POST", "/api/v1/apply", body); again.status != 200 || strings.Contains(again.body, "added") {
		t.Errorf("again: %d %.200s", again.status, again.body)
	}
	rules, err := c.TrafficRules(t.Context(), web)
	check(t, err)
	if len(rules) != many || rules[many-1].MatchPath != fmt.Sprint("/", many-1) {
		t.Errorf("%d rules", len(rules))
	}
	list, err := c.History(t.Context(), 0, 10)
	check(t, err)
	if len(list) != 1 || list[0].Total != many || len(list[0].Changes) != 50 {
		t.Errorf("%d revisions, of %d changes, %d shown", len(list), list[0].Total, len(list[0].Changes))
	}
	back, err := c.Rollback(t.Context(), 0, false)
	check(t, err)
	if len(back.Changes) != many || len(m.TrafficRules(web)) != 0 {
		t.Errorf("%d changes, %d rules", len(back.Changes), len(m.TrafficRules(web)))
	}
}

func TestRefusedCallsAreCountedAndLoggedButNotEach(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	m := newMesh()
	now := time.Unix(1_700_000_000, 0)
	cfg := config(m)
	cfg.Log, cfg.Now = zap.New(core), func() time.Time { return now }
	h, err := m.Serve(cfg)
	check(t, err)
	call := func(status int, text string, change func(*http.Request)) {
		t.Helper()
		req, err := http.NewRequest("GET", "/api/v1/status", nil)
		check(t, err)
		req.RemoteAddr = "192.0.2.7:1234"
		change(req)
		w := &sink{}
		if h.ServeHTTP(w, req); w.status != status || !strings.Contains(w.body.String(), text) {
			t.Errorf("%d %s, want %d %s", w.status, w.body.String(), status, text)
		}
	}
	for range 100 {
		call(401, "the admin token is wrong", func(r *http.Request) { r.Header.Set("Authorization", "Bearer guess") })
	}
	call(401, "the admin token is missing", func(*http.Request) {})
	spiffe, err := url.Parse("spiffe://weir.local/ns/default/sa/web")
	check(t, err)
	workload := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{spiffe}, Subject: pkix.Name{CommonName: "default.web"}}}}
	call(401, "the certificate of spiffe://weir.local/ns/default/sa/web opens nothing here", func(r *http.Request) { r.TLS = workload })
	call(403, "cross-origin", func(r *http.Request) {
		r.Method = "POST"
		r.Header.Set("Origin", "https://evil.example")
		r.Header.Set("Sec-Fetch-Site", "cross-site")
	})
	now = now.Add(11 * time.Second)
	call(401, "wrong", func(r *http.Request) { r.Header.Set("Authorization", "Bearer guess") })
	call(200, `"refused":{"missing_token":1,"wrong_token":101,"proxy_certificate":1,"other_site":1}`, func(r *http.Request) {
		r.URL.Path = "/api/v1/metrics"
		r.Header.Set("Authorization", "Bearer "+token)
	})
	var lines []string
	for _, l := range logs.All() {
		f := l.ContextMap()
		lines = append(lines, fmt.Sprint(f["reason"], " ", f["peer"], " ", f["refused_since_last_line"]))
	}
	want := "wrong_token 192.0.2.7:1234 0, missing_token 192.0.2.7:1234 0, proxy_certificate 192.0.2.7:1234 0, other_site 192.0.2.7:1234 0, wrong_token 192.0.2.7:1234 99"
	if strings.Join(lines, ", ") != want {
		t.Errorf("logged: %s\nwant %s", strings.Join(lines, ", "), want)
	}
}

// Every answer of a story is as the document says.
func TestAnswersAreAsTheDocumentSays(t *testing.T) {
	m := newMesh()
	m.Connect(policy.Figures{}, api.ProxyStatus{ID: "p1", Namespace: "default", ServiceName: "web"})
	c := serve(t, m)
	var doc map[string]any
	check(t, json.Unmarshal([]byte(send(t, c, "GET", "/api/v1/openapi.json", "").body), &doc))
	paths := doc["paths"].(map[string]any)
	seen := 0
	for _, s := range []struct{ route, path, body string }{
		{"GET /services", "", ""},
		{"POST /services/register", "", userService1},
		{"POST /services/register", "?dry_run=1", userService1},
		{"PUT /services/{namespace}/{service}/{endpoint_id}", "/services/default/web/e1", one[0].body},
		{"GET /services", "", ""},
		{"GET /services/{namespace}/{service}", "/services/default/web", ""},
		{"GET /services/{namespace}/{service}/{endpoint_id}", "/services/default/web/e1", ""},
		{"POST /traffic-rules/{namespace}/{service}", "/traffic-rules/default/web", `{}`},
		{"PUT /traffic-rules/{namespace}/{service}/{rule_id}", "/traffic-rules/default/web/t1", one[1].body},
		{"GET /traffic-rules/{namespace}/{service}", "/traffic-rules/default/web", ""},
		{"GET /traffic-rules/{namespace}/{service}/{rule_id}", "/traffic-rules/default/web/t1", ""},
		{"POST /security-rules", "", one[2].body},
		{"PUT /security-rules/{rule_id}", "/security-rules/s1", one[2].body},
		{"GET /security-rules", "", ""},
		{"GET /security-rules/{rule_id}", "/security-rules/s1", ""},
		{"POST /config", "", `{"egress":"deny"}`},
		{"POST /config", "?dry_run=1", `{"egress":"allow"}`},
		{"PUT /config", "", `{"global_timeout":3}`},
		{"GET /config", "", ""},
		{"POST /apply", "", `{"documents":[{"kind":"Config","spec":{"security":{"cors":{"enabled":true}}}},{"kind":"TrafficRule","service":"web","spec":{"weight":3}}]}`},
		{"POST /apply", "?dry_run=1", `{"documents":[{"kind":"Config","spec":{"egress":"allow"}}]}`},
		{"GET /history", "", ""},
		{"GET /history/{revision}", "/history/1", ""},
		{"GET /diff", "/diff?from=1", ""},
		{"POST /rollback", "?dry_run=1", `{"revision":2}`},
		{"POST /rollback", "", `{"revision":2}`},
		{"GET /metrics", "", ""}, {"GET /status", "", ""}, {"GET /proxies", "", ""},
		{"POST /tokens", "", `{"service_name":"web","namespace":"default"}`},
		{"POST /certificates/issue", "", `{"service_name":"web","namespace":"default"}`},
		{"DELETE /config", "", ""},
		{"DELETE /services/{namespace}/{service}/{endpoint_id}", "/services/default/web/e1", ""},
		{"DELETE /security-rules/{rule_id}", "/security-rules/none", ""},
		{"POST /config", "", `{"x":1}`},
		{"GET /history/{revision}", "/history/77", ""},
	} {
		method, route, _ := strings.Cut(s.route, " ")
		path := s.path
		if !strings.HasPrefix(path, "/") {
			path = route + path
		}
		got := send(t, c, method, api.BasePath+path, s.body)
		op, _ := paths[route].(map[string]any)[strings.ToLower(method)].(map[string]any)
		responses, _ := op["responses"].(map[string]any)
		described, _ := responses[fmt.Sprint(got.status)].(map[string]any)
		content, _ := described["content"].(map[string]any)
		media, _ := content[got.header.Get("Content-Type")].(map[string]any)
		if media == nil {
			t.Errorf("%s: the document has no %d of type %s", s.route, got.status, got.header.Get("Content-Type"))
			continue
		}
		var v any
		check(t, json.Unmarshal([]byte(got.body), &v))
		for _, problem := range against(doc, media["schema"].(map[string]any), v, "") {
			t.Errorf("%s: %s: %s", s.route, problem, got.body)
		}
		seen++
	}
	if len(against(doc, map[string]any{"$ref": "#/components/schemas/Metrics"}, map[string]any{"x": 1.0}, "")) != 5 {
		t.Error("the comparison finds nothing")
	}
	if seen < 30 {
		t.Errorf("only %d answers were compared", seen)
	}
}

// against compares a value with a schema: types, required and unknown members,
// elements and references, which is what the document uses.
func against(doc, schema map[string]any, v any, at string) (problems []string) {
	if ref, ok := schema["$ref"].(string); ok {
		node := doc
		for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
			node, _ = node[part].(map[string]any)
		}
		if node == nil {
			return []string{at + ": no schema " + ref}
		}
		return against(doc, node, v, at)
	}
	if !isOf(schema["type"], v) {
		return []string{fmt.Sprintf("%s: %T is not %v", at, v, schema["type"])}
	}
	switch v := v.(type) {
	case map[string]any:
		known, _ := schema["properties"].(map[string]any)
		for _, name := range asList(schema["required"]) {
			if _, ok := v[fmt.Sprint(name)]; !ok {
				problems = append(problems, fmt.Sprintf("%s: %v is missing", at, name))
			}
		}
		for name, member := range v {
			if s, ok := known[name].(map[string]any); ok {
				problems = append(problems, against(doc, s, member, at+"."+name)...)
			} else if more, ok := schema["additionalProperties"].(map[string]any); ok {
				problems = append(problems, against(doc, more, member, at+"."+name)...)
			} else if schema["additionalProperties"] == false {
				problems = append(problems, at+"."+name+": is not in the document")
			}
		}
	case []any:
		items, _ := schema["items"].(map[string]any)
		for i, e := range v {
			problems = append(problems, against(doc, items, e, fmt.Sprintf("%s[%d]", at, i))...)
		}
	}
	return problems
}

func asList(v any) []any { l, _ := v.([]any); return l }

func isOf(types, v any) bool {
	list := asList(types)
	if s, ok := types.(string); ok {
		list = []any{s}
	}
	for _, t := range list {
		switch v := v.(type) {
		case nil:
			if t == "null" {
				return true
			}
		case string:
			if t == "string" {
				return true
			}
		case bool:
			if t == "boolean" {
				return true
			}
		case float64:
			if t == "number" || t == "integer" && v == float64(int64(v)) {
				return true
			}
		case map[string]any:
			if t == "object" {
				return true
			}
		case []any:
			if t == "array" {
				return true
			}
		}
	}
	return len(list) == 0
}
