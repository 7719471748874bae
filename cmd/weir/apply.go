package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
)

func newApplyCommand(opt *options) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Register endpoints, add rules and change settings from files", Args: cobra.NoArgs,
		Long: "Apply reads YAML or JSON documents of the kinds Endpoint, TrafficRule, SecurityRule and Config.\n" +
			"All files are checked as a whole before anything is sent; what is there already is left alone.",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			docs, err := readFiles(cmd.InOrStdin(), files)
			if err != nil {
				return err
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			done, err := applyAll(cmd, c, docs)
			return errors.Join(opt.print(cmd, done, func(w io.Writer) error { return printApplied(w, done) }), err)
		}),
	}
	filesFlag(cmd, &files)
	return cmd
}

func filesFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "file", "f", nil, "file with documents, or - for the standard input; may be given several times")
	_ = cmd.MarkFlagRequired("file") // fails for an unknown flag only
}

func newValidateCommand(opt *options) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "validate -f FILE", Short: "Check files as apply would, and send nothing", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			docs, err := readFiles(cmd.InOrStdin(), files)
			if err != nil {
				return err
			}
			return opt.print(cmd, map[string]int{"documents": len(docs)}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%d documents are valid\n", len(docs))
				return err
			})
		}),
	}
	filesFlag(cmd, &files)
	return cmd
}

// readFiles reads all files, and fails with all that is wrong in any of them.
func readFiles(stdin io.Reader, files []string) ([]api.Document, error) {
	var docs []api.Document
	var errs []error
	for _, name := range files {
		var data []byte
		var err error
		if name == "-" {
			data, err = io.ReadAll(stdin)
		} else {
			data, err = os.ReadFile(name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--file: %w", err))
			continue
		}
		read, err := api.ReadDocuments(name, data)
		docs, errs = append(docs, read...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, errors.New("there is no document in the files")
	}
	return docs, nil
}

// applyAll stops at the first document that is refused, and says how far it
// came.
func applyAll(cmd *cobra.Command, c *api.Client, docs []api.Document) ([]api.Applied, error) {
	done := []api.Applied{}
	for i := range docs {
		a, err := c.Apply(cmd.Context(), &docs[i])
		if err != nil {
			return done, fmt.Errorf("%s: %s: %w (%d of %d documents are applied)", docs[i].Position, a.Document, err, i, len(docs))
		}
		done = append(done, a)
	}
	return done, nil
}

func printApplied(w io.Writer, done []api.Applied) error {
	for _, a := range done {
		line := a.Document + " " + a.Result
		if a.ID != "" {
			line += " " + a.ID
		}
		for _, warning := range a.Warnings {
			line += "\n  warning: " + warning
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
