package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// What a change is refused for, other than Problems. Errors wrap these.
var (
	// ErrNotFound says that what is to be changed does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists says that what is to be added exists already.
	ErrExists = errors.New("exists already")
	// ErrStale says that the Condition of an edit does not hold.
	ErrStale = errors.New("the condition does not hold")
	// ErrOwned says that what is to be changed is kept by the mesh file, and is to be
	// changed there.
	ErrOwned = errors.New("is kept by the mesh file")
	// ErrTooLarge says that edits are more than can be stored at once.
	ErrTooLarge = errors.New("too large for one transaction")
	// ErrForgotten says that the history does not reach back so far.
	ErrForgotten = errors.New("the history does not reach back so far")
)

// Stored is a resource as it is kept. The zero value is one that does not
// exist; settings that were never set are the defaults, at version 0.
type Stored struct {
	Value   *Resource
	Version int64 // of the store, which grows with every change in it
}

// Condition says when an edit may be made (RFC 9110 section 13.1). The zero
// value is always.
type Condition struct {
	Exists   bool    // If-Match: *
	Absent   bool    // If-None-Match: *
	Versions []int64 // If-Match: one of these; nil is any
}

// check tells why a condition does not hold.
func (c *Condition) check(ref Ref, have Stored) error {
	exists := have.Version > 0
	switch {
	case c.Absent && exists:
		return fmt.Errorf("%w: %s exists already, at version %d", ErrStale, ref, have.Version)
	case (c.Exists || c.Versions != nil && !slices.Contains(c.Versions, 0)) && !exists:
		return fmt.Errorf("%w: %s does not exist", ErrStale, ref)
	case c.Versions != nil && !slices.Contains(c.Versions, have.Version):
		return fmt.Errorf("%w: %s is at version %d, not %s: it was changed meanwhile; read it again and repeat the change",
			ErrStale, ref, have.Version, strings.Trim(fmt.Sprint(c.Versions), "[]"))
	}
	return nil
}

// Edit is one change that somebody wants.
type Edit struct {
	Ref
	To    *Resource // what is to be; nil removes
	Patch []byte    // config only, in the place of To: a JSON object laid over what is set
	If    Condition
	New   bool // ErrExists when there is one with this id
	Quiet bool // what is the same already is not written again
}

// Make gives what is to be stored in the place of what is; nil is nothing. The
// error is Problems, ErrNotFound, ErrExists or ErrStale.
func (e *Edit) Make(have Stored) (*Resource, error) {
	if err := e.If.check(e.Ref, have); err != nil {
		return nil, err
	}
	switch {
	case e.Patch != nil:
		set := DefaultSettings()
		if have.Value != nil {
			set = *have.Value.Settings
		}
		merged, err := set.Merge(e.Patch)
		return &Resource{Settings: &merged}, err
	case e.To == nil && have.Version == 0:
		return nil, fmt.Errorf("%s: %w", e.Ref, ErrNotFound)
	case e.To == nil:
		return nil, nil
	case e.New && have.Version > 0:
		return nil, fmt.Errorf("%s: %w", e.Ref, ErrExists)
	}
	return e.To.over(have.Value), nil
}

// over keeps of an endpoint what its writer left open: how it is and when it
// was last seen.
func (r *Resource) over(have *Resource) *Resource {
	if r.Endpoint == nil {
		return r
	}
	e := *r.Endpoint
	if have != nil && have.Endpoint != nil {
		if e.Status == "" {
			e.Status = have.Endpoint.Status
		}
		if e.LastSeen == 0 {
			e.LastSeen = have.Endpoint.LastSeen
		}
	}
	if e.Status == "" {
		e.Status = Healthy
	}
	return &Resource{Endpoint: &e}
}

// Action is what a change did to a resource.
type Action string

// The actions.
const (
	Added     Action = "added"
	Changed   Action = "changed"
	Removed   Action = "removed"
	Unchanged Action = "unchanged"
)

// Difference is what a change does to one resource.
type Difference struct {
	Ref
	Action Action    `json:"action"`
	Before *Resource `json:"before,omitempty"`
	After  *Resource `json:"after,omitempty"`
}

// Compare gives the difference between two values of a resource. Settings that
// are not there are the defaults.
func Compare(ref Ref, before, after *Resource) Difference {
	if ref.Kind == KindConfig {
		before, after = before.orDefaults(), after.orDefaults()
	}
	d := Difference{Ref: ref, Action: Changed, Before: before, After: after}
	switch {
	case before.Same(after):
		d.Action = Unchanged
	case before == nil:
		d.Action = Added
	case after == nil:
		d.Action = Removed
	}
	return d
}

func (r *Resource) orDefaults() *Resource {
	if r != nil {
		return r
	}
	set := DefaultSettings()
	return &Resource{Settings: &set}
}

// UnmarshalJSON reads the values by their kind.
func (d *Difference) UnmarshalJSON(data []byte) error {
	var raw struct {
		Ref
		Action        Action
		Before, After json.RawMessage
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return err
	}
	*d = Difference{Ref: raw.Ref, Action: raw.Action}
	for _, v := range []struct {
		raw json.RawMessage
		to  **Resource
	}{{raw.Before, &d.Before}, {raw.After, &d.After}} {
		if len(v.raw) == 0 || string(v.raw) == "null" {
			continue
		}
		var err error
		if *v.to, err = raw.Kind.Decode(v.raw); err != nil {
			return err
		}
	}
	return nil
}

// Outcome is what became of edits, or would become of them.
type Outcome struct {
	Revision    int64        // of what was stored; 0 when nothing was
	Differences []Difference // one for each edit, in their order
}
