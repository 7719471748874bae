package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	classifier "github.com/google/licenseclassifier/v2"
	"github.com/google/licenseclassifier/v2/assets"
)

// classify finds the licences in the modules' texts.
func classify(modules []*module) error {
	c, err := assets.DefaultClassifier()
	if err != nil {
		return fmt.Errorf("the classifier of licences: %w", err)
	}
	known := map[string][]string{} // most texts are of many modules
	for _, m := range modules {
		for _, text := range m.Texts {
			names, ok := known[string(text)]
			if !ok {
				names = licensesIn(c, text)
				known[string(text)] = names
			}
			m.Licenses = append(m.Licenses, names...)
		}
		slices.Sort(m.Licenses)
		m.Licenses = slices.Compact(m.Licenses)
	}
	return nil
}

// licensesIn are the licences whose whole text, or the notice that refers to
// it, is found.
func licensesIn(c *classifier.Classifier, text []byte) []string {
	var names []string
	for _, m := range c.Match(c.Normalize(text)).Matches {
		if m.MatchType == "License" || m.MatchType == "Header" {
			names = append(names, m.Name)
		}
	}
	return names
}

// readAllowed reads licences, one a line; # starts a comment.
func readAllowed(file string) ([]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		name, _, _ := strings.Cut(line, "#")
		if name = strings.TrimSpace(name); name != "" {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s allows nothing", file)
	}
	return out, nil
}

// check wants each module to have a licence, and each of its licences allowed.
func check(modules []*module, allowed []string) error {
	var errs []error
	for _, m := range modules {
		if len(m.Licenses) == 0 {
			errs = append(errs, fmt.Errorf("%s %s: no licence is known by its texts (%d files)", m.Path, m.Version, len(m.Texts)))
		}
		for _, name := range m.Licenses {
			if !slices.Contains(allowed, name) {
				errs = append(errs, fmt.Errorf("%s %s is under %s, which is not allowed; do without it, or decide and add it to the list", m.Path, m.Version, name))
			}
		}
	}
	return errors.Join(errs...)
}

var notInNames = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// copyTexts writes each module's licence texts to dir, as MODULE__FILE.
func copyTexts(dir string, modules []*module) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, m := range modules {
		for name, text := range m.Texts {
			path := filepath.Join(dir, notInNames.ReplaceAllString(m.Path, "_")+"__"+notInNames.ReplaceAllString(name, "_"))
			if err := os.WriteFile(path, text, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}
