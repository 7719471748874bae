package controlplane

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/flows"
	"github.com/weir-mesh/weir/policy"
)

// observed is what proxies counted, as the API wants it.
type observed struct{ *plane }

// Flows implements api.Observed.
func (o observed) Flows(q api.FlowQuery) api.FlowList {
	recorded, known, leftOut := o.flows.Since(q.Since, q.Wants)
	more := len(recorded) - q.Most()
	if more > 0 {
		slices.SortFunc(recorded, func(a, b flows.Recorded) int { return cmp.Compare(b.Calls, a.Calls) })
		recorded = recorded[:q.Most()]
	}
	out := api.FlowList{Control: o.cfg.name(), Elsewhere: o.others(), Since: unix(known), LeftOut: leftOut, More: max(more, 0), Flows: make([]api.Flow, len(recorded))}
	for i := range recorded {
		r := &recorded[i]
		out.Flows[i] = api.ViewFlow(&r.FlowCount, unix(r.First), unix(r.Last))
	}
	slices.SortFunc(out.Flows, compareFlows)
	return out
}

type changeKey struct {
	flow    policy.Flow
	was, is string
}

func merge(f *api.Flow, r *flows.Recorded) {
	f.Calls, f.Errors = f.Calls+r.Calls, f.Errors+r.Errors
	f.FirstSeen, f.LastSeen = min(f.FirstSeen, unix(r.First)), max(f.LastSeen, unix(r.Last))
}

// compareFlows puts who calls whom together, and there what was called most first.
func compareFlows(a, b api.Flow) int {
	return cmp.Or(
		strings.Compare(a.Source.String(), b.Source.String()), strings.Compare(a.Destination.String(), b.Destination.String()),
		strings.Compare(a.Direction, b.Direction), cmp.Compare(b.Calls, a.Calls), strings.Compare(a.Path, b.Path), strings.Compare(a.Method, b.Method),
		strings.Compare(a.Reason, b.Reason), strings.Compare(a.Rule, b.Rule), strings.Compare(a.Route, b.Route),
	)
}

// others names the control planes that know of flows that this one does not.
func (p *plane) others() []string {
	var out []string
	for _, m := range p.store.KnownMembers() {
		if m.Name != p.cfg.name() {
			out = append(out, m.Name)
		}
	}
	return out
}

// Judge implements api.Observed: each flow is decided twice by the functions of
// the proxies, for the state as it is and as it would be.
func (o observed) Judge(differences []policy.Difference, since time.Time) api.WhatIf {
	then, _ := o.view.foresee(differences)
	recorded, known, _ := o.flows.Since(since, nil)
	out := api.WhatIf{Control: o.cfg.name(), Elsewhere: o.others(), Since: unix(known), Flows: len(recorded)}
	before, after := newJudge(o.view), newJudge(then)
	at := map[changeKey]int{}
	for i := range recorded {
		r := &recorded[i]
		change, was, is := compareJudgements(before.judge(&r.Flow), after.judge(&r.Flow))
		if change == "" {
			continue
		}
		r.Rule, r.Reason = "", "" // of then: what counts is what is decided now
		key := changeKey{r.Flow, was, is}
		if have, again := at[key]; again {
			merge(&out.Changes[have].Flow, r)
			continue
		}
		at[key] = len(out.Changes)
		out.Changes = append(out.Changes, api.FlowChange{
			Flow: api.ViewFlow(&r.FlowCount, unix(r.First), unix(r.Last)), Change: change, Before: was, After: is,
		})
	}
	slices.SortFunc(out.Changes, func(a, b api.FlowChange) int {
		return cmp.Or(strings.Compare(a.Change, b.Change), compareFlows(a.Flow, b.Flow))
	})
	return out
}
