package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// module is something that is linked into weir's programs.
type module struct {
	Path, Version string
	Sum           string            // of go.sum, "h1:" and base64; "" for the standard library
	Texts         map[string][]byte // licence texts, by file name below the module
	Licenses      []string          // SPDX identifiers found in them
}

// targets are what releases are built for.
var targets = []string{"amd64", "arm64"}

// standard is the path that the Go standard library has in bills of materials.
const standard = "std"

// linked are the modules with packages in any of the programs on any target,
// the standard library among them, weir itself not. Their order is by path.
func linked(ctx context.Context, root string) ([]*module, error) {
	sums, err := readSums(filepath.Join(root, "go.sum"))
	if err != nil {
		return nil, err
	}
	found := map[string]*module{}
	for _, arch := range targets {
		out, err := goCommand(ctx, root, arch, "list", "-deps", "-json=Dir,ImportPath,Standard,Module", "-tags", "grpcnotrace", "./cmd/...")
		if err != nil {
			return nil, err
		}
		for d := json.NewDecoder(bytes.NewReader(out)); ; {
			var p listed
			if err := d.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("read what go list says: %w", err)
			}
			if err := p.addTo(found, sums); err != nil {
				return nil, err
			}
		}
	}
	if err := addStandard(ctx, root, found); err != nil {
		return nil, err
	}
	all := make([]*module, 0, len(found))
	for _, m := range found {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *module) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

// listed is a package as go list -json shows it.
type listed struct {
	Dir, ImportPath string
	Standard        bool
	Module          *struct {
		Path, Version, Dir string
		Main               bool
		Replace            *struct{ Path string }
	}
}

func (p *listed) addTo(found map[string]*module, sums map[string]string) error {
	switch {
	case p.Standard, p.Module != nil && p.Module.Main:
		return nil
	case p.Module == nil:
		return fmt.Errorf("%s is of no module", p.ImportPath)
	case p.Module.Replace != nil:
		return fmt.Errorf("%s is replaced by %s: a release is of what go.mod names", p.Module.Path, p.Module.Replace.Path)
	}
	m := found[p.Module.Path]
	if m == nil {
		m = &module{Path: p.Module.Path, Version: p.Module.Version, Sum: sums[p.Module.Path+" "+p.Module.Version], Texts: map[string][]byte{}}
		if m.Sum == "" {
			return fmt.Errorf("go.sum has no sum of %s %s; run go mod tidy", m.Path, m.Version)
		}
		found[m.Path] = m
	}
	// Code that a module took over from others has its text beside it.
	for dir := p.Dir; ; dir = filepath.Dir(dir) {
		if err := m.addTexts(p.Module.Dir, dir); err != nil {
			return err
		}
		if dir == p.Module.Dir {
			return nil
		}
	}
}

var textName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-].*)?$`)

// addTexts adds the licence texts in one directory of a module.
func (m *module) addTexts(root, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !textName.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if m.Texts[name], err = os.ReadFile(path); err != nil {
			return err
		}
	}
	return nil
}

// addStandard adds the standard library of the Go that builds.
func addStandard(ctx context.Context, root string, found map[string]*module) error {
	out, err := goCommand(ctx, root, targets[0], "env", "GOVERSION", "GOROOT")
	if err != nil {
		return err
	}
	words := strings.Fields(string(out))
	if len(words) != 2 {
		return fmt.Errorf("go env says %q, want a version and a directory", out)
	}
	m := &module{Path: standard, Version: strings.TrimPrefix(words[0], "go"), Texts: map[string][]byte{}}
	found[standard] = m
	// Distributions keep the text elsewhere; what they package has the same one.
	if err := m.addTexts(words[1], words[1]); err != nil || len(m.Texts) > 0 {
		return err
	}
	return m.addTexts(filepath.Dir(words[1]), filepath.Dir(words[1]))
}

// readSums reads the sums of module contents, by "PATH VERSION".
func readSums(file string) (map[string]string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if w := strings.Fields(line); len(w) == 3 && !strings.HasSuffix(w[1], "/go.mod") {
			sums[w[0]+" "+w[1]] = w[2]
		}
	}
	return sums, nil
}

func goCommand(ctx context.Context, root, arch string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=-mod=readonly", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", args[0], err, stderr.Bytes())
	}
	return out, nil
}
