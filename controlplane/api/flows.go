package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// FlowQuery says which flows are wanted; zero fields ask for all.
type FlowQuery struct {
	Since       time.Time
	Namespace   string // of the source or the destination
	Source      string // name or namespace/name
	Destination string
	Verdict     string // allowed or denied
	Direction   string // inbound or outbound
	Limit       int    // how many to list, the most frequent; 0 is the default
}

const (
	defaultFlows = 5_000
	maxChanges   = 5_000
)

// Most is how many flows are to be listed.
func (q *FlowQuery) Most() int { return cmp.Or(q.Limit, defaultFlows) }

// Wants tells whether a flow is asked for.
func (q *FlowQuery) Wants(f *policy.Flow) bool {
	named := func(want string, n policy.ServiceName) bool {
		return want == "" || want == n.Name || want == n.String()
	}
	return (q.Namespace == "" || q.Namespace == f.Source.Namespace || q.Namespace == f.Destination.Namespace) &&
		named(q.Source, f.Source) && named(q.Destination, f.Destination) &&
		(q.Verdict == "" || (q.Verdict == "allowed") == f.Allowed) &&
		(q.Direction == "" || q.Direction == string(f.Direction))
}

// Party is one side of a flow: a service, or where a caller is that showed no
// certificate.
type Party struct {
	Namespace   string `json:"namespace,omitempty" required:"false"`
	ServiceName string `json:"service_name,omitempty" required:"false"`
	Class       string `json:"class,omitempty" required:"false" doc:"of a caller without certificate: private or public, by its address"`
}

// String is the service as namespace/name, or the class.
func (p Party) String() string {
	if p.ServiceName == "" {
		return "(" + p.Class + ")"
	}
	return p.Namespace + "/" + p.ServiceName
}

// PartyOf is a service as a party.
func PartyOf(n policy.ServiceName) Party { return Party{Namespace: n.Namespace, ServiceName: n.Name} }

// Flow is what GET /flows tells of calls that are alike.
type Flow struct {
	Direction   string  `json:"direction" enum:"inbound,outbound" doc:"inbound: as the server's proxy saw it, which gives the verdict; outbound: as the caller's did, which knows the route"`
	Source      Party   `json:"source"`
	Destination Party   `json:"destination" doc:"whom the caller asked for"`
	Port        int     `json:"port"`
	Protocol    string  `json:"protocol" enum:"http1,http2,grpc,tcp"`
	Method      string  `json:"method,omitempty" required:"false" doc:"empty where the bytes are not HTTP"`
	Path        string  `json:"path,omitempty" required:"false" doc:"without query; what looks like an id is *"`
	Verdict     string  `json:"verdict" enum:"allowed,denied"`
	Reason      string  `json:"reason,omitempty" required:"false" doc:"inbound: the word of the verdict"`
	Rule        string  `json:"rule,omitempty" required:"false" doc:"inbound: the security rule that decided"`
	Token       bool    `json:"token,omitempty" required:"false" doc:"inbound: it showed a valid token, which the rule demands"`
	Route       string  `json:"route,omitempty" required:"false" doc:"outbound: the traffic rule that decided"`
	Routed      *Party  `json:"routed,omitempty" required:"false" doc:"outbound: where that led"`
	Subset      string  `json:"subset,omitempty" required:"false"`
	Encryption  string  `json:"encryption" enum:"mtls,tls,plaintext"`
	Why         string  `json:"why,omitempty" required:"false" doc:"why it was not mtls: no-certificate, no-proxy, disabled, external, unreached"`
	Calls       uint64  `json:"calls" doc:"requests, or connections that are not HTTP"`
	Errors      uint64  `json:"errors" doc:"of them those that were answered with 500 or above, or not at all"`
	FirstSeen   float64 `json:"first_seen" doc:"Unix seconds, the begin of a minute"`
	LastSeen    float64 `json:"last_seen"`
}

// FlowList is what GET /flows answers.
type FlowList struct {
	Control   string   `json:"control" doc:"the control plane that answers: it knows what the proxies attached to it told"`
	Elsewhere []string `json:"elsewhere,omitempty" required:"false" nullable:"false" doc:"other control planes, which know of their own proxies and are to be asked themselves"`
	Since     float64  `json:"since" doc:"Unix seconds: from when on flows are known, at most the time asked for"`
	LeftOut   uint64   `json:"left_out" doc:"calls that proxies had no room to count, since the control plane started"`
	More      int      `json:"more" doc:"flows that were asked for and are not listed: they are less frequent"`
	Flows     []Flow   `json:"flows" nullable:"false"`
}

// SinceParam is how far back to look.
type SinceParam struct {
	Since string `query:"since" default:"1h" doc:"how far back, as 90s, 15m or 1h; 24h at most"`
}

// maxSince is for how long flows are kept.
const maxSince = 24 * time.Hour

func (in *SinceParam) from(now time.Time) (time.Time, error) {
	d, err := time.ParseDuration(in.Since)
	if err != nil || d <= 0 || d > maxSince {
		return time.Time{}, refuse(http.StatusBadRequest, "query.since: %s is not a time such as 90s, 15m or 1h, up to 24h", show(in.Since))
	}
	return now.Add(-d), nil
}

type flowsInput struct {
	SinceParam
	Namespace   string `query:"namespace" doc:"of the source or the destination"`
	Source      string `query:"source" doc:"a service, as name or namespace/name"`
	Destination string `query:"destination" doc:"likewise"`
	Verdict     string `query:"verdict" enum:"allowed,denied"`
	Direction   string `query:"direction" enum:"inbound,outbound"`
	Limit       int    `query:"limit" default:"5000" minimum:"1" maximum:"50000" doc:"how many to list, the most frequent"`
}

var errNotObserved = refuse(http.StatusServiceUnavailable, "flows: this control plane observes none")

func (s *Server) listFlows(_ context.Context, in *flowsInput) (*output[FlowList], error) {
	from, err := in.from(s.Now())
	if err != nil {
		return nil, err
	}
	if s.Observed == nil {
		return nil, errNotObserved
	}
	list := s.Observed.Flows(FlowQuery{from, in.Namespace, in.Source, in.Destination, in.Verdict, in.Direction, in.Limit})
	list.Flows = append([]Flow{}, list.Flows...)
	return &output[FlowList]{list}, nil
}

// Pair is what GET /pairs tells of two services.
type Pair struct {
	Source      Party    `json:"source"`
	Destination Party    `json:"destination"`
	Encrypted   string   `json:"encrypted" enum:"yes,partly,no" doc:"as the state of the mesh has it"`
	Why         []string `json:"why" nullable:"false"`
	Calls       uint64   `json:"calls" doc:"seen; 0 where rules allow what nobody did"`
	Plaintext   uint64   `json:"plaintext" doc:"of them in plain text"`
	Denied      uint64   `json:"denied" doc:"of them refused"`
	CertEnds    float64  `json:"certificate_ends" doc:"Unix seconds: of their proxies' certificates the one that ends first; 0 where none is known"`
	Attention   []string `json:"attention,omitempty" required:"false" nullable:"false" doc:"what should not be so"`
}

// PairList is what GET /pairs answers.
type PairList struct {
	Control   string   `json:"control"`
	Elsewhere []string `json:"elsewhere,omitempty" required:"false" nullable:"false" doc:"other control planes, whose proxies' calls are not in this list"`
	Since     float64  `json:"since" doc:"Unix seconds: from when on calls are known"`
	LeftOut   int      `json:"left_out" doc:"pairs that rules allow and that are not listed, for there are too many"`
	Pairs     []Pair   `json:"pairs" nullable:"false"`
	Attention []string `json:"attention" nullable:"false" doc:"of proxies and certificates"`
}

func (s *Server) listPairs(_ context.Context, in *struct{ SinceParam }) (*output[PairList], error) {
	from, err := in.from(s.Now())
	if err != nil {
		return nil, err
	}
	if s.Observed == nil {
		return nil, errNotObserved
	}
	list := s.Observed.Pairs(from)
	list.Pairs, list.Attention = append([]Pair{}, list.Pairs...), append([]string{}, list.Attention...)
	return &output[PairList]{list}, nil
}

// WhatIf is what POST /what-if answers.
type WhatIf struct {
	Control   string       `json:"control"`
	Elsewhere []string     `json:"elsewhere,omitempty" required:"false" nullable:"false" doc:"other control planes, whose proxies' flows were not looked at"`
	Since     float64      `json:"since" doc:"Unix seconds: from when on flows are known"`
	Flows     int          `json:"flows" doc:"how many were looked at"`
	More      int          `json:"more" doc:"changes that are not listed, for there are too many; those that break something come first"`
	Changes   []FlowChange `json:"changes" nullable:"false"`
}

// FlowChange is a flow that would have another verdict or route.
type FlowChange struct {
	Flow
	Change string `json:"change" enum:"denied,allowed,token,rule,route" doc:"denied: it is allowed and would not be; allowed: the reverse; token: it would need a token that was not seen; rule: allowed by another rule; route: sent elsewhere or by another rule"`
	Before string `json:"before" doc:"as things are"`
	After  string `json:"after" doc:"as they would be"`
}

// Breaks tells whether what works now would not.
func (c *FlowChange) Breaks() bool { return c.Change == "denied" || c.Change == "token" }

func rank(c *FlowChange) int {
	if c.Breaks() {
		return 0
	}
	return 1
}

type whatIfInput struct {
	SinceParam
	Body applyBody
}

func (s *Server) whatIf(ctx context.Context, in *whatIfInput) (*output[WhatIf], error) {
	from, err := in.from(s.Now())
	if err != nil {
		return nil, err
	}
	if s.Observed == nil {
		return nil, errNotObserved
	}
	docs, err := readBodies(in.Body.Documents)
	if err != nil {
		return nil, err
	}
	p := newApplication(s.Mesh.Snapshot())
	for i := range docs {
		if problems := p.add(&docs[i], s.endpointEdit); len(problems) > 0 {
			return nil, badRequest("body", problems.Under(fmt.Sprintf("documents[%d]", i)))
		}
	}
	outcome, err := s.Mesh.Change(ctx, p.edits, true)
	if err != nil {
		return nil, s.answerFor("what-if", err)
	}
	out := s.Observed.Judge(slices.DeleteFunc(outcome.Differences, func(d policy.Difference) bool { return d.Action == policy.Unchanged }), from)
	slices.SortStableFunc(out.Changes, func(a, b FlowChange) int { return cmp.Compare(rank(&a), rank(&b)) })
	shown := min(len(out.Changes), maxChanges)
	out.More = len(out.Changes) - shown
	out.Changes = append([]FlowChange{}, out.Changes[:shown]...)
	return &output[WhatIf]{out}, nil
}

// Flows lists what proxies counted in the time since. Of the query, Since is not
// sent.
func (c *Client) Flows(ctx context.Context, since time.Duration, q FlowQuery) (FlowList, error) {
	v := url.Values{"since": {since.String()}, "limit": {strconv.Itoa(q.Most())}}
	for name, value := range map[string]string{
		"namespace": q.Namespace, "source": q.Source, "destination": q.Destination, "verdict": q.Verdict, "direction": q.Direction,
	} {
		if value != "" {
			v.Set(name, value)
		}
	}
	return get[FlowList](ctx, c, "/flows?"+v.Encode())
}

// Pairs tells of each pair of services that talked in the time since, or may
// talk, how it is encrypted.
func (c *Client) Pairs(ctx context.Context, since time.Duration) (PairList, error) {
	return get[PairList](ctx, c, "/pairs?since="+url.QueryEscape(since.String()))
}

// WhatIf tells which flows would have another verdict or route if documents were
// applied.
func (c *Client) WhatIf(ctx context.Context, docs []Document, since time.Duration) (WhatIf, error) {
	var out WhatIf
	_, err := c.call(ctx, http.MethodPost, "/what-if?since="+url.QueryEscape(since.String()), newApplyBody(docs), &out)
	return out, err
}

// Policy gives a listed flow as policy has it.
func (f *Flow) Policy() policy.Flow {
	out := policy.Flow{
		Direction: policy.FlowDirection(f.Direction), Source: f.Source.service(), SourceClass: f.Source.Class, Destination: f.Destination.service(),
		Port: uint16(f.Port), Protocol: f.Protocol, Method: f.Method, Path: f.Path, Allowed: f.Verdict == "allowed", Reason: policy.Reason(f.Reason),
		Rule: f.Rule, Token: f.Token, Route: f.Route, Subset: f.Subset, Encryption: f.Encryption, Why: f.Why,
	}
	if f.Routed != nil {
		out.Routed = f.Routed.service()
	}
	return out
}

func (p Party) service() policy.ServiceName {
	return policy.ServiceName{Namespace: p.Namespace, Name: p.ServiceName}
}

// ViewFlow shows a flow as the API does.
func ViewFlow(f *policy.FlowCount, first, last float64) Flow {
	out := Flow{
		Direction: string(f.Direction), Source: PartyOf(f.Source), Destination: PartyOf(f.Destination), Port: int(f.Port), Protocol: f.Protocol,
		Method: f.Method, Path: f.Path, Verdict: "denied", Reason: string(f.Reason), Rule: f.Rule, Token: f.Token, Route: f.Route, Subset: f.Subset,
		Encryption: f.Encryption, Why: f.Why, Calls: f.Calls, Errors: f.Errors, FirstSeen: first, LastSeen: last,
	}
	out.Source.Class = f.SourceClass
	if f.Allowed {
		out.Verdict = "allowed"
	}
	if f.Direction == policy.FlowOutbound {
		to := PartyOf(f.Routed)
		out.Routed = &to
	}
	return out
}

// Address names where a flow went, for a reader.
func (f *Flow) Address() string { return f.Destination.String() + ":" + strconv.Itoa(f.Port) }
