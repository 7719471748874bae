package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/weir-mesh/weir/policy"
)

func newDocument(version string) *huma.OpenAPI {
	if version == "" {
		version = "dev"
	}
	return &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "weir control plane", Version: version,
			Description: "Services, rules, certificates and settings of a service mesh. Times are seconds.",
			Contact:     &huma.Contact{Name: "weir", URL: "https://github.com/weir-mesh/weir"},
		},
		Tags: []*huma.Tag{
			{Name: "services", Description: "Endpoints and the services that they make up."},
			{Name: "traffic-rules", Description: "Where requests go."},
			{Name: "security-rules", Description: "Who may call whom."},
			{Name: "explain", Description: "What becomes of a call, and why."},
			{Name: "certificates", Description: "The mesh's certificate authority."},
			{Name: "ca", Description: "What the mesh trusts, and the rotation of its root."},
			{Name: "revocations", Description: "What is trusted no more."},
			{Name: "tokens", Description: "Tokens with which proxies join."},
			{Name: "config", Description: "The settings of the mesh."},
			{Name: "apply", Description: "Documents stored together."},
			{Name: "history", Description: "What was changed, by whom and when."},
			{Name: "diff", Description: "How the states after two revisions differ."},
			{Name: "rollback", Description: "The way back."},
			{Name: "metrics", Description: "Counts of the control plane and its proxies."},
			{Name: "status", Description: "How the control plane is."},
			{Name: "proxies", Description: "The connected proxies."},
		},
		Servers: []*huma.Server{{URL: BasePath}},
		Components: &huma.Components{
			Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
			SecuritySchemes: map[string]*huma.SecurityScheme{
				"admin": {Type: "http", Scheme: "bearer", Description: "the text of admin.token in the control plane's data directory"},
			},
		},
		Security: []map[string][]string{{"admin": {}}},
	}
}

// answers describes what a route answers besides 200.
func answers(method, path string) map[string]*huma.Response {
	out := map[string]*huma.Response{"401": refusal("The admin token is missing or wrong.")}
	if path == "/history/{revision}" || path == "/diff" || path == "/rollback" {
		out["404"] = refusal("There is no such revision.")
		out["410"] = refusal("The history does not reach back so far.")
	}
	if method == http.MethodGet && strings.HasSuffix(path, "_id}") {
		out["304"] = &huma.Response{Description: "The client has this version."}
		out["404"] = refusal("There is none with this id.")
	}
	if method == http.MethodPut || method == http.MethodDelete && path != "/tokens/{token_id}" || path == "/config" && method == http.MethodPost {
		out["412"] = refusal("The condition of If-Match or If-None-Match does not hold; nothing is stored.")
	}
	if path == "/security-rules" || path == "/traffic-rules/{namespace}/{service}" {
		out["409"] = refusal("There is a rule with this id.")
	}
	if method == http.MethodPost || method == http.MethodPut {
		out["400"] = refusal("The request is wrong; nothing of it is stored.")
		out["413"] = refusal("The body is larger than 1 MiB, or than 8 MiB for /apply, or more than the store takes at once.")
	}
	if method == http.MethodDelete && !strings.HasPrefix(path, "/services/") || strings.HasSuffix(path, "/health") {
		out["404"] = refusal("There is none with this id.")
	}
	if method != http.MethodGet {
		out["503"] = refusal("It cannot be done now; nothing was stored that was not answered with 200.")
	}
	return out
}

func refusal(description string) *huma.Response {
	return &huma.Response{
		Description: description,
		Content:     map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/Failure"}}},
	}
}

// bounds adds to the document what policy's Validate checks. huma must not
// check it: policy's words are the better ones, and there is one judge only.
var bounds = []struct {
	schema, field string
	add           map[string]any
}{
	{"EndpointBody", "port", map[string]any{"minimum": 1, "maximum": 65535}},
	{"EndpointBody", "protocol", map[string]any{"default": "http", "enum": orNull(policy.ProtocolNames())}},
	{"EndpointBody", "health_check_path", map[string]any{"default": "/health", "pattern": "^/"}},
	{"EndpointBody", "weight", map[string]any{"default": 100, "minimum": 0, "maximum": 1_000_000}},
	{"EndpointBody", "labels", map[string]any{"default": map[string]any{}, "maxProperties": 64}},
	{"EndpointBody", "tls", map[string]any{"enum": []any{policy.TLSOriginate}}},
	{"EndpointPutBody", "tls", map[string]any{"enum": []any{policy.TLSOriginate}}},
	{"EndpointPutBody", "port", map[string]any{"minimum": 1, "maximum": 65535}},
	{"EndpointPutBody", "protocol", map[string]any{"default": "http", "enum": orNull(policy.ProtocolNames())}},
	{"EndpointPutBody", "weight", map[string]any{"default": 100, "minimum": 0, "maximum": 1_000_000}},
	{"TrafficRuleBody", "match_headers", map[string]any{"default": map[string]any{}}},
	{"TrafficRuleBody", "destination_service", map[string]any{"default": ""}},
	{"TrafficRuleBody", "weight", map[string]any{"default": 100, "minimum": 0, "maximum": 1_000_000}},
	{"TrafficRuleBody", "timeout", map[string]any{"minimum": 0.001, "maximum": 86400}},
	{"TrafficRuleBody", "retry_attempts", map[string]any{"minimum": 1, "maximum": 100}},
	{"TrafficRuleBody", "circuit_breaker", map[string]any{"default": true}},
	{"TrafficRuleBody", "per_try_timeout", map[string]any{"minimum": 0.001, "maximum": 86400}},
	{"TrafficRuleBody", "idle_timeout", map[string]any{"minimum": 0.001, "maximum": 86400}},
	{"TrafficRuleBody", "retry_on", map[string]any{"items": map[string]any{"type": "string", "enum": policy.RetryConditions}}},
	{"TrafficRuleBody", "retry_status_codes", map[string]any{"items": map[string]any{"type": "integer", "minimum": 300, "maximum": 599}, "maxItems": 32}},
	{"TrafficRuleBody", "retry_delay", map[string]any{"minimum": 0, "maximum": 86400}},
	{"TrafficRuleBody", "retry_max_delay", map[string]any{"minimum": 0.001, "maximum": 86400}},
	{"Redirect", "status", map[string]any{"default": 302, "enum": []int{301, 302, 303, 307, 308}}},
	{"Redirect", "scheme", map[string]any{"enum": []string{"http", "https"}}},
	{"DirectResponse", "status", map[string]any{"minimum": 200, "maximum": 599}},
	{"DirectResponse", "body", map[string]any{"maxLength": 64 << 10}},
	{"Hedge", "after", map[string]any{"minimum": 0.001, "maximum": 86400}},
	{"Hedge", "percentile", map[string]any{"minimum": 50, "maximum": 99.9}},
	{"Hedge", "percent", map[string]any{"default": 10, "minimum": 0.1, "maximum": 100}},
	{"Mirror", "percent", map[string]any{"default": 100, "minimum": 0, "maximum": 100}},
	{"FaultDelay", "seconds", map[string]any{"minimum": 0.001, "maximum": 300}},
	{"FaultDelay", "percent", map[string]any{"default": 100, "minimum": 0, "maximum": 100}},
	{"FaultAbort", "status", map[string]any{"minimum": 200, "maximum": 599}},
	{"FaultAbort", "grpc_status", map[string]any{"minimum": 1, "maximum": 16}},
	{"FaultAbort", "percent", map[string]any{"default": 100, "minimum": 0, "maximum": 100}},
	{"SecurityRuleBody", "allowed_methods", map[string]any{"default": policy.DefaultMethods(), "minItems": 1}},
	{"SecurityRuleBody", "action", map[string]any{"enum": orNull([]string{"allow", "deny", "audit"}), "default": "allow"}},
	{"SecurityRuleBody", "required_jwt", map[string]any{"default": false}},
	{"RateLimitBody", "limit", map[string]any{"minimum": 1, "maximum": 10_000_000}},
	{"RateLimitBody", "window", map[string]any{"minimum": 0.1, "maximum": 86400}},
	{"RateLimitBody", "algorithm", map[string]any{"enum": []any{policy.SlidingWindow, policy.TokenBucket}, "default": policy.SlidingWindow}},
	{"RateLimitBody", "scope", map[string]any{"enum": []any{policy.ScopeProxy, policy.ScopeMesh}, "default": policy.ScopeProxy}},
	{"SecurityRuleBody", "mtls_mode", map[string]any{"enum": orNull([]string{"strict", "permissive", "disabled"})}},
	{"TokenBody", "ttl", map[string]any{"minimum": minTokenTTL.Seconds(), "maximum": maxTokenTTL.Seconds()}},
}

func orNull(words []string) []any {
	var out []any
	for _, w := range words {
		out = append(out, w)
	}
	return append(out, nil)
}

// finishDocument completes the document that huma made of the Go types.
func finishDocument(doc *huma.OpenAPI) ([]byte, error) {
	settings := doc.Components.Schemas.Schema(reflect.TypeFor[policy.Settings](), true, "Settings")
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode the OpenAPI document: %w", err)
	}
	var tree node
	if err := json.Unmarshal(b, &tree); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document: %w", err)
	}
	schemas := tree.at("components", "schemas")
	for _, bound := range bounds {
		field := schemas.at(bound.schema, "properties", bound.field)
		if field == nil {
			return nil, fmt.Errorf("the OpenAPI document has no field %s.%s", bound.schema, bound.field)
		}
		for k, v := range bound.add {
			field[k] = v
		}
	}
	describeSettings(schemas)
	paths := tree.at("paths")
	ref := map[string]any{"schema": map[string]any{"$ref": settings.Ref}}
	paths.at("/config", "post", "requestBody", "content")["application/json"] = ref
	paths.at("/config", "put", "requestBody", "content")["application/json"] = ref
	for _, path := range []string{"/services", "/services/{namespace}/{service}", "/traffic-rules/{namespace}/{service}", "/security-rules", "/config"} {
		describeWatch(paths.at(path, "get"))
	}
	paths.at("/config", "get", "responses", "200", "content")["application/json"] = ref
	root := paths.at("/certificates/ca", "get")
	root["security"] = []any{}
	delete(root.at("responses"), "401")
	root.at("responses", "200")["content"] = map[string]any{pemType: map[string]any{"schema": map[string]any{"type": "string"}}}
	return json.Marshal(tree)
}

// describeWatch adds what a list answers that is watched; huma is not asked for
// that (watch.go).
func describeWatch(get node) {
	get["description"] = fmt.Sprint(get["description"]) + " With watch=1: server-sent events added, changed and removed, whose data is an element of the list; " +
		"synced, once all that is there was told; reset, when what the client knows is out of date and everything is told anew. " +
		"The id is a revision. With Last-Event-ID the events after it follow."
	get.at("responses", "200", "content")[eventStream] = map[string]any{"schema": map[string]any{"type": "string"}}
	get["parameters"] = append(get["parameters"].([]any), map[string]any{
		"name": "Last-Event-ID", "in": "header", "description": "with watch=1: the revision up to which everything is known", "schema": map[string]any{"type": "string"},
	})
	get.at("responses")["503"] = map[string]any{"description": "There are too many watches."}
}

// describeSettings makes every setting optional, as it is in a patch, and adds
// the names that seed B has for some.
func describeSettings(schemas node) {
	seen := map[string]bool{}
	var relax func(v any)
	relax = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			delete(v, "required")
			if ref, ok := v["$ref"].(string); ok && !seen[ref] {
				seen[ref] = true
				relax(schemas[strings.TrimPrefix(ref, "#/components/schemas/")])
			}
			for k, inner := range v {
				if k != "examples" && k != "default" {
					relax(inner)
				}
			}
		case []any:
			for _, inner := range v {
				relax(inner)
			}
		}
	}
	relax(schemas["Settings"])
	top := schemas.at("Settings", "properties")
	top["global_timeout"] = map[string]any{"type": "number", "description": "the same as resilience.timeout.default"}
	top["default_retry_attempts"] = map[string]any{"type": "integer", "description": "the same as resilience.retry.max_attempts"}
	top["circuit_breaker_enabled"] = map[string]any{"type": "boolean", "description": "the same as resilience.circuit_breaker.enabled"}
	observability := schemas.at("Observability", "properties")
	observability["tracing_enabled"] = map[string]any{"type": "boolean", "description": "the same as tracing.enabled"}
	observability["metrics_enabled"] = map[string]any{"type": "boolean", "description": "the same as metrics.enabled"}
}

// node is an object of the document.
type node map[string]any

// at gives the object at a path, or nil.
func (n node) at(path ...string) node {
	for _, key := range path {
		next, ok := n[key].(map[string]any)
		if !ok {
			return nil
		}
		n = next
	}
	return n
}
