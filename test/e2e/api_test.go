package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// call runs curl against the control plane, on its own host, as its operator
// would, and decodes the answer.
func call(t *testing.T, m *meshlab.Mesh, method, path, body string, more ...string) (answer, any) {
	t.Helper()
	token, err := os.ReadFile(m.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-X", method, "-H", "Authorization: Bearer " + strings.TrimSpace(string(token))}
	if body != "" {
		args = append(args, "-H", "Content-Type: application/json", "-d", body)
	}
	a := ask(t, m.ControlNode(), append(append(args, more...), "http://localhost:8080/api/v1"+path)...)
	var v any
	if strings.HasPrefix(a.Header.Get("Content-Type"), "application/json") {
		if err := json.Unmarshal([]byte(a.Body), &v); err != nil {
			t.Errorf("%s %s: %v: %q", method, path, err, a.Body)
		}
	}
	return a, v
}

// saysAll checks a whole answer.
func saysAll(t *testing.T, m *meshlab.Mesh, method, path, body string, status int, want string) {
	t.Helper()
	a, got := call(t, m, method, path, body)
	var w any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if a.Status != status || !reflect.DeepEqual(got, w) {
		t.Errorf("%s %s %s: %d %s, want %d %s", method, path, body, a.Status, a.Body, status, want)
	}
}

// TestTheSeedsDemoRunsAsWritten is the sequence of the sketch that the API comes
// from, with curl in place of its client.
func TestTheSeedsDemoRunsAsWritten(t *testing.T) {
	t.Parallel()
	m := start(t)
	node := bare(t, m, "user1")
	serve(t, node, "user1", 8001, nil)

	// 2. Registering services
	for _, body := range []string{
		`{"id":"user-service-1","service_name":"user-service","namespace":"default","ip":"10.0.1.10","port":8001,"weight":100,"labels":{"version":"v1","zone":"us-west-1a"}}`,
		`{"id":"user-service-2","service_name":"user-service","namespace":"default","ip":"10.0.1.11","port":8001,"weight":100,"labels":{"version":"v1","zone":"us-west-1b"}}`,
		`{"id":"order-service-1","service_name":"order-service","namespace":"default","ip":"10.0.2.10","port":8002,"weight":100,"labels":{"version":"v2","zone":"us-west-1a"}}`,
	} {
		saysAll(t, m, "POST", "/services/register", body, 200, `{"status":"registered"}`)
	}
	// 3. Traffic rules
	saysAll(t, m, "POST", "/traffic-rules/default/user-service",
		`{"match_headers":{"version":"beta"},"destination_service":"user-service-v2","weight":100,"timeout":10.0,"retry_attempts":2}`, 200, `{"status":"rule added"}`)
	_, got := call(t, m, "GET", "/traffic-rules/default/user-service", "")
	rules, _ := got.([]any)
	if len(rules) != 1 {
		t.Fatalf("rules %v", got)
	}
	wantFields(t, rules[0], `{"match_headers":{"version":"beta"},"match_path":null,"match_method":null,"destination_service":"user-service-v2",
		"destination_subset":null,"weight":100,"timeout":10,"retry_attempts":2,"circuit_breaker":true}`)
	// 4. Security policies
	saysAll(t, m, "POST", "/security-rules", `{"source_namespace":"default","source_service":"frontend","destination_namespace":"default",
		"destination_service":"user-service","allowed_methods":["GET","POST"],"required_jwt":true,"mtls_mode":"strict"}`, 200, `{"status":"security rule added"}`)
	_, got = call(t, m, "GET", "/security-rules", "")
	rules, _ = got.([]any)
	if len(rules) != 1 {
		t.Fatalf("security rules %v", got)
	}
	wantFields(t, rules[0], `{"source_namespace":"default","source_service":"frontend","destination_namespace":"default","destination_service":"user-service",
		"allowed_methods":["GET","POST"],"required_jwt":true,"mtls_mode":"strict"}`)
	// 5. Certificates
	issued(t, m)
	// 7. A sidecar
	enter(t, m, node, meshlab.Workload{Host: "user1", Service: "user-service", Ports: []string{"8001"}})
	var health map[string]any
	if err := json.Unmarshal([]byte(curl(t, node, "http://localhost:15000/health")), &health); err != nil {
		t.Fatal(err)
	}
	wantFields(t, health, `{"status":"healthy","proxy_port":15006,"service_port":8001}`)
	if s, _ := health["service"].(string); !strings.Contains(s, "user-service") {
		t.Errorf("health %v", health)
	}
	// 8. Metrics
	await(t, m, "the metrics", func() error { return seedMetrics(t, m) })
	// 9. Configuration
	saysAll(t, m, "POST", "/config", `{"global_timeout":30.0,"default_retry_attempts":3,"circuit_breaker_enabled":true,"mtls_mode":"strict",
		"observability":{"tracing_enabled":true,"metrics_enabled":true,"access_logging":true}}`, 200, `{"status":"config updated"}`)
	_, got = call(t, m, "GET", "/config", "")
	settings, _ := got.(map[string]any)
	wantFields(t, settings, `{"global_timeout":30,"default_retry_attempts":3,"circuit_breaker_enabled":true,"mtls_mode":"strict"}`)
	wantFields(t, settings["observability"], `{"tracing_enabled":true,"metrics_enabled":true,"access_logging":true}`)
	// 10. Discovery
	discovered(t, m)
	saysAll(t, m, "DELETE", "/services/default/user-service/user-service-2", "", 200, `{"status":"deregistered"}`)
	if _, got = call(t, m, "GET", "/services/default/user-service", ""); len(got.([]any)) != 2 {
		t.Errorf("after a deregistration: %v", got)
	}
	saysAll(t, m, "GET", "/services/default/nosuch", "", 200, `[]`)
	a, got := call(t, m, "GET", "/status", "")
	status, _ := got.(map[string]any)
	if a.Status != 200 || status["status"] != "healthy" || status["services"] != 2.0 || status["proxies"] != 1.0 {
		t.Errorf("status %s", a.Body)
	}
	if up, ok := status["uptime"].(float64); !ok || up <= 0 || up > 600 {
		t.Errorf("uptime %v", status["uptime"])
	}
}

// wantFields checks that an object has these fields with these values; it may
// have more.
func wantFields(t *testing.T, got any, want string) {
	t.Helper()
	var w map[string]any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	g, _ := got.(map[string]any)
	for k, v := range w {
		if has, there := g[k]; !there || !reflect.DeepEqual(has, v) {
			t.Errorf("%s: %v, want %v, in %v", k, has, v, got)
		}
	}
}

func issued(t *testing.T, m *meshlab.Mesh) {
	t.Helper()
	_, got := call(t, m, "POST", "/certificates/issue", `{"service_name":"user-service","namespace":"default"}`)
	c, _ := got.(map[string]any)
	text := func(field string) []byte { s, _ := c[field].(string); return []byte(s) }
	pair, err := tls.X509KeyPair(text("certificate"), text("private_key"))
	if err != nil || len(c) != 3 {
		t.Fatalf("%d fields, %v", len(c), err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil || leaf.Subject.CommonName != "default.user-service" {
		t.Errorf("CN %s, %v", leaf.Subject.CommonName, err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text("ca_certificate"))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "user-service.default.svc.cluster.local"}); err != nil {
		t.Error(err)
	}
	a, _ := call(t, m, "GET", "/certificates/ca", "")
	if a.Status != 200 || a.Header.Get("Content-Type") != "application/x-pem-file" || a.Body != string(text("ca_certificate")) {
		t.Errorf("the root: %d %s %q", a.Status, a.Header.Get("Content-Type"), a.Body)
	}
	csr := output(t, m.ControlNode(), "openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=anything")
	body, _ := json.Marshal(map[string]string{"service_name": "user-service", "namespace": "default", "csr": csr})
	_, got = call(t, m, "POST", "/certificates/issue", string(body))
	c, _ = got.(map[string]any)
	if _, has := c["private_key"]; has || len(c) != 2 {
		t.Errorf("with a request the answer has %d fields, a private key: %v", len(c), has)
	}
	block, _ := pem.Decode(text("certificate"))
	if block == nil {
		t.Fatalf("answer %v", got)
	}
	if leaf, err = x509.ParseCertificate(block.Bytes); err != nil || leaf.Subject.CommonName != "default.user-service" {
		t.Errorf("CN %s, %v: not what the request says but what was asked for", leaf.Subject.CommonName, err)
	}
}

func seedMetrics(t *testing.T, m *meshlab.Mesh) error {
	a, got := call(t, m, "GET", "/metrics", "")
	all, _ := got.(map[string]any)
	registry, _ := all["registry"].(map[string]any)
	balancer, _ := all["load_balancer"].(map[string]any)
	proxies, _ := all["proxies"].(map[string]any)
	for part, fields := range map[string][]string{
		"registry":      {"total_services", "healthy_endpoints", "unhealthy_endpoints", "traffic_rules", "security_rules"},
		"load_balancer": {"requests_routed", "routing_failures", "backend_failures"},
		"proxies":       {"total_proxies", "total_inbound_requests", "total_outbound_requests", "total_request_errors"},
	} {
		for _, f := range fields {
			if v, ok := all[part].(map[string]any)[f].(float64); !ok || v != math.Trunc(v) {
				return fmt.Errorf("%s.%s is not a number in %s", part, f, a.Body)
			}
		}
	}
	sum := registry["healthy_endpoints"].(float64) + registry["unhealthy_endpoints"].(float64)
	if len(registry) != 5 || len(balancer) != 3 || len(proxies) != 4 || registry["total_services"] != 2.0 || sum != 4 ||
		registry["traffic_rules"] != 1.0 || registry["security_rules"] != 1.0 || proxies["total_proxies"] != 1.0 {
		return fmt.Errorf("%s", a.Body)
	}
	return nil
}

func discovered(t *testing.T, m *meshlab.Mesh) {
	t.Helper()
	_, got := call(t, m, "GET", "/services/default/user-service", "")
	list, _ := got.([]any)
	if len(list) != 3 {
		t.Fatalf("%d endpoints of 3: %v", len(list), got)
	}
	byID := map[string]map[string]any{}
	for _, e := range list {
		o, _ := e.(map[string]any)
		id, _ := o["id"].(string)
		byID[id] = o
		if s := o["status"]; s != "healthy" && s != "unhealthy" {
			t.Errorf("status %v", s)
		}
	}
	wantFields(t, byID["user-service-1"], `{"id":"user-service-1","service_name":"user-service","namespace":"default","ip":"10.0.1.10","port":8001,"protocol":"http",
		"health_check_path":"/health","weight":100,"labels":{"version":"v1","zone":"us-west-1a"}}`)
	seen, ok := byID["user-service-1"]["last_seen"].(float64)
	if age := float64(time.Now().UnixMilli())/1000 - seen; !ok || age < -1 || age > 120 {
		t.Errorf("last_seen %v", byID["user-service-1"]["last_seen"])
	}
}

func TestTheAPIRefusesWhatIsWrongAndStoresNothingOfIt(t *testing.T) {
	t.Parallel()
	m := start(t)
	const good = `{"id":"a","service_name":"s","namespace":"default","ip":"192.0.2.1","port":80`
	for _, c := range []struct {
		name, method, path, body string
		want                     string
	}{
		{"a port out of range", "POST", "/services/register", strings.Replace(good, "80", "70000", 1) + `}`, "body.port: 70000 is not in 1..65535"},
		{"a missing field", "POST", "/services/register", `{"id":"a","service_name":"s","namespace":"default","ip":"192.0.2.1"}`, "body.port: is missing"},
		{"a wrong type", "POST", "/services/register", good + `,"weight":"much"}`, `body.weight: "much" is not a whole number`},
		{"an unknown field", "POST", "/services/register", good + `,"wieght":1}`, `body.wieght: unknown field; did you mean "weight"?`},
		{"no address", "POST", "/services/register", strings.Replace(good, "192.0.2.1", "nowhere", 1) + `}`, "body.ip: "},
		{"no JSON", "POST", "/services/register", `{"id":`, "body"},
		{"a mode that is none", "POST", "/security-rules", `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d","mtls_mode":"maybe"}`, "body.mtls_mode: "},
		{"a bad regex", "POST", "/traffic-rules/default/s", `{"match_path":"regex:("}`, "body.match_path: "},
		{"a strategy that is none", "POST", "/config", `{"load_balancing":{"strategy":"fastest"}}`, "load_balancing.strategy"},
		{"a setting that is none", "POST", "/config", `{"mtls_mod":"strict"}`, "mtls_mod"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			a, got := call(t, m, c.method, c.path, c.body)
			o, _ := got.(map[string]any)
			text, _ := o["error"].(string)
			if a.Status != 400 || len(o) != 1 || !strings.HasPrefix(text, c.want) && !strings.Contains(text, "body."+c.want) {
				t.Errorf("%d %s, want 400 and an error that begins %q", a.Status, a.Body, c.want)
			}
		})
	}
	saysAll(t, m, "GET", "/services/default/s", "", 200, `[]`)
	saysAll(t, m, "GET", "/security-rules", "", 200, `[]`)
	saysAll(t, m, "GET", "/traffic-rules/default/s", "", 200, `[]`)
	for _, args := range [][]string{{}, {"-H", "Authorization: Bearer wrong"}, {"-u", "admin:admin"}} {
		a := ask(t, m.ControlNode(), append(args, "http://127.0.0.1:8080/api/v1/status")...)
		var o map[string]string
		if err := json.Unmarshal([]byte(a.Body), &o); err != nil || a.Status != 401 || o["error"] == "" || a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%v: %d %v %s", args, a.Status, a.Header, a.Body)
		}
	}
	if info, err := os.Stat(m.TokenFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin.token: %v, %v", info.Mode(), err)
	}
	// The API is on loopback: nobody else reaches it.
	outside := bare(t, m, "outside")
	if out, err := outside.Output(t.Context(), "curl", "-sS", "--max-time", "5", "http://"+m.Host.Join(8080)+"/api/v1/status"); err == nil {
		t.Errorf("from outside: %s", out)
	}
}
