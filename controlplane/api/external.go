package api

import (
	"cmp"
	"context"
	"fmt"

	"github.com/weir-mesh/weir/policy"
)

// external is what an endpoint outside the mesh has in the place of an ip.
func external(host, tls, serverName, ca *string) (e policy.External) {
	override(&e.Host, host)
	override(&e.TLS, tls)
	override(&e.ServerName, serverName)
	override(&e.CA, ca)
	return e
}

// externalServiceBody is a document's spec of kind ExternalService: an endpoint
// with a host, of which less needs to be said.
type externalServiceBody struct {
	ID       *string           `json:"id,omitempty" required:"false"`
	Host     string            `json:"host"`
	Port     *int              `json:"port,omitempty" required:"false"`
	Protocol *string           `json:"protocol,omitempty" required:"false"`
	TLS      *string           `json:"tls,omitempty" required:"false"`
	Name     *string           `json:"server_name,omitempty" required:"false"`
	CA       *string           `json:"ca,omitempty" required:"false"`
	Weight   *int              `json:"weight,omitempty" required:"false"`
	Labels   map[string]string `json:"labels,omitempty" required:"false"`
}

// endpoint fills in what was left out: the port by whether TLS is begun, the id
// by host and port.
func (b *externalServiceBody) endpoint(name policy.ServiceName) policy.Endpoint {
	e := policy.DefaultEndpoint()
	e.Namespace, e.ServiceName, e.Host = name.Namespace, name.Name, b.Host
	override(&e.TLS, b.TLS)
	override(&e.ServerName, b.Name)
	override(&e.CA, b.CA)
	e.Port = 80
	if e.TLS == policy.TLSOriginate {
		e.Port = 443
	}
	override(&e.Port, b.Port)
	override(&e.Protocol, b.Protocol)
	override(&e.Weight, b.Weight)
	if b.Labels != nil {
		e.Labels = b.Labels
	}
	e.ID = fmt.Sprintf("%s:%d", e.Host, e.Port)
	override(&e.ID, b.ID)
	return e
}

func (d *Document) readExternalService(e *envelope) policy.Problems {
	d.service = policy.ServiceName{Namespace: cmp.Or(e.Namespace, "default"), Name: e.Service}
	p := checkName(d.service.Namespace, d.service.Name, "service")
	body, shape := readSpec[externalServiceBody](e.Spec)
	if p = append(p, shape...); len(p) > 0 {
		return p
	}
	d.endpoint = body.endpoint(d.service)
	if d.endpoint.Host == "" {
		return policy.Problems{{Path: "spec.host", Message: "is empty"}}
	}
	return d.endpoint.Validate().Under("spec")
}

// ExportExternalServices gives a service's endpoints outside the mesh as documents
// of kind ExternalService, or the one with an id.
func (c *Client) ExportExternalServices(ctx context.Context, name policy.ServiceName, id string) ([]Exported, error) {
	all, err := c.ExportEndpoints(ctx, name, id)
	if err != nil {
		return nil, err
	}
	out := []Exported{}
	for _, d := range all {
		if host, _ := d.Spec["host"].(string); host != "" {
			d.Kind = "ExternalService"
			delete(d.Spec, "ip")
			delete(d.Spec, "health_check_path")
			out = append(out, d)
		}
	}
	return out, nil
}
