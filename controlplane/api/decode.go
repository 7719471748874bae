package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// jsonFormat is the only format of the API. Its decoder is stricter than
// encoding/json: two readers of one body must not read two things.
var jsonFormat = huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: decode}

func decode(data []byte, v any) error {
	if err := checkJSON(data); err != nil {
		return err
	}
	err := json.Unmarshal(data, v)
	var te *json.UnmarshalTypeError
	if errors.As(err, &te) {
		// The schema was checked before, so this is a number that does not fit.
		what := fmt.Sprintf("%s does not fit into %s", strings.TrimPrefix(te.Value, "number "), te.Type)
		if te.Field == "" {
			return errors.New(what)
		}
		return fmt.Errorf(".%s: %s", te.Field, what)
	}
	return err
}

// checkJSON refuses what is not one JSON text in UTF-8 (RFC 8259 section 8.1)
// and objects that name a member twice, of which encoding/json would take the
// last and others the first (section 4).
func checkJSON(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("is not UTF-8")
	}
	var whole json.RawMessage
	err := json.Unmarshal(data, &whole)
	var se *json.SyntaxError
	if errors.As(err, &se) {
		line, column := position(data, se.Offset)
		return fmt.Errorf("is not JSON: line %d, column %d: %w", line, column, err)
	} else if err != nil {
		return fmt.Errorf("is not JSON: %w", err)
	}
	return checkTwice(data)
}

// position gives line and column of the byte before an offset, from 1.
func position(data []byte, offset int64) (line, column int) {
	before := data[:max(0, min(offset, int64(len(data)))-1)]
	return bytes.Count(before, []byte("\n")) + 1, len(before) - bytes.LastIndexByte(before, '\n')
}

// level is one object or list that encloses what is being read.
type level struct {
	names map[string]bool // nil for a list
	name  string          // the member being read
	key   bool            // a name comes next
}

func checkTwice(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber() // else 1e999 is an error of the wrong kind
	var open []*level
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("is not JSON: %w", err)
		}
		var in *level
		if len(open) > 0 {
			in = open[len(open)-1]
		}
		if name, ok := token.(string); ok && in != nil && in.key {
			if in.names[name] {
				return fmt.Errorf("%s: is given twice", pathOf(open, name))
			}
			in.names[name], in.name, in.key = true, name, false
			continue
		}
		switch token {
		case json.Delim('{'):
			open = append(open, &level{names: map[string]bool{}, key: true})
			continue
		case json.Delim('['):
			open = append(open, &level{})
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
		if len(open) > 0 { // a value has ended
			open[len(open)-1].key = open[len(open)-1].names != nil
		}
	}
}

func pathOf(open []*level, name string) string {
	var b strings.Builder
	for _, l := range open[:len(open)-1] {
		if l.names != nil {
			b.WriteString("." + l.name)
		} else {
			b.WriteString("[]")
		}
	}
	return b.String() + "." + name
}
