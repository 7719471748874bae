package main

import (
	"errors"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/cmd/weir/demo"
)

func newDemoCommand() *cobra.Command {
	var cfg demo.Config
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a small mesh on this machine and show what it does", Args: cobra.NoArgs,
		Long: "demo runs a small mesh in network namespaces of this machine, with real programs, and prints one line\n" +
			"for each thing it shows, with what was measured. It needs root, or a kernel that allows user namespaces.\n" +
			"Nothing is left when it has ended; the exit status is 0 only if everything shown holds.",
		RunE: runs(nil, func(cmd *cobra.Command, _ []string) error {
			cfg.Out = cmd.OutOrStdout()
			err := demo.Run(cmd.Context(), cfg)
			if inside, ok := errors.AsType[*exec.ExitError](err); ok {
				os.Exit(max(1, inside.ExitCode())) // it ran in a user namespace, and has said why it failed
			}
			return err
		}),
	}
	cmd.Flags().BoolVar(&cfg.Keep, "keep", false, "leave the mesh running until interrupted, and print what to try")
	cmd.AddCommand(newDemoAppCommand())
	return cmd
}

// newDemoAppCommand is hidden: it plays an app where the machine has no other.
func newDemoAppCommand() *cobra.Command {
	var app demo.App
	cmd := &cobra.Command{
		Use: "app", Short: "A plain server that knows nothing of the mesh", Args: cobra.NoArgs, Hidden: true,
		RunE: runs(nil, func(cmd *cobra.Command, _ []string) error { return app.Run(cmd.Context()) }),
	}
	f := cmd.Flags()
	f.StringVar(&app.Instance, "instance", "app", "name it answers with")
	f.StringVar(&app.Version, "version", "v1", "version it answers with")
	f.StringVar(&app.Listen, "listen", ":8001", "address to listen on")
	f.StringVar(&app.FailFile, "fail-file", "", "while this file exists, answers are 500")
	f.BoolVar(&app.Echo, "echo", false, "echo TCP instead of serving HTTP")
	return cmd
}
