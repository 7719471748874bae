package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// smugglingMesh is a frontend and four servers that never heard of a mesh, once
// without a sidecar (one hop) and once behind one (two hops). They write down each
// request that they see.
type smugglingMesh struct {
	*meshlab.Mesh
	front, outside *meshlab.Node
	noters         []*noter
}

// noter is one server, which notes what it sees.
type noter struct {
	name, service string
	node          *meshlab.Node
	port          int
	log           string
	echoes        bool // it answers with what it saw
}

func newSmugglingMesh(t *testing.T) *smugglingMesh {
	m := &smugglingMesh{Mesh: start(t)}
	m.outside = bare(t, m.Mesh, "outside")
	for _, service := range []string{"plain", "meshed"} {
		n := bare(t, m.Mesh, service)
		m.serveAll(t, n, service)
		if service == "meshed" {
			enter(t, m.Mesh, n, meshlab.Workload{Host: service, Service: service, Ports: []string{"8001", "8002", "8003", "8004"}})
			continue
		}
		for port := 8001; port <= 8004; port++ {
			register(t, m.Mesh, n, service, fmt.Sprintf("plain-%d", port), port, "http")
		}
	}
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "meshed")); err != nil {
		t.Fatal(err)
	}
	for _, b := range m.noters {
		await(t, m.Mesh, b.name, func() error {
			out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}", fmt.Sprintf("http://%s:%d/", b.service, b.port))
			if out != "200" {
				return fmt.Errorf("%s: %s %w", b.name, out, err)
			}
			return nil
		})
	}
	return m
}

// serveAll starts the four servers on a node.
func (m *smugglingMesh) serveAll(t *testing.T, n *meshlab.Node, service string) {
	dir := filepath.Join(m.Dir, "seen-"+service)
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	add := func(name string, port int, echoes bool) string {
		b := &noter{name: service + "/" + name, service: service, node: n, port: port, log: filepath.Join(dir, name), echoes: echoes}
		m.noters = append(m.noters, b)
		if err := os.WriteFile(b.log, nil, 0o666); err != nil {
			t.Fatal(err)
		}
		return b.log
	}
	nginx(t, m.Mesh, n, 8001, fmt.Sprintf(`log_format seen "$request_method $request_uri $status"; server { listen 8001; keepalive_requests 100000;
  access_log %s seen; location / { return 200 "$request_method $request_uri\n"; } }`, add("nginx", 8001, true)))
	if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	apache(t, m.Mesh, n, 8002, fmt.Sprintf("LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so\nCustomLog %s \"%%r %%>s\"\nDocumentRoot %s\n<Directory />\nRequire all granted\nFallbackResource /index.html\n</Directory>\n",
		add("apache", 8002, false), dir))
	for port, program := range map[int][]string{8003: {"node", "testdata/smuggling_server.js"}, 8004: {"python3", "testdata/smuggling_server.py"}} {
		file, err := filepath.Abs(program[1])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Start(t.Context(), program[0]+"-"+service, port, program[0], file, strconv.Itoa(port), add(program[0], port, true)); err != nil {
			t.Fatal(err)
		}
	}
}

// smuggling is a line of testdata/smuggling.txt.
type smuggling struct {
	family string
	status int // the client hears, 0 is any
	text   string
}

func smugglings(t *testing.T) (all []smuggling) {
	text, err := os.ReadFile("testdata/smuggling.txt")
	if err != nil {
		t.Fatal(err)
	}
	const hidden = "GET /0000/smuggled HTTP/1.1\r\nHost: web\r\n\r\n"
	for line := range strings.Lines(string(text)) {
		words := strings.SplitN(strings.TrimSpace(line), " | ", 4)
		if len(words) < 4 || line[0] == '#' {
			continue
		}
		status, err := strconv.Atoi(words[1])
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		sent := unquoted(t, words[3])
		switch head, body := "POST /0000/first HTTP/1.1\r\nHost: web\r\n"+sent, "0\r\n\r\n"+hidden; words[2] {
		case "head":
			sent = fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
		case "te":
			sent = head + "Transfer-Encoding: chunked\r\n\r\n" + body
		}
		all = append(all, smuggling{words[0], status, sent})
	}
	return all
}

// unquoted joins texts in Go's quotes.
func unquoted(t *testing.T, line string) (text string) {
	for line != "" {
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		part, _ := strconv.Unquote(quoted)
		text += part
		line = strings.TrimSpace(line[len(quoted):])
	}
	return text
}

func TestNoRequestIsSmuggled(t *testing.T) {
	t.Parallel()
	m, all := newSmugglingMesh(t), smugglings(t)
	if len(all) < 100 {
		t.Fatalf("only %d cases", len(all))
	}
	before := m.counted200(t)
	var running sync.WaitGroup
	for _, b := range m.noters {
		running.Go(func() {
			for i, c := range all {
				m.try(t, b, i, c)
			}
		})
	}
	running.Wait()
	smuggled, noted := 0, 0
	for _, b := range m.noters {
		seen := b.seen(t)
		noted += seen[answered200]["all"]
		for i, c := range all {
			want := map[int]int{200: 1}[c.status]
			if got := seen[i]["first"]; got != want && c.status != 0 {
				t.Errorf("%s saw the first request %d times, want %d: %s %q", b.name, got, want, c.family, c.text)
			}
			if seen[i]["smuggled"] != 0 {
				t.Errorf("%s saw what was smuggled: %s %q", b.name, c.family, c.text)
			}
			if seen[i]["next"] != 1 {
				t.Errorf("%s saw the next request %d times: after %s %q", b.name, seen[i]["next"], c.family, c.text)
			}
			smuggled += seen[direct+i]["smuggled"]
		}
	}
	if counted := m.counted200(t) - before; counted != noted || noted < len(m.noters)*len(all) {
		t.Errorf("the proxy counted %d requests that were answered 200, the servers %d", counted, noted)
	}
	// Or the servers would be as strict as the proxy, and the table would show nothing.
	if smuggled < 20 {
		t.Errorf("without a proxy only %d requests could be smuggled", smuggled)
	}
	t.Logf("without a proxy %d requests were smuggled", smuggled)
}

// answered200 is in the place of a case's number for the requests that came through the
// proxy and were answered 200.
const answered200 = -1

// direct is added to the numbers of cases that go to a server without a proxy.
const direct = 5000

// try sends a case through the proxy, then what another client asks, and once the case
// to the server itself.
func (m *smugglingMesh) try(t *testing.T, b *noter, i int, c smuggling) {
	at := fmt.Sprintf("%s:%d", b.service, b.port)
	out, err := halfClosed(t.Context(), m.front, at, numbered(c.text, i))
	final := finalStatuses(out)
	switch fromProxy := strings.Contains(out, "weir-error: "); {
	case err != nil && out == "":
		t.Errorf("%s: no answer, %v: %s %q", b.name, err, c.family, c.text)
	case c.status == 0:
	case len(final) != 1, c.status != 200 && final[0] != c.status, fromProxy == (c.status == 200):
		t.Errorf("%s: want %d, got %q: %s %q", b.name, c.status, out, c.family, c.text)
	}
	out, err = halfClosed(t.Context(), m.front, at, numbered("GET /0000/next HTTP/1.1\r\nHost: web\r\n\r\n", i))
	if s := finalStatuses(out); len(s) != 1 || s[0] != 200 || b.echoes && !strings.HasSuffix(out, numbered("\r\n\r\nGET /0000/next\n", i)) {
		t.Errorf("%s: the next client got %q, %v: after %s %q", b.name, out, err, c.family, c.text)
	}
	if b.service == "plain" {
		_, _ = halfClosed(t.Context(), m.outside, b.node.Join(b.port), numbered(c.text, direct+i)) // its log tells
	}
}

// counted200 is how many requests the frontend's proxy says were answered 200.
func (m *smugglingMesh) counted200(t *testing.T) (n int) {
	t.Helper()
	for line := range strings.Lines(curl(t, m.front, "http://127.0.0.1:15000/metrics")) {
		if strings.HasPrefix(line, `weir_requests_total{code="200",direction="outbound",`) {
			_, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
			n += atoi(value)
		}
	}
	return n
}

func numbered(text string, i int) string {
	return strings.ReplaceAll(text, "0000", fmt.Sprintf("%04d", i))
}

// finalStatuses lists the statuses of answers, those that are interim left out.
func finalStatuses(answers string) (all []int) {
	for line := range strings.Lines(answers) {
		if rest, ok := strings.CutPrefix(line, "HTTP/1."); ok && len(rest) > 5 && rest[2] != '1' {
			all = append(all, atoi(rest[2:5]))
		}
	}
	return all
}

// halfClosed sends text, ends its side and gives what came back.
func halfClosed(ctx context.Context, n *meshlab.Node, to, text string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
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
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // it may have been refused and closed: what came back tells
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// seen counts, by the number of the case, the requests that the server wrote down.
func (b *noter) seen(t *testing.T) map[int]map[string]int {
	text, err := os.ReadFile(b.log)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]map[string]int{answered200: {}}
	for line := range strings.Lines(string(text)) {
		number, what, ok := strings.Cut(line[strings.IndexByte(line, '/')+1:], "/")
		if i, err := strconv.Atoi(number); ok && err == nil {
			if seen[i] == nil {
				seen[i] = map[string]int{}
			}
			words := strings.Fields(what)
			seen[i][words[0]]++
			if last := words[len(words)-1]; i < direct && (len(words) == 1 || last == "200") { // some write no status: it is 200
				seen[answered200]["all"]++
			}
		}
	}
	return seen
}
