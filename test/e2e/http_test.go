package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// httpMesh is a frontend in front of one service with three apps that never
// heard of a mesh: net/http on 8001, nginx on 8002, python's on 8003.
type httpMesh struct {
	*meshlab.Mesh
	front, web *meshlab.Node
	app        *app
	dir        string // nginx and python serve it
}

func newHTTPMesh(t *testing.T) *httpMesh {
	m := &httpMesh{Mesh: start(t)}
	m.web = bare(t, m.Mesh, "web")
	m.app = serve(t, m.web, "echo", 8001, nil)
	m.dir = filepath.Join(m.Dir, "www-web")
	web(t, m.Mesh, m.web, "8003", map[string]string{"index.html": "hello from python\n"})
	nginx(t, m.Mesh, m.web, 8002, fmt.Sprintf("server { listen 8002; root %s; client_max_body_size 1m; location /upload { proxy_pass http://127.0.0.1:8001; } }", m.dir))
	enter(t, m.Mesh, m.web, meshlab.Workload{Host: "web", Service: "web", Ports: []string{"8001", "8002", "8003"}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	curl(t, m.front, "http://web/") // so that its proxy follows the service from here on
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "web")); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestHTTPArrivesAsItWasSent(t *testing.T) {
	t.Parallel()
	m := newHTTPMesh(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *httpMesh)
	}{
		{"KeepAliveCarriesManyRequestsOnOneConnection", keepAlive},
		{"HEADHasTheLengthAndNoBody", head},
		{"AnswersWithoutABodyKeepTheConnection", noBody},
		{"ABodyOf1MiBArrivesExactly", upload},
		{"ExpectContinueIsAnsweredByTheApp", expectContinue},
		{"TrailersPassBothWays", trailers},
		{"DownloadsAreExact", downloads},
		{"AnEarly413ReachesAClientThatStillSends", early413},
		{"AnUpgradedConnectionCarriesBytesBothWays", upgrade},
		{"MethodsPathsAndHostPassUntouched", untouched},
		{"PythonAnswersThroughTheMesh", python},
		{"TheRequestIDIsMadeOrKeptAndReturned", requestID},
		{"TheTraceContextIsPassedOnOrBegun", traceContext},
		{"ForgedIdentityHeadersNeverArrive", forged},
		{"HTTP2IsNoWayAroundTheRules", http2IsRead},
		{"ManyClientsAtOnceGetTheirOwnAnswers", concurrent},
	} {
		t.Run(c.name, func(t *testing.T) { m.app.forget(); c.run(t, m) })
	}
}

// connects runs curl for several addresses in one go and gives how many
// connections each of them took.
func connects(t *testing.T, n *meshlab.Node, args ...string) string {
	return curl(t, n, append([]string{"-o", "/dev/null", "-w", "%{http_code}:%{num_connects} "}, args...)...)
}

func keepAlive(t *testing.T, m *httpMesh) {
	for _, port := range []string{"8001", "8002"} {
		u := "http://web:" + port + "/index.html"
		got := connects(t, m.front, u, "-o", "/dev/null", u, "-o", "/dev/null", u)
		if got != "200:1 200:0 200:0 " {
			t.Errorf("port %s: status:connections %s", port, got)
		}
	}
}

func head(t *testing.T, m *httpMesh) {
	for _, port := range []string{"8002", "8003"} {
		u := "http://web:" + port + "/index.html"
		a := ask(t, m.front, "-I", u)
		if a.Status != 200 || a.Header.Get("Content-Length") != "18" {
			t.Errorf("port %s: %d, Content-Length %q", port, a.Status, a.Header.Get("Content-Length"))
		}
	}
	u := "http://web:8002/index.html"
	if got := connects(t, m.front, "-I", u, "--next", "-sS", "-o", "/dev/null", "-w", "%{http_code}:%{num_connects} ", u); got != "200:1 200:0 " {
		t.Errorf("GET after HEAD: %s", got)
	}
}

func noBody(t *testing.T, m *httpMesh) {
	u := "http://web:8001/x?status="
	got := connects(t, m.front, u+"204", "-o", "/dev/null", u+"304", "-o", "/dev/null", u+"200")
	if got != "204:1 304:0 200:0 " {
		t.Errorf("status:connections %s", got)
	}
	since := ask(t, m.front, "http://web:8002/index.html").Header.Get("Last-Modified")
	ask(t, m.front, "-H", "If-Modified-Since: "+since, "http://web:8002/index.html").want(t, 304, "", "")
}

func upload(t *testing.T, m *httpMesh) {
	path, sum := randomFile(t, t.TempDir(), "body", 1<<20, 1)
	for _, c := range []struct {
		name    string
		args    []string
		chunked bool
	}{
		{"by length", []string{"-H", "Expect:"}, false},
		{"by chunks", []string{"-H", "Expect:", "-H", "Transfer-Encoding: chunked"}, true},
		{"by length, expecting 100", []string{"-H", "Expect: 100-continue", "--expect100-timeout", "10"}, false},
		{"by chunks, expecting 100", []string{"-H", "Expect: 100-continue", "--expect100-timeout", "10", "-H", "Transfer-Encoding: chunked"}, true},
		{"PUT", []string{"-X", "PUT"}, false},
	} {
		s := seenBy(t, ask(t, m.front, append(c.args, "--data-binary", "@"+path, "http://web:8001/in")...))
		if s.Length != 1<<20 || s.Sum != sum || s.Chunked != c.chunked {
			t.Errorf("%s: %d bytes, sum right %v, chunked %v", c.name, s.Length, s.Sum == sum, s.Chunked)
		}
	}
}

func expectContinue(t *testing.T, m *httpMesh) {
	out := curl(t, m.front, "-v", "--stderr", "-", "-H", "Expect: 100-continue", "--expect100-timeout", "10", "-d", "abc", "http://web:8001/in")
	if !strings.Contains(out, "< HTTP/1.1 100 Continue") {
		t.Errorf("no 100 came:\n%s", out)
	}
	if got := m.app.count(); got != 1 {
		t.Errorf("the app saw %d requests", got)
	}
	// An app that does not want the body says so, and the body is never sent.
	path, _ := randomFile(t, t.TempDir(), "body", 5<<20, 4)
	got := curl(t, m.front, "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", "-H", "Expect: 100-continue", "--expect100-timeout", "10", "-T", path, "http://web:8002/upload")
	if got != "413 0" {
		t.Errorf("status and bytes sent %s, want nginx's 413 and none", got)
	}
}

// client is net/http's, dialling from a node.
func client(t *testing.T, n *meshlab.Node) *http.Client {
	tr := &http.Transport{DialContext: n.DialContext, ResponseHeaderTimeout: 20 * time.Second}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

func trailers(t *testing.T, m *httpMesh) {
	app := serve(t, m.web, "trailers", 8004, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "Sum")
		_, _ = io.WriteString(w, "body")
		w.Header().Set("Sum", "had "+r.Trailer.Get("Check"))
	})
	defer app.stop()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+m.web.Join(8004)+"/", io.NopCloser(strings.NewReader("payload")))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("TE", "trailers")
	req.Trailer = http.Header{"Check": {"abc"}}
	register(t, m.Mesh, m.web, "web", "web-trailers", 8004, "http")
	known(t, m.Mesh, m.front, "web", "web-trailers")
	resp, err := client(t, m.front).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "body" || resp.Trailer.Get("Sum") != "had abc" {
		t.Errorf("got %q, trailer %v, %v", body, resp.Trailer, err)
	}
	if resp.Header.Get("X-Request-ID") == "" {
		t.Error("the answer has no X-Request-ID: it did not go through the mesh")
	}
}

func downloads(t *testing.T, m *httpMesh) {
	for name, size := range map[string]int64{"small": 48 << 10, "large": 64 << 20} {
		_, sum := randomFile(t, m.dir, name, size, 2)
		for _, port := range []string{"8002", "8003"} {
			got := sumOf(t, m.front, "http://web:"+port+"/"+name)
			if got != sum {
				t.Errorf("%s from port %s: other bytes arrived", name, port)
			}
		}
	}
	// Slow readers get all of it too, and a range is what was asked for.
	if got := sumOf(t, m.front, "--limit-rate", "400k", "http://web:8002/small"); got != sumOf(t, m.front, "http://web:8002/small") {
		t.Error("a slow reader got other bytes")
	}
	a := ask(t, m.front, "-r", "100-199", "-o", "/dev/null", "http://web:8002/large")
	if a.Status != 206 || a.Header.Get("Content-Length") != "100" {
		t.Errorf("range: %d, %s bytes", a.Status, a.Header.Get("Content-Length"))
	}
}

func sumOf(t *testing.T, n *meshlab.Node, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	script := `set -o pipefail; curl -sS --fail --max-time 40 "$@" | sha256sum | cut -d' ' -f1`
	out, err := n.Output(ctx, "bash", append([]string{"-c", script, "sum"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func early413(t *testing.T, m *httpMesh) {
	path, _ := randomFile(t, t.TempDir(), "body", 8<<20, 3)
	for _, args := range [][]string{{"-H", "Expect:"}, {"-H", "Expect: 100-continue"}, {"-H", "Expect:", "-H", "Transfer-Encoding: chunked"}} {
		a := ask(t, m.front, append(args, "-o", "/dev/null", "--data-binary", "@"+path, "http://web:8002/upload")...)
		if a.Status != 413 {
			t.Errorf("%v: %d", args, a.Status)
		}
	}
}

func upgrade(t *testing.T, m *httpMesh) {
	app := serve(t, m.web, "ws", 8005, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
			http.Error(w, "no upgrade asked for", http.StatusUpgradeRequired)
			return
		}
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		// The greeting goes out together with the 101: both must arrive.
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nSec-WebSocket-Accept: yes\r\n\r\nwelcome\n")
		_ = rw.Flush()
		_, _ = io.Copy(c, rw)
	})
	defer app.stop()
	register(t, m.Mesh, m.web, "web", "web-ws", 8005, "http")
	known(t, m.Mesh, m.front, "web", "web-ws")
	c, err := m.front.DialContext(t.Context(), "tcp", "web:8005")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	// So does what the client sends without waiting for the 101.
	_, _ = io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: echo\r\nSec-WebSocket-Key: k\r\n\r\nearly\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "yes" {
		t.Fatalf("got %+v, %v", resp, err)
	}
	_, _ = io.WriteString(c, "more\n")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if string(rest) != "welcome\nearly\nmore\n" || err != nil {
		t.Errorf("after the upgrade came %q, %v", rest, err)
	}
}

func untouched(t *testing.T, m *httpMesh) {
	s := seenBy(t, ask(t, m.front, "--path-as-is", "-X", "PATCH", "-H", "Host: www.example.org:99", "-H", "X-Own:  two  words ", "-H", "Cookie: a=b; c=d",
		"http://web:8001/a/../b//c%2Fd?q=%20+&r"))
	if s.Method != "PATCH" || s.Target != "/a/../b//c%2Fd?q=%20+&r" || s.Host != "www.example.org:99" || s.Header.Get("X-Own") != "two  words" ||
		s.Header.Get("Cookie") != "a=b; c=d" {
		t.Errorf("the app saw %+v", s)
	}
	if s := seenBy(t, ask(t, m.front, "http://web:8001/")); s.Host != "web:8001" {
		t.Errorf("Host was web:8001, the app saw %s", s.Host)
	}
	if s := seenBy(t, ask(t, m.front, "-0", "http://web:8001/")); s.Method != "GET" {
		t.Errorf("HTTP/1.0: the app saw %+v", s)
	}
}

func python(t *testing.T, m *httpMesh) {
	if got := curl(t, m.front, "http://web:8003/"); got != "hello from python\n" {
		t.Errorf("got %q", got)
	}
	ask(t, m.front, "http://web:8003/none").want(t, 404, "", "")
	a := ask(t, m.front, "-d", "x=1", "http://web:8003/")
	if a.Status != 501 || !strings.Contains(a.Header.Get("Server"), "Python") {
		t.Errorf("POST: %d by %q, want python's own 501", a.Status, a.Header.Get("Server"))
	}
}

func concurrent(t *testing.T, m *httpMesh) {
	c := client(t, m.front)
	errs := make(chan error, 32)
	for i := range cap(errs) {
		go func() {
			for j := range 20 {
				u := fmt.Sprintf("http://web:8001/c/%d/%d", i, j)
				resp, err := c.Post(u, "text/plain", strings.NewReader(strings.Repeat("x", i*97)))
				if err != nil {
					errs <- err
					return
				}
				var s seen
				err = json.NewDecoder(resp.Body).Decode(&s)
				_ = resp.Body.Close()
				if err != nil || s.Target != fmt.Sprintf("/c/%d/%d", i, j) || s.Length != int64(i*97) {
					errs <- fmt.Errorf("%s: got %+v, %w", u, s, err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
