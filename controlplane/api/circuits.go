package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// EndpointCircuits is how the circuits of one endpoint stand in the proxies that
// call it, and what an operator ordered of them.
type EndpointCircuits struct {
	Namespace   string         `json:"namespace"`
	ServiceName string         `json:"service_name"`
	ID          string         `json:"id"`
	Order       string         `json:"order" enum:"open,close," doc:"what all proxies were told to do; empty: they go by what they see"`
	Until       float64        `json:"until" doc:"Unix seconds: when the order ends by itself; 0 when it does not"`
	Registered  bool           `json:"registered" doc:"false where the endpoint is no more and the order waits for it"`
	Proxies     []ProxyCircuit `json:"proxies" nullable:"false" doc:"those with something to tell; in all others the circuit is closed"`
}

// ProxyCircuit is how one proxy's circuit stands.
type ProxyCircuit struct {
	Proxy       string  `json:"proxy" doc:"the proxy's id"`
	Namespace   string  `json:"namespace" doc:"of the service that calls"`
	ServiceName string  `json:"service_name"`
	State       string  `json:"state" enum:"closed,half_open,open"`
	Failures    int     `json:"failures" doc:"in a row, while it is closed"`
	Since       float64 `json:"since" doc:"Unix seconds: when it last opened or closed; 0 when it never did"`
	Ordered     bool    `json:"ordered" doc:"the state is an operator's"`
	Outlier     bool    `json:"outlier" doc:"the proxy leaves the endpoint out for doing worse than the others"`
}

// maxOrder bounds how long an order with an end holds: 30 days.
const maxOrder = 30 * 24 * 3600.0

func (s *Server) listCircuits(_ context.Context, in *struct{ ServicePath }) (*output[[]EndpointCircuits], error) {
	list := append([]EndpointCircuits{}, s.Mesh.Circuits(in.name())...)
	for i := range list {
		list[i].Proxies = append([]ProxyCircuit{}, list[i].Proxies...)
	}
	return &output[[]EndpointCircuits]{list}, nil
}

type circuitBody struct {
	State string   `json:"state" enum:"open,close,reset" doc:"open: nothing is sent to the endpoint; close: everything, and failures are not counted; reset: circuits are closed and go by what they see"`
	TTL   *float64 `json:"ttl" required:"false" doc:"seconds after which the order ends; without it, it holds until another"`
}

type circuitInput struct {
	EndpointPath
	Body circuitBody
}

func (s *Server) orderCircuit(ctx context.Context, in *circuitInput) (*output[statusBody], error) {
	var ttl time.Duration
	if v := in.Body.TTL; v != nil {
		if !(*v >= 1 && *v <= maxOrder) {
			return nil, refuse(http.StatusBadRequest, "body.ttl: %v s is not in 1..%v s", *v, maxOrder)
		}
		if in.Body.State == policy.CircuitReset {
			return nil, refuse(http.StatusBadRequest, "body.ttl: a reset is done once; it has no length")
		}
		ttl = time.Duration(*v * float64(time.Second))
	}
	name := in.ref().Name()
	err := s.Mesh.OrderCircuit(ctx, name, in.EndpointID, in.Body.State, ttl)
	if errors.Is(err, policy.ErrNotFound) {
		return nil, noSuch(in.ref())
	}
	if err != nil {
		return nil, s.answerFor("order a circuit", err)
	}
	word := map[string]string{policy.CircuitOpen: "circuit opened", policy.CircuitClose: "circuit closed", policy.CircuitReset: "circuit reset"}
	return &output[statusBody]{statusBody{Status: word[in.Body.State]}}, nil
}

type statusBody struct {
	Status string `json:"status"`
}

// Circuits tells how the circuits of a service's endpoints stand.
func (c *Client) Circuits(ctx context.Context, name policy.ServiceName) ([]EndpointCircuits, error) {
	return get[[]EndpointCircuits](ctx, c, servicePath("/circuits", name))
}

// OrderCircuit has all proxies open or close their circuits of an endpoint
// (policy.CircuitOpen, CircuitClose), for ttl or, if that is 0, until another
// order; or begin them anew (CircuitReset).
func (c *Client) OrderCircuit(ctx context.Context, name policy.ServiceName, id, order string, ttl time.Duration) error {
	body := circuitBody{State: order}
	if ttl > 0 {
		body.TTL = given(ttl.Seconds())
	}
	_, err := c.call(ctx, http.MethodPost, servicePath("/circuits", name)+"/"+url.PathEscape(id), body, nil)
	return err
}
