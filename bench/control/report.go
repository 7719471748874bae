package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// figure is something measured. Fewer is better everywhere but where goal says
// otherwise.
type figure struct {
	name  string
	what  string // for the table
	goal  string // "" where there is none
	wrong bool   // a value above 0 is an error, not only slow
}

// figures are all there are, in the order of the report.
var figures = []figure{
	{name: "propagation_p50_ms", what: "a change reaches the last of a service's followers, from the call of the API, median", goal: ""},
	{name: "propagation_p99_ms", what: "the same, 99th percentile", goal: "200"},
	{name: "propagation_changes", what: "changes of which these are"},
	{name: "propagation_hub_p50_ms", what: "a change of the service that all proxies follow reaches the last of them, median", goal: ""},
	{name: "propagation_hub_p99_ms", what: "the same, 99th percentile", goal: "200"},
	{name: "propagation_hub_changes", what: "changes of which these are: fewer than meant where they take too long"},
	{name: "propagation_few_p50_ms", what: "as propagation, before the services were added that nobody follows, median"},
	{name: "propagation_few_p99_ms", what: "the same, 99th percentile"},
	{name: "control_rss_idle_mib", what: "memory of the control plane, nothing stored"},
	{name: "control_rss_few_mib", what: "with the services that are followed"},
	{name: "control_rss_proxies_mib", what: "and with the proxies"},
	{name: "control_rss_all_mib", what: "and with all services"},
	{name: "control_rss_all_files_mib", what: "of that, pages of files: etcd's database and the program"},
	{name: "control_rss_kib_per_proxy", what: "of that, for each proxy"},
	{name: "control_rss_restarted_mib", what: "after the restart at the end"},
	{name: "bytes_per_change", what: "sent to all followers of a change, TLS included"},
	{name: "updates_per_change", what: "resources sent for a change"},
	{name: "change_cpu_us_few", what: "CPU of the control plane for a change, API and etcd included, few services"},
	{name: "change_cpu_us_all", what: "the same with all services"},
	{name: "change_cpu_ratio", what: "all to few", goal: "1.3"},
	{name: "fanout_cpu_us_per_proxy", what: "CPU for a change of the service that all follow, for each of them"},
	{name: "fanout_cpu_us_per_follower", what: "and of each simulated proxy, on the same CPUs"},
	{name: "idle_cpu_percent", what: "CPU when nothing changes: leases are kept alive"},
	{name: "load_seconds", what: "registering the services that nobody follows through the API, 64 calls at a time"},
	{name: "load_endpoints_per_s", what: "endpoints of these in a second"},
	{name: "apply_endpoints_per_s", what: "endpoints in a second by `weir apply`, which makes one change of a file"},
	{name: "load_retries", what: "registrations that were tried again as etcd did not answer in time"},
	{name: "certificates_per_s", what: "certificates issued in a second"},
	{name: "connect_seconds", what: "all proxies come at once, each with an endpoint on a lease, until all hold all they follow"},
	{name: "connect_bytes_per_proxy", what: "sent to a proxy until then, with what changed as others came"},
	{name: "proxy_rss_few_mib", what: "memory of a weir-proxy that uses ten services, in a mesh of no more"},
	{name: "proxy_rss_all_mib", what: "the same in the whole mesh"},
	{name: "proxy_rss_ratio", what: "whole to small mesh", goal: "1.1"},
	{name: "burst_seconds", what: "the burst"},
	{name: "burst_settle_ms", what: "after its last change, until every proxy holds what the API lists (about 0.5 s of it to ask)"},
	{name: "burst_cpu_us_per_change", what: "CPU for each change of the burst"},
	{name: "burst_responses", what: "responses sent in the burst, by the proxies' ACKs"},
	{name: "burst_updates", what: "resources in these"},
	{name: "burst_updates_possible", what: "had each change been sent to each follower"},
	{name: "burst_coalesced", what: "the part of these that was not sent, as a later state was: each service changes once in 0.2 s"},
	{name: "burst_lost", what: "services of proxies that differ from the API's in the end", goal: "0", wrong: true},
	{name: "restart_api_seconds", what: "from kill -9 until the API answers again"},
	{name: "restart_seconds", what: "from kill -9 until all proxies are attached and follow"},
	{name: "restart_bytes_per_proxy", what: "sent to a proxy meanwhile, TLS handshakes included"},
	{name: "restart_updates", what: "resources sent that differ from what the proxy had"},
	{name: "restart_services_lost", what: "services that a proxy lost meanwhile", goal: "0", wrong: true},
	{name: "checks_per_s", what: "health checks of all endpoints, without proxies, at an interval of 30 s (4 s with -quick)"},
	{name: "checks_cpu_percent", what: "CPU of the control plane meanwhile"},
	{name: "checks_cpu_us_each", what: "for each check"},
	{name: "checks_wrong", what: "endpoints found unhealthy that answer", goal: "0", wrong: true},
}

// report collects what was measured.
type report struct {
	size   *size
	began  time.Time
	values map[string]float64
	commit string
}

func newReport(bin string, z *size) *report {
	r := &report{size: z, began: time.Now(), values: map[string]float64{}}
	if out, err := exec.Command(filepath.Join(bin, "weir"), "version").Output(); err == nil {
		r.commit, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	}
	return r
}

func (r *report) set(name string, v float64) { r.values[name] = v }

func (r *report) times(name string, took []time.Duration) {
	sorted := inOrder(took)
	for p, label := range map[float64]string{0.5: "_p50_ms", 0.99: "_p99_ms"} {
		r.set(name+label, percentile(sorted, p).Seconds()*1000)
	}
}

// compare works out what follows from other figures, where there are those.
func (r *report) compare() {
	v := r.values
	derive := func(name string, f func(of ...float64) float64, from ...string) {
		var of []float64
		for _, n := range from {
			if x, ok := v[n]; ok {
				of = append(of, x)
			}
		}
		if len(of) == len(from) {
			v[name] = f(of...)
		}
	}
	same := func(of ...float64) float64 { return of[0] }
	for name, from := range map[string]string{
		"propagation_changes": "propagation_all_changes", "propagation_p50_ms": "propagation_all_p50_ms", "propagation_p99_ms": "propagation_all_p99_ms",
		"bytes_per_change": "bytes_per_change_all", "updates_per_change": "updates_per_change_all", "idle_cpu_percent": "idle_cpu_percent_all",
	} {
		derive(name, same, from)
	}
	ratio := func(of ...float64) float64 { return of[0] / of[1] }
	derive("change_cpu_ratio", ratio, "change_cpu_us_all", "change_cpu_us_few")
	derive("proxy_rss_ratio", ratio, "proxy_rss_all_mib", "proxy_rss_few_mib")
	derive("control_rss_kib_per_proxy", func(of ...float64) float64 {
		return (of[0] - of[1]) * 1024 / float64(r.size.proxies)
	}, "control_rss_proxies_mib", "control_rss_few_mib")
}

// lines are the last word: one for each figure.
func (r *report) lines() string {
	var b strings.Builder
	for _, f := range figures {
		if v, ok := r.values[f.name]; ok {
			fmt.Fprintf(&b, "measure=%s value=%s goal=%s\n", f.name, number(v), orDash(f.goal))
		}
	}
	return b.String()
}

// failures is an error when something was lost.
func (r *report) failures() error {
	for _, f := range figures {
		if v := r.values[f.name]; f.wrong && v != 0 {
			return fmt.Errorf("%s is %s: %s", f.name, number(v), f.what)
		}
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// number keeps three digits that mean something.
func number(v float64) string {
	switch {
	case v == float64(int64(v)) || v >= 100 || v <= -100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10 || v <= -10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// markdown is the table, and what it was measured on.
func (r *report) markdown(o *options) string {
	var b strings.Builder
	command := "make bench-control"
	if o.quick {
		command = "bin/bench-control -quick"
	}
	fmt.Fprintf(&b, "%s, %.0f s: `%s`, %s\n\n", r.began.UTC().Format("2006-01-02 15:04 UTC"), time.Since(r.began).Seconds(), command, r.commit)
	fmt.Fprintf(&b, "%d CPUs (%s), Linux %s, built with %s; etcd's log on %s.\n\n", runtime.NumCPU(), cpuModel(), kernel(), runtime.Version(), fileSystem(os.TempDir()))
	fmt.Fprintf(&b, "Load average of the machine at the end, this run included: %s.\n\n", loadAverage())
	fmt.Fprintf(&b, "%d services, of which %d are followed; %d endpoints each; %d proxies, each of which follows %d.\n\n",
		r.size.all, r.size.few, r.size.endpoints, r.size.proxies, r.size.follows)
	b.WriteString("| measure | value | goal | what |\n|---|---|---|---|\n")
	for _, f := range figures {
		if v, ok := r.values[f.name]; ok {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, number(v), orDash(f.goal), f.what)
		}
	}
	return b.String()
}

func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo") // "" then: it is for people
	for line := range strings.Lines(string(text)) {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "CPU not known"
}

// fileSystem says whether writes are synced to a disk.
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "an unknown file system"
	}
	if st.Type == unix.TMPFS_MAGIC {
		return "a tmpfs: syncing it costs nothing"
	}
	return "a disk"
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(text))
	return strings.Join(fields[:min(3, len(fields))], ", ") // of 1, 5 and 15 minutes
}

func kernel() string {
	text, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(text))
}

// The lines of the document between which the tables stand.
const (
	tablesBegin = "<!-- bench-control: from here to the end mark written by make bench-control -->"
	tablesEnd   = "<!-- bench-control: end -->"
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
