package meshfile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/weir-mesh/weir/policy"
)

// Position is a place in a file, line and column from 1.
type Position struct{ Line, Column int }

// Problem is one thing that is wrong in a file, and where.
type Problem struct {
	File string
	At   Position // zero for the file as a whole
	Path string   // "mesh.services.user-service.instances[0].url"; may be empty
	Text string
}

// String gives "file:line:column: path: text".
func (p Problem) String() string {
	out := p.File
	if p.At.Line > 0 {
		out += fmt.Sprintf(":%d:%d", p.At.Line, p.At.Column)
	}
	if p.Path != "" {
		out += ": " + p.Path
	}
	return out + ": " + p.Text
}

// Problems are all that is wrong in a file. It is an error when not empty.
type Problems []Problem

// Error gives a line for each.
func (p Problems) Error() string { return strings.Join(p.Lines(), "\n") }

// Lines gives a line for each.
func (p Problems) Lines() []string {
	out := make([]string, len(p))
	for i := range p {
		out[i] = p[i].String()
	}
	return out
}

// document is a file as data, and where in the file each part of it is.
type document struct {
	*place
	tree map[string]any
}

// place knows where the paths of a document are in its file.
type place struct {
	file string
	at   map[string]Position
}

// of gives the position of a path, or of the nearest one above it that is written
// in the file: for a missing key, the object that lacks it.
func (p *place) of(path string) Position {
	for {
		if at, ok := p.at[path]; ok {
			return at
		}
		if path == "" {
			return Position{1, 1}
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

func (p *place) inOrder(problems Problems) Problems {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.At.Line, b.At.Line), cmp.Compare(a.At.Column, b.At.Column), cmp.Compare(a.Path, b.Path))
	})
	return problems
}

// problem makes one about a path.
func (p *place) problem(path, format string, args ...any) Problem {
	return Problem{File: p.file, At: p.of(path), Path: path, Text: fmt.Sprintf(format, args...)}
}

// maxProblems bounds what is listed of one file.
const maxProblems = 50

func (p *place) listed(problems Problems) Problems {
	problems = p.inOrder(problems)
	if more := len(problems) - maxProblems; more > 0 {
		problems = append(problems[:maxProblems], Problem{File: p.file, Text: fmt.Sprintf("there are %d more mistakes", more)})
	}
	return problems
}

func (r *reader) wrong(path, format string, args ...any) {
	r.problems = append(r.problems, r.problem(path, format, args...))
}

func (r *reader) warn(path, format string, args ...any) {
	r.warnings = append(r.warnings, r.problem(path, format, args...))
}

// readDocument reads the one YAML document of a file.
func readDocument(name string, data []byte) (*document, error) {
	p := &place{file: name, at: map[string]Position{}}
	whole := func(at Position, format string, args ...any) error {
		return Problems{{File: name, At: at, Text: fmt.Sprintf(format, args...)}}
	}
	if len(data) > MaxSize {
		return nil, whole(Position{}, "%d bytes are more than %d", len(data), MaxSize)
	}
	if line := secondDocument(data); line > 0 {
		return nil, whole(Position{line, 1}, "a second document begins here; a mesh file is one")
	}
	if line := tooDeep(data); line > 0 {
		return nil, whole(Position{line, 1}, "is nested more than %d deep", maxDepth)
	}
	tree, err := parser.ParseBytes(data, 0)
	if err != nil {
		var ye yaml.Error
		if errors.As(err, &ye) && ye.GetToken() != nil {
			at := ye.GetToken().Position
			return nil, whole(Position{at.Line, at.Column}, "%s", ye.GetMessage())
		}
		return nil, whole(Position{}, "%v", err)
	}
	body := onlyBody(tree)
	if body == nil {
		return nil, whole(Position{}, "holds nothing")
	}
	sizes := expansion{}
	if _, err := sizes.of(body); err != nil {
		return nil, whole(Position{}, "%v", err)
	}
	p.note("", body)
	doc := &document{place: p}
	if doc.tree, err = toTree(body); err != nil {
		return nil, whole(p.of(""), "%v", err)
	}
	return doc, nil
}

// secondDocument gives the line on which one begins, 0 if none does. The parser
// would take it, but drops what follows an empty document without a word.
func secondDocument(data []byte) int {
	begun := false // something other than comments and directives was seen
	for i, line := range bytes.Split(data, []byte("\n")) {
		// YAML 1.2 section 9.1.2: a marker at the start of a line ends a document
		// wherever it stands, in a block of text too.
		if len(line) >= 3 && string(line[:3]) == "---" && (len(line) == 3 || bytes.IndexByte([]byte(" \t\r"), line[3]) >= 0) {
			if begun {
				return i + 1
			}
			begun = true
			continue
		}
		if text := bytes.TrimSpace(line); len(text) > 0 && text[0] != '#' && text[0] != '%' {
			begun = true
		}
	}
	return 0
}

// maxDepth bounds brackets within brackets, and lists within lists on one line,
// for which the parser takes time that grows with the square.
const maxDepth = 100

// tooDeep gives the line that is, 0 if none. It knows no quotes: text with so many
// opening brackets more than closing ones is refused too.
func tooDeep(data []byte) int {
	depth := 0
	for i, line := range bytes.Split(data, []byte("\n")) {
		text := bytes.TrimSpace(line)
		if len(text) > 0 && text[0] == '#' {
			continue
		}
		lists := 0
		for rest, ok := bytes.CutPrefix(text, []byte("- ")); ok && lists <= maxDepth; rest, ok = bytes.CutPrefix(rest, []byte("- ")) {
			lists++
		}
		for _, c := range text {
			switch c {
			case '[', '{':
				depth++
			case ']', '}':
				depth = max(depth-1, 0)
			}
			if depth > maxDepth || lists > maxDepth {
				return i + 1
			}
		}
	}
	return 0
}

func onlyBody(tree *ast.File) ast.Node {
	for _, doc := range tree.Docs {
		switch body := doc.Body.(type) {
		case nil, *ast.NullNode, *ast.CommentGroupNode:
		default:
			return body
		}
	}
	return nil
}

// maxNodes bounds a file with its aliases written out: nine levels of nine aliases
// are a few lines of text and a billion values.
const maxNodes = 200_000

// expansion knows how many values each anchor stands for.
type expansion map[string]int

func (x expansion) of(n ast.Node) (int, error) {
	total := 1
	var below []ast.Node
	switch n := n.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			below = append(below, v)
		}
	case *ast.MappingValueNode:
		below = append(below, n.Value)
	case *ast.SequenceNode:
		below = n.Values
	case *ast.TagNode:
		below = append(below, n.Value)
	case *ast.AnchorNode:
		size, err := x.of(n.Value)
		x[n.Name.GetToken().Value] = size
		return size, err
	case *ast.AliasNode:
		name := n.Value.GetToken().Value
		size, ok := x[name]
		if !ok {
			return 0, fmt.Errorf("the alias *%s stands for nothing that comes before it", name)
		}
		return size, nil
	}
	for _, v := range below {
		size, err := x.of(v)
		if err != nil {
			return 0, err
		}
		if total += size; total > maxNodes {
			return 0, fmt.Errorf("with its aliases written out it has more than %d values", maxNodes)
		}
	}
	return total, nil
}

// note records where each path below a node is: an object's member at its name.
func (p *place) note(path string, n ast.Node) {
	switch n := n.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			p.note(path, v)
		}
	case *ast.MappingValueNode:
		key := join(path, n.Key.GetToken().Value)
		p.at[key] = position(n.Key)
		if _, ok := p.at[path]; !ok {
			p.at[path] = p.at[key]
		}
		p.note(key, n.Value)
	case *ast.SequenceNode:
		for i, v := range n.Values {
			element := fmt.Sprintf("%s[%d]", path, i)
			p.at[element] = position(v)
			p.note(element, v)
		}
	case *ast.AnchorNode:
		p.note(path, n.Value)
	case *ast.TagNode:
		p.note(path, n.Value)
	}
}

// position is where a node begins: of an object that is its first key, where the
// parser has the colon after it.
func position(n ast.Node) Position {
	switch m := n.(type) {
	case *ast.MappingNode:
		if len(m.Values) > 0 && !m.IsFlowStyle {
			return position(m.Values[0])
		}
	case *ast.MappingValueNode:
		return position(m.Key)
	}
	at := n.GetToken().Position
	return Position{at.Line, at.Column}
}

// toTree gives a node's value as JSON would have it, aliases and merges resolved,
// numbers as json.Number.
func toTree(n ast.Node) (map[string]any, error) {
	var v any
	if err := yaml.NodeToValue(n, &v); err != nil {
		var ye yaml.Error
		if errors.As(err, &ye) {
			return nil, errors.New(ye.GetMessage())
		}
		return nil, err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("a value has no form in JSON: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return nil, err
	}
	object, ok := tree.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s is not an object", show(tree))
	}
	return object, nil
}

func startsWithMesh(data []byte) bool {
	for line := range bytes.Lines(data) {
		text := bytes.TrimRight(line, " \t\r\n")
		if len(text) > 0 && text[0] != '#' && string(text) != "---" {
			return string(text) == "mesh:" || bytes.HasPrefix(text, []byte("mesh: "))
		}
	}
	return false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// show gives a value as JSON, cut short.
func show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "the value"
	}
	if r := []rune(string(b)); len(r) > 60 {
		return string(r[:60]) + "…"
	}
	return string(b)
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// nearest says which known key may have been meant.
func nearest(key string, known []string) string {
	if near := policy.Nearest(key, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return "; known here: " + strings.Join(known, ", ")
}
