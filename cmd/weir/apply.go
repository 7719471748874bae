package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/meshfile"
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
		Use: "validate -f FILE", Short: "Check files as apply and control --config would, and send nothing", Args: cobra.NoArgs,
		Long: "Validate checks documents as weir apply would, and a mesh file (mesh-config.yml, one\n" +
			"that begins with \"mesh:\") as weir control --config would, and sends nothing.",
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			found, err := checkInputs(readInputs(cmd.InOrStdin(), files))
			if err != nil {
				return err
			}
			if found.Documents == 0 && found.MeshFiles == 0 {
				return errNoDocument
			}
			return opt.print(cmd, found, found.print)
		}),
	}
	filesFlag(cmd, &files)
	return cmd
}

// validated is what was found to be valid.
type validated struct {
	Documents int      `json:"documents"`
	MeshFiles int      `json:"mesh_files,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
}

func (v *validated) print(w io.Writer) error {
	var lines []string
	for _, warning := range v.Warnings {
		lines = append(lines, "warning: "+warning)
	}
	if v.MeshFiles > 0 {
		lines = append(lines, fmt.Sprintf("%d mesh files are valid", v.MeshFiles))
	}
	if v.Documents > 0 {
		lines = append(lines, fmt.Sprintf("%d documents are valid", v.Documents))
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

func checkInputs(inputs []input) (*validated, error) {
	out := &validated{}
	var errs []error
	for _, in := range inputs {
		if in.err != nil {
			errs = append(errs, in.err)
			continue
		}
		if meshfile.Is(in.data) {
			f, err := meshfile.Check(in.name, in.data)
			if errs = append(errs, err); err == nil {
				out.MeshFiles++
				out.Warnings = append(out.Warnings, f.Warnings.Lines()...)
			}
			continue
		}
		docs, err := api.ReadDocuments(in.name, in.data)
		errs = append(errs, err)
		out.Documents += len(docs)
	}
	return out, errors.Join(errs...)
}

var errNoDocument = errors.New("there is no document in the files")

// input is a file that was read, or why it was not.
type input struct {
	name string
	data []byte
	err  error
}

func readInputs(stdin io.Reader, files []string) []input {
	var out []input
	for _, name := range files {
		in := input{name: name}
		if name == "-" {
			in.data, in.err = io.ReadAll(stdin)
		} else {
			in.data, in.err = os.ReadFile(name)
		}
		if in.err != nil {
			in.err = fmt.Errorf("--file: %w", in.err)
		}
		out = append(out, in)
	}
	return out
}

// readFiles reads all documents, and fails with all that is wrong in any file.
func readFiles(stdin io.Reader, files []string) ([]api.Document, error) {
	var docs []api.Document
	var errs []error
	for _, in := range readInputs(stdin, files) {
		var read []api.Document
		err := in.err
		switch {
		case err != nil:
		case meshfile.Is(in.data):
			err = fmt.Errorf("%s: is a mesh file; give it to weir control --config, which follows it", in.name)
		default:
			read, err = api.ReadDocuments(in.name, in.data)
		}
		docs, errs = append(docs, read...), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, errNoDocument
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
