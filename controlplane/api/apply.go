package api

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

const (
	maxDocuments  = 10_000  // of one apply
	maxApplyBytes = 8 << 20 // of its body; etcd takes 10 MiB in one transaction
)

// Applied is what became of a document.
type Applied struct {
	Document string   `json:"document"`
	Result   string   `json:"result" enum:"added,changed,removed,unchanged"`
	ID       string   `json:"id,omitempty" required:"false"`
	Warnings []string `json:"warnings,omitempty" required:"false" nullable:"false"`
}

type applyBody struct {
	Documents []json.RawMessage `json:"documents" doc:"each {kind, namespace, service, spec}, kinds Endpoint, ExternalService, TrafficRule, SecurityRule, Config" nullable:"false"`
}

type applyInput struct {
	DryRunParam
	Body applyBody
}

// apply stores documents as one transaction.
func (s *Server) apply(ctx context.Context, in *applyInput) (*output[Stored], error) {
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
	outcome, err := s.Mesh.Change(ctx, p.edits, in.DryRun)
	if err != nil {
		return nil, s.answerFor("apply", err)
	}
	out, err := s.stored(outcome, in.DryRun, "applied")
	out.Results = p.results(docs, outcome.Differences)
	return &output[Stored]{out}, err
}

func readBodies(texts []json.RawMessage) ([]Document, error) {
	if len(texts) > maxDocuments {
		return nil, refuse(http.StatusRequestEntityTooLarge, "body.documents: %d are more than the %d that are applied at once", len(texts), maxDocuments)
	}
	docs := make([]Document, len(texts))
	var problems policy.Problems
	for i, text := range texts {
		problems = append(problems, docs[i].parse(text).Under(fmt.Sprintf("documents[%d]", i))...)
		if len(problems) > 100 {
			break // enough to begin with
		}
	}
	return docs, badRequest("body", problems)
}

// application works out the edits that documents stand for. A rule that has no
// id stands for one like it: it is added only if there is none, so that applying
// a file again changes nothing. Two rules are alike when they do the same as
// things are: a timeout that is left out is like one that is the mesh's.
type application struct {
	now      Snapshot
	settings policy.Settings // with the documents so far laid over them
	traffic  map[policy.ServiceName]map[string]string
	security map[string]string // ids by what a rule does
	ids      map[policy.Ref]bool

	edits []policy.Edit
	of    []int // by document: its edit, -1 for none
	known []string
	warns [][]string
}

func newApplication(now Snapshot) *application {
	return &application{now: now, settings: now.Settings().Value, traffic: map[policy.ServiceName]map[string]string{}, ids: map[policy.Ref]bool{}}
}

func (p *application) add(d *Document, endpoint func(policy.Endpoint) policy.Edit) policy.Problems {
	var e policy.Edit
	var known string // the id of a rule like it
	var warns []string
	switch d.Kind {
	case "Endpoint", "ExternalService":
		own := d.endpoint
		own.Status = "" // it stays as it is
		e = endpoint(own)
	case "TrafficRule":
		rule := d.traffic
		e.Ref = policy.Ref{Kind: policy.KindTrafficRule, Namespace: d.service.Namespace, Service: d.service.Name, ID: rule.ID}
		e.To = &policy.Resource{Traffic: &rule}
		known = like(p.trafficLike(d.service), &e.ID, p.trafficText(d.service, &rule))
	case "SecurityRule":
		rule := d.security
		e.Ref = policy.Ref{Kind: policy.KindSecurityRule, ID: rule.ID}
		e.To = &policy.Resource{Security: &rule}
		known = like(p.securityLike(), &e.ID, p.securityText(&rule))
	case "Config":
		merged, problems := mergePatch(p.settings, d.settings)
		if len(problems) > 0 {
			return problems.Under("spec")
		}
		p.settings, p.security = merged, nil
		clear(p.traffic) // what rules inherit may be another now
		e = policy.Edit{Ref: configRef, Patch: d.settings}
		if idle := merged.Idle(d.settings); len(idle) > 0 {
			warns = []string{idleText(idle)}
		}
	}
	e.Quiet = true
	at := -1
	if known == "" {
		if p.ids[e.Ref] && e.Kind != policy.KindConfig {
			return policy.Problems{{Message: fmt.Sprintf("%s is there twice", e.Ref)}}
		}
		p.ids[e.Ref] = true
		at = len(p.edits)
		p.edits = append(p.edits, e)
	}
	p.of, p.known, p.warns = append(p.of, at), append(p.known, known), append(p.warns, warns)
	return nil
}

// like looks for a rule that does the same, and gives its id if there is one:
// of a rule that has an id itself, only that one counts. A rule without gets an
// id made of what it does, so that two who apply the same file at once add one
// rule and not two.
func like(all map[string]string, id *string, text string) string {
	have := all[text]
	if have != "" && (*id == "" || slices.Contains(strings.Split(have, " "), *id)) {
		first, _, _ := strings.Cut(have, " ")
		if *id != "" {
			first = *id
		}
		return first
	}
	if *id == "" {
		sum := sha256.Sum256([]byte(text))
		*id = strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:10])
		if all[taken(*id)] != "" {
			*id = "" // by a rule that was changed since; the store makes another
			return ""
		}
	}
	all[text] = strings.TrimSpace(have + " " + *id)
	return ""
}

// taken is the key by which the rules of a map are found by their ids.
func taken(id string) string { return "id " + id }

func (p *application) trafficLike(name policy.ServiceName) map[string]string {
	all := p.traffic[name]
	if all == nil {
		all = map[string]string{}
		for _, r := range p.now.TrafficRules(name) {
			text := p.trafficText(name, &r.Value)
			all[text] = strings.TrimSpace(all[text] + " " + r.Value.ID)
			all[taken(r.Value.ID)] = r.Value.ID
		}
		p.traffic[name] = all
	}
	return all
}

func (p *application) securityLike() map[string]string {
	if p.security == nil {
		p.security = map[string]string{}
		for _, r := range p.now.SecurityRules() {
			text := p.securityText(&r.Value)
			p.security[text] = strings.TrimSpace(p.security[text] + " " + r.Value.ID)
			p.security[taken(r.Value.ID)] = r.Value.ID
		}
	}
	return p.security
}

// trafficText tells what a rule does, as things are.
func (p *application) trafficText(name policy.ServiceName, r *policy.TrafficRule) string {
	traffic := p.settings.TrafficFor(name)
	v := viewTrafficRule(&Versioned[policy.TrafficRule]{Value: *r}, &traffic)
	v.ID, v.Inherits = "", nil
	return name.String() + plainText(v)
}

func (p *application) securityText(r *policy.SecurityRule) string {
	v := viewSecurityRule(&Versioned[policy.SecurityRule]{Value: *r}, &p.settings)
	v.ID, v.Inherits = "", nil
	return plainText(v)
}

func plainText(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("a rule that came as JSON has none: %v", err))
	}
	return string(b)
}

// results tells what became of each document.
func (p *application) results(docs []Document, made []policy.Difference) []Applied {
	out := make([]Applied, len(docs))
	for i := range docs {
		out[i] = Applied{Document: docs[i].String(), Result: string(policy.Unchanged), ID: p.known[i], Warnings: p.warns[i]}
		if at := p.of[i]; at >= 0 {
			out[i].Result, out[i].ID = string(made[at].Action), made[at].ID
		}
	}
	return out
}
