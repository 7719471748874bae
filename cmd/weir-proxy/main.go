// Command weir-proxy is the sidecar: it runs beside an app, takes the
// connections that weir-init redirects and carries them through the mesh.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/proxy"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weir-proxy:", err)
		var usage *usageError
		if errors.As(err, &usage) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// usageError is a mistake in the flags: exit status 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func newCommand() *cobra.Command {
	f := defaults()
	cmd := &cobra.Command{
		Use:   "weir-proxy --control ADDR --service NAME {--token-file FILE | --join-kubernetes | --spire-socket PATH} [--app-port PORT]…",
		Short: "The sidecar of the weir service mesh",
		Long: `weir-proxy runs beside one app, in the app's network namespace, after weir-init
has put the redirection there. It joins the mesh with a token made by
"weir token create", with its pod's service account, or with an identity of a
SPIRE agent. It answers DNS for the mesh's names, carries the app's
connections out with mTLS and takes those of other workloads in.

SIGTERM drains: the app's endpoints leave the mesh, open requests finish, then
it ends.`,
		Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true, Version: version,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, closers, err := f.config()
			if err != nil {
				return &usageError{err}
			}
			defer closers()
			if err := f.confine(cfg.Log); err != nil {
				return err
			}
			// One more than there are loops, so that what else there is to do need
			// not wait for a loop to be idle.
			cfg.Loops = runtime.GOMAXPROCS(0)
			runtime.GOMAXPROCS(cfg.Loops + 1)
			p, err := proxy.New(cfg)
			if err != nil {
				return err
			}
			if !f.pprof {
				runtime.MemProfileRate = 0 // nobody can ask for what it samples
			}
			var small sync.WaitGroup
			defer small.Wait()
			ctx, stop := context.WithCancel(cmd.Context())
			defer stop()
			small.Go(func() { keepSmall(ctx, p.Ready()) })
			return p.Run(ctx)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	f.register(cmd.Flags())
	for _, name := range []string{"control", "service"} {
		_ = cmd.MarkFlagRequired(name)
	}
	// The heap is small and what lives is long-lived: collect less often, but
	// never let garbage make the process large.
	debug.SetGCPercent(200)
	return cmd
}
