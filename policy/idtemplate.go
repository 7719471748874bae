package policy

import (
	"errors"
	"fmt"
	"strings"
)

// IDTemplate tells how the path of a SPIFFE ID names a service, where somebody
// else gives out the IDs: its segments {namespace} and {service} stand for those,
// each other segment for itself. Without {namespace} it is "default".
type IDTemplate string

// DefaultIDTemplate is the form of the IDs that the mesh itself gives out.
const DefaultIDTemplate IDTemplate = "/ns/{namespace}/sa/{service}"

// ParseIDTemplate checks a template.
func ParseIDTemplate(s string) (IDTemplate, error) {
	bad := func(why string) (IDTemplate, error) {
		return "", fmt.Errorf("SPIFFE ID template %q: %s; meant is such as %s", s, why, DefaultIDTemplate)
	}
	switch {
	case !strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/"):
		return bad("it begins with / and does not end with it")
	case strings.Count(s, "{service}") != 1 || strings.Count(s, "{namespace}") > 1:
		return bad("{service} is to be there once, {namespace} at most once")
	}
	for _, part := range strings.Split(s[1:], "/") {
		if part == "" || part != "{service}" && part != "{namespace}" && strings.ContainsAny(part, "{}") {
			return bad("{service} and {namespace} are whole segments, and no segment is empty")
		}
	}
	return IDTemplate(s), nil
}

// Parse reads the path of a SPIFFE ID. The control plane's own path, which no
// workload can have, is read by every template.
func (t IDTemplate) Parse(path string) (ServiceName, error) {
	if t == "" || t == DefaultIDTemplate {
		return ParseSPIFFEPath(path)
	}
	if n, err := ParseSPIFFEPath(path); err == nil && n == ControlPlane {
		return n, nil
	}
	n, err := t.match(path)
	if err == nil {
		err = n.Validate()
	}
	if err == nil && n.Namespace == ControlPlane.Namespace {
		err = errors.New("that namespace is the control plane's own")
	}
	if err != nil {
		return ServiceName{}, fmt.Errorf("SPIFFE ID path %q: %w", path, err)
	}
	return n, nil
}

func (t IDTemplate) match(path string) (ServiceName, error) {
	want, got := strings.Split(string(t), "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return ServiceName{}, fmt.Errorf("it is not of the form %s", t)
	}
	n := ServiceName{Namespace: "default"}
	for i, part := range want {
		switch {
		case part == "{service}":
			n.Name = got[i]
		case part == "{namespace}":
			n.Namespace = got[i]
		case part != got[i]:
			return ServiceName{}, fmt.Errorf("it is not of the form %s", t)
		}
	}
	return n, nil
}
