package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// secret is what is in the file that a rule forbids.
const secret = "nobody is to read this"

// pathMesh is a frontend and, as one service, three file servers that never heard of a
// mesh, each in both versions of HTTP. A rule answers 403 to /secret*.
type pathMesh struct {
	*meshlab.Mesh
	front, files, outside *meshlab.Node
}

// fileServers are their names by the letters of testdata/paths.txt, and their ports in
// HTTP/1.1; those in HTTP/2 are 10 above.
var fileServers = []struct {
	name string
	port int
}{{"nginx", 8001}, {"apache", 8002}, {"go", 8003}}

func newPathMesh(t *testing.T) *pathMesh {
	m := &pathMesh{Mesh: start(t)}
	m.files, m.outside = bare(t, m.Mesh, "files"), bare(t, m.Mesh, "outside")
	dir := filepath.Join(m.Dir, "files")
	for name, text := range map[string]string{"secret/key.txt": secret, "public/x/ok.txt": "welcome", "health": "ok"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	nginx(t, m.Mesh, m.files, 8001, fmt.Sprintf("server { listen 8001; root %[1]s; } server { listen 8011 http2; root %[1]s; }", dir))
	apache(t, m.Mesh, m.files, 8002, fmt.Sprintf("Listen 8012\nProtocols h2c http/1.1\nDocumentRoot %s\nAllowEncodedSlashes On\n<Directory />\nRequire all granted\n</Directory>\n", dir))
	for _, port := range []int{8003, 8013} {
		ln, err := m.files.ListenTCP(net.JoinHostPort("", strconv.Itoa(port)))
		if err != nil {
			t.Fatal(err)
		}
		serveOn(t, ln, "go", http.FileServer(http.Dir(dir)).ServeHTTP)
	}
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	for _, s := range fileServers {
		register(t, m.Mesh, m.files, "files", s.name, s.port, "http")
		register(t, m.Mesh, m.files, "files", s.name+"2", s.port+10, "http2")
	}
	rule := policy.DefaultTrafficRule()
	rule.MatchPath, rule.DirectResponse = "/secret*", &policy.DirectResponse{Status: 403, Body: "forbidden\n"}
	if _, err := m.API.AddTrafficRule(t.Context(), policy.ServiceName{Namespace: "default", Name: "files"}, rule); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "the rule", func() error {
		for _, s := range fileServers {
			for port, version := range map[int]string{s.port: "--http1.1", s.port + 10: "--http2-prior-knowledge"} {
				at := fmt.Sprintf("http://files:%d/", port)
				ok, err := m.front.Output(t.Context(), "curl", "-sS", version, "--max-time", "5", at+"public/x/ok.txt")
				no, err2 := m.front.Output(t.Context(), "curl", "-sS", version, "--max-time", "5", at+"secret/key.txt")
				if ok != "welcome" || no != "forbidden\n" {
					return fmt.Errorf("%s %d: %q %w, %q %w", s.name, port, ok, err, no, err2)
				}
			}
		}
		return nil
	})
	return m
}

// apache starts the real one on a node.
func apache(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, port int, text string) *meshlab.Process {
	t.Helper()
	dir := filepath.Join(m.Dir, "apache-"+n.Host.Name())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("ServerRoot %s\nServerName files\nPidFile pid\nErrorLog error.log\nDefaultRuntimeDir %[1]s\nMutex pthread default\nStartServers 1\nUser nobody\nGroup nogroup\nListen %d\n", dir, port)
	for _, name := range []string{"mpm_event", "authz_core", "http2"} {
		conf = fmt.Sprintf("LoadModule %s_module /usr/lib/apache2/modules/mod_%[1]s.so\n", name) + conf
	}
	path := filepath.Join(dir, "httpd.conf")
	if err := os.WriteFile(path, []byte(conf+text), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := n.Start(t.Context(), "apache-"+n.Host.Name(), port, "apache2", "-f", path, "-DFOREGROUND")
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	return p
}

// pathCase is a line of testdata/paths.txt.
type pathCase struct{ givers, target string }

func pathCases(t *testing.T) (all []pathCase) {
	text, err := os.ReadFile("testdata/paths.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) == 2 && words[0] != "#" {
			all = append(all, pathCase{words[0], words[1]})
		}
	}
	return all
}

func TestNoPathLeadsAroundARule(t *testing.T) {
	t.Parallel()
	m := newPathMesh(t)
	reached := map[string]int{}
	for _, c := range pathCases(t) {
		for i, s := range fileServers {
			direct, err := asIs1(t.Context(), m.outside, m.files.Join(s.port), c.target)
			if gives := strings.Contains(direct, secret); !gives && strings.Contains(c.givers, "nag"[i:i+1]) {
				t.Errorf("without a proxy %s does not give the file for %s, so the table shows nothing: %v", s.name, c.target, err)
			} else if gives {
				reached[s.name]++
			}
			for version, ask := range map[string]func(context.Context, *meshlab.Node, string, string) (string, error){"HTTP/1.1": asIs1, "HTTP/2": asIs2} {
				for _, port := range []int{s.port, s.port + 10} { // where the versions differ it is translated
					got, err := ask(t.Context(), m.front, "files:"+strconv.Itoa(port), c.target)
					if strings.Contains(got, secret) {
						t.Errorf("%s at %d in %s gives the file for %s", s.name, port, version, c.target)
					}
					if got == "" {
						t.Errorf("%s at %d in %s did not answer to %s: %v", s.name, port, version, c.target, err)
					}
				}
			}
		}
	}
	for _, s := range fileServers { // or the table would show nothing
		if reached[s.name] < 10 {
			t.Errorf("%s was asked for the file in %d ways only", s.name, reached[s.name])
		}
	}
}

// asIs1 asks for a target in HTTP/1.1 and gives all that came back.
func asIs1(ctx context.Context, n *meshlab.Node, to, target string) (string, error) {
	return raw(ctx, n, to, "GET "+target+" HTTP/1.1\r\nHost: files\r\nConnection: close\r\n\r\n")
}

// asIs2 is the same in HTTP/2: the answer's fields and body, or the code of a reset.
func asIs2(ctx context.Context, n *meshlab.Node, to, target string) (string, error) {
	return inFrames(ctx, n, to, func(f *http2.Framer) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true,
			BlockFragment: fieldBlock(":method", "GET", ":scheme", "http", ":authority", "files", ":path", target)})
	})
}

// fieldBlock encodes fields, names and values in turn, whatever they are.
func fieldBlock(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

// inFrames opens a connection of HTTP/2, has frames written to it, and gives what came
// back on stream 1, or how the connection ended.
func inFrames(ctx context.Context, n *meshlab.Node, to string, write func(*http2.Framer) error) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := n.DialContext(ctx, "tcp", to)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return "", err
	}
	f := http2.NewFramer(c, c)
	f.AllowIllegalWrites = true
	if err := errors.Join(f.WriteSettings(), write(f)); err != nil {
		return "", err
	}
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var out strings.Builder
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return out.String(), err
		}
		switch fr := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, field := range fr.Fields {
				fmt.Fprintf(&out, "%s: %s\n", field.Name, field.Value)
			}
		case *http2.DataFrame:
			out.Write(fr.Data())
		case *http2.RSTStreamFrame:
			fmt.Fprintf(&out, "reset: %v\n", fr.ErrCode)
			return out.String(), nil
		case *http2.GoAwayFrame:
			fmt.Fprintf(&out, "goaway: %v\n", fr.ErrCode)
			return out.String(), nil
		case *http2.SettingsFrame:
			if !fr.IsAck() {
				_ = f.WriteSettingsAck()
			}
			continue
		}
		if h := frame.Header(); h.StreamID == 1 && h.Flags.Has(http2.FlagDataEndStream) && h.Type != http2.FrameWindowUpdate {
			return out.String(), nil
		}
	}
}
