package policy

import (
	"bytes"
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Plan is a rule's Handling made ready for requests. It is immutable; its fields
// are for reading. What a rule does not ask for is zero.
type Plan struct {
	Host     string // takes the place of Host; "" leaves it
	Request  []HeaderChange
	Response []HeaderChange
	Redirect bool // answer with Location
	Direct   *AnswerPlan
	Status   int // of a redirect
	Mirror   *MirrorPlan
	Fault    *FaultPlan
	PerTry   time.Duration
	Idle     time.Duration
	Bounded  bool // the rule gives a time: who is called is to know what is left of it
	Retries  *Retries
	Delay    time.Duration // × n before try n+1
	MaxDelay time.Duration // 0 is none
	Hedge    *HedgePlan

	path   pathChange
	scheme string
	to     string // host of a redirect
}

// HeaderChange is one change of a header; they are made in the order in which
// they are listed.
type HeaderChange struct {
	Kind        ChangeKind
	Name, Value string
}

// ChangeKind says what a HeaderChange does.
type ChangeKind uint8

// The kinds of changes, in the order in which they are made.
const (
	RemoveHeader ChangeKind = iota
	SetHeader
	AddHeader
)

// AnswerPlan is an answer without an upstream.
type AnswerPlan struct {
	Status      int
	Body        []byte
	ContentType string
}

// MirrorPlan says where copies go, and how many.
type MirrorPlan struct {
	Service ServiceName
	Subset  string
	Taken   Chance
}

// FaultPlan says what is done to which requests.
type FaultPlan struct {
	Header     string // only requests that carry it; "" is all
	Delay      time.Duration
	Delayed    Chance
	Status     int // of an answer; 0 is none
	GRPCStatus string
	Aborted    Chance
}

// HedgePlan says when a request is sent a second time, and how many are. It is
// comparable.
type HedgePlan struct {
	After    time.Duration // 0 is by Quantile
	Quantile float64       // of the times that requests take
	Ratio    float64       // at most so many of all requests
}

// Chance is a part of all requests: those whose 64 random bits are below it.
type Chance struct{ below, all uint64 }

// Takes tells whether the share takes a request, by 64 random bits.
func (s Chance) Takes(random uint64) bool { return random < s.below || s.all != 0 }

func chance(percent *float64) Chance {
	switch {
	case percent == nil || *percent >= 100:
		return Chance{all: 1}
	case !(*percent > 0):
		return Chance{}
	}
	return Chance{below: uint64(*percent / 100 * (1 << 63) * 2)}
}

// defaultMaxDelay bounds the waits of a rule that says nothing of it: what a
// caller with the default timeout can still bear.
const defaultMaxDelay = 10 * time.Second

// newPlan compiles a rule's handling; nil is nothing to do.
func newPlan(r *TrafficRule, s *Service) (*Plan, error) {
	if !r.handles() {
		return nil, nil
	}
	p := &Plan{
		Direct: newAnswerPlan(r.DirectResponse), PerTry: seconds(r.PerTryTimeout), Idle: seconds(r.IdleTimeout),
		Bounded: r.Timeout > 0 || r.PerTryTimeout > 0,
		Request: headerChanges(r.RequestHeaders), Response: headerChanges(r.ResponseHeaders),
		Fault: newFaultPlan(r.Fault), Hedge: r.Hedge.Plan(),
	}
	p.setRetries(r, s.Traffic.Retry.Delay)
	var err error
	switch {
	case r.Redirect != nil:
		d := r.Redirect
		p.Redirect, p.Status, p.scheme, p.to = true, cmp.Or(d.Status, 302), d.Scheme, d.Host
		p.path, err = newPathChange(r.MatchPath, d.Path, d.PathPrefix)
	case r.Rewrite != nil:
		p.Host = r.Rewrite.Host
		p.path, err = newPathChange(r.MatchPath, r.Rewrite.Path, r.Rewrite.PathPrefix)
	}
	if err == nil && r.Mirror != nil {
		p.Mirror = &MirrorPlan{Subset: r.Mirror.Subset, Taken: chance(r.Mirror.Percent)}
		p.Mirror.Service, err = ParseServiceName(r.Mirror.Service, s.Name.Namespace)
	}
	return p, err
}

// handles tells whether there is anything that the request path must do for the
// rule besides routing, so that what it does not ask for costs nothing.
func (r *TrafficRule) handles() bool {
	h := &r.Handling
	return r.Timeout > 0 || h.PerTryTimeout > 0 || h.IdleTimeout > 0 || h.retries() ||
		h.Rewrite != nil || h.RequestHeaders != nil || h.ResponseHeaders != nil ||
		h.Redirect != nil || h.DirectResponse != nil || h.Mirror != nil || h.Fault != nil || h.Hedge != nil
}

func (h *Handling) retries() bool {
	return len(h.RetryOn) > 0 || h.RetryDelay != nil || h.RetryMaxDelay > 0
}

func (p *Plan) setRetries(r *TrafficRule, delay time.Duration) {
	if !r.retries() {
		return
	}
	p.Retries = &Retries{on: retryOn(r.RetryOn), codes: r.RetryStatusCodes}
	if r.RetryDelay != nil {
		delay = seconds(*r.RetryDelay)
	}
	p.Delay, p.MaxDelay = delay, cmp.Or(seconds(r.RetryMaxDelay), defaultMaxDelay)
}

func headerChanges(h *HeaderChanges) []HeaderChange {
	if h == nil {
		return nil
	}
	var out []HeaderChange
	for _, name := range h.Remove {
		out = append(out, HeaderChange{RemoveHeader, name, ""})
	}
	for _, name := range slices.Sorted(maps.Keys(h.Set)) {
		out = append(out, HeaderChange{SetHeader, name, h.Set[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(h.Add)) {
		out = append(out, HeaderChange{AddHeader, name, h.Add[name]})
	}
	return out
}

func newAnswerPlan(d *DirectResponse) *AnswerPlan {
	if d == nil {
		return nil
	}
	return &AnswerPlan{Status: d.Status, Body: []byte(d.Body), ContentType: cmp.Or(d.ContentType, "text/plain; charset=utf-8")}
}

func newFaultPlan(f *Fault) *FaultPlan {
	if f == nil {
		return nil
	}
	p := &FaultPlan{Header: f.Header}
	if d := f.Delay; d != nil {
		p.Delay, p.Delayed = seconds(d.Seconds), chance(d.Percent)
	}
	if a := f.Abort; a != nil {
		p.Status, p.Aborted = a.Status, chance(a.Percent)
		if a.GRPCStatus != 0 {
			p.Status, p.GRPCStatus = 200, strconv.Itoa(a.GRPCStatus)
		}
	}
	return p
}

// Plan compiles the hedge; nil is none.
func (h *Hedge) Plan() *HedgePlan {
	if h == nil {
		return nil
	}
	p := &HedgePlan{After: seconds(h.After), Quantile: h.Percentile / 100, Ratio: 0.1}
	if h.Percent != nil {
		p.Ratio = *h.Percent / 100
	}
	return p
}

// pathChange is what becomes of a path that a rule matches.
type pathChange struct {
	kind  pathChangeKind
	strip int    // so many bytes in front give way
	text  string // what takes their place
	re    *regexp.Regexp
}

type pathChangeKind uint8

const (
	keepPath pathChangeKind = iota
	newPrefix
	newPath
	fromGroups
)

func newPathChange(match, path, prefix string) (pathChange, error) {
	re, isRegex := strings.CutPrefix(match, "regex:")
	switch {
	case prefix != "":
		// /api/* to /v2 makes /v2/users of /api/users, as /api* to /v2 does: one slash,
		// whether those that wrote the rule put it on both sides or on neither.
		old := strings.TrimSuffix(strings.TrimSuffix(match, "*"), "/")
		return pathChange{kind: newPrefix, strip: len(old), text: strings.TrimSuffix(prefix, "/")}, nil
	case path != "" && isRegex:
		p, err := newRegex(re)
		return pathChange{kind: fromGroups, text: path, re: p.re}, err
	case path != "":
		return pathChange{kind: newPath, text: path}, nil
	}
	return pathChange{}, nil
}

// append gives the new path behind dst.
func (c *pathChange) append(dst []byte, path string) []byte {
	begun := len(dst)
	switch c.kind {
	case newPrefix:
		dst = append(dst, c.text...)
		dst = append(dst, path[min(c.strip, len(path)):]...)
	case newPath:
		dst = append(dst, c.text...)
	case fromGroups:
		dst = c.re.ExpandString(dst, c.text, path, c.re.FindStringSubmatchIndex(path))
	default:
		dst = append(dst, path...)
	}
	if begun == len(dst) || dst[begun] != '/' {
		dst = slices.Insert(dst, begun, '/')
	}
	return dst
}

// ChangesPath tells whether AppendTarget gives another path than it is given.
func (p *Plan) ChangesPath() bool { return p.path.kind != keepPath }

// AppendTarget gives the request target that takes the place of one that the
// rule matched, behind dst. Its query stays. A target without a path, "*", stays
// whole.
func (p *Plan) AppendTarget(dst []byte, target string) []byte {
	if !strings.HasPrefix(target, "/") {
		return append(dst, target...)
	}
	path, _, _ := strings.Cut(target, "?")
	dst = p.path.append(dst, path)
	return append(dst, target[len(path):]...)
}

// AppendLocation gives where a redirect leads a request for target at host,
// behind dst. Where the rule names neither scheme nor host it is a path, which
// begins with one slash: with two, or what browsers take for one, it would name a
// host of the caller's choice (RFC 3986 section 4.2).
func (p *Plan) AppendLocation(dst []byte, host, target string) []byte {
	if !strings.HasPrefix(target, "/") {
		target = "/"
	}
	if p.to == "" && (p.scheme == "" || host == "") {
		begun := len(dst)
		dst = p.AppendTarget(dst, target)
		return append(dst[:begun+1], bytes.TrimLeft(dst[begun:], `/\`)...)
	}
	if p.to != "" {
		host = p.to
	} else {
		host = withoutPort(host) // the port of one scheme is not that of another
	}
	if p.scheme != "" {
		dst = append(append(dst, p.scheme...), ':')
	}
	dst = append(append(dst, "//"...), host...)
	return p.AppendTarget(dst, target)
}

// withoutPort takes the port off a host, if there is one.
func withoutPort(host string) string {
	i := strings.LastIndexByte(host, ':')
	if i < 0 || strings.IndexByte(host[i:], ']') >= 0 {
		return host
	}
	return host[:i]
}
