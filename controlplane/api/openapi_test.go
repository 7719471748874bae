package api_test

import (
	"encoding/json"
	"sort"
	"strings"
	"testing"
)

func TestTheDocumentDescribesEveryRoute(t *testing.T) {
	c := serve(t, newMesh())
	got := send(t, c, "GET", "/api/v1/openapi.json", "")
	if again := send(t, c, "GET", "/openapi.json", ""); again.status != 200 || again.body != got.body {
		t.Errorf("at the root: %d", again.status)
	}
	refusal(t, send(t, c, "GET", "/openapi.json", "", "Authorization: "), 401)
	var doc struct {
		OpenAPI string
		Servers []struct{ URL string }
		Paths   map[string]map[string]struct {
			OperationID string
			Responses   map[string]any
		}
		Components struct {
			Schemas map[string]struct {
				Required   []string
				Properties map[string]map[string]any
			}
		}
	}
	if err := json.Unmarshal([]byte(got.body), &doc); err != nil || got.status != 200 {
		t.Fatal(got.status, err)
	}
	var routes []string
	for path, methods := range doc.Paths {
		for method, op := range methods {
			routes = append(routes, strings.ToUpper(method)+" "+path)
			if op.OperationID == "" || op.Responses["200"] == nil || op.Responses["422"] != nil {
				t.Errorf("%s %s: %+v", method, path, op)
			}
		}
	}
	sort.Strings(routes)
	if want := `DELETE /ca/rotation
DELETE /config
DELETE /revocations/{revocation_id}
DELETE /security-rules/{rule_id}
DELETE /services/{namespace}/{service}/{endpoint_id}
DELETE /tokens/{token_id}
DELETE /traffic-rules/{namespace}/{service}/{rule_id}
GET /ca
GET /certificates/ca
GET /circuits/{namespace}/{service}
GET /config
GET /diff
GET /flows
GET /history
GET /history/{revision}
GET /metrics
GET /pairs
GET /proxies
GET /revocations
GET /security-rules
GET /security-rules/{rule_id}
GET /services
GET /services/{namespace}/{service}
GET /services/{namespace}/{service}/{endpoint_id}
GET /services/{namespace}/{service}/{endpoint_id}/health
GET /status
GET /tokens
GET /traffic-rules/{namespace}/{service}
GET /traffic-rules/{namespace}/{service}/{rule_id}
POST /apply
POST /ca/rotation
POST /ca/rotation/force
POST /certificates/issue
POST /circuits/{namespace}/{service}/{endpoint_id}
POST /config
POST /explain
POST /revocations
POST /rollback
POST /security-rules
POST /services/register
POST /tokens
POST /traffic-rules/{namespace}/{service}
POST /what-if
PUT /config
PUT /security-rules/{rule_id}
PUT /services/{namespace}/{service}/{endpoint_id}
PUT /traffic-rules/{namespace}/{service}/{rule_id}`; strings.Join(routes, "\n") != want {
		t.Errorf("routes:\n%s", strings.Join(routes, "\n"))
	}
	if doc.OpenAPI != "3.1.0" || len(doc.Servers) != 1 || doc.Servers[0].URL != "/api/v1" {
		t.Errorf("%s %v", doc.OpenAPI, doc.Servers)
	}
	endpoint := doc.Components.Schemas["EndpointBody"]
	if strings.Join(endpoint.Required, " ") != "id service_name namespace port" || endpoint.Properties["port"]["maximum"] != 65535.0 {
		t.Errorf("%+v", endpoint)
	}
	if s := doc.Components.Schemas["Settings"]; len(s.Required) != 0 || s.Properties["global_timeout"] == nil {
		t.Errorf("settings: %+v", s)
	}
	if strings.Contains(got.body, "$schema") {
		t.Error("the document promises $schema fields")
	}
}
