// Command bench measures weir's proxy beside other proxies, in the same place
// and under the same load. What the figures mean for the product it leaves to
// docs/PERFORMANCE.md, of which it writes the tables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "backend":
			return runBackend(ctx, args[1:])
		case "load":
			return runLoad(ctx, args[1:], os.Stdin, os.Stdout)
		}
	}
	return runBench(ctx, args)
}

func runBackend(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("bench backend", flag.ContinueOnError)
	base := f.Int("port", 8001, "first of six ports: small HTTP answers, echo, bulk, large HTTP answers, HTTP/2, gRPC")
	if err := f.Parse(args); err != nil {
		return err
	}
	b, err := newBackend(*base)
	if err != nil {
		return err
	}
	return b.run(ctx)
}
