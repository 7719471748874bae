// Command release says what weir's programs are made of: it checks the licences
// of what is linked, and writes a bill of materials and the licence texts for a
// release. It builds no programs; .ci/release does.
//
// It is a module of its own, so that its libraries are not weir's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("release", flag.ContinueOnError)
	root := f.String("root", ".", "directory of weir's module")
	allow := f.String("allow", "deploy/release/licenses.allow", "file with the licences that are allowed, one a line")
	version := f.String("version", "dev", "of the release, for the bill of materials")
	sbom := f.String("sbom", "", "write a bill of materials (CycloneDX, JSON) to this file")
	texts := f.String("texts", "", "copy the licence texts into this directory")
	if err := f.Parse(args); err != nil {
		return err
	}
	modules, err := linked(ctx, *root)
	if err != nil {
		return err
	}
	if err := classify(modules); err != nil {
		return err
	}
	allowed, err := readAllowed(*allow)
	if err != nil {
		return err
	}
	if err := check(modules, allowed); err != nil {
		return err
	}
	fmt.Printf("%d modules are linked, all under licences of %s\n", len(modules), *allow)
	var errs []error
	if *sbom != "" {
		errs = append(errs, writeSBOM(ctx, *sbom, *root, *version, modules))
	}
	if *texts != "" {
		errs = append(errs, copyTexts(*texts, modules))
	}
	return errors.Join(errs...)
}
