package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/weir-mesh/weir/controlplane/api"
)

// printForetold shows what a write would do.
func printForetold(w io.Writer, s *api.Stored) error {
	for _, r := range s.Results {
		for _, warning := range r.Warnings {
			if _, err := fmt.Fprintf(w, "warning: %s: %s\n", r.Document, warning); err != nil {
				return err
			}
		}
	}
	if err := printChanges(w, s.Changes); err != nil || len(s.Changes) == 0 {
		return err
	}
	var names []string
	for _, p := range s.Proxies {
		names = append(names, p.ID)
	}
	told := "no connected proxy would be told"
	if len(names) > 0 {
		told = fmt.Sprintf("%d connected proxies would be told: %s", len(names), strings.Join(names, ", "))
	}
	_, err := fmt.Fprintf(w, "%s; nothing was stored\n", told)
	return err
}

// printChanges shows each resource that changes, with the lines of its value
// that go (-) and come (+).
func printChanges(w io.Writer, changes []api.Change) error {
	if len(changes) == 0 {
		_, err := fmt.Fprintln(w, "nothing changes")
		return err
	}
	for i := range changes {
		c := &changes[i]
		if _, err := fmt.Fprintf(w, "%s %s\n", c.Ref(), c.Action); err != nil {
			return err
		}
		before, err := lines(c.Before)
		if err != nil {
			return err
		}
		after, err := lines(c.After)
		if err != nil {
			return err
		}
		for _, line := range difference(before, after) {
			if _, err := fmt.Fprintln(w, "  "+line); err != nil {
				return err
			}
		}
	}
	return nil
}

// lines gives a value as lines of YAML, each under the keys that it is under, so
// that a line that changes tells where it stands.
func lines(value json.RawMessage) ([]string, error) {
	if len(value) == 0 {
		return nil, nil
	}
	text, err := yaml.JSONToYAML(value)
	if err != nil {
		return nil, fmt.Errorf("what the control plane sent: %w", err)
	}
	var out, under []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "- ") {
			depth++ // an element stands below its list, as far in as its name
		}
		under = under[:min(depth, len(under))]
		if key, open := strings.CutSuffix(trimmed, ":"); open {
			under = append(under, key+".")
			continue
		}
		if leftToMesh(trimmed) {
			continue
		}
		out = append(out, strings.Join(under, "")+trimmed)
	}
	return out, nil
}

// leftToMesh tells a line that says that nothing was said: the mesh's setting
// holds, or there is nothing to match.
func leftToMesh(line string) bool {
	return line == "timeout: 0" || line == "retry_attempts: 0" || strings.HasSuffix(line, `: ""`) || strings.HasSuffix(line, ": {}")
}

// difference gives the lines that are in one list only, in order; those of a
// value that comes or goes, and those of one that stays only where they differ.
func difference(before, after []string) []string {
	var out []string
	for _, line := range before {
		if !slices.Contains(after, line) {
			out = append(out, "- "+line)
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			out = append(out, "+ "+line)
		}
	}
	return out
}
