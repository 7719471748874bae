package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sort"
	"strings"
)

// shortcuts are the names seed B's configuration has for settings that seed A's
// groups hold; both spellings set and show the same value.
var shortcuts = []struct{ short, path string }{
	{"global_timeout", "resilience.timeout.default"},
	{"default_retry_attempts", "resilience.retry.max_attempts"},
	{"circuit_breaker_enabled", "resilience.circuit_breaker.enabled"},
	{"observability.tracing_enabled", "observability.tracing.enabled"},
	{"observability.metrics_enabled", "observability.metrics.enabled"},
}

// Merge lays a JSON object over the settings: what it does not name stays.
// In "services" each service named replaces that service's settings, and null
// removes them; "namespaces" likewise. The error is Problems, each with its path; the settings given
// are not changed.
func (s Settings) Merge(patch []byte) (Settings, error) {
	tree, err := readPatch(patch)
	if err != nil {
		return s, err
	}
	if err := expandShortcuts(tree); err != nil {
		return s, err
	}
	removed := takeNulls(tree)
	if p := checkShape("", tree, reflect.TypeOf(s)); len(p) > 0 {
		return s, p
	}
	out, err := s.clone()
	if err != nil {
		return s, err
	}
	plain, err := json.Marshal(tree)
	if err != nil {
		return s, fmt.Errorf("settings: %w", err)
	}
	if err := json.Unmarshal(plain, &out); err != nil {
		return s, fmt.Errorf("settings: %w", err)
	}
	for _, name := range removed["services"] {
		delete(out.Services, name)
	}
	for _, name := range removed["namespaces"] {
		delete(out.Namespaces, name)
	}
	if p := out.Validate(); len(p) > 0 {
		return s, p
	}
	return out, nil
}

func readPatch(patch []byte) (tree map[string]any, err error) {
	dec := json.NewDecoder(bytes.NewReader(patch))
	dec.UseNumber()
	if err := dec.Decode(&tree); err != nil {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not a JSON object: more follows after its end")
	}
	if tree == nil {
		return nil, errors.New("not a JSON object: null")
	}
	return tree, nil
}

func (s Settings) clone() (Settings, error) {
	var out Settings
	b, err := json.Marshal(s)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	return out, err
}

// Effective gives the settings as GET /config shows them: every group and the
// shortcuts, without secrets.
func (s Settings) Effective() (map[string]any, error) {
	s.Security.JWTSecret = ""
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	var tree map[string]any
	if err := json.Unmarshal(b, &tree); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	for _, sc := range shortcuts {
		parent, key := resolve(tree, sc.short, false)
		from, name := resolve(tree, sc.path, false)
		if parent != nil && from != nil {
			parent[key] = from[name]
		}
	}
	return tree, nil
}

// expandShortcuts moves shortcuts to the paths they stand for. Both spellings
// with different values are refused.
func expandShortcuts(tree map[string]any) error {
	var p Problems
	for _, sc := range shortcuts {
		parent, key := resolve(tree, sc.short, false)
		if parent == nil {
			continue
		}
		v, ok := parent[key]
		if !ok {
			continue
		}
		delete(parent, key)
		to, name := resolve(tree, sc.path, true)
		if to == nil {
			continue // a wrong type on the way is reported by the shape check
		}
		if other, both := to[name]; both && !reflect.DeepEqual(other, v) {
			p.add(sc.short, "is %v, but %s, which is the same setting, is %v", v, sc.path, other)
			continue
		}
		if msg := wrongType(v, settingKind(sc.path)); msg != "" {
			p.add(sc.short, "%s", msg)
			continue
		}
		to[name] = v
	}
	return p.Err()
}

// resolve finds the object that holds the last part of a dotted path.
func resolve(tree map[string]any, path string, create bool) (map[string]any, string) {
	parts := strings.Split(path, ".")
	for _, part := range parts[:len(parts)-1] {
		next, ok := tree[part].(map[string]any)
		if !ok {
			if _, taken := tree[part]; taken || !create {
				return nil, ""
			}
			next = map[string]any{}
			tree[part] = next
		}
		tree = next
	}
	return tree, parts[len(parts)-1]
}

// takeNulls removes services and namespaces set to null from the patch and names
// them.
func takeNulls(tree map[string]any) map[string][]string {
	removed := map[string][]string{}
	for _, group := range []string{"services", "namespaces"} {
		members, _ := tree[group].(map[string]any)
		for name, v := range members {
			if v == nil {
				removed[group] = append(removed[group], name)
				delete(members, name)
			}
		}
	}
	return removed
}

func settingKind(path string) reflect.Type {
	t := reflect.TypeOf(Settings{})
	for _, part := range strings.Split(path, ".") {
		f, _ := fieldByJSON(t, part)
		t = f.Type
	}
	return t
}

// checkShape lists unknown keys, with the nearest known one, and wrong types.
func checkShape(path string, v any, t reflect.Type) Problems {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var p Problems
	if msg := wrongType(v, t); msg != "" {
		p.add(path, "%s", msg)
		return p
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		obj := v.(map[string]any)
		for _, key := range sortedKeys(obj) {
			at := join(path, key)
			if t.Kind() == reflect.Map {
				p = append(p, checkShape(at, obj[key], t.Elem())...)
			} else if f, ok := fieldByJSON(t, key); ok {
				p = append(p, checkShape(at, obj[key], f.Type)...)
			} else {
				p.add(at, "unknown setting%s", suggest(key, path, t))
			}
		}
	case reflect.Slice:
		for i, e := range v.([]any) {
			p = append(p, checkShape(fmt.Sprintf("%s[%d]", path, i), e, t.Elem())...)
		}
	}
	return p
}

func wrongType(v any, t reflect.Type) string {
	want, ok := "", false
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		_, ok = v.(map[string]any)
		want = "an object"
	case reflect.Slice:
		_, ok = v.([]any)
		want = "a list"
	case reflect.String:
		_, ok = v.(string)
		want = "a string"
	case reflect.Bool:
		_, ok = v.(bool)
		want = "true or false"
	case reflect.Int:
		if n, isNumber := v.(json.Number); isNumber {
			_, err := n.Int64()
			ok = err == nil
		}
		want = "a whole number"
	case reflect.Float64:
		_, ok = v.(json.Number)
		want = "a number"
	}
	if ok {
		return ""
	}
	b, _ := json.Marshal(v)
	return fmt.Sprintf("%s is not %s", b, want)
}

func fieldByJSON(t reflect.Type, key string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == key {
			return t.Field(i), true
		}
	}
	return reflect.StructField{}, false
}

// suggest names the known key nearest to an unknown one.
func suggest(key, path string, t reflect.Type) string {
	var known []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		known = append(known, name)
	}
	for _, sc := range shortcuts {
		if rest, ok := strings.CutPrefix(sc.short, path+"."); ok {
			known = append(known, rest)
		} else if path == "" && !strings.Contains(sc.short, ".") {
			known = append(known, sc.short)
		}
	}
	if near := Nearest(key, known); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	sort.Strings(known)
	return "; known here: " + strings.Join(known, ", ")
}

// Nearest gives the word of least edit distance, if at most a third of the
// longer word differs; "" otherwise, and for words of more than 100 bytes.
func Nearest(word string, known []string) string {
	if len(word) > 100 {
		return ""
	}
	best, at := "", 0
	for _, k := range known {
		d := editDistance(word, k)
		if 3*d <= max(len(word), len(k)) && (best == "" || d < at) {
			best, at = k, d
		}
	}
	return best
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(row[j+1]+1, row[j]+1, cost)
		}
	}
	return row[len(b)]
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
