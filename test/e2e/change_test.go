package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// operate runs weir on the control plane's host, as its operator would.
func operate(t *testing.T, m *meshlab.Mesh, args ...string) string {
	t.Helper()
	return output(t, m.ControlNode(), m.Program("weir"), append(args, "--token-file", m.TokenFile())...)
}

// document writes a file for weir apply.
func document(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const allowFront = `kind: SecurityRule
spec: {id: allow-front, source_namespace: default, source_service: front, destination_namespace: default, destination_service: users}
`

// newFrontMesh is a mesh in which front calls users, and bystander calls nobody.
func newFrontMesh(t *testing.T) (m *meshlab.Mesh, front *meshlab.Node) {
	m = start(t)
	users := bare(t, m, "users")
	serve(t, users, "users", 8001, nil)
	enter(t, m, users, meshlab.Workload{Host: "users", Service: "users", Ports: []string{"8001"}})
	front = join(t, m, meshlab.Workload{Host: "front", Service: "front"})
	join(t, m, meshlab.Workload{Host: "bystander", Service: "bystander"})
	operate(t, m, "apply", "-f", document(t, allowFront))
	await(t, m, "the first answer", func() error { return answers(t, front, 200) })
	return m, front
}

func answers(t *testing.T, n *meshlab.Node, status int) error {
	if a := ask(t, n, "-s", "http://users/"); a.Status != status {
		return fmt.Errorf("%d %s, want %d", a.Status, a.Body, status)
	}
	return nil
}

func TestAMistakeIsForetoldAppliedSeenAndTakenBack(t *testing.T) {
	t.Parallel()
	m, front := newFrontMesh(t)
	good := strings.Fields(strings.Split(operate(t, m, "history", "--limit", "1"), "\n")[1])[0]

	// A dry run names exactly the proxies that would be told.
	slow := document(t, "kind: TrafficRule\nservice: users\nspec: {id: canary, timeout: 7}\n")
	out := operate(t, m, "apply", "-f", slow, "--dry-run")
	if !strings.Contains(out, "traffic rule canary of default/users added") || !regexp.MustCompile(`\n1 connected proxies would be told: front\.\S+; nothing was stored\n`).MatchString(out) {
		t.Errorf("a traffic rule, dry: %s", out)
	}
	closed := document(t, "kind: SecurityRule\nspec: {id: allow-front, source_namespace: default, source_service: nobody, destination_namespace: default, destination_service: users}\n")
	out = operate(t, m, "apply", "-f", closed, "--dry-run")
	if !strings.Contains(out, "- source_service: front\n") || !regexp.MustCompile(`\n1 connected proxies would be told: users\.\S+; nothing was stored\n`).MatchString(out) {
		t.Errorf("a security rule, dry: %s", out)
	}
	if err := answers(t, front, 200); err != nil {
		t.Errorf("after dry runs: %v", err)
	}

	operate(t, m, "apply", "-f", slow, "-f", closed)
	await(t, m, "the mistake's effect", func() error { return answers(t, front, 403) })
	if out = operate(t, m, "diff", good); !strings.Contains(out, "- source_service: front") || !strings.Contains(out, "traffic rule canary of default/users added") {
		t.Errorf("diff: %s", out)
	}
	operate(t, m, "rollback", good)
	await(t, m, "the way back", func() error { return answers(t, front, 200) })
	if out = operate(t, m, "history"); !strings.Contains(out, "rollback to revision "+good) || !strings.Contains(out, "proxy default/users/") {
		t.Errorf("history: %s", out)
	}

	// Everything survives the control plane's end.
	m.Control.Kill()
	if err := m.StartControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := operate(t, m, "history"); !strings.Contains(again, "rollback to revision "+good) {
		t.Errorf("after kill -9 the history is %s", again)
	}
	await(t, m, "the proxies' return", func() error {
		if out = operate(t, m, "status"); !strings.Contains(out, "3 current, 0 behind, 0 refusing, 0 elsewhere, 0 away") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if !strings.Contains(out, "nothing needs attention") || !strings.Contains(out, "services       1: 1 healthy") || !strings.Contains(out, "last change    revision ") {
		t.Errorf("status: %s", out)
	}
	out = operate(t, m, "get", "proxies")
	if n := len(regexp.MustCompile(` control +20\d\d-`).FindAllString(out, -1)); n != 3 || !regexp.MustCompile(`\d\.\dMiB +20\d\d-`).MatchString(out) {
		t.Errorf("proxies: %s", out)
	}
}

func TestWritersRaceAndOneWins(t *testing.T) {
	t.Parallel()
	m := start(t)
	a, _ := call(t, m, "PUT", "/security-rules/r", `{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"w0"}`)
	tag := a.Header.Get("ETag")
	if a.Status != 200 || tag == "" {
		t.Fatalf("%d %v %s", a.Status, a.Header, a.Body)
	}
	for round := range 3 {
		var won, lost atomic.Int32
		var next atomic.Value
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				body := fmt.Sprintf(`{"source_namespace":"a","source_service":"b","destination_namespace":"c","destination_service":"w%d-%d"}`, round, i)
				switch a, _ := call(t, m, "PUT", "/security-rules/r", body, "-H", "If-Match: "+tag); a.Status {
				case 200:
					won.Add(1)
					next.Store(a.Header.Get("ETag"))
				case 412:
					lost.Add(1)
				default:
					t.Errorf("%d %s", a.Status, a.Body)
				}
			})
		}
		if wg.Wait(); won.Load() != 1 || lost.Load() != 5 {
			t.Fatalf("round %d: %d won, %d lost", round, won.Load(), lost.Load())
		}
		tag = next.Load().(string)
	}
	if a, _ := call(t, m, "GET", "/security-rules/r", "", "-H", "If-None-Match: "+tag); a.Status != 304 || a.Body != "" {
		t.Errorf("%d %s", a.Status, a.Body)
	}
}

// events reads a watch with curl until the test ends.
func events(t *testing.T, m *meshlab.Mesh, path, last string) <-chan string {
	t.Helper()
	token, err := os.ReadFile(m.TokenFile())
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-q", "-sSN", "-H", "Authorization: Bearer " + strings.TrimSpace(string(token))}
	if last != "" {
		args = append(args, "-H", "Last-Event-ID: "+last)
	}
	cmd := m.Command(t.Context(), m.Host, "curl", append(args, "http://127.0.0.1:8080/api/v1"+path+"?watch=1")...)
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan string, 1000)
	go func() {
		defer close(out)
		id, name := "-", ""
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			key, value, _ := strings.Cut(lines.Text(), ": ")
			switch key {
			case "id":
				id = value
			case "event":
				name = value
			case "data":
				var v map[string]any
				_ = json.Unmarshal([]byte(value), &v) // not of reset and synced
				out <- fmt.Sprintf("%s %v %v", name, v["id"], v["status"])
				if name == "synced" {
					out <- "id " + id
				}
			}
		}
		_ = cmd.Wait() // it was ended with the test
	}()
	return out
}

func nextEvent(t *testing.T, from <-chan string) string {
	t.Helper()
	select {
	case s, ok := <-from:
		if !ok {
			return "end"
		}
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("no event came")
		return ""
	}
}

func TestAWatchFollowsAProxysLifeAndEndsWithTheControlPlane(t *testing.T) {
	t.Parallel()
	m := start(t)
	users := bare(t, m, "users")
	serve(t, users, "users", 8001, nil)
	watch := events(t, m, "/services/default/users", "")
	if got := nextEvent(t, watch); got != "synced <nil> <nil>" {
		t.Fatal(got)
	}
	first := strings.TrimPrefix(nextEvent(t, watch), "id ")
	enter(t, m, users, meshlab.Workload{Host: "users", Service: "users", Ports: []string{"8001"}})
	id := "users-" + users.Join(8001)
	id = strings.Replace(id, ":8001", "-8001", 1)
	if got := nextEvent(t, watch); got != "added "+id+" healthy" {
		t.Error(got)
	}
	missed := events(t, m, "/services/default/users", first)
	if got := nextEvent(t, missed); got != "added "+id+" healthy" {
		t.Errorf("who was away is told %s", got)
	}
	if err := m.Control.Stop(20 * time.Second); err != nil {
		t.Errorf("the control plane's end with two watches open: %v", err)
	}
	for got := nextEvent(t, watch); got != "end"; got = nextEvent(t, watch) {
		t.Logf("before the end: %s", got)
	}
	if err := m.StartControl(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Events of before the restart are not kept.
	again := events(t, m, "/services/default/users", first)
	if got := nextEvent(t, again); got != "reset <nil> <nil>" {
		t.Error(got)
	}
}

func TestAWorkloadsCertificateOpensNothing(t *testing.T) {
	t.Parallel()
	m := start(t)
	n := bare(t, m, "plane")
	dir := t.TempDir()
	p, err := n.Start(t.Context(), "plane", 8443, m.Program("weir"), "control", "--data-dir", dir, "--http-addr", "0.0.0.0:8443", "--grpc-addr", n.Join(8444))
	if err != nil {
		t.Fatal(err)
	}
	base := "https://" + n.Join(8443) + "/api/v1"
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	bearer := "Authorization: Bearer " + strings.TrimSpace(string(token))
	var issued struct {
		Key   string `json:"private_key"`
		Chain string `json:"certificate"`
		Root  string `json:"ca_certificate"`
	}
	if err := json.Unmarshal([]byte(curl(t, n, "-k", "-H", bearer, "-d", `{"service_name":"web","namespace":"default"}`, base+"/certificates/issue")), &issued); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"key": issued.Key, "chain": issued.Chain, "root": issued.Root} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	as := []string{"--cacert", filepath.Join(dir, "root"), "--cert", filepath.Join(dir, "chain"), "--key", filepath.Join(dir, "key")}
	for _, c := range []struct {
		more   []string
		status int
		text   string
	}{
		{nil, 401, "the certificate of spiffe://weir.local/ns/default/sa/web opens nothing here"},
		{[]string{"-H", "Authorization: Bearer wrong"}, 401, "the admin token is wrong"},
		{[]string{"-H", bearer}, 200, "healthy"},
	} {
		a := ask(t, n, append(append(c.more, as...), base+"/status")...)
		if a.Status != c.status || !strings.Contains(a.Body, c.text) {
			t.Errorf("%v: %d %s", c.more, a.Status, a.Body)
		}
	}
	a := ask(t, n, append(as, "-H", bearer, base+"/metrics")...)
	if a.Status != http.StatusOK || !strings.Contains(a.Body, `"wrong_token":1,"proxy_certificate":1`) {
		t.Errorf("counted: %s", a.Body)
	}
	// A watch goes over HTTPS (and HTTP/2) as well.
	got := output(t, n, "sh", "-c", `curl -q -sSN --max-time 2 --cacert "$0" -H "$1" "$2" || true`, filepath.Join(dir, "root"), bearer, base+"/services?watch=1")
	if !strings.Contains(got, "event: synced") {
		t.Errorf("a watch over HTTPS: %q", got)
	}
	if log := p.Log(); !strings.Contains(log, "an API call was refused") || !strings.Contains(log, "spiffe://weir.local/ns/default/sa/web") {
		t.Errorf("logged: %s", log)
	}
}

func TestTenThousandRulesAreOneChange(t *testing.T) {
	t.Parallel()
	m := start(t)
	var docs strings.Builder
	docs.WriteString(`{"documents":[`)
	for i := range 10_000 {
		if i > 0 {
			docs.WriteString(",")
		}
		fmt.Fprintf(&docs, `{"kind":"TrafficRule","service":"s%d","spec":{"match_path":"/%d"}}`, i%50, i)
	}
	docs.WriteString("]}")
	file := document(t, docs.String())
	a, got := call(t, m, "POST", "/apply", "", "-H", "Content-Type: application/json", "--data-binary", "@"+file)
	o, _ := got.(map[string]any)
	if a.Status != 200 || o["status"] != "applied" {
		t.Fatalf("%d %.300s", a.Status, a.Body)
	}
	if _, got := call(t, m, "GET", "/traffic-rules/default/s7", ""); len(got.([]any)) != 200 {
		t.Errorf("%d rules of 200", len(got.([]any)))
	}
	if a, _ := call(t, m, "POST", "/rollback", `{"revision":0}`); a.Status != 200 {
		t.Errorf("%d %.300s", a.Status, a.Body)
	}
	if services, err := m.API.Services(t.Context()); err != nil || len(services) != 0 {
		t.Errorf("%d services are left, %v", len(services), err)
	}
	// A million bytes of nonsense, and it still answers.
	file = document(t, strings.Repeat("[", 1_000_000))
	if a, _ := call(t, m, "POST", "/config", "", "-H", "Content-Type: application/json", "--data-binary", "@"+file); a.Status != 400 {
		t.Errorf("%d %.300s", a.Status, a.Body)
	}
	saysAll(t, m, "GET", "/security-rules", "", 200, `[]`)
}
