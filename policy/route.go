package policy

import (
	"fmt"
	"slices"
	"time"
)

// Request is what a rule may look at. Its strings need to hold only for the
// length of the call.
type Request struct {
	Method string
	Path   string // as on the request line, query included
	Host   string // perhaps with a port
	Header func(name string) (value string, ok bool)
}

// Route is where a request goes and how. It is a decision: nothing in it has
// been done yet.
type Route struct {
	Rule     string // id of the rule that decided; "" when none matched
	Service  ServiceName
	Subset   string
	Timeout  time.Duration
	Attempts int
	Breaker  bool
	Plan     *Plan // what else is done with it; nil is nothing
}

// Router holds a service's rules made ready for matching. It is immutable.
type Router struct {
	fallback Route
	groups   []group // in the order of the rules
	index    index
}

// group is the rules with one and the same match: a weighted split.
type group struct {
	match  matcher
	total  uint64
	upTo   []uint64 // running sums of weights
	routes []Route
}

// NewRouter compiles a service's rules. An error names the rule.
func NewRouter(s *Service) (*Router, error) {
	r := &Router{fallback: Route{
		Service: s.Name, Timeout: s.Traffic.Timeout,
		Attempts: s.Traffic.Retry.Attempts, Breaker: s.Traffic.Breaker.Enabled,
	}}
	known := map[string]int{} // groups by what they match
	for i := range s.Rules {
		rule := &s.Rules[i]
		route, err := r.routeOf(rule, s.Name.Namespace)
		if err != nil {
			return nil, fmt.Errorf("traffic rule %q of %s: %w", rule.ID, s.Name, err)
		}
		if route.Plan, err = newPlan(rule, s); err != nil {
			return nil, fmt.Errorf("traffic rule %q of %s: %w", rule.ID, s.Name, err)
		}
		key := matchKey(rule)
		at, ok := known[key]
		if !ok {
			m, err := newMatcher(rule)
			if err != nil {
				return nil, fmt.Errorf("traffic rule %q of %s: %w", rule.ID, s.Name, err)
			}
			at = len(r.groups)
			known[key] = at
			r.groups = append(r.groups, group{match: m})
		}
		r.groups[at].add(route, rule.Weight)
	}
	r.index = newIndex(r.groups)
	return r, nil
}

func (r *Router) routeOf(rule *TrafficRule, namespace string) (Route, error) {
	route := r.fallback
	route.Rule, route.Subset = rule.ID, rule.DestinationSubset
	if rule.DestinationService != "" {
		name, err := ParseServiceName(rule.DestinationService, namespace)
		if err != nil {
			return Route{}, err
		}
		route.Service = name
	}
	if rule.Timeout > 0 {
		route.Timeout = seconds(rule.Timeout)
	}
	if rule.RetryAttempts > 0 {
		route.Attempts = rule.RetryAttempts
	}
	route.Breaker = route.Breaker && rule.CircuitBreaker
	return route, nil
}

// Route decides for one request: the first group of rules that matches, and in
// it one by weight; roll is a random number. Without a match, or where all
// weights of the match are zero, the request goes to the service itself.
func (r *Router) Route(req *Request, roll uint64) Route {
	if len(r.groups) == 0 {
		return r.fallback
	}
	g := r.match(req)
	if g == nil || g.total == 0 {
		return r.fallback
	}
	return *g.pick(roll)
}

// Choice is a route with its share of the requests that are alike.
type Choice struct {
	Route
	Share float64 // 0 to 1
}

// Choices lists the routes that a request may take: those of the rules that
// share its match, by weight, or the one there is.
func (r *Router) Choices(req *Request) []Choice {
	g := r.match(req)
	if g == nil || g.total == 0 {
		return []Choice{{r.fallback, 1}}
	}
	var out []Choice
	below := uint64(0)
	for i, upTo := range g.upTo {
		if upTo > below {
			out = append(out, Choice{g.routes[i], float64(upTo-below) / float64(g.total)})
		}
		below = upTo
	}
	return out
}

func (g *group) add(route Route, weight int) {
	g.total += uint64(max(weight, 0))
	g.upTo = append(g.upTo, g.total)
	g.routes = append(g.routes, route)
}

// pick gives the route for a random number, by weight.
func (g *group) pick(roll uint64) *Route {
	if len(g.routes) == 1 {
		return &g.routes[0]
	}
	// The first whose sum is above the roll; one of weight 0 has the sum of the one before.
	i, _ := slices.BinarySearch(g.upTo, roll%g.total+1)
	return &g.routes[i]
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
