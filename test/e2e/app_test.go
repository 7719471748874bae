package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// app is a plain net/http server in a namespace that knows nothing of a mesh,
// and remembers what it was asked.
type app struct {
	name string
	srv  *http.Server

	mu   sync.Mutex // guards what follows
	seen []seen
}

// seen is a request as the app had it.
type seen struct {
	Method, Target, Host, Proto string
	Header                      http.Header
	Trailer                     http.Header
	Chunked                     bool
	Length                      int64
	Sum                         string // SHA-256 of the body
	From                        string
}

// serve starts an app. Without a handler it answers with what it saw, as JSON;
// /health always answers 200 and is not counted.
func serve(t *testing.T, n *meshlab.Node, name string, port int, handler http.HandlerFunc) *app {
	t.Helper()
	ln, err := n.ListenTCP(net.JoinHostPort("", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, ln, name, handler)
}

func serveOn(t *testing.T, ln net.Listener, name string, handler http.HandlerFunc) *app {
	t.Helper()
	a := &app{name: name}
	if handler == nil {
		handler = a.echo
	}
	a.srv = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("App", name)
		if r.URL.Path != "/health" {
			handler(w, r)
		}
	}), ReadHeaderTimeout: 30 * time.Second}
	var both http.Protocols // so that HTTP/2 that gets past a proxy is noticed
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	a.srv.Protocols = &both
	ended := make(chan error, 1)
	go func() { ended <- a.srv.Serve(ln) }()
	t.Cleanup(func() {
		a.stop()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("app %s: %v", name, err)
		}
	})
	return a
}

// stop kills the app: its port refuses and its connections break.
func (a *app) stop() { _ = a.srv.Close() }

// echo answers with what it saw; ?status=N sets the status.
func (a *app) echo(w http.ResponseWriter, r *http.Request) {
	s := a.note(r)
	w.Header().Set("Content-Type", "application/json")
	if code, err := strconv.Atoi(r.URL.Query().Get("status")); err == nil {
		w.WriteHeader(code)
		if code == http.StatusNoContent || code == http.StatusNotModified {
			return
		}
	}
	_ = json.NewEncoder(w).Encode(s)
}

func (a *app) note(r *http.Request) seen {
	sum := sha256.New()
	n, _ := io.Copy(sum, r.Body)
	s := seen{
		Method: r.Method, Target: r.RequestURI, Host: r.Host, Proto: r.Proto, Header: r.Header, Trailer: r.Trailer,
		Chunked: len(r.TransferEncoding) > 0, Length: n, Sum: hex.EncodeToString(sum.Sum(nil)), From: r.RemoteAddr,
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = append(a.seen, s)
	return s
}

// count is how many requests the app has noted.
func (a *app) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.seen)
}

// targets lists what the noted requests asked for.
func (a *app) targets() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]string, len(a.seen))
	for i := range a.seen {
		out[i] = a.seen[i].Method + " " + a.seen[i].Target
	}
	return out
}

func (a *app) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = nil
}

// answer is a response as curl had it.
type answer struct {
	Status int
	Header http.Header
	Body   string
}

// ask runs curl for one response, its head included.
func ask(t *testing.T, n *meshlab.Node, args ...string) answer {
	t.Helper()
	head := filepath.Join(t.TempDir(), "head")
	body := curl(t, n, append([]string{"-D", head}, args...)...)
	text, err := os.ReadFile(head)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(text), body)
}

// parse reads the last head of those that curl wrote down: interim responses
// come before it.
func parse(t *testing.T, heads, body string) answer {
	t.Helper()
	parts := strings.Split(strings.TrimSuffix(heads, "\r\n\r\n"), "\r\n\r\n")
	last := parts[len(parts)-1]
	line, fields, _ := strings.Cut(last, "\r\n")
	words := strings.Fields(line)
	if len(words) < 2 {
		t.Fatalf("curl got no status line: %q", heads)
	}
	h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(fields + "\r\n\r\n"))).ReadMIMEHeader()
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("head %q: %v", last, err)
	}
	return answer{Status: atoi(words[1]), Header: http.Header(h), Body: body}
}

// seenBy reads what the echo app said it saw.
func seenBy(t *testing.T, a answer) seen {
	t.Helper()
	if a.Status != http.StatusOK {
		t.Fatalf("status %d, %s", a.Status, a.Body)
	}
	var s seen
	if err := json.Unmarshal([]byte(a.Body), &s); err != nil {
		t.Fatalf("%v: %q", err, a.Body)
	}
	return s
}

// want checks an answer's status, its weir-error word ("" for none) and body.
func (a answer) want(t *testing.T, status int, word, body string) {
	t.Helper()
	if a.Status != status || a.Header.Get("weir-error") != word || body != "" && a.Body != body {
		t.Errorf("got %d, weir-error %q, %q; want %d, %q, %q", a.Status, a.Header.Get("weir-error"), a.Body, status, word, body)
	}
}

// randomFile writes n bytes that do not compress, the same for the same seed,
// and gives path and SHA-256.
func randomFile(t *testing.T, dir, name string, n int64, seed byte) (path, sum string) {
	t.Helper()
	path = filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(rand.NewChaCha8([32]byte{seed}), n))
	if err := errors.Join(err, f.Close(), os.Chmod(path, 0o644)); err != nil {
		t.Fatal(err)
	}
	return path, hex.EncodeToString(h.Sum(nil))
}

// raw sends bytes from a node as they are, in the pieces given, and returns all
// that came back until the other side closed or ctx ended.
func raw(ctx context.Context, n *meshlab.Node, to string, pieces ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := n.DialContext(ctx, "tcp", to)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	for i, piece := range pieces {
		if i > 0 {
			// The pieces are to arrive one by one; that they do is not needed for the
			// test to hold, only for it to be sharp.
			time.Sleep(50 * time.Millisecond)
		}
		if _, err := io.WriteString(c, piece); err != nil {
			break // refused before all was sent: what came back tells
		}
	}
	var buf bytes.Buffer
	_, err = io.Copy(&buf, c)
	return buf.String(), err
}

// nginx starts the real one on a node with the given server blocks.
func nginx(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, port int, servers string) *meshlab.Process {
	t.Helper()
	dir := filepath.Join(m.Dir, "nginx-"+n.Host.Name())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`user root root; daemon off; master_process off; pid %[1]s/pid; error_log stderr warn;
events { worker_connections 256; }
http {
  access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  %[2]s
}`, dir, servers)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := n.Start(t.Context(), "nginx-"+n.Host.Name(), port, "nginx", "-c", path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// bare adds a host that is not in the mesh yet.
func bare(t *testing.T, m *meshlab.Mesh, name string) *meshlab.Node {
	t.Helper()
	n, err := m.Bare(name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// enter takes a host with its app into the mesh.
func enter(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, w meshlab.Workload) {
	t.Helper()
	if err := m.Join(t.Context(), n, w); err != nil {
		t.Fatal(err)
	}
}

// set merges a patch into the mesh's settings.
func set(t *testing.T, m *meshlab.Mesh, patch string) {
	t.Helper()
	if _, err := m.API.UpdateSettings(t.Context(), json.RawMessage(patch)); err != nil {
		t.Fatal(err)
	}
}

// await asks until ok, at most 30 s.
func await(t *testing.T, m *meshlab.Mesh, what string, ok func() error) {
	t.Helper()
	if err := m.Await(t.Context(), what, func(context.Context) error { return ok() }); err != nil {
		t.Fatal(err)
	}
}

// allMethods is a rule that leaves no method out.
func allMethods(from, to string) policy.SecurityRule {
	return policy.SecurityRule{
		SourceNamespace: "default", SourceService: from, DestinationNamespace: "default", DestinationService: to, AllowedMethods: []string{"*"},
	}
}

// register adds an endpoint by hand, at a node's own address.
func register(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, service, id string, port int, protocol string) {
	t.Helper()
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port, e.Protocol = id, service, "default", n.Addr4().String(), port, protocol
	if err := m.API.Register(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

// known waits until a node's proxy, which has used the service before, knows an
// endpoint of it: until then its port leads to the service's other endpoints.
func known(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, service, id string) {
	t.Helper()
	await(t, m, "endpoint "+id, func() error {
		s, err := n.Status(t.Context())
		if err != nil {
			return err
		}
		for _, e := range s.Services["default/"+service].Endpoints {
			if e.ID == id {
				return nil
			}
		}
		return fmt.Errorf("it is not there: %+v", s.Services)
	})
}

func deregister(t *testing.T, m *meshlab.Mesh, service, id string) {
	t.Helper()
	if err := m.API.Deregister(t.Context(), policy.ServiceName{Namespace: "default", Name: service}, id); err != nil {
		t.Error(err)
	}
}

// echoed sends text to an echo server, ends its side, and gives what came back.
func echoed(ctx context.Context, n *meshlab.Node, to, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := n.DialContext(ctx, "tcp", to)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}
