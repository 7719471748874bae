package api

import (
	"context"
	"net/http"

	"github.com/weir-mesh/weir/policy"
)

// Revision is one change of the mesh as GET /history shows it.
type Revision struct {
	Revision int64    `json:"revision" doc:"also the resource_version of what it stored"`
	Time     float64  `json:"time" doc:"Unix seconds"`
	Who      string   `json:"who" doc:"admin, proxy, file or rollback"`
	Name     string   `json:"name,omitempty" required:"false" doc:"which one, where there are several"`
	Total    int      `json:"total" doc:"resources that it changed"`
	Changes  []Change `json:"changes" nullable:"false" doc:"in a list the first 50, without values"`
}

func viewRevision(r *policy.Revision) (Revision, error) {
	changes, err := viewChanges(r.Changes)
	return Revision{Revision: r.Revision, Time: r.Time, Who: r.Who, Name: r.Name, Total: r.Total, Changes: changes}, err
}

type historyInput struct {
	Limit  int   `query:"limit" default:"100" minimum:"1" maximum:"1500"`
	Before int64 `query:"before" minimum:"0" doc:"only revisions before this one; 0 is all"`
}

func (s *Server) listHistory(ctx context.Context, in *historyInput) (*output[[]Revision], error) {
	list, err := s.Mesh.History(ctx, in.Before, in.Limit)
	if err != nil {
		return nil, s.answerFor("read the history", err)
	}
	out := make([]Revision, len(list))
	for i := range list {
		if out[i], err = viewRevision(&list[i]); err != nil {
			return nil, s.answerFor("show the history", err)
		}
	}
	return &output[[]Revision]{out}, nil
}

type revisionInput struct {
	Revision int64 `path:"revision" minimum:"1"`
}

func (s *Server) getRevision(ctx context.Context, in *revisionInput) (*output[Revision], error) {
	r, err := s.Mesh.Revision(ctx, in.Revision)
	if err != nil {
		return nil, s.answerFor("read the history", err)
	}
	out, err := viewRevision(&r)
	if err != nil {
		return nil, s.answerFor("show the history", err)
	}
	return &output[Revision]{out}, nil
}

type diffInput struct {
	From int64 `query:"from" minimum:"0" required:"true" doc:"a revision: the state after it"`
	To   int64 `query:"to" minimum:"0" doc:"another; 0 is now"`
}

func (s *Server) getDiff(ctx context.Context, in *diffInput) (*output[[]Change], error) {
	list, err := s.Mesh.Between(ctx, in.From, in.To)
	if err != nil {
		return nil, s.answerFor("compare", err)
	}
	changes, err := viewChanges(list)
	if err != nil {
		return nil, s.answerFor("compare", err)
	}
	return &output[[]Change]{changes}, nil
}

type rollbackBody struct {
	Revision int64 `json:"revision" doc:"the one to go back to: what was after it is again"`
	DryRun   *bool `json:"dry_run,omitempty" required:"false" doc:"as the query's"`
}

type rollbackInput struct {
	DryRunParam
	Body rollbackBody
}

// Stored is the answer to a change of many resources.
type Stored struct {
	Status   string      `json:"status,omitempty" required:"false"`
	DryRun   bool        `json:"dry_run,omitempty" required:"false" doc:"nothing was stored"`
	Revision int64       `json:"revision" doc:"that the change is; 0 when there was nothing to change"`
	Results  []Applied   `json:"results,omitempty" required:"false" doc:"what became of each document" nullable:"false"`
	Changes  []Change    `json:"changes" doc:"with dry_run: what would change" nullable:"false"`
	Proxies  []ProxyName `json:"proxies,omitempty" required:"false" doc:"with dry_run: the connected proxies that would be told" nullable:"false"`
}

func (s *Server) rollback(ctx context.Context, in *rollbackInput) (*output[Stored], error) {
	if in.Body.Revision < 0 {
		return nil, refuse(http.StatusBadRequest, "body.revision: %d is not a revision", in.Body.Revision)
	}
	dryRun := in.DryRun || in.Body.DryRun != nil && *in.Body.DryRun
	outcome, err := s.Mesh.Rollback(ctx, in.Body.Revision, dryRun)
	if err != nil {
		return nil, s.answerFor("roll back", err)
	}
	out, err := s.stored(outcome, dryRun, "rolled back")
	return &output[Stored]{out}, err
}

// stored is the answer to a change of many resources, without what is as it was.
func (s *Server) stored(outcome policy.Outcome, dryRun bool, status string) (Stored, error) {
	var real []policy.Difference
	for _, d := range outcome.Differences {
		if d.Action != policy.Unchanged {
			real = append(real, d)
		}
	}
	changes, err := viewChanges(real)
	if err != nil {
		return Stored{}, s.answerFor("show the changes", err)
	}
	out := Stored{Status: status, Revision: outcome.Revision, Changes: changes}
	if dryRun {
		out.Status, out.DryRun, out.Proxies = "", true, s.Mesh.Touched(real)
	}
	return out, nil
}
