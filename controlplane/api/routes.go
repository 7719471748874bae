package api

import (
	"context"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/weir-mesh/weir/policy"
)

// routes builds the routes and the document that describes them.
func (s *Server) routes() (*http.ServeMux, error) {
	mux := http.NewServeMux()
	api := humago.NewWithPrefix(mux, BasePath, huma.Config{
		OpenAPI:                      newDocument(s.Version),
		Formats:                      map[string]huma.Format{"application/json": jsonFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	})
	s.register(api)
	document, err := finishDocument(api.OpenAPI())
	if err != nil {
		return nil, err
	}
	for _, path := range []string{BasePath + "/openapi.json", "/openapi.json"} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/openapi+json")
			_, _ = w.Write(document) // a client that is gone needs no document
		})
	}
	return mux, nil
}

// register lists every route of the API.
func (s *Server) register(api huma.API) {
	add(api, "GET /services", "list-services", "List the services of the mesh", s.listServices)
	add(api, "POST /services/register", "register-endpoint", "Register an endpoint, or replace the one of the same service and id", s.registerEndpoint)
	add(api, "GET /services/{namespace}/{service}", "list-endpoints", "List a service's endpoints, unhealthy ones too", s.listEndpoints)
	add(api, "GET /services/{namespace}/{service}/{endpoint_id}", "get-endpoint", "Get an endpoint", s.getEndpoint)
	add(api, "PUT /services/{namespace}/{service}/{endpoint_id}", "put-endpoint", "Register an endpoint, or replace it", s.putEndpoint)
	add(api, "DELETE /services/{namespace}/{service}/{endpoint_id}", "deregister-endpoint", "Remove an endpoint; that it was not there is no error", s.deregisterEndpoint)

	add(api, "GET /services/{namespace}/{service}/{endpoint_id}/health", "get-endpoint-health", "Tell what the health checks found of an endpoint, the last 100 results", s.endpointHealth)

	add(api, "GET /circuits/{namespace}/{service}", "list-circuits", "Tell how the circuits of a service's endpoints stand in the proxies that call it", s.listCircuits)
	add(api, "POST /circuits/{namespace}/{service}/{endpoint_id}", "order-circuit", "Open, close or reset the circuits of an endpoint in all proxies that call it", s.orderCircuit)

	add(api, "POST /traffic-rules/{namespace}/{service}", "add-traffic-rule", "Append a rule to a service's", s.addTrafficRule)
	add(api, "GET /traffic-rules/{namespace}/{service}", "list-traffic-rules", "List a service's rules in the order of evaluation", s.listTrafficRules)
	add(api, "GET /traffic-rules/{namespace}/{service}/{rule_id}", "get-traffic-rule", "Get a rule", s.getTrafficRule)
	add(api, "PUT /traffic-rules/{namespace}/{service}/{rule_id}", "put-traffic-rule", "Replace a rule at its place, or append it", s.putTrafficRule)
	add(api, "DELETE /traffic-rules/{namespace}/{service}/{rule_id}", "delete-traffic-rule", "Remove a rule", s.deleteTrafficRule)

	add(api, "POST /security-rules", "add-security-rule", "Allow a source to call a destination", s.addSecurityRule)
	add(api, "GET /security-rules", "list-security-rules", "List who may call whom", s.listSecurityRules)
	add(api, "GET /security-rules/{rule_id}", "get-security-rule", "Get a rule", s.getSecurityRule)
	add(api, "PUT /security-rules/{rule_id}", "put-security-rule", "Replace a rule, or append it", s.putSecurityRule)
	add(api, "DELETE /security-rules/{rule_id}", "delete-security-rule", "Remove a rule", s.deleteSecurityRule)

	add(api, "POST /explain", "explain", "Tell what becomes of a call, by which rules, and why not otherwise; changes nothing", s.explain)

	add(api, "GET /certificates/ca", "get-ca-certificate", "Get the root's certificate; needs no token", s.rootCertificate)
	add(api, "POST /certificates/issue", "issue-certificate", "Issue a certificate for a service", s.issueCertificate)
	add(api, "POST /tokens", "create-token", "Make a join token for a service's proxies", s.createToken)
	add(api, "GET /tokens", "list-tokens", "List the join tokens that have not expired", s.listTokens)
	add(api, "DELETE /tokens/{token_id}", "revoke-token", "Have a join token refused from now on", s.revokeToken)

	add(api, "GET /ca", "get-ca", "Tell how the certificate authority is, and how far a rotation has come", s.getCA)
	add(api, "POST /ca/rotation", "begin-rotation", "Begin a rotation of the root", s.rotate)
	add(api, "POST /ca/rotation/force", "force-rotation", "Take the rotation to its next stage, without the proxies that have not followed", s.goOn)
	add(api, "DELETE /ca/rotation", "abort-rotation", "Take the rotation back", s.abortRotation)
	add(api, "GET /revocations", "list-revocations", "List the certificates and identities that are trusted no more", s.listRevocations)
	add(api, "POST /revocations", "revoke", "Revoke a certificate or an identity", s.revoke)
	add(api, "DELETE /revocations/{revocation_id}", "lift-revocation", "Lift a revocation", s.liftRevocation)

	add(api, "POST /config", "update-config", "Merge a patch into the settings", s.updateConfig)
	add(api, "GET /config", "get-config", "Get the effective settings, without secrets", s.getConfig)
	add(api, "PUT /config", "replace-config", "Set what the body names, and everything else to its default", s.replaceConfig)
	add(api, "DELETE /config", "reset-config", "Set everything to its default", s.resetConfig)

	add(api, "POST /apply", "apply", "Store documents, all of them or none", s.apply)
	add(api, "GET /history", "list-history", "List the changes, the newest first", s.listHistory)
	add(api, "GET /history/{revision}", "get-revision", "Get one change with its values", s.getRevision)
	add(api, "GET /diff", "diff", "Tell what differs between the states after two revisions", s.getDiff)
	add(api, "POST /rollback", "rollback", "Make rules, settings and registered endpoints what they were after a revision", s.rollback)

	add(api, "GET /flows", "list-flows", "List what proxies counted of the calls between services", s.listFlows)
	add(api, "GET /pairs", "list-pairs", "Tell of each pair of services whether what they say is encrypted, and why", s.listPairs)
	add(api, "POST /what-if", "what-if", "Tell which flows would have another verdict or route if documents were applied; nothing is stored", s.whatIf)

	add(api, "GET /metrics", "get-metrics", "Get the counts of the control plane and its proxies", s.getMetrics)
	add(api, "GET /status", "get-status", "Tell how the control plane is", s.getStatus)
	add(api, "GET /proxies", "list-proxies", "List the connected proxies", s.listProxies)
}

// add registers one route, "METHOD /path".
func add[I, O any](api huma.API, route, id, summary string, h func(context.Context, *I) (*O, error)) {
	method, path, _ := strings.Cut(route, " ")
	op := huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, Description: summary + ".",
		Tags: []string{strings.Split(path, "/")[1]},
		// front has read the body already, within its own bounds.
		MaxBodyBytes: maxApplyBytes + 1, BodyReadTimeout: -1,
		Responses: answers(method, path),
	}
	input := reflect.TypeFor[I]()
	if body, ok := input.FieldByName("Body"); ok && body.Type.Kind() == reflect.Struct {
		op.Metadata = map[string]any{knownFields: fieldNames(body.Type)}
	}
	// A raw body's checks are its handler's.
	_, op.SkipValidateBody = input.FieldByName("RawBody")
	huma.Register(api, op, h)
}

// fieldNames gives the paths of the fields that a body of the type can have, those
// of the objects in it included.
func fieldNames(t reflect.Type) []string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || name == "" || name == "-" {
			continue
		}
		names = append(names, name)
		for _, below := range fieldNames(f.Type) {
			names = append(names, name+"."+below)
		}
	}
	return names
}

// Shapes that several routes share.
type (
	nothing struct{}

	ServicePath struct {
		Namespace string `path:"namespace"`
		Service   string `path:"service"`
	}
	WatchParam struct {
		Watch bool `query:"watch" doc:"1: answer with server-sent events, as things change"`
	}
	listOfServiceInput struct {
		ServicePath
		WatchParam
	}
	DryRunParam struct {
		DryRun bool `query:"dry_run" doc:"1: tell what would change, and store nothing"`
	}
	output[T any] struct {
		Body T
	}
)

// resourceID is the header that names what a POST added; its body is seed B's.
const resourceID = "X-Resource-Id"

func (in *ServicePath) name() policy.ServiceName {
	return policy.ServiceName{Namespace: in.Namespace, Name: in.Service}
}

// checkName lists what is wrong with a service's name, under the names that the
// fields have in bodies.
func checkName(namespace, service, serviceField string) policy.Problems {
	var p policy.Problems
	if err := (policy.ServiceName{Namespace: namespace, Name: "x"}).Validate(); err != nil {
		p = append(p, policy.Problem{Path: "namespace", Message: err.Error()})
	} else if namespace == policy.ControlPlane.Namespace {
		p = append(p, policy.Problem{Path: "namespace", Message: `"` + namespace + `" is the control plane's own`})
	}
	if err := (policy.ServiceName{Namespace: "x", Name: service}).Validate(); err != nil {
		p = append(p, policy.Problem{Path: serviceField, Message: err.Error()})
	}
	return p
}
