package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Kind is the kind of a resource.
type Kind string

// The resources of a mesh. There is one config; the others have ids.
const (
	KindEndpoint     Kind = "endpoint"
	KindTrafficRule  Kind = "traffic-rule"
	KindSecurityRule Kind = "security-rule"
	KindConfig       Kind = "config"
)

// Ref names one resource.
type Ref struct {
	Kind      Kind   `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Service   string `json:"service,omitempty"`
	ID        string `json:"id,omitempty"`
}

// Name is the service that the resource is of; zero for those of none.
func (r Ref) Name() ServiceName { return ServiceName{r.Namespace, r.Service} }

// String names the resource for a reader: "traffic rule r1 of default/web".
func (r Ref) String() string {
	switch {
	case r.Kind == KindConfig:
		return "the settings"
	case r.Service == "":
		return strings.ReplaceAll(string(r.Kind), "-", " ") + " " + r.ID
	}
	return fmt.Sprintf("%s %s of %s", strings.ReplaceAll(string(r.Kind), "-", " "), r.ID, r.Name())
}

// Validate lists what is wrong with the names.
func (r Ref) Validate() Problems {
	var p Problems
	switch r.Kind {
	case KindConfig:
		return nil
	case KindTrafficRule, KindEndpoint:
		p.addErr("namespace", checkLabel("namespace", r.Namespace))
		p.addErr("service", checkLabel("service", r.Service))
	case KindSecurityRule:
	default:
		p.add("kind", "%q is unknown", r.Kind)
	}
	checkID(&p, "id", r.ID)
	return p
}

// Resource is the value of one resource: the field of its kind is set. In JSON
// it is that value alone.
type Resource struct {
	Endpoint *Endpoint
	Traffic  *TrafficRule
	Security *SecurityRule
	Settings *Settings
}

// value gives the field that is set.
func (r *Resource) value() any {
	switch {
	case r == nil:
		return nil
	case r.Endpoint != nil:
		return r.Endpoint
	case r.Traffic != nil:
		return r.Traffic
	case r.Security != nil:
		return r.Security
	case r.Settings != nil:
		return r.Settings
	}
	return nil
}

// MarshalJSON gives the value's JSON.
func (r *Resource) MarshalJSON() ([]byte, error) { return json.Marshal(r.value()) }

// Decode reads the JSON of a resource of the kind. Settings are laid over the
// defaults, so that one which a later version added has its default.
func (k Kind) Decode(data []byte) (*Resource, error) {
	r := &Resource{}
	switch k {
	case KindEndpoint:
		r.Endpoint = new(Endpoint)
	case KindTrafficRule:
		r.Traffic = new(TrafficRule)
	case KindSecurityRule:
		r.Security = new(SecurityRule)
	case KindConfig:
		set := DefaultSettings()
		r.Settings = &set
	default:
		return nil, fmt.Errorf("kind %q is unknown", k)
	}
	if err := json.Unmarshal(data, r.value()); err != nil {
		return nil, fmt.Errorf("%s: %w", k, err)
	}
	return r, nil
}

// Same tells whether two resources are the same for those who wrote them: what
// health checks and registrations note beside, the status and the time, does
// not count. nil is one that does not exist.
func (r *Resource) Same(o *Resource) bool {
	if r == nil || o == nil {
		return r == o
	}
	a, errA := json.Marshal(r.written())
	b, errB := json.Marshal(o.written())
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// written is the resource without what others than its writer note in it, in
// one of the forms that mean the same.
func (r *Resource) written() any {
	switch {
	case r.Endpoint != nil:
		e := *r.Endpoint
		e.Status, e.LastSeen = "", 0
		if len(e.Labels) == 0 {
			e.Labels = nil
		}
		return e
	case r.Traffic != nil:
		t := *r.Traffic
		if len(t.MatchHeaders) == 0 {
			t.MatchHeaders = nil
		}
		return t
	}
	return r.value()
}

// Validate lists what is wrong with the value.
func (r *Resource) Validate() Problems {
	switch {
	case r.Endpoint != nil:
		return r.Endpoint.Validate()
	case r.Traffic != nil:
		return r.Traffic.Validate()
	case r.Security != nil:
		return r.Security.Validate()
	case r.Settings != nil:
		return r.Settings.Validate()
	}
	return Problems{{Message: "is empty"}}
}
