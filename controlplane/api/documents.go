package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"github.com/weir-mesh/weir/policy"
)

// Kinds are the kinds of documents that can be applied.
var Kinds = []string{"Endpoint", "TrafficRule", "SecurityRule", "Config", "ExternalService"}

// Document is one document of a file that is to be applied: a kind, the
// namespace and service that it is about where the kind has them, and under
// "spec" the body of the API call that it stands for.
type Document struct {
	Kind     string
	Position string // "mesh.yaml:12:1"

	text     json.RawMessage // the document itself
	service  policy.ServiceName
	endpoint policy.Endpoint
	traffic  policy.TrafficRule
	security policy.SecurityRule
	settings json.RawMessage
}

// String names the document for a reader: "Endpoint default/web/web-1".
func (d *Document) String() string {
	switch d.Kind {
	case "Endpoint", "ExternalService":
		return d.Kind + " " + d.service.String() + "/" + d.endpoint.ID
	case "TrafficRule":
		return d.Kind + " " + d.service.String()
	case "SecurityRule":
		return d.Kind + " " + sourcesText(&d.security) + " -> " + d.security.Destination().String()
	}
	return d.Kind
}

func sourcesText(r *policy.SecurityRule) string {
	var all []string
	for _, s := range r.From() {
		all = append(all, s.String())
	}
	return strings.Join(all, ",")
}

// ReadDocuments reads YAML or JSON documents, several in one file, and checks
// them as the control plane would. The error lists everything that is wrong,
// one line each, as file:line:column: path: what.
func ReadDocuments(file string, data []byte) ([]Document, error) {
	var docs []Document
	var errs []error
	for _, part := range split(data) {
		nodes, err := part.parse(file)
		errs = append(errs, err)
		for _, n := range nodes {
			d, err := readDocument(&place{file: file, part: part}, n)
			docs, errs = append(docs, d), append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return docs, nil
}

// place knows where the paths of one document are in its file.
type place struct {
	file string
	part part
	at   map[string]ast.Node
}

// of gives line and column of a path, or of the nearest one above it that is
// written in the file: for a missing field, the object that lacks it.
func (p *place) of(path string) (line, column int) {
	for {
		if n, ok := p.at[path]; ok {
			pos := n.GetToken().Position
			return pos.Line + p.part.line, pos.Column
		}
		if path == "" {
			return p.part.line + 1, 1
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

// start gives "file:line:column" of the document.
func (p *place) start() string {
	line, column := p.of("")
	return fmt.Sprintf("%s:%d:%d", p.file, line, column)
}

// err lists problems in the order of the file.
func (p *place) err(problems policy.Problems) error {
	slices.SortStableFunc(problems, func(a, b policy.Problem) int {
		la, ca := p.of(a.Path)
		lb, cb := p.of(b.Path)
		return cmp.Or(cmp.Compare(la, lb), cmp.Compare(ca, cb), cmp.Compare(a.Path, b.Path))
	})
	var errs []error
	for _, q := range problems {
		line, column := p.of(q.Path)
		text := q.Message
		if q.Path != "" {
			text = q.Path + ": " + text
		}
		errs = append(errs, fmt.Errorf("%s:%d:%d: %s", p.file, line, column, text))
	}
	return errors.Join(errs...)
}

// note records where each path below a node is: an object's member at its name.
func (p *place) note(path string, n ast.Node) {
	switch n := n.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			p.note(path, v)
		}
	case *ast.MappingValueNode:
		key := strings.TrimPrefix(path+"."+n.Key.GetToken().Value, ".")
		p.at[key] = n.Key
		if _, ok := p.at[path]; !ok {
			p.at[path] = n.Key
		}
		p.note(key, n.Value)
	case *ast.SequenceNode:
		for i, v := range n.Values {
			element := fmt.Sprintf("%s[%d]", path, i)
			p.at[element] = v
			p.note(element, v)
		}
	case *ast.AnchorNode:
		p.note(path, n.Value)
	case *ast.TagNode:
		p.note(path, n.Value)
	}
}

// envelope is what every document has.
type envelope struct {
	Kind      string          `json:"kind"`
	Namespace string          `json:"namespace,omitempty"`
	Service   string          `json:"service,omitempty"`
	Spec      json.RawMessage `json:"spec"`
	// Status is what the control plane knows of the resource besides, in a
	// document that it wrote itself. It says nothing of what is wanted.
	Status map[string]any `json:"status,omitempty" required:"false"`
}

func readDocument(at *place, n ast.Node) (Document, error) {
	at.at = map[string]ast.Node{}
	at.note("", n)
	d := Document{Position: at.start()}
	text, err := toJSON(n)
	if err != nil {
		return d, fmt.Errorf("%s: %w", at.start(), err)
	}
	return d, at.err(d.parse(text))
}

// parse reads the document's JSON.
func (d *Document) parse(text []byte) policy.Problems {
	d.text = text
	var e envelope
	if p := checkShape[envelope]("", text); len(p) > 0 {
		return p
	}
	if err := json.Unmarshal(text, &e); err != nil {
		return policy.Problems{{Message: err.Error()}} // the shape was checked, so this cannot be
	}
	d.Kind = e.Kind
	return d.read(&e)
}

// read fills in what the kind has, and lists what is wrong with it.
func (d *Document) read(e *envelope) policy.Problems {
	switch d.Kind {
	case "Endpoint":
		return d.readEndpoint(e)
	case "ExternalService":
		return d.readExternalService(e)
	case "TrafficRule":
		return d.readTrafficRule(e)
	}
	var p policy.Problems
	for _, f := range []struct{ name, value string }{{"namespace", e.Namespace}, {"service", e.Service}} {
		if f.value != "" {
			p = append(p, policy.Problem{Path: f.name, Message: "a document of kind " + d.Kind + " has none"})
		}
	}
	switch d.Kind {
	case "SecurityRule":
		body, shape := readSpec[securityRuleBody](e.Spec)
		if p = append(p, shape...); len(shape) == 0 {
			var rule policy.Problems
			d.security, rule = body.rule()
			p = append(p, append(rule, checkGivenID(body.ID)...).Under("spec")...)
		}
		return p
	case "Config":
		d.settings = e.Spec
		_, patch := mergePatch(policy.DefaultSettings(), e.Spec)
		return append(p, patch.Under("spec")...)
	}
	return policy.Problems{{Path: "kind", Message: fmt.Sprintf("%q is unknown%s", d.Kind, suggest(d.Kind, Kinds))}}
}

func (d *Document) readEndpoint(e *envelope) policy.Problems {
	spec, p := addName(e)
	if len(p) > 0 {
		return p
	}
	body, p := readSpec[endpointBody](spec)
	if len(p) > 0 {
		return p
	}
	d.endpoint = body.endpoint()
	d.service = d.endpoint.Service()
	return d.endpoint.Validate().Under("spec")
}

// addName puts the document's namespace and service into an endpoint's spec,
// which may hold them itself, but not others.
func addName(e *envelope) (json.RawMessage, policy.Problems) {
	var spec map[string]json.RawMessage
	// What is not an object is left to the check of the shape, which says so.
	if _ = json.Unmarshal(e.Spec, &spec); spec == nil {
		return e.Spec, nil
	}
	var p policy.Problems
	for _, f := range []struct{ path, field, value, otherwise string }{
		{"namespace", "namespace", e.Namespace, "default"}, {"service", "service_name", e.Service, ""},
	} {
		own, both := spec[f.field]
		switch {
		case both && f.value != "" && string(own) != show(f.value):
			p = append(p, policy.Problem{Path: f.path, Message: fmt.Sprintf("%q is not spec.%s, %s", f.value, f.field, own)})
		case both:
		case f.value != "" || f.otherwise != "":
			spec[f.field], _ = json.Marshal(cmp.Or(f.value, f.otherwise))
		default:
			p = append(p, policy.Problem{Path: f.path, Message: "is missing"})
		}
	}
	out, err := json.Marshal(spec)
	if err != nil {
		return e.Spec, append(p, policy.Problem{Path: "spec", Message: err.Error()})
	}
	return out, p
}

func (d *Document) readTrafficRule(e *envelope) policy.Problems {
	d.service = policy.ServiceName{Namespace: cmp.Or(e.Namespace, "default"), Name: e.Service}
	p := checkName(d.service.Namespace, d.service.Name, "service")
	body, shape := readSpec[trafficRuleBody](e.Spec)
	if p = append(p, shape...); len(shape) > 0 {
		return p
	}
	var rule policy.Problems
	d.traffic, rule = body.rule()
	return append(p, append(rule, checkGivenID(body.ID)...).Under("spec")...)
}

func readSpec[T any](spec json.RawMessage) (T, policy.Problems) {
	var body T
	if p := checkShape[T]("spec", spec); len(p) > 0 {
		return body, p
	}
	if err := decode(spec, &body); err != nil {
		return body, policy.Problems{plainWords(&huma.ErrorDetail{Location: "spec", Message: err.Error()}, nil)}
	}
	return body, nil
}

// shapes keeps the schemas of types: making one costs more than a check by it.
var shapes sync.Map // of reflect.Type to func() (huma.Registry, *huma.Schema)

func shapeOf(t reflect.Type) (huma.Registry, *huma.Schema) {
	known, _ := shapes.LoadOrStore(t, sync.OnceValues(func() (huma.Registry, *huma.Schema) {
		registry := huma.NewMapRegistry("#/", huma.DefaultSchemaNamer)
		return registry, registry.Schema(t, true, "Body")
	}))
	return known.(func() (huma.Registry, *huma.Schema))()
}

// checkShape checks a value in JSON as huma does for a request's body.
func checkShape[T any](path string, text []byte) policy.Problems {
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		return policy.Problems{{Path: path, Message: err.Error()}}
	}
	t := reflect.TypeFor[T]()
	registry, schema := shapeOf(t)
	pb := huma.NewPathBuffer(nil, 0)
	pb.Push("body")
	var res huma.ValidateResult
	huma.Validate(registry, schema, pb, huma.ModeWriteToServer, value, &res)
	var p policy.Problems
	for _, err := range res.Errors {
		var d huma.ErrorDetailer
		if errors.As(err, &d) {
			q := plainWords(d.ErrorDetail(), fieldNames(t))
			q.Path = strings.TrimPrefix(path+strings.TrimPrefix(q.Path, "body"), ".")
			p = append(p, q)
		}
	}
	return p
}

// toJSON gives a node's value in JSON, with aliases and merges resolved.
func toJSON(n ast.Node) ([]byte, error) {
	var v any
	if err := yaml.NodeToValue(n, &v); err != nil {
		var ye yaml.Error
		if errors.As(err, &ye) {
			return nil, errors.New(ye.GetMessage())
		}
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("a value has no form in JSON: %w", err)
	}
	return b.Bytes(), nil
}
