package api_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func endpointWith(field string) string {
	return `{"id":"e","service_name":"web","namespace":"default","ip":"10.0.0.1","port":80,` + field + `}`
}

func TestABadBodyIsRefusedWithItsPlaceAndNothingIsStored(t *testing.T) {
	m := newMesh()
	client := serve(t, m)
	const reg, traffic, security, issue, tok, cfg = "/services/register", "/traffic-rules/default/web", "/security-rules", "/certificates/issue", "/tokens", "/config"
	for _, c := range []struct{ name, path, body, want string }{
		{"empty", reg, ``, `body: is empty; a JSON object is expected`},
		{"blanks", cfg, " \n", `body: is empty; a JSON object is expected`},
		{"bad JSON", reg, "{\n  \"id\": oops}", `body: is not JSON: line 2, column 9: invalid character 'o' looking for beginning of value`},
		{"cut short", reg, `{"id":"e"`, `body: is not JSON: line 1, column 9: unexpected end of JSON input`},
		{"two texts", reg, `{} {}`, `body: is not JSON: line 1, column 4: invalid character '{' after top-level value`},
		{"two texts for config", cfg, `{}}`, `body: is not JSON: line 1, column 3: invalid character '}' after top-level value`},
		{"not UTF-8", reg, "{\"id\":\"\xff\"}", `body: is not UTF-8`},
		{"a member twice", reg, endpointWith(`"port":81`), `body.port: is given twice`},
		{"a member twice within", cfg, `{"security":{"cors":{"enabled":true,"enabled":false}}}`, `body.security.cors.enabled: is given twice`},
		{"a list", reg, `[]`, `body: [] is not an object`},
		{"a list for config", cfg, `[]`, `body: [] is not an object`},
		{"null", reg, `null`, `body: null is not an object`},
		{"null for config", cfg, `null`, `body: null is not an object`},
		{"missing", reg, `{"id":"e","service_name":"web","ip":"10.0.0.1"}`, `body.namespace: is missing; body.port: is missing`},
		{"unknown, near", reg, endpointWith(`"wieght":1`), `body.wieght: unknown field; did you mean "weight"?`},
		{"unknown, far", reg, endpointWith(`"x":1`), `body.x: unknown field; known here: id, service_name, namespace, ip, port, protocol, health_check_path, weight, labels, host, tls, server_name, ca`},
		{"other case", reg, endpointWith(`"Weight":1`), `body.Weight: unknown field; did you mean "weight"?`},
		{"dotted name", reg, endpointWith(`"a.weight":1`), `body.a.weight: unknown field; did you mean "weight"?`},
		{"string for number", reg, `{"id":"e","service_name":"web","namespace":"default","ip":"10.0.0.1","port":"80"}`, `body.port: "80" is not a whole number`},
		{"null for required", reg, `{"id":"e","service_name":"web","namespace":"default","ip":"10.0.0.1","port":null}`, `body.port: null is not a whole number`},
		{"fraction", reg, endpointWith(`"weight":1.5`), `body.weight: 1.5 is not a whole number`},
		{"too large for int", reg, endpointWith(`"weight":1e30`), `body.weight: 1e30 does not fit into int`},
		{"too large for anything", reg, endpointWith(`"weight":1e999`), `body: 1e999 does not fit into float64`},
		{"number for string", reg, endpointWith(`"protocol":7`), `body.protocol: 7 is not a string`},
		{"label not a string", reg, endpointWith(`"labels":{"a":1}`), `body.labels.a: 1 is not a string`},
		{"port range", reg, `{"id":"e","service_name":"web","namespace":"default","ip":"10.0.0.1","port":70000}`, `body.port: 70000 is not in 1..65535`},
		{"several", reg, `{"id":"e","service_name":"Web","namespace":"default","ip":"nope","port":0}`, `body.service_name: service "Web" may hold only a-z, 0-9 and hyphens; body.ip: "nope" is not an IP address; body.port: 0 is not in 1..65535`},
		{"reserved namespace", reg, `{"id":"e","service_name":"web","namespace":"weir-system","ip":"10.0.0.1","port":80}`, `body.namespace: "weir-system" is the control plane's own`},
		{"unknown protocol", reg, endpointWith(`"protocol":"udp"`), `body.protocol: "udp" is not one of http, http2, grpc, tcp, tls`},
		{"negative weight", traffic, `{"weight":-1}`, `body.weight: -1 is not in 0..1000000`},
		{"timeout of nothing", traffic, `{"timeout":0}`, `body.timeout: 0 s is no timeout; leave it out for the mesh's setting`},
		{"no tries", traffic, `{"retry_attempts":0}`, `body.retry_attempts: 0 is no number of tries; 1 is no retry, left out is the mesh's setting`},
		{"bool as string", traffic, `{"circuit_breaker":"yes"}`, `body.circuit_breaker: "yes" is not true or false`},
		{"headers as list", traffic, `{"match_headers":["a"]}`, `body.match_headers: ["a"] is not an object`},
		{"unknown within, near", traffic, `{"rewrite":{"path_prefx":"/a"}}`, `body.rewrite.path_prefx: unknown field; did you mean "path_prefix"?`},
		{"unknown within, far", traffic, `{"fault":{"delay":{"x":1,"seconds":1}}}`, `body.fault.delay.x: unknown field; known here: seconds, percent`},
		{"missing within", traffic, `{"mirror":{}}`, `body.mirror.service: is missing`},
		{"wrong type within", traffic, `{"request_headers":{"set":{"X-A":1}}}`, `body.request_headers.set.X-A: 1 is not a string`},
		{"word for a list", traffic, `{"retry_on":"5xx"}`, `body.retry_on: "5xx" is not a list`},
		{"number for an object", traffic, `{"redirect":302}`, `body.redirect: 302 is not an object`},
		{"forged identity", traffic, `{"request_headers":{"set":{"X-Source-Service":"admin"}}}`, `body.request_headers.set.X-Source-Service: X-Source-Service is for the proxies: what they say must not be forged`},
		{"framing", traffic, `{"response_headers":{"remove":["Transfer-Encoding"]}}`, `body.response_headers.remove[0]: Transfer-Encoding is for the proxies: it frames the message or belongs to one connection`},
		{"condition", traffic, `{"retry_on":["often"]}`, `body.retry_on[0]: "often" is not one of 5xx, gateway-error, connect-failure, reset, retriable-status-codes, cancelled, deadline-exceeded, internal, resource-exhausted, unavailable`},
		{"of no effect", traffic, `{"direct_response":{"status":200},"mirror":{"service":"b"}}`, `body.mirror: has no effect in a rule with direct_response: nothing is sent to a service`},
		{"affinity", cfg, `{"services":{"web":{"affinity":{"cookie":"a b"}}}}`, `body.services.web.affinity.cookie: "a b" is not the name of a cookie`},
		{"bad regex", traffic, `{"match_path":"regex:("}`, "body.match_path: error parsing regexp: missing closing ): `(`"},
		{"bad service in path", "/traffic-rules/Default/web", `{}`, `path.namespace: namespace "Default" may hold only a-z, 0-9 and hyphens`},
		{"no methods", security, `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d","allowed_methods":[]}`, `body.allowed_methods: must name at least one method; to allow nothing, have no rule`},
		{"method not a string", security, `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d","allowed_methods":["GET",5]}`, `body.allowed_methods[1]: 5 is not a string`},
		{"mode", security, `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d","mtls_mode":"off"}`, `body.mtls_mode: "off" is not one of strict, permissive, disabled`},
		{"empty mode", security, `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d","mtls_mode":""}`, `body.mtls_mode: "" is not one of strict, permissive, disabled`},
		{"certificate for the control plane", issue, `{"service_name":"control","namespace":"weir-system"}`, `body.namespace: "weir-system" is the control plane's own`},
		{"csr not PEM", issue, `{"service_name":"web","namespace":"default","csr":"hello"}`, `body.csr: is not PEM (-----BEGIN CERTIFICATE REQUEST-----)`},
		{"csr of nothing", issue, `{"service_name":"web","namespace":"default","csr":"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"}`, `body.csr: the signing request cannot be read`},
		{"token without a name", tok, `{"service_name":"","namespace":"default"}`, `body.service_name: service is empty`},
		{"token for ever", tok, `{"service_name":"web","namespace":"default","ttl":1e12}`, `body.ttl: 1e+12 s is not in 1..31536000 s`},
		{"token for nobody", tok, `{"service_name":"web","namespace":"default","uses":0}`, `body.uses: 0 is not in 1..10000; left out, it is any number`},
		{"token for no time", tok, `{"service_name":"web","namespace":"default","ttl":0}`, `body.ttl: 0 s is not in 1..31536000 s`},
		{"unknown setting", cfg, `{"securty":{}}`, `body.securty: unknown setting; did you mean "security"?`},
		{"setting's type", cfg, `{"global_timeout":"long"}`, `body.global_timeout: "long" is not a number`},
		{"setting's range", cfg, `{"resilience":{"retry":{"max_attempts":0}}}`, `body.resilience.retry.max_attempts: 0 is not in 1..100`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := send(t, client, "POST", api.BasePath+c.path, c.body)
			want, _ := json.Marshal(map[string]string{"error": c.want})
			if got.status != 400 || !sameJSON(got.body, string(want)) {
				t.Errorf("\n got %d %s\nwant 400 %s", got.status, got.body, want)
			}
			if m.stored() != 0 {
				t.Error("something was stored")
			}
		})
	}
}

func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && fmt.Sprint(x) == fmt.Sprint(y)
}

// refusal checks that an answer is {"error": …} and gives the text.
func refusal(t *testing.T, got answer, status int) string {
	t.Helper()
	var body map[string]string
	if err := json.Unmarshal([]byte(got.body), &body); err != nil || len(body) != 1 || body["error"] == "" {
		t.Fatalf("not an error body: %d %s", got.status, got.body)
	}
	if got.status != status || got.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s %s, want %d", got.status, got.header.Get("Content-Type"), got.body, status)
	}
	return body["error"]
}

func TestABodyOfOneMiBPassesAndOneByteMoreDoesNot(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	body := endpointWith(`"weight":1`)
	full := body + strings.Repeat(" ", 1<<20-len(body))
	if got := send(t, c, "POST", "/api/v1/services/register", full); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := send(t, c, "POST", "/api/v1/config", `{}`+strings.Repeat(" ", 1<<20-2)); got.status != 200 {
		t.Errorf("config: %d %s", got.status, got.body)
	}
	for _, path := range []string{"/api/v1/services/register", "/api/v1/config"} {
		if text := refusal(t, send(t, c, "POST", path, full+" "), 413); text != "body: is larger than 1048576 bytes" {
			t.Error(text)
		}
	}
	if m.stored() != 1 { // the other said nothing new
		t.Errorf("%d writes", m.stored())
	}
}

func TestABodyThatEndsEarlyIsNotStored(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.BaseURL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /api/v1/config HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nnonsense\r\n", token)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 || m.stored() != 0 {
		t.Errorf("%d, %d writes", resp.StatusCode, m.stored())
	}
}

func TestContentTypes(t *testing.T) {
	c := serve(t, newMesh())
	for _, ct := range []string{"", "application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded", "application/merge-patch+json"} {
		if got := send(t, c, "POST", "/api/v1/config", `{}`, "Content-Type: "+ct); got.status != 200 {
			t.Errorf("%q: %d %s", ct, got.status, got.body)
		}
	}
	for _, ct := range []string{"application/xml", "multipart/form-data; boundary=x", "application/cbor", ";"} {
		refusal(t, send(t, c, "POST", "/api/v1/config", `{}`, "Content-Type: "+ct), 415)
	}
	for _, accept := range []string{"text/html", "application/cbor", "*/*", "nonsense"} {
		if got := send(t, c, "GET", "/api/v1/status", "", "Accept: "+accept); got.header.Get("Content-Type") != "application/json" {
			t.Errorf("Accept %s: %v", accept, got.header)
		}
	}
}

func TestPathsAndMethodsThatAreNotThere(t *testing.T) {
	c := serve(t, newMesh())
	for _, path := range []string{"/", "/api/v1", "/api/v1/", "/api/v2/status", "/api/v1/nothing", "/api/v1/services/a/b/c/d", "/api/v1/services/", "/api/v1//status", "/api/v1/x/../status", "/api/v1/status/"} {
		text := refusal(t, send(t, c, "GET", path, ""), 404)
		if !strings.Contains(text, path) {
			t.Errorf("%s: %s", path, text)
		}
	}
	got := send(t, c, "PATCH", "/api/v1/config", `{}`)
	if text := refusal(t, got, 405); text != "/api/v1/config takes DELETE, GET, HEAD, POST, PUT, not PATCH" || got.header.Get("Allow") != "DELETE, GET, HEAD, POST, PUT" {
		t.Errorf("%s; Allow %s", text, got.header.Get("Allow"))
	}
	for _, path := range []string{"/api/v1/security-rules/r9", "/api/v1/traffic-rules/default/web/r9"} {
		refusal(t, send(t, c, "DELETE", path, ""), 404)
	}
	if text := refusal(t, send(t, c, "GET", "/api/v1/services?wtch=1", ""), 400); text != "query.wtch: unknown query parameter" {
		t.Error(text)
	}
}

func TestOnlyTheTokenOpens(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	for _, auth := range []string{"", "Bearer", "Bearer ", "Bearer wrong", "Bearer " + token + "x", "Bearer " + token[:5], "Basic " + token, token} {
		for _, call := range []string{"GET /api/v1/status", "POST /api/v1/config", "DELETE /api/v1/security-rules/r1", "GET /api/v1/openapi.json", "GET /api/v1/nothing", "POST /api/v1/certificates/ca"} {
			method, path, _ := strings.Cut(call, " ")
			got := send(t, c, method, path, `{"egress":"deny"}`, "Authorization: "+auth)
			refusal(t, got, 401)
			if !strings.HasPrefix(got.header.Get("WWW-Authenticate"), `Bearer realm="weir"`) {
				t.Errorf("%q %s: WWW-Authenticate %q", auth, call, got.header.Get("WWW-Authenticate"))
			}
		}
	}
	if m.stored() != 0 {
		t.Error("something was stored")
	}
	if got := send(t, c, "GET", "/api/v1/certificates/ca", "", "Authorization: "); got.status != 200 || got.body != "ROOT" {
		t.Errorf("the root is not open: %d %s", got.status, got.body)
	}
	if got := send(t, c, "GET", "/api/v1/status", "", "Authorization: bearer "+token); got.status != 200 {
		t.Errorf("the scheme's case matters: %d", got.status)
	}
}

func TestAnInsecureAPIStillRefusesOtherSites(t *testing.T) {
	m := newMesh()
	c := serve(t, m, func(cfg *api.Config) { cfg.Insecure, cfg.Token = true, "" })
	if got := send(t, c, "GET", "/api/v1/status", "", "Authorization: "); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	refusal(t, send(t, c, "GET", "/api/v1/status", "", "Host: rebound.example"), 403)
	refusal(t, send(t, c, "POST", "/api/v1/config", `{}`, "Origin: https://evil.example"), 403)
	refusal(t, send(t, c, "POST", "/api/v1/config", `{}`, "Sec-Fetch-Site: cross-site"), 403)
	if m.stored() != 0 {
		t.Error("something was stored")
	}
	if got := send(t, c, "POST", "/api/v1/config", `{}`, "Host: localhost:8080"); got.status != 200 {
		t.Errorf("localhost: %d %s", got.status, got.body)
	}
}

func TestAStoreThatCannotIs503(t *testing.T) {
	m := newMesh()
	m.Break(errors.New("etcd: no leader"))
	c := serve(t, m)
	for path, body := range map[string]string{
		"/services/register":         endpointWith(`"weight":1`),
		"/traffic-rules/default/web": `{}`,
		"/security-rules":            `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"d"}`,
		"/config":                    `{}`,
	} {
		text := refusal(t, send(t, c, "POST", api.BasePath+path, body), 503)
		if !strings.HasSuffix(text, ": etcd: no leader") {
			t.Errorf("%s: %s", path, text)
		}
	}
	for _, path := range []string{"/services/default/web/e", "/traffic-rules/default/web/r1", "/security-rules/r1"} {
		refusal(t, send(t, c, "DELETE", api.BasePath+path, ""), 503)
	}
}

func TestWhatTheStoreRefusesHasItsStatus(t *testing.T) {
	for status, err := range map[int]error{
		400: policy.Problems{{Path: "weight", Message: "is odd"}}, 404: policy.ErrNotFound, 409: policy.ErrExists, 410: policy.ErrForgotten,
		412: policy.ErrStale, 413: policy.ErrTooLarge, 503: errors.New("no majority"),
	} {
		m := newMesh()
		m.Break(fmt.Errorf("rule r1: %w", err))
		text := refusal(t, send(t, serve(t, m), "POST", "/api/v1/traffic-rules/default/web", `{}`), status)
		if !strings.Contains(text, strings.TrimPrefix(err.Error(), "weight: ")) {
			t.Errorf("%d %s", status, text)
		}
	}
}

func TestNewNeedsAllItsPartsAndAToken(t *testing.T) {
	if _, err := api.New(api.Config{Token: "x"}); err == nil {
		t.Error("no parts, no error")
	}
	cfg := config(newMesh())
	cfg.Token = ""
	if _, err := api.New(cfg); err == nil {
		t.Error("no token, no error")
	}
}
