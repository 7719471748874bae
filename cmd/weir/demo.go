package main

import (
	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/cmd/weir/demo"
)

func newDemoCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a small mesh on this machine and show what it does", Args: cobra.NoArgs,
		RunE: runs(nil, func(cmd *cobra.Command, _ []string) error {
			return demo.Run(cmd.Context(), demo.Config{Keep: keep, Out: cmd.OutOrStdout()})
		}),
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the mesh running until interrupted")
	return cmd
}
