package api

import (
	"context"
	"errors"

	"github.com/weir-mesh/weir/policy"
)

func (s *server) listServices(context.Context, *nothing) (*output[[]ServiceSummary], error) {
	return &output[[]ServiceSummary]{append([]ServiceSummary{}, s.Registry.Services()...)}, nil
}

type registerInput struct {
	Body endpointBody
}

func (s *server) registerEndpoint(ctx context.Context, in *registerInput) (*statusOutput, error) {
	e := in.Body.endpoint()
	if err := badRequest("body", e.Validate()); err != nil {
		return nil, err
	}
	if err := s.Registry.Register(ctx, e); err != nil {
		return nil, s.answerFor("register the endpoint", err)
	}
	return done("registered"), nil
}

func (s *server) listEndpoints(_ context.Context, in *servicePathInput) (*output[[]policy.Endpoint], error) {
	endpoints := append([]policy.Endpoint{}, s.Registry.Endpoints(in.name())...)
	for i := range endpoints {
		if endpoints[i].Labels == nil {
			endpoints[i].Labels = map[string]string{}
		}
	}
	return &output[[]policy.Endpoint]{endpoints}, nil
}

type deregisterInput struct {
	Namespace  string `path:"namespace"`
	Service    string `path:"service"`
	EndpointID string `path:"endpoint_id"`
}

func (s *server) deregisterEndpoint(ctx context.Context, in *deregisterInput) (*statusOutput, error) {
	name := policy.ServiceName{Namespace: in.Namespace, Name: in.Service}
	err := s.Registry.Deregister(ctx, name, in.EndpointID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, s.answerFor("deregister the endpoint", err)
	}
	return done("deregistered"), nil
}
