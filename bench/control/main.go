// Command control measures the control plane at scale: a real `weir control`
// and thousands of proxies that follow it over TLS. What the figures mean it
// leaves to docs/CONTROL-PLANE-SCALE.md, of which it writes the tables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The simulated proxies share the machine with what is measured: less time
	// of theirs in the collector, for more memory.
	debug.SetGCPercent(400)
	err := run(ctx, os.Args[1:])
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	size  size
	quick bool
	bin   string
	doc   string
}

func parseOptions(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("control", flag.ContinueOnError)
	f.BoolVar(&o.quick, "quick", false, "a tenth of the size, under two minutes")
	f.StringVar(&o.bin, "bin", "bin", "directory with weir, weir-proxy and weir-init")
	f.StringVar(&o.doc, "doc", "", "Markdown file whose tables are to be replaced")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	o.size = fullSize
	if o.quick {
		o.size = quickSize
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "control: "+format+"\n", args...) }
	rep, err := measure(ctx, o.bin, o.size, logf)
	if err != nil {
		if rep != nil {
			fmt.Print(rep.lines()) // as far as it came
		}
		return err
	}
	if o.doc != "" {
		if err := replaceTables(o.doc, rep.markdown(o)); err != nil {
			return err
		}
	}
	fmt.Print(rep.lines())
	return rep.failures()
}
