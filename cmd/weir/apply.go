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
	var dryRun bool
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Register endpoints, add rules and change settings from files", Args: cobra.NoArgs,
		Long: "Apply reads YAML or JSON documents of the kinds Endpoint, TrafficRule, SecurityRule and Config.\n" +
			"All files together are one change: all of it is stored, or nothing. What is there already is left alone.",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			docs, err := readFiles(cmd.InOrStdin(), files)
			if err != nil {
				return err
			}
			c, err := opt.client()
			if err != nil {
				return err
			}
			done, err := c.Apply(cmd.Context(), docs, dryRun)
			if err != nil {
				return placed(err, docs)
			}
			return opt.print(cmd, done, func(w io.Writer) error {
				if dryRun {
					return printForetold(w, &done)
				}
				return printApplied(w, &done)
			})
		}),
	}
	filesFlag(cmd, &files)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change and which proxies would be told; store nothing")
	return cmd
}

// placed puts a document's place in its file before what the control plane says
// of it by its number.
func placed(err error, docs []api.Document) error {
	var i int
	if _, scan := fmt.Sscanf(err.Error(), "body.documents[%d]", &i); scan == nil && i < len(docs) {
		return fmt.Errorf("%s: %w", docs[i].Position, err)
	}
	return err
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

func printApplied(w io.Writer, done *api.Stored) error {
	for _, a := range done.Results {
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
	if done.Revision == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "stored as revision %d\n", done.Revision)
	return err
}
