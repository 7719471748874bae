package policy

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
)

// Overlap names the settings that two patches of Settings.Merge set to different
// values, by their paths, in order. The spellings of a setting count as one, and
// so do those of a service's name. A service's settings are one whole, as they
// are to Merge. The error says which patch is not a JSON object.
func Overlap(a, b []byte) ([]string, error) {
	left, err := canonical(a)
	if err != nil {
		return nil, fmt.Errorf("first patch: %w", err)
	}
	right, err := canonical(b)
	if err != nil {
		return nil, fmt.Errorf("second patch: %w", err)
	}
	return overlap("", left, right), nil
}

func canonical(patch []byte) (map[string]any, error) {
	tree, err := readPatch(patch)
	if err != nil {
		return nil, err
	}
	if err := expandShortcuts(tree); err != nil {
		return nil, err
	}
	// Once more through JSON: 30 and 30.0 are the same setting.
	plain, err := json.Marshal(tree)
	if err == nil {
		tree = nil
		err = json.Unmarshal(plain, &tree)
	}
	if err != nil {
		return nil, err
	}
	services, ok := tree["services"].(map[string]any)
	if !ok {
		return tree, nil
	}
	named := map[string]any{}
	for key, v := range services {
		if name, err := ParseServiceName(key, "default"); err == nil {
			key = name.String()
		}
		named[key] = v
	}
	tree["services"] = named
	return tree, nil
}

func overlap(path string, a, b map[string]any) []string {
	var out []string
	for _, key := range sortedKeys(a) {
		other, both := b[key]
		if !both {
			continue
		}
		at := join(path, key)
		left, isGroup := a[key].(map[string]any)
		right, alsoGroup := other.(map[string]any)
		if isGroup && alsoGroup && path != "services" {
			out = append(out, overlap(at, left, right)...)
		} else if !reflect.DeepEqual(a[key], other) {
			out = append(out, at)
		}
	}
	slices.Sort(out)
	return out
}
