package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/weir-mesh/weir/policy"
)

func (s *Server) listServices(context.Context, *WatchParam) (*output[[]ServiceSummary], error) {
	return &output[[]ServiceSummary]{append([]ServiceSummary{}, s.Mesh.Snapshot().Services()...)}, nil
}

type registerInput struct {
	DryRunParam
	Body endpointBody
}

func (s *Server) registerEndpoint(ctx context.Context, in *registerInput) (*writeOutput, error) {
	e := in.Body.endpoint()
	if err := badRequest("body", e.Validate()); err != nil {
		return nil, err
	}
	out, err := s.change(ctx, "register the endpoint", s.endpointEdit(e), in.DryRun, "registered")
	if out != nil {
		out.ID = "" // the body named it
	}
	return out, err
}

// endpointEdit registers an endpoint, which is news of it.
func (s *Server) endpointEdit(e policy.Endpoint) policy.Edit {
	e.LastSeen = float64(s.Now().UnixMilli()) / 1000
	ref := policy.Ref{Kind: policy.KindEndpoint, Namespace: e.Namespace, Service: e.ServiceName, ID: e.ID}
	return policy.Edit{Ref: ref, To: &policy.Resource{Endpoint: &e}}
}

func (s *Server) listEndpoints(_ context.Context, in *listOfServiceInput) (*output[[]endpointView], error) {
	return &output[[]endpointView]{viewEndpoints(s.Mesh.Snapshot(), in.name())}, nil
}

func viewEndpoints(now Snapshot, name policy.ServiceName) []endpointView {
	list := now.Endpoints(name)
	views := make([]endpointView, len(list))
	for i := range list {
		views[i] = viewEndpoint(&list[i])
	}
	return views
}

type EndpointPath struct {
	Namespace  string `path:"namespace"`
	Service    string `path:"service"`
	EndpointID string `path:"endpoint_id"`
}

func (in *EndpointPath) ref() policy.Ref {
	return policy.Ref{Kind: policy.KindEndpoint, Namespace: in.Namespace, Service: in.Service, ID: in.EndpointID}
}

type getEndpointInput struct {
	EndpointPath
	ReadParam
}

func (s *Server) getEndpoint(_ context.Context, in *getEndpointInput) (*found[endpointView], error) {
	e := findEndpoint(s.Mesh.Snapshot(), in.ref().Name(), in.EndpointID)
	if e == nil {
		return nil, noSuch(in.ref())
	}
	return answer(&in.ReadParam, etag(e.Version), viewEndpoint(e)), nil
}

func noSuch(ref policy.Ref) error { return refuse(http.StatusNotFound, "there is no %s", ref) }

type putEndpointInput struct {
	EndpointPath
	WriteParam
	Body endpointPutBody
}

func (s *Server) putEndpoint(ctx context.Context, in *putEndpointInput) (*writeOutput, error) {
	e, problems := in.Body.endpoint(in.ref())
	if err := badRequest("body", append(problems, e.Validate()...)); err != nil {
		return nil, err
	}
	edit := s.endpointEdit(e)
	edit.Quiet = true
	return s.conditional(ctx, "register the endpoint", edit, &in.WriteParam, "registered")
}

// conditional makes an edit under the request's conditions.
func (s *Server) conditional(ctx context.Context, step string, e policy.Edit, in *WriteParam, status string) (_ *writeOutput, err error) {
	if e.If, err = in.condition(); err != nil {
		return nil, err
	}
	return s.change(ctx, step, e, in.DryRun, status)
}

type deregisterInput struct {
	EndpointPath
	WriteParam
}

func (s *Server) deregisterEndpoint(ctx context.Context, in *deregisterInput) (*writeOutput, error) {
	out, err := s.conditional(ctx, "deregister the endpoint", policy.Edit{Ref: in.ref()}, &in.WriteParam, "deregistered")
	var f *failure
	if errors.As(err, &f) && f.status == http.StatusNotFound {
		// It is as the caller wants it.
		out = &writeOutput{Body: writeBody{Status: "deregistered"}}
		if in.DryRun {
			out.Body = writeBody{DryRun: true}
		}
		return out, nil
	}
	return out, err
}
