package api

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/weir-mesh/weir/policy"
)

// writeBody is the answer to a write. Without dry_run it has a status and
// nothing else.
type writeBody struct {
	Status  string      `json:"status,omitempty" required:"false"`
	DryRun  bool        `json:"dry_run,omitempty" required:"false" doc:"nothing was stored"`
	Changes []Change    `json:"changes,omitempty" required:"false" doc:"with dry_run: what would change" nullable:"false"`
	Proxies []ProxyName `json:"proxies,omitempty" required:"false" doc:"with dry_run: the connected proxies that would be told" nullable:"false"`
}

type writeOutput struct {
	ETag     string `header:"ETag"`
	Location string `header:"Location"`
	ID       string `header:"X-Resource-Id"`
	Warning  string `header:"Warning"`
	Body     writeBody
}

// Change is what a write does to one resource.
type Change struct {
	Action    string          `json:"action" enum:"added,changed,removed,unchanged"`
	Kind      string          `json:"kind" enum:"endpoint,traffic-rule,security-rule,config"`
	Namespace string          `json:"namespace,omitempty" required:"false"`
	Service   string          `json:"service,omitempty" required:"false"`
	ID        string          `json:"id,omitempty" required:"false"`
	Before    json.RawMessage `json:"before,omitempty" required:"false" doc:"as stored; secrets are hidden"`
	After     json.RawMessage `json:"after,omitempty" required:"false"`
}

// Ref names the resource.
func (c *Change) Ref() policy.Ref {
	return policy.Ref{Kind: policy.Kind(c.Kind), Namespace: c.Namespace, Service: c.Service, ID: c.ID}
}

func viewChanges(differences []policy.Difference) ([]Change, error) {
	out := make([]Change, 0, len(differences))
	for _, d := range differences {
		d = d.WithoutSecrets()
		c := Change{Action: string(d.Action), Kind: string(d.Kind), Namespace: d.Namespace, Service: d.Service, ID: d.ID}
		for _, v := range []struct {
			from *policy.Resource
			to   *json.RawMessage
		}{{d.Before, &c.Before}, {d.After, &c.After}} {
			if v.from == nil {
				continue
			}
			var err error
			if *v.to, err = json.Marshal(v.from); err != nil {
				return nil, err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// change makes one edit and answers with a status.
func (s *Server) change(ctx context.Context, step string, e policy.Edit, dryRun bool, status string) (*writeOutput, error) {
	outcome, err := s.Mesh.Change(ctx, []policy.Edit{e}, dryRun)
	if err != nil {
		return nil, s.answerFor(step, err)
	}
	out := &writeOutput{Body: writeBody{Status: status}}
	if dryRun {
		out.Body, err = s.foretell(outcome)
		return out, err
	}
	if d := &outcome.Differences[0]; d.After != nil {
		out.ID = d.ID
		out.ETag = s.tagOf(d, outcome.Revision)
	}
	return out, nil
}

// foretell is the body of a write that was not made.
func (s *Server) foretell(outcome policy.Outcome) (writeBody, error) {
	changes, err := viewChanges(outcome.Differences)
	if err != nil {
		return writeBody{}, s.answerFor("show the changes", err)
	}
	return writeBody{DryRun: true, Changes: changes, Proxies: s.Mesh.Touched(outcome.Differences)}, nil
}

// tagOf gives the entity tag of what was stored; revision is 0 when it was so
// already.
func (s *Server) tagOf(d *policy.Difference, revision int64) string {
	now := s.Mesh.Snapshot()
	if revision == 0 {
		revision = versionOf(now, d.Ref)
	}
	settings := now.Settings()
	switch r := d.After; {
	case r.Traffic != nil && inherits(r.Traffic) != nil, r.Security != nil && r.Security.MTLSMode == "":
		return etag(revision, settings.Version)
	}
	return etag(revision)
}

func versionOf(now Snapshot, ref policy.Ref) int64 {
	switch ref.Kind {
	case policy.KindEndpoint:
		if e := findEndpoint(now, ref.Name(), ref.ID); e != nil {
			return e.Version
		}
	case policy.KindTrafficRule:
		if r := findTrafficRule(now, ref.Name(), ref.ID); r != nil {
			return r.Version
		}
	case policy.KindSecurityRule:
		if r := findSecurityRule(now, ref.ID); r != nil {
			return r.Version
		}
	case policy.KindConfig:
		return now.Settings().Version
	}
	return 0
}

func findEndpoint(now Snapshot, name policy.ServiceName, id string) *EndpointState {
	list := now.Endpoints(name)
	for i := range list {
		if list[i].ID == id {
			return &list[i]
		}
	}
	return nil
}

func findTrafficRule(now Snapshot, name policy.ServiceName, id string) *Versioned[policy.TrafficRule] {
	list := now.TrafficRules(name)
	for i := range list {
		if list[i].Value.ID == id {
			return &list[i]
		}
	}
	return nil
}

func findSecurityRule(now Snapshot, id string) *Versioned[policy.SecurityRule] {
	list := now.SecurityRules()
	for i := range list {
		if list[i].Value.ID == id {
			return &list[i]
		}
	}
	return nil
}

func versionText(v int64) string { return strconv.FormatInt(v, 10) }
