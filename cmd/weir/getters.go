package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func getServices(g *getting) error {
	all, err := g.Services(g.ctx)
	if err != nil {
		return err
	}
	if g.name != "" {
		name, err := g.service()
		if err != nil {
			return err
		}
		all, err = only(all, "service", name.String(), func(s *api.ServiceSummary) bool { return s.Service() == name })
		if err != nil {
			return err
		}
	}
	return g.print(all, func(w io.Writer) error {
		var rows [][]string
		for _, s := range all {
			healthy := fmt.Sprintf("%d/%d", s.HealthyEndpoints, s.Endpoints)
			rows = append(rows, []string{s.Namespace, s.ServiceName, healthy, strconv.Itoa(s.TrafficRules), s.VirtualIPv4, s.VirtualIPv6})
		}
		return table(w, "NAMESPACE SERVICE HEALTHY TRAFFIC-RULES VIRTUAL-IPV4 VIRTUAL-IPV6", rows)
	})
}

func getEndpoints(g *getting) error {
	names, id, err := g.target()
	if err != nil {
		return err
	}
	if g.asDocuments() {
		return g.exportAll(names, id, g.ExportEndpoints)
	}
	all := []policy.Endpoint{}
	for _, name := range names {
		list, err := g.Endpoints(g.ctx, name)
		if err != nil {
			return err
		}
		if id != "" {
			if list, err = only(list, "endpoint", name.String()+"/"+id, func(e *policy.Endpoint) bool { return e.ID == id }); err != nil {
				return err
			}
		}
		all = append(all, list...)
	}
	return g.print(all, func(w io.Writer) error {
		var rows [][]string
		for _, e := range all {
			rows = append(rows, []string{e.Namespace, e.ServiceName, e.ID, addressOf(&e), e.Protocol, strconv.Itoa(e.Weight), e.Subset(), e.Status, when(e.LastSeen)})
		}
		return table(w, "NAMESPACE SERVICE ID ADDRESS PROTOCOL WEIGHT SUBSET STATUS LAST-SEEN", rows)
	})
}

// healthShown is how many results of an endpoint the table has; JSON has all.
const healthShown = 10

func getHealth(g *getting) error {
	names, err := g.services()
	if err != nil {
		return err
	}
	all := []api.EndpointHealth{}
	for _, name := range names {
		endpoints, err := g.Endpoints(g.ctx, name)
		if err != nil {
			return err
		}
		for i := range endpoints {
			h, err := g.Health(g.ctx, name, endpoints[i].ID)
			if err != nil {
				return err
			}
			all = append(all, h)
		}
	}
	return g.print(all, func(w io.Writer) error {
		var rows [][]string
		for _, h := range all {
			rows = append(rows, healthRows(&h)...)
		}
		return table(w, "NAMESPACE SERVICE ID CHECKED RESULT STATUS CHECK TOOK DETAIL", rows)
	})
}

// healthRows are an endpoint's last results, the newest first.
func healthRows(h *api.EndpointHealth) [][]string {
	if len(h.History) == 0 {
		return [][]string{{h.Namespace, h.ServiceName, h.ID, "never", "", h.Status, "", "", ""}}
	}
	var rows [][]string
	for i := len(h.History) - 1; i >= max(0, len(h.History)-healthShown); i-- {
		r := &h.History[i]
		result, status := "failed", policy.Unhealthy
		if r.Passed {
			result = "passed"
		}
		if r.Healthy {
			status = policy.Healthy
		}
		took := time.Duration(r.Took * float64(time.Second)).Round(100 * time.Microsecond)
		rows = append(rows, []string{h.Namespace, h.ServiceName, h.ID, when(r.At), result, status, r.Check, took.String(), r.Detail})
	}
	return rows
}

// when shows Unix seconds.
func when(s float64) string {
	if s == 0 {
		return ""
	}
	return time.Unix(int64(s), 0).UTC().Format(time.RFC3339)
}

// listedRule is a traffic rule with the service that it is of.
type listedRule struct {
	policy.TrafficRule
	service policy.ServiceName
}

func getTrafficRules(g *getting) error {
	names, id, err := g.target()
	if err != nil {
		return err
	}
	if g.asDocuments() {
		return g.exportAll(names, id, g.ExportTrafficRules)
	}
	var all []listedRule
	for _, name := range names {
		rules, err := g.TrafficRules(g.ctx, name)
		if err != nil {
			return err
		}
		if id != "" {
			if rules, err = only(rules, "traffic rule", name.String()+"/"+id, func(r *policy.TrafficRule) bool { return r.ID == id }); err != nil {
				return err
			}
		}
		for _, r := range rules {
			all = append(all, listedRule{r, name})
		}
	}
	return g.print(all, func(w io.Writer) error {
		var rows [][]string
		for _, r := range all {
			rows = append(rows, []string{r.service.Namespace, r.service.Name, r.ID, match(&r.TrafficRule), destination(&r),
				strconv.Itoa(r.Weight), seconds(r.Timeout), strconv.Itoa(r.RetryAttempts), does(&r.TrafficRule)})
		}
		return table(w, "NAMESPACE SERVICE ID MATCH DESTINATION WEIGHT TIMEOUT TRIES DOES", rows)
	})
}

func match(r *policy.TrafficRule) string {
	var parts []string
	for _, p := range []string{r.MatchMethod, r.MatchHost, r.MatchPath} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.MatchHeaders)) {
		parts = append(parts, name+"="+r.MatchHeaders[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.MatchQuery)) {
		parts = append(parts, "?"+name+"="+r.MatchQuery[name])
	}
	return strings.Join(parts, " ")
}

// does names what a rule does with a request besides sending it on.
func does(r *policy.TrafficRule) string {
	var words []string
	for _, f := range []struct {
		is   bool
		word string
	}{
		{r.Rewrite != nil, "rewrite"}, {r.RequestHeaders != nil || r.ResponseHeaders != nil, "headers"}, {r.Mirror != nil, "mirror"},
		{r.Fault != nil, "fault"}, {r.PerTryTimeout > 0 || r.IdleTimeout > 0, "timeouts"},
		{len(r.RetryOn) > 0 || r.RetryDelay != nil || r.RetryMaxDelay > 0, "retries"},
		{r.Hedge != nil, "hedge"},
	} {
		if f.is {
			words = append(words, f.word)
		}
	}
	return strings.Join(words, ",")
}

// destination names where a rule of a service sends requests: to the service
// itself unless it says otherwise.
func destination(r *listedRule) string {
	switch {
	case r.Redirect != nil:
		return "redirect"
	case r.DirectResponse != nil:
		return "answer " + strconv.Itoa(r.DirectResponse.Status)
	}
	to := cmp.Or(r.DestinationService, r.service.Name)
	if r.DestinationSubset != "" {
		to += "[" + r.DestinationSubset + "]"
	}
	return to
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', -1, 64) + "s" }

func getSecurityRules(g *getting) error {
	if g.asDocuments() {
		docs, err := g.ExportSecurityRules(g.ctx, g.name)
		if err != nil {
			return err
		}
		return g.printDocuments(docs)
	}
	all, err := g.SecurityRules(g.ctx)
	if err == nil && g.name != "" {
		all, err = only(all, "security rule", g.name, func(r *policy.SecurityRule) bool { return r.ID == g.name })
	}
	if err != nil {
		return err
	}
	return g.print(all, func(w io.Writer) error {
		var rows [][]string
		for _, r := range all {
			var from []string
			for _, s := range r.From() {
				from = append(from, s.String())
			}
			rows = append(rows, []string{r.ID, strings.Join(from, ","), r.Destination().String(), strings.Join(r.AllowedMethods, ","),
				strconv.FormatBool(r.RequiredJWT), string(r.MTLSMode), string(r.Does()), strings.Join(conditions(&r), " ")})
		}
		return table(w, "ID SOURCE DESTINATION METHODS JWT MTLS ACTION CONDITIONS", rows)
	})
}

// conditions lists what else a security rule asks of a call.
func conditions(r *policy.SecurityRule) (words []string) {
	for _, port := range r.Ports {
		words = append(words, "port="+strconv.Itoa(port))
	}
	for _, path := range r.Paths {
		words = append(words, "path="+path)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		words = append(words, name+"="+r.Headers[name])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Claims)) {
		words = append(words, "jwt."+name+"="+strings.Join(r.Claims[name], "|"))
	}
	return words
}

func getProxies(g *getting) error {
	all, err := g.Proxies(g.ctx)
	if err == nil && g.name != "" {
		all, err = only(all, "proxy", g.name, func(p *api.ProxyStatus) bool { return p.ID == g.name })
	}
	if err != nil {
		return err
	}
	return g.print(all, func(w io.Writer) error {
		var rows [][]string
		for _, p := range all {
			var refused []string
			for _, r := range p.Resources {
				if r.Refused != "" {
					refused = append(refused, r.Type+": "+r.Refused)
				}
			}
			rows = append(rows, []string{p.ID, p.Namespace, p.ServiceName, p.Version, strings.Join(p.Addresses, ","), cmp.Or(p.Control, p.ConnectedTo), when(p.ConnectedAt),
				p.State, strconv.Itoa(p.Subscribed), taken(&p), mebibytes(p.MemoryBytes), when(p.CertificateExpires), clockText(p.ClockSkew), strings.Join(refused, "; ")})
		}
		return table(w, "ID NAMESPACE SERVICE VERSION ADDRESSES CONTROL-PLANE CONNECTED STATE RESOURCES TAKEN MEMORY CERTIFICATE-ENDS CLOCK REFUSED", rows)
	})
}

// clockText tells how far a proxy's clock is ahead (+) of the control plane's, or
// behind; less than a second is right.
func clockText(skew *float64) string {
	switch {
	case skew == nil:
		return ""
	case math.Abs(*skew) < 1:
		return "ok"
	}
	return fmt.Sprintf("%+ds", int64(*skew))
}

// taken is the oldest of the revisions up to which a proxy has taken what it
// follows.
func taken(p *api.ProxyStatus) string {
	oldest := int64(-1)
	for _, r := range p.Resources {
		if v, err := strconv.ParseInt(r.Version, 10, 64); err == nil && (oldest < 0 || v < oldest) {
			oldest = v
		}
	}
	if oldest < 0 {
		return ""
	}
	return strconv.FormatInt(oldest, 10)
}

func mebibytes(b uint64) string {
	if b == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(b)/(1<<20), 'f', 1, 64) + "MiB"
}

func getConfig(g *getting) error {
	if g.asDocuments() {
		doc, err := g.ExportConfig(g.ctx)
		if err != nil {
			return err
		}
		return g.print(doc, nil)
	}
	settings, err := g.Settings(g.ctx)
	if err != nil {
		return err
	}
	return g.print(settings, func(w io.Writer) error { return printYAML(w, settings) })
}

func getStatus(g *getting) error {
	s, err := g.Status(g.ctx)
	if err != nil {
		return err
	}
	return g.print(s, func(w io.Writer) error { return printStatus(w, &s) })
}

func printStatus(w io.Writer, s *api.Status) error {
	if _, err := fmt.Fprintf(w, "%s: %d services, %d proxies, up %v\n", s.Status, s.Services, s.Proxies, time.Duration(s.Uptime)*time.Second); err != nil {
		return err
	}
	if s.Trouble != "" {
		if _, err := fmt.Fprintf(w, "the store: %s; shown is what was known\n", s.Trouble); err != nil {
			return err
		}
	}
	if err := printConfigFile(w, s.ConfigFile); err != nil || len(s.Members) < 2 {
		return err
	}
	var rows [][]string
	for _, m := range s.Members {
		leads := "-"
		if m.Leader {
			leads = "leads"
		}
		rows = append(rows, []string{m.Name, m.Address, leads, strconv.Itoa(m.Proxies), m.Version, when(m.Since)})
	}
	return table(w, "CONTROL ADDRESS LEADER PROXIES VERSION SINCE", rows)
}

func getMetrics(g *getting) error {
	m, err := g.Metrics(g.ctx)
	if err != nil {
		return err
	}
	return g.print(m, func(w io.Writer) error { return printYAML(w, m) })
}

// printYAML goes through JSON, which writes a whole float without a point and
// knows the names of fields.
func printYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	text, err := yaml.JSONToYAML(b)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}
