package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set when a release is built.
var version = ""

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "dev"
}

func newVersionCommand(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			v := map[string]string{"version": versionText(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			return opt.print(cmd, v, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "weir %s (%s, %s)\n", v["version"], v["go"], v["platform"])
				return err
			})
		}),
	}
}
