package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func cells(figures map[string]float64) map[string]cell {
	out := map[string]cell{}
	for name, v := range figures {
		out[name] = cell{"cpu": v}
	}
	return out
}

// The machine was twice as slow in the second round: ratios of medians would
// mislead, those within the rounds do not.
func TestRatiosArePairedInsideRounds(t *testing.T) {
	w := &work{name: "w", figures: []figure{{key: "cpu", unit: "µs"}}}
	r := &result{Work: "w", Rounds: []map[string]cell{
		cells(map[string]float64{"weir": 10, "haproxy": 12, "nginx": 20}),
		cells(map[string]float64{"weir": 20, "haproxy": 24, "nginx": 40}),
		cells(map[string]float64{"weir": 11, "haproxy": 11, "nginx": 20}),
	}}
	s := r.summarise(w, w.figures[0], []string{"weir", "haproxy", "nginx"})
	if s.Best != "haproxy" || math.Abs(s.Ratio-10./12) > 1e-9 {
		t.Errorf("best is %s with %v, want haproxy with 0.83", s.Best, s.Ratio)
	}
	if f := s.of("weir"); f.Median != 11 || f.Min != 10 || f.Max != 20 || f.N != 3 {
		t.Errorf("weir's figure is %+v", f.spread)
	}
}

func TestAPeerThatFailedInARoundIsComparedInTheOthers(t *testing.T) {
	w := &work{name: "w", figures: []figure{{key: "cpu"}}}
	r := &result{Work: "w", Rounds: []map[string]cell{
		cells(map[string]float64{"weir": 10}),
		cells(map[string]float64{"weir": 30, "nginx": 20}),
		cells(map[string]float64{"nginx": 5}),
	}}
	s := r.summarise(w, w.figures[0], []string{"weir", "nginx", "envoy"})
	if s.Best != "nginx" || s.Ratio != 1.5 || s.of("envoy") != nil {
		t.Errorf("best is %s with %v, envoy %v", s.Best, s.Ratio, s.of("envoy"))
	}
}

func TestAddedTimeIsOverNoProxyInTheSameRound(t *testing.T) {
	w := &work{name: "latency", figures: []figure{{key: "cpu", added: true}, {key: "other"}}}
	r := &result{Work: "latency", Rounds: []map[string]cell{
		cells(map[string]float64{"direct": 50, "weir": 90, "nginx": 130}),
		cells(map[string]float64{"direct": 60, "weir": 90, "nginx": 55}), // noise
		cells(map[string]float64{"direct": 50, "weir": 85, "nginx": 120}),
	}}
	s := r.summarise(w, w.figures[0], []string{"direct", "weir", "nginx"})
	if s.Name != "latency-cpu" || s.of("weir").Median != 35 || s.Ratio != .5 || s.Best != "nginx" || s.of("direct") != nil {
		t.Errorf("got %+v", s)
	}
}

func TestLastLinesAndTablesSayTheSame(t *testing.T) {
	w := &work{name: "http-small", title: "small", figures: []figure{{key: "cpu", unit: "µs/request"}}}
	r := &result{Work: w.name, Title: w.title, Failed: map[string][]string{"envoy": {"gone\nmore"}}, Rounds: []map[string]cell{
		{"weir": {"cpu": 11.72, "rate": 80_000, "p50": 700, "p99": 1000, "p999": 2000}, "nginx": {"cpu": 15.6, "rate": 60_000}},
	}}
	r.Summary = []summary{r.summarise(w, w.figures[0], []string{"weir", "nginx", "envoy"})}
	rep := report{Results: []*result{r}}
	if got, want := rep.lines(), "work=http-small weir=11.7 best=nginx:15.6 ratio=0.75\n"; got != want {
		t.Errorf("lines are %q, want %q", got, want)
	}
	for _, want := range []string{"| http-small | µs/request | 11.7 | nginx 15.6 | 0.75 |", "700 / 1000 / 2000", "envoy failed 1 times: gone\n"} {
		if !strings.Contains(rep.markdown(), want) {
			t.Errorf("%q is not in\n%s", want, rep.markdown())
		}
	}
	if err := rep.failures(); err != nil {
		t.Errorf("a peer's failure fails the run: %v", err)
	}
	r.Failed["weir"] = []string{"refused"}
	if err := rep.failures(); err == nil {
		t.Error("weir's failure does not fail the run")
	}
}

func TestTablesAreReplacedAndTheRestIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+tablesBegin+"\nold\n"+tablesEnd+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := replaceTables(path, "new\n"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if want := "before\n" + tablesBegin + "\n\nnew\n\n" + tablesEnd + "\nafter\n"; err != nil || string(got) != want {
			t.Fatalf("got %q, want %q, %v", got, want, err)
		}
	}
	if err := os.WriteFile(path, []byte("no marks"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := replaceTables(path, "new"); err == nil {
		t.Error("a document without marks was changed")
	}
}

func TestEveryWorkIsWellFormed(t *testing.T) {
	seen := map[string]bool{}
	for _, w := range works() {
		if seen[w.name] || w.measure == nil || len(w.figures) == 0 || w.title == "" {
			t.Errorf("work %q is given twice or lacks something", w.name)
		}
		seen[w.name] = true
		if !w.takesPart("weir") {
			t.Errorf("weir takes no part in %s", w.name)
		}
	}
	if w := works()[0]; w.takesPart("direct") || w.takesPart("haproxy-64k") || !w.takesPart("haproxy") {
		t.Errorf("%s is done by the wrong ones", w.name)
	}
}
