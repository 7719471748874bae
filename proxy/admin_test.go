package proxy

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime/trace"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/telemetry"
)

// adminOf runs a sidecar's admin port until the test ends, and asks it.
func adminOf(t *testing.T, p *Proxy) (ask func(path string) (int, string)) {
	t.Helper()
	o := &ports{}
	a, err := p.newAdmin(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return func(path string) (int, string) {
		t.Helper()
		resp, err := client.Get("http://" + a.ln.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
}

func TestMetricsAreWhereTheMeshSays(t *testing.T) {
	p := sidecar(t)
	ask := adminOf(t, p)
	for _, c := range []struct {
		path string
		want map[string]int
	}{
		{"", map[string]int{"/metrics": 200, "/": 404, "/health": 200}},
		{"/stats/weir", map[string]int{"/metrics": 404, "/stats/weir": 200, "/stats": 404, "/health": 200}},
	} {
		if err := p.setMesh(policy.Mesh{Metrics: true, MetricsPath: c.path}); err != nil {
			t.Fatal(err)
		}
		for path, want := range c.want {
			if status, body := ask(path); status != want {
				t.Errorf("metrics at %q: %s is %d: %.100s", c.path, path, status, body)
			}
		}
	}
}

func TestLogsAreAsTheMeshSays(t *testing.T) {
	var first, second bytes.Buffer
	var told []string
	p, err := New(Config{Service: users, Control: []string{"127.0.0.1:1"}, TokenFile: "unused", Admin: "127.0.0.1:0", AccessLog: &first,
		SetLog: func(level, format string) { told = append(told, level+" "+format) },
		AccessLogAs: func(output string) io.Writer {
			if output == "stderr" {
				return &second
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	for _, output := range []string{"stdout", "stderr"} {
		if err := p.setMesh(policy.Mesh{LogLevel: "warn", LogFormat: "console", LogOutput: output}); err != nil {
			t.Fatal(err)
		}
		p.access.Log(&telemetry.Record{Protocol: "to " + output})
		ended, end := context.WithCancel(t.Context())
		end()
		if err := p.access.Run(ended); err != nil { // writes what waits
			t.Fatal(err)
		}
	}
	if !strings.Contains(first.String(), "to stdout") || strings.Contains(first.String(), "to stderr") || !strings.Contains(second.String(), "to stderr") {
		t.Errorf("%s\n%s", first.String(), second.String())
	}
	if len(told) != 2 || told[0] != "warn console" {
		t.Errorf("told %v", told)
	}
}

// profiled is a sidecar with its profiles on.
func profiled(t *testing.T) *Proxy {
	p := sidecar(t)
	p.cfg.Profiles = true
	return p
}

var profilePaths = []string{"", "profile?seconds=1", "trace", "heap", "goroutine?debug=2", "allocs", "cmdline", "symbol"}

func TestProfilesAreNotServedUnlessAskedFor(t *testing.T) {
	ask := adminOf(t, sidecar(t))
	for _, path := range profilePaths {
		if status, body := ask("/debug/pprof/" + path); status != http.StatusNotFound {
			t.Errorf("/debug/pprof/%s: %d %.80q", path, status, body)
		}
	}
}

func TestProfilesAreServedWhenAskedFor(t *testing.T) {
	ask := adminOf(t, profiled(t))
	for path, want := range map[string]string{
		"": "heap?debug=1", "profile?seconds=1": "\x1f\x8b", "trace?seconds=1": "go 1.", "trace": "go 1.", // gzip; the trace's magic
		"heap": "\x1f\x8b", "allocs": "\x1f\x8b", "goroutine?debug=2": "goroutine 1 [", "goroutine?debug=1": "goroutine profile:",
	} {
		if status, body := ask("/debug/pprof/" + path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("/debug/pprof/%s: %d %.80q", path, status, body)
		}
	}
	for path, want := range map[string]int{"none": 404, "heap/x": 404, "heap?debug=much": 400, "heap?debug=-1": 400} {
		if status, body := ask("/debug/pprof/" + path); status != want {
			t.Errorf("/debug/pprof/%s: %d %.80q", path, status, body)
		}
	}
	if status, _ := ask("/health"); status != http.StatusOK {
		t.Error("the other answers are gone:", status)
	}
}

func TestAProfileIsNotTakenWithoutBound(t *testing.T) {
	ask := adminOf(t, profiled(t))
	for _, seconds := range []string{"61", "60.5", "1e9", "99999999999999999999", "Inf", "NaN", "0", "-1", "long"} {
		for _, path := range []string{"profile", "trace"} {
			status, body := ask("/debug/pprof/" + path + "?seconds=" + seconds)
			if status != http.StatusBadRequest || !strings.Contains(body, "1..60") {
				t.Errorf("%s of %s seconds: %d %.80q", path, seconds, status, body)
			}
		}
	}
}

func TestOneRecordingOfAKindAtATime(t *testing.T) {
	ask := adminOf(t, profiled(t))
	if err := trace.Start(io.Discard); err != nil {
		t.Fatal(err)
	}
	defer trace.Stop()
	if status, body := ask("/debug/pprof/trace"); status != http.StatusConflict || !strings.Contains(body, "already") {
		t.Errorf("%d %.80q", status, body)
	}
}

func TestAProfileEndsWithTheProxy(t *testing.T) {
	p := profiled(t)
	a, err := p.newAdmin(&ports{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx) }()
	asked := make(chan error, 1)
	go func() {
		resp, err := http.Get("http://" + a.ln.Addr().String() + "/debug/pprof/trace?seconds=60")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		asked <- err
	}()
	await(t, "the trace began", trace.IsEnabled)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := <-asked; err == nil {
		t.Error("a trace that was cut looks whole")
	}
	await(t, "the trace ended", func() bool { return !trace.IsEnabled() })
}

// await asks until it is so; a test that waits in vain ends by its time limit.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("never: " + what)
		}
	}
}

func TestHealthAndReadyBeforeTheControlPlaneIsHeard(t *testing.T) {
	ask := adminOf(t, sidecar(t))
	if status, body := ask("/health"); status != http.StatusOK || !strings.Contains(body, `"default/front"`) {
		t.Errorf("health: %d %s", status, body)
	}
	if status, body := ask("/ready"); status != http.StatusServiceUnavailable || !strings.Contains(body, "not been heard") {
		t.Errorf("ready: %d %s", status, body)
	}
	if status, _ := ask("/debug"); status != http.StatusNotFound {
		t.Error("a path that nothing answers:", status)
	}
	if status, body := ask("/metrics"); status != http.StatusOK || !strings.Contains(body, "# HELP") {
		t.Errorf("metrics: %d %.80s", status, body)
	}
}

// TestNoRouteOfTheAdminPortIsAWrite holds for routes to come, too.
func TestNoRouteOfTheAdminPortIsAWrite(t *testing.T) {
	mux := http.NewServeMux()
	done := 0
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) { done++ })
	mux.HandleFunc("POST /drain", func(http.ResponseWriter, *http.Request) { done++ })
	h := onlyReads(mux)
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PURGE", "get"} {
		for _, path := range []string{"/", "/drain", "/metrics"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
			if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" || done != 0 {
				t.Errorf("%s %s: %d, Allow %q, %d done", method, path, w.Code, w.Header().Get("Allow"), done)
			}
		}
	}
	for _, method := range []string{"GET", "HEAD"} {
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, httptest.NewRequest(method, "/metrics", nil)); w.Code != http.StatusOK {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
}
