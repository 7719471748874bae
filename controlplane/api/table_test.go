package api_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strconv"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

const userService1 = `{"id":"user-service-1","service_name":"user-service","namespace":"default","ip":"10.0.1.10","port":8001,"weight":100,"labels":{"version":"v1","zone":"us-west-1a"}}`

// step is one request of a story and exactly what must come back.
type step struct {
	method, path, body string
	want               string
}

func play(t *testing.T, m *mesh, steps []step) {
	t.Helper()
	c := serve(t, m)
	for _, s := range steps {
		got := send(t, c, s.method, api.BasePath+s.path, s.body)
		if got.status != 200 || got.body != s.want {
			t.Fatalf("%s %s\n got %d %s\nwant 200 %s", s.method, s.path, got.status, got.body, s.want)
		}
		if ct := got.header.Get("Content-Type"); ct != "application/json" && s.path != "/certificates/ca" {
			t.Errorf("%s %s: Content-Type %q", s.method, s.path, ct)
		}
	}
}

func TestEndpointsComeAndGoAsInSeedB(t *testing.T) {
	first := `{"id":"user-service-1","service_name":"user-service","namespace":"default","ip":"10.0.1.10","port":8001,"protocol":"http","health_check_path":"/health","weight":100,"labels":{"version":"v1","zone":"us-west-1a"},"status":"healthy","last_seen":1700000090,"resource_version":"2"}`
	second := `{"id":"b","service_name":"user-service","namespace":"default","ip":"10.0.1.11","port":1,"protocol":"grpc","health_check_path":"/","weight":0,"labels":{},"status":"healthy","last_seen":1700000090,"resource_version":"3"}`
	play(t, newMesh(), []step{
		{"GET", "/services/default/user-service", "", `[]`},
		{"GET", "/services", "", `[]`},
		{"POST", "/services/register", userService1, `{"status":"registered"}`},
		{"POST", "/services/register", userService1, `{"status":"registered"}`},
		{"GET", "/services/default/user-service", "", `[` + first + `]`},
		{"POST", "/services/register", `{"id":"b","service_name":"user-service","namespace":"default","ip":"10.0.1.11","port":1,"protocol":"grpc","health_check_path":"/","weight":0,"labels":null}`, `{"status":"registered"}`},
		{"GET", "/services/default/user-service", "", `[` + first + `,` + second + `]`},
		{"GET", "/services", "", `[{"namespace":"default","service_name":"user-service","virtual_ipv4":"240.240.0.1","virtual_ipv6":"","endpoints":2,"healthy_endpoints":2,"traffic_rules":0}]`},
		{"DELETE", "/services/default/user-service/user-service-1", "", `{"status":"deregistered"}`},
		{"DELETE", "/services/default/user-service/user-service-1", "", `{"status":"deregistered"}`},
		{"DELETE", "/services/default/nobody/x", "", `{"status":"deregistered"}`},
		{"GET", "/services/default/user-service", "", `[` + second + `]`},
		{"GET", "/services/NoSuch_Name/x", "", `[]`},
	})
}

func TestTrafficRulesShowWhatIsInForce(t *testing.T) {
	m := newMesh()
	play(t, m, []step{
		{"GET", "/traffic-rules/default/user-service", "", `[]`},
		{"POST", "/traffic-rules/default/user-service", `{}`, `{"status":"rule added"}`},
		{"POST", "/traffic-rules/default/user-service", `{"match_headers":{"x-canary":"true"},"match_path":"/api/*","match_method":"GET","destination_service":"user-service","destination_subset":"v2","weight":10,"timeout":1.5,"retry_attempts":1,"circuit_breaker":false}`, `{"status":"rule added"}`},
		{"POST", "/traffic-rules/default/user-service", `{"match_path":null,"weight":0,"timeout":null}`, `{"status":"rule added"}`},
		{"GET", "/traffic-rules/default/user-service", "", `[` +
			`{"id":"r1","match_headers":{},"match_path":null,"match_method":null,"destination_service":"","destination_subset":null,"weight":100,"timeout":30,"retry_attempts":3,"circuit_breaker":true,"resource_version":"1","inherits":["timeout","retry_attempts"]},` +
			`{"id":"r2","match_headers":{"x-canary":"true"},"match_path":"/api/*","match_method":"GET","destination_service":"user-service","destination_subset":"v2","weight":10,"timeout":1.5,"retry_attempts":1,"circuit_breaker":false,"resource_version":"2"},` +
			`{"id":"r3","match_headers":{},"match_path":null,"match_method":null,"destination_service":"","destination_subset":null,"weight":0,"timeout":30,"retry_attempts":3,"circuit_breaker":true,"resource_version":"3","inherits":["timeout","retry_attempts"]}]`},
		{"DELETE", "/traffic-rules/default/user-service/r2", "", `{"status":"rule deleted"}`},
		{"DELETE", "/traffic-rules/default/user-service/r3", "", `{"status":"rule deleted"}`},
		{"POST", "/config", `{"global_timeout":5,"services":{"user-service":{"retry_attempts":7}}}`, `{"status":"config updated"}`},
		{"GET", "/traffic-rules/default/user-service", "", `[{"id":"r1","match_headers":{},"match_path":null,"match_method":null,"destination_service":"","destination_subset":null,"weight":100,"timeout":5,"retry_attempts":7,"circuit_breaker":true,"resource_version":"1","inherits":["timeout","retry_attempts"]}]`},
	})
	if r := m.TrafficRules(policy.ServiceName{Namespace: "default", Name: "user-service"})[0]; r.Timeout != 0 || r.RetryAttempts != 0 {
		t.Errorf("what the mesh decides was stored with the rule: %+v", r)
	}
}

// What a rule does comes back as it was given, and nothing of what was not.
func TestTrafficRulesShowWhatTheyDo(t *testing.T) {
	const does = `"match_host":"*.example.com","match_query":{"q":"present:"},"rewrite":{"path_prefix":"/v2","host":"b"},` +
		`"request_headers":{"remove":["A"],"set":{"B":"c"},"add":{"D":"e"}},"response_headers":{"remove":["F"]},` +
		`"mirror":{"service":"next","subset":"v2","percent":0},"fault":{"delay":{"seconds":0.5,"percent":1.5},"abort":{"grpc_status":14},"header":"X-Chaos"},` +
		`"per_try_timeout":1,"idle_timeout":60,"retry_on":["5xx","retriable-status-codes"],"retry_status_codes":[409],"retry_delay":0,"retry_max_delay":3`
	const rule = `{"id":"r1","match_headers":{},"match_path":"/a/*","match_method":"GET,HEAD","destination_service":"","destination_subset":null,"weight":100,"timeout":2,"retry_attempts":2,"circuit_breaker":true,` + does + `,"resource_version":"1"}`
	const body = `{"match_path":"/a/*","match_method":"GET,HEAD","timeout":2,"retry_attempts":2,` + does + `}`
	m := newMesh()
	play(t, m, []step{
		{"POST", "/traffic-rules/default/web", body, `{"status":"rule added"}`},
		{"GET", "/traffic-rules/default/web", "", `[` + rule + `]`},
		{"GET", "/traffic-rules/default/web/r1", "", rule},
		{"PUT", "/traffic-rules/default/web/r1", `{"redirect":{"path":"/b"}}`, `{"status":"rule stored"}`},
		{"PUT", "/traffic-rules/default/web/r1", `{"direct_response":{"status":200,"body":"x"}}`, `{"status":"rule stored"}`},
		{"POST", "/config", `{"services":{"web":{"affinity":{"cookie":"at","ttl":60}}}}`, `{"status":"config updated"}`},
	})
	if r := m.TrafficRules(policy.ServiceName{Namespace: "default", Name: "web"})[0]; r.DirectResponse == nil || r.Redirect != nil || r.Rewrite != nil {
		t.Errorf("stored: %+v", r)
	}
}

func TestSecurityRulesShowTheModeInForce(t *testing.T) {
	m := newMesh()
	play(t, m, []step{
		{"GET", "/security-rules", "", `[]`},
		{"POST", "/security-rules", `{"source_namespace":"default","source_service":"web","destination_namespace":"default","destination_service":"user-service"}`, `{"status":"security rule added"}`},
		{"POST", "/security-rules", `{"source_namespace":"*","source_service":"*","destination_namespace":"a","destination_service":"b","allowed_methods":["GET"],"required_jwt":true,"mtls_mode":"disabled"}`, `{"status":"security rule added"}`},
		{"POST", "/config", `{"mtls_mode":"permissive"}`, `{"status":"config updated"}`},
		{"GET", "/security-rules", "", `[` +
			`{"id":"r1","source_namespace":"default","source_service":"web","destination_namespace":"default","destination_service":"user-service","allowed_methods":["GET","POST","PUT","DELETE"],"required_jwt":false,"mtls_mode":"permissive","resource_version":"1","inherits":["mtls_mode"]},` +
			`{"id":"r2","source_namespace":"*","source_service":"*","destination_namespace":"a","destination_service":"b","allowed_methods":["GET"],"required_jwt":true,"mtls_mode":"disabled","resource_version":"2"}]`},
		{"DELETE", "/security-rules/r2", "", `{"status":"security rule deleted"}`},
	})
	if rules := m.SecurityRules(); len(rules) != 1 || rules[0].MTLSMode != "" {
		t.Errorf("stored: %+v", rules)
	}
}

func TestWhatIsAddedIsNamedInTheHeader(t *testing.T) {
	c := serve(t, newMesh())
	got := send(t, c, "POST", "/api/v1/traffic-rules/default/web", `{}`)
	if got.header.Get("X-Resource-Id") != "r1" || got.header.Get("Location") != "/api/v1/traffic-rules/default/web/r1" {
		t.Errorf("header: %v", got.header)
	}
	if del := send(t, c, "DELETE", got.header.Get("Location"), ""); del.status != 200 {
		t.Errorf("the location is not what deletes it: %d %s", del.status, del.body)
	}
}

func signingRequest(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestCertificatesAndTokens(t *testing.T) {
	play(t, newMesh(), []step{
		{"GET", "/certificates/ca", "", "ROOT"},
		{"POST", "/certificates/issue", `{"service_name":"web","namespace":"default"}`, `{"private_key":"KEY","certificate":"CHAIN default/web","ca_certificate":"ROOT\n"}`},
		{"POST", "/certificates/issue", `{"service_name":"web","namespace":"default","csr":` + strconv.Quote(signingRequest(t)) + `}`, `{"certificate":"CHAIN default/web for ECDSA","ca_certificate":"ROOT\n"}`},
		{"POST", "/tokens", `{"service_name":"web","namespace":"default"}`, `{"token":"weir1.default/web","expires":1700086400,"id":"t1"}`},
		{"POST", "/tokens", `{"service_name":"web","namespace":"default","ttl":60}`, `{"token":"weir1.default/web","expires":1700000060,"id":"t1"}`},
		{"POST", "/tokens", `{"service_name":"web","namespace":"default","uses":3}`, `{"token":"weir1.default/web","expires":1700086400,"id":"t1","uses":3}`},
		{"GET", "/tokens", "", `[{"id":"t1","namespace":"default","service_name":"web","state":"valid","created":1700000000,"expires":1700086400},` +
			`{"id":"t2","namespace":"default","service_name":"web","state":"used-up","created":1700000000,"expires":1700086400,"uses":3,"used":3},` +
			`{"id":"t3","namespace":"default","service_name":"web","state":"revoked","created":1700000000,"expires":1700086400,"uses":2,"revoked":1700000060}]`},
		{"DELETE", "/tokens/t1", "", `{"status":"token revoked"}`},
	})
	got := send(t, serve(t, newMesh()), "GET", "/api/v1/certificates/ca", "")
	if ct := got.header.Get("Content-Type"); ct != "application/x-pem-file" {
		t.Errorf("Content-Type %q", ct)
	}
}

func TestMetricsAndStatusCountAsInSeedB(t *testing.T) {
	m := newMesh()
	m.Connect(policy.Figures{InboundRequests: 1, OutboundRequests: 2, RequestErrors: 3, RequestsRouted: 4, RoutingFailures: 5, BackendFailures: 6},
		api.ProxyStatus{ID: "p1", Namespace: "default", ServiceName: "web", ConnectedAt: 1.5, State: api.Current})
	sick := policy.DefaultEndpoint()
	sick.Status = policy.Unhealthy
	if _, err := m.Change(t.Context(), []policy.Edit{{Ref: policy.Ref{Kind: policy.KindEndpoint, Namespace: "default", Service: "sick", ID: "sick"}, To: &policy.Resource{Endpoint: &sick}}}, false); err != nil {
		t.Fatal(err)
	}
	play(t, m, []step{
		{"POST", "/services/register", userService1, `{"status":"registered"}`},
		{"POST", "/traffic-rules/default/only-rules", `{}`, `{"status":"rule added"}`},
		{"POST", "/security-rules", `{"source_namespace":"default","source_service":"web","destination_namespace":"default","destination_service":"user-service"}`, `{"status":"security rule added"}`},
		{"GET", "/metrics", "", `{"registry":{"total_services":2,"healthy_endpoints":1,"unhealthy_endpoints":1,"traffic_rules":1,"security_rules":1},` +
			`"load_balancer":{"requests_routed":4,"routing_failures":5,"backend_failures":6},` +
			`"proxies":{"total_proxies":1,"total_inbound_requests":1,"total_outbound_requests":2,"total_request_errors":3},` +
			`"api":{"watches":0,"refused":{"missing_token":0,"wrong_token":0,"proxy_certificate":0,"other_site":0}}}`},
		{"GET", "/status", "", `{"status":"healthy","services":2,"proxies":1,"uptime":90,"version":""}`},
		{"GET", "/proxies", "", `[{"id":"p1","namespace":"default","service_name":"web","version":"","addresses":[],"connected_at":1.5,"subscribed":0,"resources":[],"state":"current","last_seen":0,"connected_to":"","memory_bytes":0,"certificate_expires":0,"certificate_begins":0,"certificate_serial":"","inbound_requests":0,"outbound_requests":0,"request_errors":0,"request_duration_total":0,"circuit_breaker_opens":0}]`},
	})
}

func TestHealthOfAnEndpointIsTold(t *testing.T) {
	m := newMesh()
	const sick = `{"id":"sick","service_name":"users","namespace":"shop","ip":"10.0.0.1","port":80}`
	const head = `{"namespace":"shop","service_name":"users","id":"sick","status":"healthy",`
	play(t, m, []step{
		{"POST", "/services/register", sick, `{"status":"registered"}`},
		{"GET", "/services/shop/users/sick/health", "", head + `"checked":false,"since":0,"next_check":0,"history":[]}`},
	})
	m.Check(api.HealthResult{At: 1.5, Took: 0.25, Check: "http", Detail: "500 Internal Server Error"})
	play(t, m, []step{
		{"GET", "/services/shop/users/sick/health", "", head + `"checked":true,"since":0,"next_check":0,"history":[{"at":1.5,"took":0.25,"check":"http","passed":false,"healthy":false,"detail":"500 Internal Server Error"}]}`},
	})
	c := serve(t, m)
	if a := send(t, c, "GET", "/api/v1/services/shop/users/none/health", ""); a.status != 404 || a.body != `{"error":"shop/users has no endpoint \"none\""}` {
		t.Errorf("%d %s", a.status, a.body)
	}
	h, err := c.Health(t.Context(), policy.ServiceName{Namespace: "shop", Name: "users"}, "sick")
	if err != nil || len(h.History) != 1 || h.History[0].Detail != "500 Internal Server Error" {
		t.Errorf("the client has %+v, %v", h, err)
	}
}

func TestConfigIsMergedAndShown(t *testing.T) {
	c := serve(t, newMesh())
	for _, patch := range []string{
		`{"global_timeout":20,"default_retry_attempts":2,"circuit_breaker_enabled":false,"mtls_mode":"permissive"}`,
		`{"observability":{"metrics_enabled":false,"access_logging":true}}`,
		`{"security":{"jwt_secret":"hush"}}`,
	} {
		if got := send(t, c, "POST", "/api/v1/config", patch); got.body != `{"status":"config updated"}` || got.header.Get("Warning") != "" {
			t.Fatalf("%s: %d %s %v", patch, got.status, got.body, got.header["Warning"])
		}
	}
	var tree struct {
		Timeout  float64 `json:"global_timeout"`
		Attempts int     `json:"default_retry_attempts"`
		Breaker  bool    `json:"circuit_breaker_enabled"`
		Mode     string  `json:"mtls_mode"`
		Security map[string]any
		Obs      struct {
			Tracing bool `json:"tracing_enabled"`
			Metrics bool `json:"metrics_enabled"`
			Access  bool `json:"access_logging"`
		} `json:"observability"`
	}
	got := send(t, c, "GET", "/api/v1/config", "")
	if err := json.Unmarshal([]byte(got.body), &tree); err != nil {
		t.Fatal(err)
	}
	if tree.Timeout != 20 || tree.Attempts != 2 || tree.Breaker || tree.Mode != "permissive" || tree.Obs.Metrics || !tree.Obs.Access || tree.Obs.Tracing {
		t.Errorf("effective: %s", got.body)
	}
	if _, shown := tree.Security["jwt_secret"]; shown {
		t.Error("the secret is shown")
	}
}

func TestConfigSaysWhatHasNoEffectYet(t *testing.T) {
	c := serve(t, newMesh())
	got := send(t, c, "POST", "/api/v1/config", `{"security":{"cors":{"enabled":true},"ssl":{"enabled":true,"cert_file":"c","key_file":"k"},"authentication":{"enabled":false}},"observability":{"tracing_enabled":true}}`)
	want := `299 weir "security.cors, security.ssl, observability.tracing_enabled: kept, but not acted on by this version"`
	if got.status != 200 || got.header.Get("Warning") != want {
		t.Errorf("%d %s\n got %s\nwant %s", got.status, got.body, got.header.Get("Warning"), want)
	}
	if got := send(t, c, "POST", "/api/v1/config", `{"egress":"deny"}`); got.header.Get("Warning") != "" {
		t.Errorf("a patch that does not name them is warned of them: %s", got.header.Get("Warning"))
	}
}
