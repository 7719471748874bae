package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/weir-mesh/weir/policy"
)

// EndpointHealth is what the health checks know of an endpoint.
type EndpointHealth struct {
	Namespace   string         `json:"namespace"`
	ServiceName string         `json:"service_name"`
	ID          string         `json:"id"`
	Status      string         `json:"status" doc:"healthy or unhealthy, as it is stored"`
	Checked     bool           `json:"checked" doc:"false where this control plane does not check it: checks are disabled, or another one leads"`
	Since       float64        `json:"since" doc:"Unix seconds of the last turn that a check brought; 0 when there was none"`
	NextCheck   float64        `json:"next_check" doc:"Unix seconds"`
	History     []HealthResult `json:"history" nullable:"false" doc:"the last 100 results, the newest last; after a change of who leads, those since, and before them the last 10 of each turn, 30 at most"`
}

// HealthResult is the outcome of one check.
type HealthResult struct {
	At      float64 `json:"at" doc:"Unix seconds, when the check started"`
	Took    float64 `json:"took" doc:"seconds"`
	Check   string  `json:"check" enum:"http,grpc,tcp"`
	Passed  bool    `json:"passed"`
	Healthy bool    `json:"healthy" doc:"the endpoint's state after the thresholds"`
	Detail  string  `json:"detail" doc:"what was answered, or which step failed and how"`
}

type endpointPathInput struct {
	Namespace  string `path:"namespace"`
	Service    string `path:"service"`
	EndpointID string `path:"endpoint_id"`
}

func (s *Server) endpointHealth(_ context.Context, in *endpointPathInput) (*output[EndpointHealth], error) {
	name := policy.ServiceName{Namespace: in.Namespace, Name: in.Service}
	h, ok := s.Mesh.Health(name, in.EndpointID)
	if !ok {
		return nil, refuse(http.StatusNotFound, "%s has no endpoint %q", name, in.EndpointID)
	}
	h.History = append([]HealthResult{}, h.History...)
	return &output[EndpointHealth]{h}, nil
}

// Health tells what the health checks know of an endpoint; an Error with
// status 404 if there is none.
func (c *Client) Health(ctx context.Context, name policy.ServiceName, id string) (EndpointHealth, error) {
	return get[EndpointHealth](ctx, c, servicePath("/services", name)+"/"+url.PathEscape(id)+"/health")
}
