package policy

import (
	"cmp"
	"slices"
	"strings"
)

// Suggestion is a rule with what it rests on.
type Suggestion struct {
	Rule  SecurityRule
	Flows []FlowCount // that it allows, the most frequent first
}

// Suggest gives the smallest rules that allow what was allowed of the flows and
// nothing else that today's rules tell apart: callers, destinations, methods and
// tokens. Flows of callers without a certificate are given back: no rule could
// tell them from anybody else's.
func Suggest(flows []FlowCount) (rules []Suggestion, nameless []FlowCount) {
	type key struct {
		from, to ServiceName
		token    bool
	}
	by := map[key][]FlowCount{}
	for _, f := range flows {
		switch {
		case f.Direction != FlowInbound || !f.Allowed:
		case f.SourceClass != "":
			nameless = append(nameless, f)
		default:
			k := key{f.Source, f.Destination, f.Token}
			by[k] = append(by[k], f)
		}
	}
	for k, allowed := range by {
		r := SecurityRule{
			SourceNamespace: k.from.Namespace, SourceService: k.from.Name, DestinationNamespace: k.to.Namespace, DestinationService: k.to.Name,
			AllowedMethods: methodsIn(allowed), RequiredJWT: k.token, MTLSMode: Strict,
		}
		slices.SortFunc(allowed, func(a, b FlowCount) int {
			return cmp.Or(cmp.Compare(b.Calls, a.Calls), strings.Compare(a.Path, b.Path), strings.Compare(a.Method, b.Method))
		})
		rules = append(rules, Suggestion{r, allowed})
	}
	slices.SortFunc(rules, func(a, b Suggestion) int {
		return cmp.Or(strings.Compare(a.Rule.Destination().String(), b.Rule.Destination().String()),
			strings.Compare(a.Rule.Source().String(), b.Rule.Source().String()), cmp.Compare(len(a.Rule.AllowedMethods), len(b.Rule.AllowedMethods)))
	})
	return rules, nameless
}

// methodsIn lists the methods of flows; a connection without any needs a rule that
// restricts none.
func methodsIn(flows []FlowCount) []string {
	var methods []string
	for _, f := range flows {
		if f.Method == "" {
			return []string{Any}
		}
		methods = append(methods, f.Method)
	}
	slices.Sort(methods)
	return slices.Compact(methods)
}
