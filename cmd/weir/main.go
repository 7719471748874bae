// Command weir is the operator's command: it runs the control plane and calls
// its API. What the calls mean is decided in the control plane.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

// run gives the exit status: 0, or 1 for what failed, or 2 for a command that
// was not understood; weir run has the status of its program.
func run() int {
	ends := []os.Signal{syscall.SIGTERM}
	if !signal.Ignored(os.Interrupt) { // as in the background of a script
		ends = append(ends, os.Interrupt)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends at once
	cmd, err := newRootCommand().ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var program *exitError
	if errors.As(err, &program) {
		if program.error != nil {
			fmt.Fprintf(os.Stderr, "weir run: %v\n", err)
		}
		return program.status
	}
	if errors.Is(err, errDenied) { // which is said already
		return 1
	}
	fmt.Fprintf(os.Stderr, "weir: %v\n", err)
	var own *statusError
	if errors.As(err, &own) {
		return own.status
	}
	var failed *failedError
	if errors.As(err, &failed) {
		return 1
	}
	fmt.Fprintf(os.Stderr, "Run \"%s --help\" for usage.\n", cmd.CommandPath())
	return 2
}
