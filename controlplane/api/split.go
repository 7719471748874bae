package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// part is one document's text. Its lines are those of the file, so that only
// their number needs correcting.
type part struct {
	text []byte
	line int // lines of the file before it
}

// split cuts a file into its documents. The YAML parser could do it, but drops
// what follows an empty document without a word.
func split(data []byte) []part {
	if parts, ok := splitJSON(data); ok {
		return parts
	}
	var parts []part
	current := part{}
	for i, line := range bytes.SplitAfter(data, []byte("\n")) {
		// YAML 1.2 section 9.1.2: a marker at the start of a line ends a
		// document wherever it stands, in a block of text too.
		marker := len(line) >= 3 && (len(line) == 3 || bytes.IndexByte([]byte(" \t\r\n"), line[3]) >= 0)
		switch {
		case marker && string(line[:3]) == "---":
			parts = append(parts, current)
			current = part{text: append([]byte("   "), line[3:]...), line: i}
		case marker && string(line[:3]) == "...":
			parts = append(parts, current)
			current = part{line: i + 1}
		default:
			current.text = append(current.text, line...)
		}
	}
	return append(parts, current)
}

// splitJSON cuts a stream of JSON texts; not ok for anything else.
func splitJSON(data []byte) ([]part, bool) {
	if len(bytes.TrimLeft(data, " \t\r\n")) == 0 {
		return nil, false
	}
	var parts []part
	dec := json.NewDecoder(bytes.NewReader(data))
	for {
		var text json.RawMessage
		if err := dec.Decode(&text); errors.Is(err, io.EOF) {
			return parts, true
		} else if err != nil || bytes.IndexByte([]byte("{["), text[0]) < 0 {
			return nil, false
		}
		end := int(dec.InputOffset())
		start := end - len(text)
		lineStart := bytes.LastIndexByte(data[:start], '\n') + 1
		// Blanks keep the columns. JSON has tabs between its tokens only, where
		// YAML would not have them.
		kept := append(bytes.Repeat([]byte(" "), start-lineStart), bytes.ReplaceAll(text, []byte("\t"), []byte(" "))...)
		parts = append(parts, part{text: kept, line: bytes.Count(data[:lineStart], []byte("\n"))})
	}
}

// parse gives the part's documents: none, one, or the elements of a list.
func (p *part) parse(file string) ([]ast.Node, error) {
	tree, err := parser.ParseBytes(p.text, 0)
	if err != nil {
		var ye yaml.Error
		if errors.As(err, &ye) && ye.GetToken() != nil {
			pos := ye.GetToken().Position
			return nil, fmt.Errorf("%s:%d:%d: %s", file, pos.Line+p.line, pos.Column, ye.GetMessage())
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var nodes []ast.Node
	for _, doc := range tree.Docs {
		switch body := doc.Body.(type) {
		case nil, *ast.NullNode, *ast.CommentGroupNode:
		case *ast.SequenceNode:
			nodes = append(nodes, body.Values...)
		default:
			nodes = append(nodes, body)
		}
	}
	return nodes, nil
}
