package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"

	"github.com/weir-mesh/weir/policy"
)

// Exported is a resource as a document: applied again, it changes nothing.
// Status is what the control plane knows besides, and is not applied.
type Exported struct {
	Kind      string         `json:"kind"`
	Namespace string         `json:"namespace,omitempty"`
	Service   string         `json:"service,omitempty"`
	Spec      map[string]any `json:"spec"`
	Status    map[string]any `json:"status,omitempty"`
}

// beside are the fields of an answer that are no part of a spec.
var beside = []string{"status", "last_seen", "resource_version", "proxy_id"}

// ExportEndpoints gives a service's endpoints as documents, or the one with an
// id.
func (c *Client) ExportEndpoints(ctx context.Context, name policy.ServiceName, id string) ([]Exported, error) {
	return export[endpointView](ctx, c, "Endpoint", servicePath("/services", name), id, name)
}

// ExportTrafficRules gives a service's rules as documents, in their order, or the
// one with an id.
func (c *Client) ExportTrafficRules(ctx context.Context, name policy.ServiceName, id string) ([]Exported, error) {
	return export[trafficRuleView](ctx, c, "TrafficRule", servicePath("/traffic-rules", name), id, name)
}

// ExportSecurityRules gives the security rules as documents, or the one with an
// id.
func (c *Client) ExportSecurityRules(ctx context.Context, id string) ([]Exported, error) {
	return export[securityRuleView](ctx, c, "SecurityRule", "/security-rules", id, policy.ServiceName{})
}

// ExportConfig gives the settings as a document, without secrets.
func (c *Client) ExportConfig(ctx context.Context) (Exported, error) {
	settings, err := c.Settings(ctx)
	return Exported{Kind: "Config", Spec: settings}, err
}

func export[T any](ctx context.Context, c *Client, kind, path, id string, name policy.ServiceName) ([]Exported, error) {
	var list []T
	if id == "" {
		var err error
		if list, err = get[[]T](ctx, c, path); err != nil {
			return nil, err
		}
	} else {
		v, err := get[T](ctx, c, path+"/"+url.PathEscape(id))
		if err != nil {
			return nil, err
		}
		list = []T{v}
	}
	out := make([]Exported, len(list))
	for i := range list {
		spec, err := specOf(list[i])
		if err != nil {
			return nil, err
		}
		out[i] = Exported{Kind: kind, Namespace: name.Namespace, Service: name.Name, Spec: spec, Status: map[string]any{}}
		for _, field := range beside {
			if v, ok := spec[field]; ok {
				out[i].Status[field] = v
				delete(spec, field)
			}
		}
		if kind == "Endpoint" { // named above
			delete(spec, "namespace")
			delete(spec, "service_name")
		}
	}
	return out, nil
}

// specOf gives the fields of a listed resource that somebody wrote: not those
// that show the mesh's settings, nor those that are null because they were left
// out.
func specOf(listed any) (map[string]any, error) {
	b, err := json.Marshal(listed)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	var spec map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	inherited, _ := spec["inherits"].([]any)
	for field, v := range spec {
		if v == nil || slices.Contains(inherited, any(field)) {
			delete(spec, field)
		}
	}
	delete(spec, "inherits")
	return spec, nil
}
