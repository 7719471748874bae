package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

const weir = "github.com/weir-mesh/weir"

// writeSBOM writes a CycloneDX bill of materials. The same sources give the same
// bytes: it has no serial number and no time.
func writeSBOM(ctx context.Context, file, root, version string, modules []*module) (err error) {
	graph, err := requirements(ctx, root)
	if err != nil {
		return err
	}
	bom, err := newBOM(version, modules, graph)
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
}

func newBOM(version string, modules []*module, graph map[string][]string) (*cdx.BOM, error) {
	bom := cdx.NewBOM()
	top := component(cdx.ComponentTypeApplication, weir, version, []string{"Apache-2.0"})
	bom.Metadata = &cdx.Metadata{Component: &top}
	refs := map[string]string{weir: top.BOMRef}
	var components []cdx.Component
	for _, m := range modules {
		c := component(cdx.ComponentTypeLibrary, m.Path, m.Version, m.Licenses)
		if m.Sum != "" {
			sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
			if err != nil {
				return nil, fmt.Errorf("the sum of %s in go.sum: %w", m.Path, err)
			}
			c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}}
		}
		refs[m.Path] = c.BOMRef
		components = append(components, c)
	}
	bom.Components = &components
	bom.Dependencies = dependencies(refs, graph)
	return bom, nil
}

func component(kind cdx.ComponentType, path, version string, licenses []string) cdx.Component {
	purl := "pkg:golang/" + path + "@" + version
	c := cdx.Component{Type: kind, BOMRef: purl, PackageURL: purl, Name: path, Version: version}
	var choices cdx.Licenses
	for _, l := range licenses {
		choices = append(choices, cdx.LicenseChoice{License: &cdx.License{ID: l}})
	}
	c.Licenses = &choices
	return c
}

// dependencies are the edges of graph between what has a reference, by
// reference. All of weir and of its modules stands on the standard library.
func dependencies(refs map[string]string, graph map[string][]string) *[]cdx.Dependency {
	var out []cdx.Dependency
	for path, ref := range refs {
		var on []string
		for _, to := range graph[path] {
			if r, ok := refs[to]; ok {
				on = append(on, r)
			}
		}
		if std, ok := refs[standard]; ok && path != standard {
			on = append(on, std)
		}
		slices.Sort(on)
		on = slices.Compact(on)
		out = append(out, cdx.Dependency{Ref: ref, Dependencies: &on})
	}
	slices.SortFunc(out, func(a, b cdx.Dependency) int { return strings.Compare(a.Ref, b.Ref) })
	return &out
}

// requirements are which module requires which, by path: which version of each
// is taken is one for all.
func requirements(ctx context.Context, root string) (map[string][]string, error) {
	out, err := goCommand(ctx, root, targets[0], "mod", "graph")
	if err != nil {
		return nil, err
	}
	graph := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		if w := strings.Fields(line); len(w) == 2 {
			from, _, _ := strings.Cut(w[0], "@")
			to, _, _ := strings.Cut(w[1], "@")
			graph[from] = append(graph[from], to)
		}
	}
	return graph, nil
}
