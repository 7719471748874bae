package store

import (
	"encoding/json"
	"fmt"

	"github.com/weir-mesh/weir/policy"
)

// over lays the file's settings over others; a nil file has none.
func (f *File) over(base *policy.Settings) (*policy.Settings, error) {
	if f == nil {
		return base, nil
	}
	merged, err := base.Merge(f.Settings)
	if err != nil {
		return nil, fmt.Errorf("under what the mesh file %s sets: %w", f.Name, err)
	}
	return &merged, nil
}

// shown is what somebody who changes a resource has seen of it: the version of
// the settings is that of the file too, which is a part of what is in force.
func (p *plan) shown(kind policy.Kind, s policy.Stored) policy.Stored {
	if kind == policy.KindConfig {
		s.Version = max(s.Version, p.fileRev)
	}
	return s
}

// compare gives the difference of two values as they are in force. The error says
// that the second does not go with what the mesh file sets.
func (p *plan) compare(ref policy.Ref, before, after *policy.Resource) (policy.Difference, error) {
	d := policy.Compare(ref, before, after) // with the defaults for settings that are not there
	if ref.Kind != policy.KindConfig || p.file == nil {
		return d, nil
	}
	now, err := p.file.over(d.Before.Settings)
	if err != nil {
		now = d.Before.Settings // as model.inForce has it
	}
	then, err := p.file.over(d.After.Settings)
	if err != nil {
		return d, err
	}
	return policy.Compare(ref, &policy.Resource{Settings: now}, &policy.Resource{Settings: then}), nil
}

// noteOf is what the history says of a change: nothing, where it changes nothing.
func (p *plan) noteOf(ref policy.Ref, have, then stored) ([]change, error) {
	d, err := p.compare(ref, have.Value, then.Value)
	if err != nil || d.Action == policy.Unchanged {
		return nil, err
	}
	c := change{Difference: d, Place: have.place, Leased: have.lease != 0}
	if ref.Kind == policy.KindConfig && p.file != nil {
		c.Base = have.Value.Settings
	}
	return []change{c}, nil
}

// notTheFiles refuses an edit of what the mesh file keeps. What is so already may
// be said again where that is not news, as weir apply does.
func (p *plan) notTheFiles(e *policy.Edit, was *stored, step policy.Difference) error {
	what := ""
	switch {
	case was.file && (step.Action != policy.Unchanged || !e.Quiet):
		what = e.Ref.String()
	case e.Kind == policy.KindConfig && p.file != nil:
		var err error
		if what, err = p.contradicts(e, step); err != nil {
			return err
		}
	}
	if what == "" {
		return nil
	}
	return fmt.Errorf("%s %w%s; change it there", what, ErrOwned, p.fileName())
}

func (p *plan) fileName() string {
	if p.file == nil { // it was let go just now
		return ""
	}
	return " " + p.file.Name
}

// contradicts names the first setting that an edit makes another than the file has
// it; "" for none.
func (p *plan) contradicts(e *policy.Edit, step policy.Difference) (string, error) {
	patch := e.Patch
	whole := policy.Compare(e.Ref, nil, e.To).After // the defaults, for a reset
	if patch == nil {
		var err error
		if patch, err = json.Marshal(whole); err != nil {
			return "", err
		}
	}
	both, err := policy.Overlap(p.file.Settings, patch)
	switch {
	case err != nil:
		return "", err
	case len(both) > 0:
		return both[0], nil
	case e.Patch == nil && !step.After.Same(whole):
		return "a setting that is left out", nil
	}
	return "", nil
}
