package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// validateHandling lists what is wrong with what a rule does to requests, or
// would have no effect.
func (r *TrafficRule) validateHandling(p *Problems) {
	r.Rewrite.validate(p, r.MatchPath)
	r.RequestHeaders.validate(p, "request_headers", true)
	r.ResponseHeaders.validate(p, "response_headers", false)
	r.Redirect.validate(p, r.MatchPath)
	r.DirectResponse.validate(p)
	r.Mirror.validate(p)
	r.Fault.validate(p)
	r.validateTimes(p)
	r.validateRetries(p)
	r.Hedge.validate(p)
	r.validateIdle(p)
}

// validateIdle refuses what a rule that answers by itself can have no use for:
// it would look as if it did something.
func (r *TrafficRule) validateIdle(p *Problems) {
	by := "redirect"
	switch {
	case r.Redirect == nil && r.DirectResponse == nil:
		return
	case r.Redirect != nil && r.DirectResponse != nil:
		p.add("direct_response", "a rule has a redirect or a direct_response, not both")
		return
	case r.Redirect == nil:
		by = "direct_response"
	}
	for _, f := range []struct {
		path string
		is   bool
	}{
		{"destination_service", r.DestinationService != ""}, {"destination_subset", r.DestinationSubset != ""},
		{"timeout", r.Timeout != 0}, {"retry_attempts", r.RetryAttempts != 0},
		{"rewrite", r.Rewrite != nil}, {"request_headers", r.RequestHeaders != nil}, {"mirror", r.Mirror != nil}, {"fault", r.Fault != nil},
		{"per_try_timeout", r.PerTryTimeout != 0}, {"idle_timeout", r.IdleTimeout != 0}, {"retry_on", len(r.RetryOn) > 0},
		{"retry_delay", r.RetryDelay != nil}, {"retry_max_delay", r.RetryMaxDelay != 0}, {"hedge", r.Hedge != nil},
	} {
		if f.is {
			p.add(f.path, "has no effect in a rule with %s: nothing is sent to a service", by)
		}
	}
}

func (w *Rewrite) validate(p *Problems, match string) {
	if w == nil {
		return
	}
	if *w == (Rewrite{}) {
		p.add("rewrite", "changes nothing; give path, path_prefix or host")
	}
	checkNewPath(p, "rewrite", match, w.Path, w.PathPrefix)
	checkHost(p, "rewrite.host", w.Host)
}

func (d *Redirect) validate(p *Problems, match string) {
	if d == nil {
		return
	}
	if d.Scheme == "" && d.Host == "" && d.Path == "" && d.PathPrefix == "" {
		p.add("redirect", "leads back to the same place; give scheme, host, path or path_prefix")
	}
	switch d.Status {
	case 0, 301, 302, 303, 307, 308:
	default:
		p.add("redirect.status", "%d is not one of 301, 302, 303, 307, 308", d.Status)
	}
	if d.Scheme != "" {
		p.oneOf("redirect.scheme", d.Scheme, "http", "https")
	}
	checkNewPath(p, "redirect", match, d.Path, d.PathPrefix)
	checkHost(p, "redirect.host", d.Host)
}

// checkNewPath checks what takes the place of a path that match matches.
func checkNewPath(p *Problems, at, match, path, prefix string) {
	re, isRegex := strings.CutPrefix(match, "regex:")
	switch {
	case path != "" && prefix != "":
		p.add(at+".path_prefix", "give path or path_prefix, not both")
		return
	case prefix != "" && !strings.HasSuffix(match, "*") || prefix != "" && isRegex:
		p.add(at+".path_prefix", "needs a match_path of the form /prefix*, whose prefix it replaces")
	case prefix != "" && !isPath(prefix):
		p.add(at+".path_prefix", "%q is not a path: it starts with / and has no space, ? or #", prefix)
	case path != "" && isRegex:
		p.addErr(at+".path", checkTemplate(path, re))
	case path != "" && !isPath(path):
		p.add(at+".path", "%q is not a path: it starts with / and has no space, ? or #", path)
	}
}

// isPath tells whether a text can be the path of a request.
func isPath(s string) bool { return strings.HasPrefix(s, "/") && isPathText(s) }

func isPathText(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '?' || c == '#' {
			return false
		}
	}
	return true
}

var reference = regexp.MustCompile(`\$(?:\$|\{(\w*)\}|(\w+))?`)

// checkTemplate checks a path with references to the groups of a regex.
func checkTemplate(path, re string) error {
	compiled, err := regexp.Compile(re)
	if err != nil {
		return nil // which match_path is refused for
	}
	if !isPathText(path) || path[0] != '/' && path[0] != '$' {
		return fmt.Errorf("%q is not a path: it starts with / or a group and has no space, ? or #", path)
	}
	for _, ref := range reference.FindAllStringSubmatch(path, -1) {
		name := ref[1] + ref[2]
		if ref[0] == "$$" || isGroup(compiled, name) {
			continue
		}
		return fmt.Errorf("%s names no group of match_path; a group is ${1} or ${name}, a plain $ is $$", ref[0])
	}
	return nil
}

func isGroup(re *regexp.Regexp, name string) bool {
	for i, n := range re.SubexpNames() {
		if n != "" && n == name || fmt.Sprint(i) == name {
			return true
		}
	}
	return false
}

// checkHost checks what takes the place of Host: a name or address, perhaps with
// a port.
func checkHost(p *Problems, path, host string) {
	for _, c := range []byte(host) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte("-._:[]", c) < 0 {
			p.add(path, "%q is not a host, nor host:port", host)
			return
		}
	}
}

func (h *HeaderChanges) validate(p *Problems, at string, request bool) {
	if h == nil {
		return
	}
	if len(h.Add)+len(h.Set)+len(h.Remove) == 0 {
		p.add(at, "changes nothing; give add, set or remove")
	}
	if len(h.Add)+len(h.Set)+len(h.Remove) > maxChanges {
		p.add(at, "changes more than %d headers", maxChanges)
	}
	seen := map[string]string{}
	check := func(path, name string) {
		lower := strings.ToLower(name)
		if before, twice := seen[lower]; twice {
			p.add(path, "%s is changed by %s already", name, before)
		}
		seen[lower] = path
		if why := untouchable(name, request); why != "" {
			p.add(path, "%s", why)
		}
	}
	for i, name := range h.Remove {
		check(fmt.Sprintf("%s.remove[%d]", at, i), name)
	}
	for _, set := range []struct {
		path   string
		values map[string]string
	}{{at + ".set", h.Set}, {at + ".add", h.Add}} {
		for _, name := range slices.Sorted(maps.Keys(set.values)) {
			check(set.path+"."+name, name)
			if hasControl(set.values[name]) || len(set.values[name]) > 4096 {
				p.add(set.path+"."+name, "must be text of at most 4096 bytes without control characters")
			}
		}
	}
}

// framing are the fields that say where a message ends or that belong to one
// connection (RFC 9110 section 7.6.1): who changes them breaks the message.
var framing = []string{
	"connection", "content-length", "expect", "http2-settings", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
}

// untouchable tells why no rule may change a field; "" is none.
func untouchable(name string, request bool) string {
	lower := strings.ToLower(name)
	switch {
	case strings.HasPrefix(name, ":"):
		return fmt.Sprintf("%s is no header but part of the request line; rewrite changes path and host", name)
	case !isToken(name):
		return fmt.Sprintf("%q is not a header name", name)
	case slices.Contains(framing, lower):
		return fmt.Sprintf("%s is for the proxies: it frames the message or belongs to one connection", name)
	case lower == "host" && request:
		return "Host is changed by rewrite.host"
	case strings.HasPrefix(lower, "x-source-"), strings.HasPrefix(lower, "x-target-"), strings.HasPrefix(lower, "x-weir-"), strings.HasPrefix(lower, "weir-"):
		return fmt.Sprintf("%s is for the proxies: what they say must not be forged", name)
	}
	return ""
}

func (d *DirectResponse) validate(p *Problems) {
	if d == nil {
		return
	}
	p.intIn("direct_response.status", d.Status, 200, 599)
	if len(d.Body) > maxBody {
		p.add("direct_response.body", "%d bytes are more than %d", len(d.Body), maxBody)
	}
	if d.Body != "" && (d.Status == 204 || d.Status == 304) {
		p.add("direct_response.body", "an answer %d has none", d.Status)
	}
	if hasControl(d.ContentType) || len(d.ContentType) > 256 {
		p.add("direct_response.content_type", "%q is not a media type", d.ContentType)
	}
}

func (m *Mirror) validate(p *Problems) {
	if m == nil {
		return
	}
	if m.Service == "" {
		p.add("mirror.service", "is missing")
	} else if _, err := ParseServiceName(m.Service, "default"); err != nil {
		p.addErr("mirror.service", err)
	}
	if hasControl(m.Subset) || len(m.Subset) > 253 {
		p.add("mirror.subset", "must be plain text of at most 253 characters")
	}
	p.percent("mirror.percent", m.Percent)
}

func (p *Problems) percent(path string, got *float64) {
	if got != nil && !(*got >= 0 && *got <= 100) { // also refuses NaN
		p.add(path, "%v is not in 0..100", *got)
	}
}

func (f *Fault) validate(p *Problems) {
	if f == nil {
		return
	}
	if f.Delay == nil && f.Abort == nil {
		p.add("fault", "does nothing; give delay or abort")
	}
	if f.Header != "" && !isToken(f.Header) {
		p.add("fault.header", "%q is not a header name", f.Header)
	}
	if d := f.Delay; d != nil {
		if !(d.Seconds >= 0.001 && d.Seconds <= maxFaultDelay) {
			p.add("fault.delay.seconds", "%v s is not in 0.001..%v s", d.Seconds, maxFaultDelay)
		}
		p.percent("fault.delay.percent", d.Percent)
	}
	if a := f.Abort; a != nil {
		switch {
		case (a.Status == 0) == (a.GRPCStatus == 0):
			p.add("fault.abort", "give status or grpc_status, one of them")
		case a.Status != 0:
			p.intIn("fault.abort.status", a.Status, 200, 599)
		default:
			p.intIn("fault.abort.grpc_status", a.GRPCStatus, 1, 16)
		}
		p.percent("fault.abort.percent", a.Percent)
	}
}

func (r *TrafficRule) validateTimes(p *Problems) {
	if r.PerTryTimeout != 0 {
		p.secondsIn("per_try_timeout", r.PerTryTimeout, 0.001)
	}
	if r.Timeout != 0 && r.PerTryTimeout > r.Timeout {
		p.add("per_try_timeout", "%v s is longer than timeout, %v s, which bounds all tries together", r.PerTryTimeout, r.Timeout)
	}
	if r.IdleTimeout != 0 {
		p.secondsIn("idle_timeout", r.IdleTimeout, 0.001)
	}
}

func (r *TrafficRule) validateRetries(p *Problems) {
	for i, word := range r.RetryOn {
		p.oneOf(fmt.Sprintf("retry_on[%d]", i), word, RetryConditions...)
	}
	wanted := slices.Contains(r.RetryOn, "retriable-status-codes")
	switch {
	case wanted && len(r.RetryStatusCodes) == 0:
		p.add("retry_status_codes", "is missing: retriable-status-codes stands for the codes in it")
	case !wanted && len(r.RetryStatusCodes) > 0:
		p.add("retry_status_codes", "has no effect without retriable-status-codes in retry_on")
	case len(r.RetryStatusCodes) > 32:
		p.add("retry_status_codes", "has more than 32 codes")
	}
	for i, code := range r.RetryStatusCodes {
		p.intIn(fmt.Sprintf("retry_status_codes[%d]", i), code, 300, 599)
	}
	if r.RetryDelay != nil {
		p.secondsIn("retry_delay", *r.RetryDelay, 0)
	}
	if r.RetryMaxDelay != 0 {
		p.secondsIn("retry_max_delay", r.RetryMaxDelay, 0.001)
	}
}

func (h *Hedge) validate(p *Problems) {
	if h == nil {
		return
	}
	switch {
	case (h.After == 0) == (h.Percentile == 0):
		p.add("hedge", "give after or percentile, one of them")
	case h.After != 0:
		p.secondsIn("hedge.after", h.After, 0.001)
	case !(h.Percentile >= 50 && h.Percentile <= 99.9):
		p.add("hedge.percentile", "%v is not in 50..99.9", h.Percentile)
	}
	if h.Percent != nil && !(*h.Percent >= 0.1 && *h.Percent <= 100) {
		p.add("hedge.percent", "%v is not in 0.1..100; without the hedge nothing is sent twice", *h.Percent)
	}
}
