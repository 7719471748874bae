package main

import (
	"fmt"
	"io"

	"github.com/weir-mesh/weir/controlplane/api"
)

// printConfigFile says how the mesh file stands, each of its errors on a line of
// its own that an editor can jump to.
func printConfigFile(w io.Writer, f *api.ConfigFile) error {
	if f == nil {
		return nil
	}
	line := "config file " + configFileText(f)
	for _, list := range []struct {
		word  string
		lines []string
	}{{"error", f.Errors}, {"warning", f.Warnings}, {"unresolved", f.Unresolved}} {
		for _, l := range list.lines {
			line += "\n  " + list.word + ": " + l
		}
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// warned counts what of the file has no effect, for who does not ask after it.
func warned(f *api.ConfigFile) string {
	if len(f.Warnings) == 0 {
		return ""
	}
	return fmt.Sprintf(", warnings: %d, which weir get status shows", len(f.Warnings))
}

// configFileText says in one line how the mesh file stands.
func configFileText(f *api.ConfigFile) string {
	text := f.Path + ": " + f.State
	if f.State == "refused" {
		text += "; what was in force before stays"
	}
	if f.AppliedAt > 0 {
		text += fmt.Sprintf(" (in force: %s, since %s, by %s)", f.Digest, when(f.AppliedAt), f.AppliedBy)
	}
	return text
}
