// Command weir-init installs, checks, shows and removes the redirection of a network namespace's traffic to the proxy, then ends.
// What is redirected and how is package redirect's.
//
// It exits with 0 when all went well, 1 when something failed or a check did, and
// 2 when it was called wrongly.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// usageError is a call that cannot be understood.
type usageError struct{ error }

// errChecksFailed has been reported in detail already.
var errChecksFailed = errors.New("a check failed")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := command(stdout)
	cmd.Version = version
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "weir-init: %v\n", err)
	if _, usage := errors.AsType[usageError](err); usage {
		fmt.Fprintln(stderr, "weir-init --help lists the flags")
		return 2
	}
	return 1
}
