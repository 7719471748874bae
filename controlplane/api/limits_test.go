package api_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func TestARulesLimitIsShownAsItWasWritten(t *testing.T) {
	const limit = `{"limit":3,"window":0.5,"key":"source,header:X","algorithm":"token_bucket","burst":9,"scope":"mesh"}`
	m := newMesh()
	play(t, m, []step{
		{"PUT", "/traffic-rules/default/web/r", `{"rate_limit":` + limit + `}`, `{"status":"rule stored"}`},
		{"GET", "/traffic-rules/default/web/r", "", `{"id":"r","match_headers":{},"match_path":null,"match_method":null,"destination_service":"","destination_subset":null,"weight":100,"timeout":30,"retry_attempts":3,"circuit_breaker":true,"rate_limit":` + limit + `,"resource_version":"1","inherits":["timeout","retry_attempts"]}`},
	})
	want := policy.ServiceLimit{Limit: 3, Window: 0.5, Key: "source,header:X", Algorithm: "token_bucket", Burst: 9, Scope: "mesh"}
	if r := m.TrafficRules(web)[0]; *r.RateLimit != want {
		t.Errorf("%+v", r.RateLimit)
	}
	c := serve(t, m)
	for body, want := range map[string]string{
		`{"rate_limit":{"limit":0}}`:                 `body.rate_limit.limit: 0 is not in 1..10000000`,
		`{"rate_limit":{"limits":1}}`:                `did you mean \"limit\"?`,
		`{"rate_limit":{"limit":1,"key":"cookie"}}`:  `body.rate_limit.key: \"cookie\" is not source`,
		`{"rate_limit":{"limit":1,"scope":"world"}}`: `body.rate_limit.scope: \"world\" is not one of proxy, mesh`,
		`{"rate_limit":7}`:                           `body.rate_limit: 7 is not an object`,
	} {
		if got := send(t, c, "PUT", api.BasePath+"/traffic-rules/default/web/r", body); got.status != 400 || !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s, want %s", body, got.status, got.body, want)
		}
	}
}

func TestAnEndpointOutsideIsRegisteredByItsHost(t *testing.T) {
	m := newMesh()
	play(t, m, []step{
		{"POST", "/services/register", `{"id":"api","service_name":"pay","namespace":"default","port":443,"host":"api.example.com","tls":"originate","server_name":"a.example.com"}`, `{"status":"registered"}`},
		{"PUT", "/services/default/pay/plain", `{"host":"b.example.com","port":80}`, `{"status":"registered"}`},
	})
	list := m.Snapshot().Endpoints(policy.ServiceName{Namespace: "default", Name: "pay"})
	if len(list) != 2 || list[0].External != (policy.External{Host: "api.example.com", TLS: "originate", ServerName: "a.example.com"}) || list[1].Host != "b.example.com" || list[0].IP != "" {
		t.Errorf("%+v", list)
	}
	c := serve(t, m)
	for body, want := range map[string]string{
		`{"port":80}`: `body.ip: \"\" is not an IP address`,
		`{"port":80,"ip":"10.0.0.1","host":"a.example.com"}`: `body.ip: \"10.0.0.1\" stands beside the host`,
		`{"port":80,"ip":"10.0.0.1","tls":"originate"}`:      `body.host: is missing`,
	} {
		if got := send(t, c, "PUT", api.BasePath+"/services/default/pay/x", body); got.status != 400 || !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s, want %s", body, got.status, got.body, want)
		}
	}
}

const outside = `kind: ExternalService
service: pay
spec: {host: api.example.com, tls: originate, server_name: a.example.com, labels: {version: v2}, weight: 7}
---
kind: ExternalService
namespace: shop
service: pay
spec: {host: b.example.com, protocol: tcp}
---
kind: ExternalService
service: pay
spec: {host: b.example.com, id: second, port: 8080}
`

func TestAnExternalServiceIsAnEndpointWithAHost(t *testing.T) {
	m := newMesh()
	c := serve(t, m)
	docs, err := api.ReadDocuments("f", []byte(outside))
	if err != nil {
		t.Fatal(err)
	}
	if got := results(t, c, docs); got != "ExternalService default/pay/api.example.com:443 added api.example.com:443\n"+
		"ExternalService shop/pay/b.example.com:80 added b.example.com:80\nExternalService default/pay/second added second" {
		t.Error(got)
	}
	if got := results(t, c, docs); strings.Count(got, "unchanged") != 3 {
		t.Errorf("applied again: %s", got)
	}
	name := policy.ServiceName{Namespace: "default", Name: "pay"}
	e := m.Snapshot().Endpoints(name)[0]
	if e.Port != 443 || e.Protocol != "http" || e.Weight != 7 || e.Labels["version"] != "v2" || e.ServerName != "a.example.com" {
		t.Errorf("%+v", e)
	}
	// What is shown can be applied, and changes nothing.
	shown, err := c.ExportExternalServices(t.Context(), name, "")
	if err != nil || len(shown) != 2 {
		t.Fatal(shown, err)
	}
	text, err := json.Marshal(shown)
	if err != nil {
		t.Fatal(err)
	}
	again, err := api.ReadDocuments("f", text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if got := results(t, c, again); strings.Count(got, "unchanged") != 2 {
		t.Errorf("%s: %s", text, got)
	}
	all, err := c.ExportEndpoints(t.Context(), name, "")
	if text, _ = json.Marshal(all); err != nil {
		t.Fatal(err)
	}
	if again, err = api.ReadDocuments("f", text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if got := results(t, c, again); strings.Count(got, "unchanged") != 2 {
		t.Errorf("as endpoints: %s", got)
	}
}

func TestWhatIsWrongWithAnExternalServiceIsNamedWithItsPlace(t *testing.T) {
	for text, want := range map[string]string{
		"kind: ExternalService\nspec: {host: a.example.com}\n":                               "f:1:1: service: service is empty",
		"kind: ExternalService\nservice: pay\nspec: {}\n":                                    "f:3:1: spec.host: is missing",
		"kind: ExternalService\nservice: pay\nspec:\n  host: \"\"\n":                         "f:4:3: spec.host: is empty",
		"kind: ExternalService\nservice: pay\nspec:\n  host: 10.0.0.1\n":                     `f:4:3: spec.host: "10.0.0.1" is an address; a name is meant`,
		"kind: ExternalService\nservice: pay\nspec:\n  host: a.example.com\n  prt: 1\n":      `f:5:3: spec.prt: unknown field; did you mean "port"?`,
		"kind: ExternalService\nservice: pay\nspec:\n  host: a.example.com\n  port: 0\n":     `f:5:3: spec.port: 0 is not in 1..65535`,
		"kind: ExternalService\nservice: pay\nspec:\n  host: a.example.com\n  ca: nothing\n": "spec.ca: holds no certificate in PEM",
	} {
		docs, err := api.ReadDocuments("f", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || len(docs) != 0 {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
