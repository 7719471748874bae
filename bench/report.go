package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// report is a whole run.
type report struct {
	Machine machine   `json:"machine"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Results []*result `json:"results"`
}

// machine says on what, and of what.
type machine struct {
	CPU      string   `json:"cpu"`
	CPUs     int      `json:"cpus"`
	Kernel   string   `json:"kernel"`
	TCP      string   `json:"tcp_congestion_control"`
	Go       string   `json:"go"`
	Programs []string `json:"programs"`
	Absent   []string `json:"absent,omitempty"`
	Command  string   `json:"command"`
}

func describeMachine(o *options, absent []string) machine {
	m := machine{
		CPUs: runtime.NumCPU(), Go: runtime.Version(), Absent: absent,
		Command: o.command(),
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(b))
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control"); err == nil {
		m.TCP = strings.TrimSpace(string(b))
	}
	if out, err := exec.Command(filepath.Join(o.bin, "weir-proxy"), "--version").Output(); err == nil {
		m.Programs = append(m.Programs, strings.TrimSpace(string(out)))
	}
	for _, p := range peers(o.envoy) {
		if path, err := exec.LookPath(p.program); err == nil && (len(o.peers) == 0 || slices.Contains(o.peers, p.name)) && !p.big {
			p.program = path
			m.Programs = append(m.Programs, p.printed())
		}
	}
	return m
}

// command is the command line without the places of files, which say nothing to
// others.
func (o *options) command() string {
	out := "bench"
	if o.quick {
		out += " -quick"
	}
	if o.works != nil {
		out += " -work " + strings.Join(o.works, ",")
	}
	if o.peers != nil {
		out += " -peer " + strings.Join(o.peers, ",")
	}
	if o.rounds > 0 {
		out += " -rounds " + strconv.Itoa(o.rounds)
	}
	if o.nice != 0 {
		out += " -nice " + strconv.Itoa(o.nice)
	}
	return out
}

// write prints the tables and the lines, and writes the files.
func (r *report) write(o *options, stdout io.Writer) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	encoded, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.out, "result.json"), append(encoded, '\n'), 0o644); err != nil {
		return err
	}
	tables := r.markdown()
	if o.doc != "" {
		if err := replaceTables(o.doc, tables); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(stdout, "%s\n%s", tables, r.lines())
	return err
}

// failures is an error when weir could not do a work.
func (r *report) failures() error {
	var errs []error
	for _, res := range r.Results {
		for _, text := range res.Failed["weir"] {
			errs = append(errs, fmt.Errorf("%s: weir: %s", res.Work, text))
		}
	}
	return errors.Join(errs...)
}

// lines are the last word: one for each figure.
func (r *report) lines() string {
	var b strings.Builder
	for _, res := range r.Results {
		for i := range res.Summary {
			s := &res.Summary[i]
			ours, best := s.of("weir"), s.of(s.Best)
			fmt.Fprintf(&b, "work=%s weir=%s", s.Name, value(ours))
			if best != nil {
				fmt.Fprintf(&b, " best=%s:%s ratio=%.2f\n", s.Best, value(best), s.Ratio)
			} else {
				b.WriteString(" best=- ratio=-\n")
			}
		}
	}
	return b.String()
}

func value(f *subjectFigure) string {
	if f == nil {
		return "failed"
	}
	return number(f.Median)
}

// number keeps three digits that mean something.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case a >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
	return strconv.FormatFloat(v, 'f', 3, 64)
}

// markdown is the tables, and what they were measured on.
func (r *report) markdown() string {
	var b strings.Builder
	r.Machine.describe(&b, r)
	b.WriteString("\n### In short\n\n| work | unit | weir | best peer | ratio |\n|---|---|---|---|---|\n")
	for _, res := range r.Results {
		for i := range res.Summary {
			short(&b, &res.Summary[i])
		}
	}
	for _, res := range r.Results {
		fmt.Fprintf(&b, "\n### %s\n\n%s.\n", res.Work, upperFirst(res.Title))
		for i := range res.Summary {
			table(&b, &res.Summary[i], res.Rate, i == 0)
		}
		for _, name := range slices.Sorted(maps.Keys(res.Failed)) {
			errs := res.Failed[name]
			fmt.Fprintf(&b, "\n%s failed %d times: %s\n", name, len(errs), firstLine(errs[0]))
		}
	}
	return b.String()
}

func short(b *strings.Builder, s *summary) {
	fmt.Fprintf(b, "| %s | %s | %s |", s.Name, s.Unit, value(s.of("weir")))
	if best := s.of(s.Best); best != nil {
		fmt.Fprintf(b, " %s %s | %.2f |\n", s.Best, value(best), s.Ratio)
	} else {
		b.WriteString(" - | - |\n")
	}
}

func (m *machine) describe(b *strings.Builder, r *report) {
	fmt.Fprintf(b, "%s, %.0f s: `%s`\n\n", r.Began.UTC().Format("2006-01-02 15:04 UTC"), r.Seconds, m.Command)
	fmt.Fprintf(b, "%d CPUs (%s), Linux %s, TCP %s, built with %s.\n\n", m.CPUs, m.CPU, m.Kernel, m.TCP, m.Go)
	for _, p := range m.Programs {
		fmt.Fprintf(b, "- %s\n", p)
	}
	for _, a := range m.Absent {
		fmt.Fprintf(b, "- absent: %s\n", a)
	}
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// times are the quantiles, where there are any.
func (f *subjectFigure) times() string {
	if f.P50 == 0 {
		return "-"
	}
	return number(f.P50) + " / " + number(f.P99) + " / " + number(f.P999)
}

// table is one figure of all subjects. What goes with the work as a whole stands
// in the first.
func table(b *strings.Builder, s *summary, rate string, first bool) {
	steps := stepNames(s)
	rated := first && slices.ContainsFunc(s.Subjects, func(f subjectFigure) bool { return f.Rate > 0 })
	head := []string{s.Name, s.Unit + " [min–max]", "weir's, paired"}
	if rated {
		head = append(head, rate, "p50 / p99 / p99.9 µs", "with client and backend", "other work, CPUs", "errors")
	}
	b.WriteString("\n")
	line(b, append(head, steps...))
	b.WriteString(strings.Repeat("|---", len(head)+len(steps)) + "|\n")
	for i := range s.Subjects {
		f := &s.Subjects[i]
		fields := []string{f.label(), fmt.Sprintf("%s [%s–%s]", number(f.Median), number(f.Min), number(f.Max)), ratio(f.Ratio)}
		if rated {
			fields = append(fields, number(f.Rate), f.times(), number(f.Total), strconv.FormatFloat(f.Others, 'f', 1, 64), strconv.FormatFloat(f.Errors, 'f', 0, 64))
		}
		for _, step := range steps {
			fields = append(fields, number(f.Steps[step]))
		}
		line(b, fields)
	}
}

func line(b *strings.Builder, fields []string) {
	b.WriteString("| " + strings.Join(fields, " | ") + " |\n")
}

func (f *subjectFigure) label() string {
	if f.Curve == "" {
		return f.Name
	}
	return f.Name + " (" + f.Curve + ")"
}

func ratio(sp *spread) string {
	if sp == nil {
		return "-"
	}
	if sp.N == 1 {
		return fmt.Sprintf("%.2f", sp.Median)
	}
	return fmt.Sprintf("%.2f [%.2f–%.2f]", sp.Median, sp.Min, sp.Max)
}

// stepNames are the steps of a scale run, by number.
func stepNames(s *summary) []string {
	var out []string
	for i := range s.Subjects {
		for step := range s.Subjects[i].Steps {
			if !slices.Contains(out, step) {
				out = append(out, step)
			}
		}
	}
	number := func(s string) int {
		n, _ := strconv.Atoi(s[:strings.IndexByte(s, ' ')])
		return n
	}
	slices.SortFunc(out, func(a, b string) int { return number(a) - number(b) })
	return out
}

// The lines of the document between which the tables stand.
const (
	tablesBegin = "<!-- bench: from here to the end mark written by make bench -->"
	tablesEnd   = "<!-- bench: end -->"
)

// replaceTables puts tables between the marks of a document, and leaves the rest
// as its authors wrote it.
func replaceTables(path, tables string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := bytes.Cut(old, []byte(tablesBegin))
	_, tail, ended := bytes.Cut(rest, []byte(tablesEnd))
	if !ok || !ended {
		return fmt.Errorf("%s: the marks %q and %q are not there", path, tablesBegin, tablesEnd)
	}
	return os.WriteFile(path, slices.Concat(head, []byte(tablesBegin+"\n\n"+tables+"\n"+tablesEnd), tail), 0o644)
}
