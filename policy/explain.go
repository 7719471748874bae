package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// Question is a call of which Explain tells what becomes of it.
type Question struct {
	From, To ServiceName
	Port     uint16 // 0 is whichever the service has
	Method   string // "" is a connection that is not HTTP
	Path     string // query included
	Host     string
	Header   map[string][]string // names in lower case
	Claims   map[string]any      // of a token that holds;
	Token    Reason              // or why there is none: TokenMissing, TokenInvalid
}

// Knowledge is what a decision goes by.
type Knowledge interface {
	Service(ServiceName) (*Service, bool)
	Inbound(ServiceName) Inbound
	// Addresses are where a service is known to be.
	Addresses(ServiceName) []netip.Addr
	// Circuits tells by endpoint why proxies of a caller leave it out just now.
	Circuits(caller, service ServiceName) map[string]string
}

// Explanation is what becomes of a call, and why not something else.
type Explanation struct {
	Allowed    bool                `json:"allowed"`
	Reason     Reason              `json:"reason" doc:"one word, as in the weir-error header and the access log"`
	Rule       string              `json:"rule,omitempty" required:"false" doc:"id of the security rule that decided"`
	Why        string              `json:"why"`
	Audits     []string            `json:"audits,omitempty" required:"false" nullable:"false" doc:"ids of the rules that audit the call"`
	Security   []Considered        `json:"security" nullable:"false" doc:"every security rule about the service, and what it said"`
	Route      RouteExplained      `json:"route"`
	Endpoints  []EndpointExplained `json:"endpoints" nullable:"false"`
	Encryption Encryption          `json:"encryption"`
}

// Considered is one rule and what it said of a call.
type Considered struct {
	Rule    string `json:"rule"`
	Does    string `json:"does" doc:"allow, deny or audit; of a traffic rule, where it leads"`
	Decided bool   `json:"decided"`
	Why     string `json:"why" doc:"why it decided, or why it did not"`
}

// RouteExplained is where a call goes.
type RouteExplained struct {
	Rule    string       `json:"rule,omitempty" required:"false" doc:"id of the traffic rule; without one the call goes to the service itself"`
	Service string       `json:"service"`
	Subset  string       `json:"subset,omitempty" required:"false"`
	Answer  string       `json:"answer,omitempty" required:"false" doc:"what the rule answers by itself: nothing is sent then"`
	Path    string       `json:"path,omitempty" required:"false" doc:"as the service gets it"`
	Rules   []Considered `json:"rules" nullable:"false" doc:"every traffic rule of the service, and what it said"`
}

// EndpointExplained is one endpoint and why it is, or is not, chosen from.
type EndpointExplained struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	In      bool   `json:"in" doc:"the call may go there"`
	Why     string `json:"why,omitempty" required:"false" doc:"why it may not"`
}

// Encryption is how a call travels.
type Encryption struct {
	Kind string `json:"kind" enum:"mtls,tls,plaintext,none" doc:"none: nothing is sent"`
	Why  string `json:"why"`
}

// Explain tells what becomes of a call, by the functions that the proxies use. The
// error says what is not known.
func Explain(q *Question, known Knowledge) (*Explanation, error) {
	svc, ok := known.Service(q.To)
	if !ok {
		return nil, fmt.Errorf("there is no service %s; `weir get services` lists them: %w", q.To, ErrNotFound)
	}
	out := &Explanation{}
	route, err := out.explainRoute(q, svc)
	if err != nil {
		return nil, err
	}
	if out.Reason != "" { // refused by its path
		return out.whole(), nil
	}
	if out.Route.Answer != "" {
		out.Allowed, out.Reason, out.Rule = true, "answered", ""
		out.Why = "the caller's proxy answers by traffic rule " + route.Rule + "; no security rule is asked"
		out.Encryption = Encryption{"none", "nothing is sent"}
		return out.whole(), nil
	}
	to, ok := known.Service(route.Service)
	if !ok {
		return nil, fmt.Errorf("traffic rule %s leads to %s, which is not known: %w", route.Rule, route.Service, ErrNotFound)
	}
	target := out.explainEndpoints(q, to, route.Subset, known.Circuits(q.From, to.Name))
	out.Encryption = to.Traffic.Encrypts(q.From, target)
	return out.whole(), out.explainSecurity(q, to, target, route, known)
}

// whole has lists be empty rather than null.
func (e *Explanation) whole() *Explanation {
	if e.Security == nil {
		e.Security = []Considered{}
	}
	if e.Endpoints == nil {
		e.Endpoints = []EndpointExplained{}
	}
	if e.Route.Rules == nil {
		e.Route.Rules = []Considered{}
	}
	return e
}

// explainRoute finds the traffic rule that decides, and why the others do not.
func (e *Explanation) explainRoute(q *Question, svc *Service) (Route, error) {
	router, err := NewRouter(svc)
	if err != nil {
		return Route{}, err
	}
	path, ok := e.readPath(q.Method != "" && router.LooksAtPath(), q.Path, func(target, reading string) bool {
		return router.sameRoute(*q.request(), target, reading)
	})
	asked := *q
	asked.Path, q = path, &asked
	req := q.request()
	route := router.Route(req, 0)
	if q.Method == "" { // no rule is asked about a connection
		route = router.fallback
	}
	e.Route = RouteExplained{Rule: route.Rule, Service: route.Service.String(), Subset: route.Subset, Path: q.Path}
	if !ok {
		return route, nil
	}
	total, group := uint64(0), ""
	for i := range svc.Rules {
		r := &svc.Rules[i]
		miss, err := missOf(r, req)
		switch {
		case err != nil:
			return route, err
		case q.Method == "":
			miss = "no traffic rule is asked about a connection that is not HTTP"
		case miss == "" && group == "":
			group = matchKey(r)
			fallthrough
		case miss == "" && group == matchKey(r):
			total += uint64(max(r.Weight, 0))
		}
		e.Route.Rules = append(e.Route.Rules, Considered{Rule: r.ID, Does: r.leadsTo(svc.Name), Decided: r.ID == route.Rule && miss == "", Why: miss})
	}
	for i := range e.Route.Rules {
		r, c := &svc.Rules[i], &e.Route.Rules[i]
		switch {
		case c.Why != "":
		case matchKey(r) != group:
			c.Why = "matches, but a rule before it does too"
		case total == 0:
			c.Why = "matches, but has no weight, nor do others with the same match"
		default:
			c.Why = fmt.Sprintf("matches, and takes %.4g %% of the requests", 100*float64(max(r.Weight, 0))/float64(total))
		}
	}
	if p := route.Plan; p != nil {
		switch {
		case p.Redirect:
			e.Route.Answer = fmt.Sprintf("%d to %s", p.Status, p.AppendLocation(nil, q.Host, q.Path))
		case p.Direct != nil:
			e.Route.Answer = fmt.Sprint(p.Direct.Status)
		case p.ChangesPath():
			e.Route.Path = string(p.AppendTarget(nil, q.Path))
		}
	}
	return route, nil
}

func (r *TrafficRule) leadsTo(service ServiceName) string {
	switch {
	case r.Redirect != nil:
		return "redirect"
	case r.DirectResponse != nil:
		return "answer"
	case r.DestinationSubset != "":
		return cmp.Or(r.DestinationService, service.Name) + "[" + r.DestinationSubset + "]"
	}
	return cmp.Or(r.DestinationService, service.Name)
}

func (q *Question) request() *Request {
	return &Request{Method: q.Method, Path: cmp.Or(q.Path, "/"), Host: cmp.Or(q.Host, q.To.Name), Header: func(name string) (string, bool) { return field(q.Header, name, 0) }}
}

func field(h map[string][]string, name string, n int) (string, bool) {
	if all := h[strings.ToLower(name)]; n < len(all) {
		return all[n], true
	}
	return "", false
}

// missOf tells what of a request does not fit a traffic rule; "" is nothing.
func missOf(r *TrafficRule, req *Request) (string, error) {
	m, err := newMatcher(r)
	if err != nil {
		return "", err
	}
	path, query, _ := strings.Cut(req.Path, "?")
	if m.matches(req, path, query) {
		return "", nil
	}
	// Each part by itself says whether it is what does not fit.
	for _, part := range []struct {
		name string
		m    matcher
	}{{"method", matcher{methods: m.methods}}, {"path", matcher{path: m.path}}, {"host", matcher{host: m.host}}} {
		if !part.m.matches(req, path, query) {
			return "the " + part.name + " does not match", nil
		}
	}
	for _, h := range m.headers {
		if one := (matcher{headers: []fieldMatch{h}}); !one.matches(req, path, query) {
			return "header " + h.name + " does not match", nil
		}
	}
	return "the query does not match", nil
}

// explainEndpoints tells which endpoints a call may go to, and gives the first.
func (e *Explanation) explainEndpoints(q *Question, svc *Service, subset string, circuits map[string]string) *Target {
	var target *Target
	narrow := svc.Narrow(subset, q.Port)
	for i := range svc.Endpoints {
		t := &svc.Endpoints[i]
		one := EndpointExplained{ID: t.ID, Address: t.At(), Why: cmp.Or(narrow(t), circuits[t.ID])}
		if t.Circuit.State == CircuitOpen {
			one.Why = cmp.Or(narrow(t), "an operator opened its circuits")
		}
		if one.In = one.Why == ""; one.In && target == nil {
			target = t
		}
		e.Endpoints = append(e.Endpoints, one)
	}
	return target
}

// At is where an endpoint is: its address, or the host and port outside the mesh.
func (e *Endpoint) At() string {
	if e.Host != "" {
		return fmt.Sprintf("%s:%d", e.Host, e.Port)
	}
	return e.Addr().String()
}

// Narrow gives a func that tells why an endpoint is not one to choose from, for
// calls to a subset by a port that the caller named; "" is that it is. A port that
// no endpoint has does not narrow, but to those that serve HTTP if there are any.
func (s *Service) Narrow(subset string, port uint16) func(*Target) string {
	ofPort, http := false, false
	for i := range s.Endpoints {
		t := &s.Endpoints[i]
		ofPort = ofPort || t.Port == int(port)
		// What is unhealthy is not counted, unless it may be used in a panic.
		usable := t.Status != Unhealthy || s.Traffic.Balancing.Panic > 0
		http = http || t.Protocol == "http" && t.InSubset(subset) && usable
	}
	return func(t *Target) string {
		switch {
		case !t.InSubset(subset):
			return fmt.Sprintf("not of the subset %q", subset)
		case ofPort && t.Port != int(port):
			return fmt.Sprintf("does not listen on port %d", port)
		case !ofPort && http && t.Protocol != "http":
			return fmt.Sprintf("speaks %s, and others HTTP", t.Protocol)
		case t.Status == Unhealthy:
			return "unhealthy: the health check fails"
		}
		return ""
	}
}

// Encrypts tells how a caller's proxy sends to an endpoint, and why; nil is that
// there is none.
func (t *Traffic) Encrypts(caller ServiceName, to *Target) Encryption {
	switch {
	case to == nil:
		return Encryption{"none", "no endpoint is to be chosen from"}
	case to.Host != "" && to.TLS != "":
		return Encryption{"tls", "the caller's proxy begins TLS to a host outside the mesh"}
	case !to.Meshed:
		return Encryption{"plaintext", "no proxy is beside the endpoint"}
	case t.Mode(uint16(to.Port)) == Disabled:
		return Encryption{"plaintext", fmt.Sprintf("mtls_mode of port %d is disabled", to.Port)}
	case t.SendsPlaintext(caller, uint16(to.Port)):
		return Encryption{"plaintext", "a security rule disables mTLS for the caller"}
	}
	return Encryption{"mtls", fmt.Sprintf("a proxy is beside the endpoint, and mtls_mode of port %d is %s", to.Port, t.Mode(uint16(to.Port)))}
}
