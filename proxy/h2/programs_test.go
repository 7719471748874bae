package h2

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// program finds a program, or fails: .ci/deps test installs them.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		gopath, _ := exec.Command("go", "env", "GOPATH").Output()
		path, err = exec.LookPath(filepath.Join(strings.TrimSpace(string(gopath)), "bin", name))
	}
	if err != nil {
		t.Fatalf("%s is not installed: run .ci/deps test", name)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func TestCurl(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.Method, " ", n, "\n")
	})
	p := startProxy(t, up, nil)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// Two runs: curl 7.88 cannot use a connection of prior knowledge a second time.
	if out := run(t, "curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_version}\n", p.url()); out != "GET 0\n2\n" {
		t.Errorf("%q", out)
	}
	if out := run(t, "curl", "-sS", "--http2-prior-knowledge", "--data-binary", "@"+file, p.url()); out != "POST 3145728\n" {
		t.Errorf("%q", out)
	}
}

func TestNghttp(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "from "+r.URL.Path) })
	p := startProxy(t, up, nil)
	out := run(t, "nghttp", p.url()+"/a", p.url()+"/b", "-m", "3")
	for _, path := range []string{"/a", "/b"} {
		if strings.Count(out, "from "+path) != 3 {
			t.Errorf("%s", out)
		}
	}
}

func TestH2load(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	p := startProxy(t, up, nil)
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, make([]byte, 3000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-n1000", "-c10", "-m20"}, {"-n100", "-c1", "-m100", "-w10", "-W12"}, {"-n200", "-c50", "-m1"}} {
		out := run(t, "h2load", append(args, "-d", file, p.url())...)
		if !regexp.MustCompile(` (\d+) succeeded, 0 failed, 0 errored, 0 timeout`).MatchString(out) {
			t.Errorf("%v: %s", args, out)
		}
	}
}

// TestTheSpecification runs the conformance tests of h2spec.
func TestTheSpecification(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "hello world")
	})
	p := startProxy(t, up, nil)
	out, err := exec.Command(program(t, "h2spec"), "-h", "127.0.0.1", "-p", strconv.Itoa(p.port), "-o", "5").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "145 tests, 145 passed, 0 skipped, 0 failed") {
		_, failures, _ := strings.Cut(string(out), "Failures:")
		t.Errorf("%v\n%s", err, failures)
	}
}
