package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
)

// options are the flags that every operator's command has.
type options struct {
	server    string
	tokenFile string
	caFile    string
	output    string
}

func newRootCommand() *cobra.Command {
	opt := &options{}
	root := &cobra.Command{
		Use:           "weir",
		Short:         "A service mesh that asks nothing of the application",
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newControlCommand(), newDemoCommand(), newVersionCommand(opt), newValidateCommand(opt), newRunCommand(opt), newRunInsideCommand())
	for _, cmd := range []*cobra.Command{newTokenCommand(opt), newGetCommand(opt), newDeleteCommand(opt), newApplyCommand(opt),
		newStatusCommand(opt), newHistoryCommand(opt), newDiffCommand(opt), newRollbackCommand(opt), newCircuitCommand(opt), newCACommand(opt), newRevokeCommand(opt),
		newExplainCommand(opt), newCheckCommand(opt), newPolicyCommand(opt)} {
		f := cmd.PersistentFlags()
		f.StringVar(&opt.server, "server", env("WEIR_SERVER", "http://127.0.0.1:8080"), "URL of the control plane (WEIR_SERVER)")
		f.StringVar(&opt.tokenFile, "token-file", os.Getenv("WEIR_TOKEN_FILE"), "file with the admin token (WEIR_TOKEN_FILE) (default "+defaultTokenFile()+")")
		f.StringVar(&opt.caFile, "ca-file", os.Getenv("WEIR_CA_FILE"), "PEM file with the mesh's root, for an https server (WEIR_CA_FILE)")
		root.AddCommand(cmd)
	}
	for _, cmd := range root.Commands() {
		if cmd.Name() != "control" && cmd.Name() != "demo" {
			cmd.PersistentFlags().StringVarP(&opt.output, "output", "o", "text", "text, json or yaml")
		}
	}
	return root
}

// failedError is an error of a command that was understood; any other is one
// of usage.
type failedError struct{ error }

func (e *failedError) Unwrap() error { return e.error }

// statusError is an error with an exit status of its own.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// runs makes a command's function one whose errors are failures.
func runs(opt *options, f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if opt != nil && opt.output != "text" && opt.output != "json" && opt.output != "yaml" {
			return fmt.Errorf("--output %q is not text, json or yaml", opt.output)
		}
		err := f(cmd, args)
		var usage *usageError
		if err == nil || errors.As(err, &usage) {
			return err
		}
		return &failedError{err}
	}
}

// usageError is for what a command finds wrong with its arguments itself.
type usageError struct{ string }

func (e *usageError) Error() string { return e.string }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// dataDir is where the control plane keeps its state unless told otherwise.
func dataDir() string {
	if dir := os.Getenv("WEIR_DATA_DIR"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/lib/weir"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "weir-data"
	}
	return filepath.Join(home, ".local", "share", "weir")
}

func defaultTokenFile() string { return filepath.Join(dataDir(), "admin.token") }

// client makes the client that the flags describe.
func (o *options) client() (*api.Client, error) {
	if !strings.HasPrefix(o.server, "http://") && !strings.HasPrefix(o.server, "https://") {
		return nil, usagef("--server %q is not an http:// or https:// URL", o.server)
	}
	token, err := o.token()
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if o.caFile != "" {
		pem, err := os.ReadFile(o.caFile)
		if err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca-file: %s holds no certificate in PEM", o.caFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	}
	return &api.Client{
		BaseURL: o.server, Token: token, HTTP: &http.Client{Transport: transport, Timeout: time.Minute},
		Stale: func(why string) { fmt.Fprintln(os.Stderr, "weir: "+why) },
	}, nil
}

// token reads the admin token. Where the default file is not there none is
// sent: the server may be one that asks for none, and says so if it is not.
func (o *options) token() (string, error) {
	file, asked := o.tokenFile, true
	if file == "" {
		file, asked = defaultTokenFile(), false
	}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
