package policy

// What stands in the place of a secret.
const (
	hiddenSecret    = "(hidden)"
	otherSecret     = "(hidden, another)"
	maxListedInNote = 50
)

// WithoutSecrets gives the difference as it may be shown: that a secret changed
// can be seen, what it is cannot.
func (d Difference) WithoutSecrets() Difference {
	if d.Kind != KindConfig {
		return d
	}
	secret := func(r *Resource) string {
		if r == nil {
			return ""
		}
		return r.Settings.Security.JWTSecret
	}
	before, after := secret(d.Before), secret(d.After)
	hide := func(r *Resource, s, as string) *Resource {
		if r == nil || s == "" {
			return r
		}
		set := *r.Settings
		set.Security.JWTSecret = as
		return &Resource{Settings: &set}
	}
	as := hiddenSecret
	if before != "" && before != after {
		as = otherSecret
	}
	d.Before, d.After = hide(d.Before, before, hiddenSecret), hide(d.After, after, as)
	return d
}

// Author is who made a change.
type Author struct {
	Who  string `json:"who" doc:"admin, proxy, file or rollback"`
	Name string `json:"name,omitempty" doc:"which one, where there are several"`
}

// The authors of changes.
const (
	ByAdmin    = "admin"
	ByProxy    = "proxy"
	ByFile     = "file"
	ByRollback = "rollback"
)

// Revision is one change of the mesh: what was stored together.
type Revision struct {
	Revision int64   `json:"revision" doc:"also the version of each resource that it stored"`
	Time     float64 `json:"time" doc:"Unix seconds"`
	Author
	Total   int          `json:"total" doc:"resources that it changed"`
	Changes []Difference `json:"changes" nullable:"false" doc:"in a list at most 50, and without their values"`
}

// Summary is the revision without values, and with a bounded number of changes.
func (r Revision) Summary() Revision {
	list := r.Changes[:min(len(r.Changes), maxListedInNote)]
	r.Total, r.Changes = len(r.Changes), make([]Difference, 0, len(list))
	for _, d := range list {
		r.Changes = append(r.Changes, Difference{Ref: d.Ref, Action: d.Action})
	}
	return r
}
