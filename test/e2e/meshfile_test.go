package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/test/meshlab"
)

// fileMesh is a mesh whose control plane follows a file: a frontend in front of two
// apps without sidecars, which only the file knows.
type fileMesh struct {
	pair
	path string
}

func newFileMesh(t *testing.T) *fileMesh {
	m := &fileMesh{path: filepath.Join(t.TempDir(), "mesh-config.yml")}
	m.put(t, "mesh: {}\n")
	m.Mesh = start(t, "--config", m.path)
	for i := range m.users {
		name := fmt.Sprintf("users%d", i+1)
		m.users[i] = newBackend(t, bare(t, m.Mesh, name), name, 8001)
	}
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	return m
}

// put writes the file as careful programs do: beside it, then renamed.
func (m *fileMesh) put(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(m.path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(m.path+".new", m.path); err != nil {
		t.Fatal(err)
	}
}

// state waits until the control plane says that of its file.
func (m *fileMesh) state(t *testing.T, want string, more func(*api.ConfigFile) error) *api.ConfigFile {
	t.Helper()
	var f *api.ConfigFile
	await(t, m.Mesh, "the file to be "+want, func() error {
		s, err := m.API.Status(t.Context())
		if err != nil {
			return err
		}
		if f = s.ConfigFile; f == nil || f.State != want {
			return fmt.Errorf("it is %+v", f)
		}
		return more(f)
	})
	return f
}

// apply has a text put in force.
func (m *fileMesh) apply(t *testing.T, text string) {
	t.Helper()
	m.put(t, text)
	sum := sha256.Sum256([]byte(text))
	m.state(t, "applied", func(f *api.ConfigFile) error {
		if want := hex.EncodeToString(sum[:6]); f.Digest != want {
			return fmt.Errorf("its digest is %s, not %s", f.Digest, want)
		}
		return nil
	})
}

// users puts a file in force with both apps as instances of "users", each with
// more keys in YAML's flow style, and more groups below "mesh"; it waits until the
// frontend's proxy has it. The strategy alternates, so that the proxy shows it.
func (m *fileMesh) serve(t *testing.T, strategy, first, second, groups string) {
	t.Helper()
	for _, b := range m.pair.users {
		b.reset()
	}
	m.apply(t, fmt.Sprintf("mesh:\n  services:\n    users:\n      strategy: %s\n      instances:\n        - {url: \"http://%s:8001\"%s}\n        - {url: \"http://%s:8001\"%s}\n%s",
		strategy, m.users[0].node.Addr4(), first, m.users[1].node.Addr4(), second, groups))
	await(t, m.Mesh, "the frontend to have it", func() error {
		curl(t, m.front, "-o", "/dev/null", "http://users/warm")
		s, err := m.front.Status(t.Context())
		if got := s.Services["default/users"]; err == nil && (got.Strategy != strategy || len(got.Endpoints) != 2) {
			err = fmt.Errorf("it has %+v", got)
		}
		return err
	})
	for _, b := range m.pair.users {
		b.forget()
	}
}

func (m *fileMesh) counts() [2]int { return [2]int{m.users[0].count(), m.users[1].count()} }

func (m *fileMesh) circuits(t *testing.T) string {
	t.Helper()
	s, err := m.front.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, b := range m.users {
		for _, e := range s.Services["default/users"].Endpoints {
			if strings.HasPrefix(e.Address, b.node.Addr4().String()+":") {
				out = append(out, e.Circuit)
			}
		}
	}
	return strings.Join(out, " ")
}

// TestEveryKeyOfTheMeshFileHasItsEffect goes through the keys of seed A that
// traffic shows; how they are read is tested beside the reader.
func TestEveryKeyOfTheMeshFileHasItsEffect(t *testing.T) {
	t.Parallel()
	m := newFileMesh(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *fileMesh)
	}{
		{"Instances", fileInstances},
		{"Timeout", fileTimeout},
		{"Retries", fileRetries},
		{"RateLimitOfAnInstance", fileInstanceLimit},
		{"RateLimitOfTheMesh", fileMeshLimit},
		{"Circuits", fileCircuits},
		{"HealthChecks", fileHealth},
		{"MetricsAndLogs", fileObservability},
		{"WhatTheFileKeepsIsChangedThere", fileKeeps},
		{"WhatGoesFromTheFileGoesFromTheMesh", fileRemoves},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, m) })
	}
}

func fileInstances(t *testing.T, m *fileMesh) {
	m.serve(t, "round_robin", "", "", "")
	curl(t, m.front, "http://users/?[1-20]")
	if got := m.counts(); got != [2]int{10, 10} {
		t.Errorf("20 requests went %v", got)
	}
	m.serve(t, "weighted", ", weight: 300", ", weight: 100", "")
	curl(t, m.front, "http://users/?[1-20]")
	if got := m.counts(); got != [2]int{15, 5} {
		t.Errorf("20 requests by weights 300 and 100 went %v", got)
	}
}

func fileTimeout(t *testing.T, m *fileMesh) {
	m.serve(t, "round_robin", ", timeout: 0.2", ", timeout: 0.2", "")
	for _, b := range m.users {
		b.delay.Store(int64(idleForEver))
	}
	ask(t, m.front, "-d", "x", "http://users/").want(t, 504, "timeout", "")
	m.serve(t, "random", "", "", "  resilience: {timeout: {default: 0.2}}\n")
	for _, b := range m.users {
		b.delay.Store(int64(idleForEver))
	}
	ask(t, m.front, "-d", "x", "http://users/").want(t, 504, "timeout", "")
}

// idleForEver is longer than curl waits.
const idleForEver = 20e9

func fileRetries(t *testing.T, m *fileMesh) {
	for _, c := range []struct {
		strategy, instance, retry string
		tries                     int
	}{
		{"round_robin", ", retry_count: 2, retry_delay: 0.01", "{}", 2},
		{"random", ", retry_delay: 0", "{max_attempts: 4}", 4},
		{"round_robin", "", "{enabled: false}", 1},
		{"random", "", "{max_attempts: 5, delay: 0.01}", 5},
	} {
		m.serve(t, c.strategy, c.instance, c.instance, "  resilience: {circuit_breaker: {enabled: false}, retry: "+c.retry+"}\n")
		for _, b := range m.users {
			b.status.Store(503)
		}
		ask(t, m.front, "http://users/").want(t, 503, "", "")
		if got := m.counts(); got[0]+got[1] != c.tries {
			t.Errorf("%s %s: %v tries, want %d", c.instance, c.retry, got, c.tries)
		}
	}
}

func fileInstanceLimit(t *testing.T, m *fileMesh) {
	m.serve(t, "random", "", "", "") // forgets the counts of the last
	m.serve(t, "round_robin", ", rate_limit: 20", ", rate_limit: 30", "  security: {rate_limiting: {window: 600}}\n")
	passed := 0
	var a answer
	for range 51 {
		if a = ask(t, m.front, "http://users/"); a.Status != 200 {
			break
		}
		passed++
	}
	a.want(t, 429, "rate-limited", `{"error":"Rate limit exceeded for users.default"}`+"\n")
	// What waited for the file was counted too.
	if got := m.counts(); passed < 30 || got[0] > 20 || got[1] > 30 || got[0] == got[1] {
		t.Errorf("%d passed, %v", passed, got)
	}
	if after := atoi(a.Header.Get("Retry-After")); after < 500 || after > 600 || a.Header.Get("RateLimit-Policy") != `"default";q=20;w=600` && a.Header.Get("RateLimit-Policy") != `"default";q=30;w=600` {
		t.Errorf("%v", a.Header)
	}
}

func fileMeshLimit(t *testing.T, m *fileMesh) {
	m.serve(t, "random", "", "", "  security: {rate_limiting: {enabled: true, default_limit: 30}}\n")
	a := ask(t, m.front, "http://users/")
	if a.Status != 200 || a.Header.Get("RateLimit-Policy") != `"default";q=30;w=60` {
		t.Errorf("%d %v", a.Status, a.Header)
	}
	curl(t, m.front, "-o", "/dev/null", "http://users/?[1-30]")
	ask(t, m.front, "http://users/").want(t, 429, "rate-limited", "")
}

func fileCircuits(t *testing.T, m *fileMesh) {
	m.serve(t, "round_robin", ", circuit_timeout: 0.3", ", circuit_timeout: 3600", "  resilience: {circuit_breaker: {failure_threshold: 2}, retry: {enabled: false}}\n")
	for _, b := range m.users {
		b.status.Store(500)
	}
	await(t, m.Mesh, "both circuits to open", func() error {
		curl(t, m.front, "-d", "x", "http://users/")
		if got := m.circuits(t); !strings.HasSuffix(got, "open") || m.users[0].count() < 2 {
			return errors.New(got)
		}
		return nil
	})
	if n := m.users[1].count(); n != 2 {
		t.Errorf("a circuit with the threshold 2 let %d requests fail", n)
	}
	for _, b := range m.users {
		b.status.Store(0)
	}
	await(t, m.Mesh, "the circuit of 0.3 s to close", func() error {
		curl(t, m.front, "-d", "x", "http://users/")
		if got := m.circuits(t); got != "closed open" {
			return errors.New(got)
		}
		return nil
	})
	m.serve(t, "random", "", "", "  resilience: {circuit_breaker: {enabled: false}}\n")
	if got := m.circuits(t); got != "off off" {
		t.Errorf("circuits are %s", got)
	}
}

func fileHealth(t *testing.T, m *fileMesh) {
	m.serve(t, "round_robin", ", health_check: /up", "", "  load_balancing: {health_check: {interval: 0.2, timeout: 1}}\n")
	health := func(want string) {
		t.Helper()
		await(t, m.Mesh, "health "+want, func() error {
			eps, err := m.API.Endpoints(t.Context(), usersService)
			if err != nil || len(eps) != 2 {
				return fmt.Errorf("%d endpoints, %w", len(eps), err)
			}
			status := map[string]string{eps[0].IP: eps[0].Status, eps[1].IP: eps[1].Status}
			if got := status[m.users[0].node.Addr4().String()] + " " + status[m.users[1].node.Addr4().String()]; got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	for _, b := range m.users {
		b.status.Store(503) // to all but /health
	}
	health("unhealthy healthy")
	m.users[0].status.Store(0)
	health("healthy healthy")
}

func fileObservability(t *testing.T, m *fileMesh) {
	m.apply(t, "mesh:\n  observability:\n    access_logging: true\n    metrics: {path: /stats}\n    logging: {level: DEBUG, format: console}\n")
	await(t, m.Mesh, "metrics to move", func() error {
		old := curl(t, m.front, "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:15000/metrics")
		now := curl(t, m.front, "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:15000/stats")
		if old != "404" || now != "200" {
			return fmt.Errorf("%s, %s", old, now)
		}
		return nil
	})
	await(t, m.Mesh, "a line of the level DEBUG in the format console", func() error {
		_, _ = m.front.Output(t.Context(), "curl", "-sS", "http://"+m.users[0].node.Addr4().String()+":8009/") // nobody listens: the connection fails
		if !strings.Contains(m.front.Proxy.Log(), "\tDEBUG\t") {
			return errors.New("none yet")
		}
		return nil
	})
}

func fileKeeps(t *testing.T, m *fileMesh) {
	m.serve(t, "round_robin", ", timeout: 3", "", "  resilience: {timeout: {default: 7}}\n")
	refused := func(method, path, body, what string) {
		t.Helper()
		a, _ := call(t, m.Mesh, method, path, body)
		if want := what + " kept by the mesh file " + m.path + "; change it there"; a.Status != 409 || !strings.Contains(a.Body, want) {
			t.Errorf("%s %s %s: %d %s, want %s", method, path, body, a.Status, a.Body, want)
		}
	}
	refused("POST", "/config", `{"global_timeout": 9}`, "resilience.timeout.default is")
	refused("POST", "/config", `{"services": {"users.default": {"timeout": 5}}}`, "services.default/users is")
	refused("POST", "/config", `{"services": {"users": null}}`, "services.default/users is")
	refused("DELETE", "/services/default/users/"+m.users[0].node.Addr4().String()+":8001", "", "endpoint "+m.users[0].node.Addr4().String()+":8001 of default/users is")
	// What is shown is what is in force: applied as it is, it changes nothing.
	weir := m.Program("weir") + " --token-file " + m.TokenFile() + " "
	out, err := m.ControlNode().Output(t.Context(), "sh", "-ec", "D=$(mktemp -d); for k in config 'endpoints users'; do "+weir+"get $k -o yaml >$D/doc; cat $D/doc; "+weir+"apply -f $D/doc; done; rm -r $D; "+weir+"history --limit 1")
	if err != nil || !strings.Contains(out, "    default: 7\n") || strings.Count(out, " unchanged") != 3 || !strings.Contains(out, "file "+m.path) {
		t.Errorf("%v\n%s", err, out)
	}
	set(t, m.Mesh, `{"global_timeout": 7, "egress": "deny"}`) // what is so, and what the file does not name
	set(t, m.Mesh, `{"egress": "allow"}`)
}

func fileRemoves(t *testing.T, m *fileMesh) {
	set(t, m.Mesh, `{"load_balancing": {"strategy": "least_conn"}}`)
	m.apply(t, "mesh:\n  load_balancing: {strategy: random}\n")
	now := func() string {
		t.Helper()
		s, err := m.API.Settings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(s["load_balancing"].(map[string]any)["strategy"])
	}
	if eps, err := m.API.Endpoints(t.Context(), usersService); err != nil || len(eps) != 0 || now() != "random" {
		t.Errorf("%v, %v, %s", eps, err, now())
	}
	m.apply(t, "mesh: {}\n")
	if now() != "least_conn" {
		t.Errorf("the strategy is %s: what the API had set is not back", now())
	}
}

// A good file, a bad one, a good one, under traffic: nothing is lost, and what is
// wrong is said where operators look.
func TestABadMeshFileIsRefusedWholeAndStopsNoTraffic(t *testing.T) {
	t.Parallel()
	m := newFileMesh(t)
	m.serve(t, "round_robin", "", "", "  resilience: {retry: {delay: 0.01}}\n")
	stop := m.load(t)
	for i, bad := range []string{
		"mesh:\n  services:\n    users:\n      instances: []\n  security:\n    rate_limitng: {}\n", // half of it would take all instances away
		"mesh: [\n", "",
		"mesh:\n  security:\n    ssl: {enabled: true, cert_file: gone.crt, key_file: gone.key}\n",
	} {
		m.put(t, bad)
		f := m.state(t, "refused", func(f *api.ConfigFile) error {
			if first := f.Errors[0]; !strings.Contains(first, []string{"rate_limitng", "']' not found", "holds nothing", "gone.crt"}[i]) {
				return errors.New(first)
			}
			return nil
		})
		if f.Digest == "" || !strings.HasPrefix(f.Errors[0], m.path+":") {
			t.Errorf("%+v", f)
		}
	}
	m.put(t, "mesh:\n  services: {}\n  security:\n    rate_limitng: {}\n")
	var out string
	await(t, m.Mesh, "weir get status to say where", func() (err error) {
		out, err = m.ControlNode().Output(t.Context(), m.Program("weir"), "get", "status", "--token-file", m.TokenFile())
		if err == nil && !strings.Contains(out, `mesh-config.yml:4:5: mesh.security.rate_limitng: unknown setting; did you mean "rate_limiting"?`) {
			err = errors.New(out)
		}
		return err
	})
	if !strings.Contains(out, ": refused; what was in force before stays (in force: ") {
		t.Errorf("%s", out)
	}
	if log := m.Control.Log(); !strings.Contains(log, "the mesh file was refused; what was in force stays") {
		t.Errorf("the log does not say so:\n%s", m.Control.Tail())
	}
	for i, strategy := range []string{"random", "round_robin"} {
		m.serve(t, strategy, "", "", "  resilience: {retry: {delay: 0.01}}\n")
		// An instance goes, and comes back with the next file.
		m.apply(t, fmt.Sprintf("mesh:\n  services: {users: {instances: [{url: 'http://%s:8001'}]}}\n", m.users[i].node.Addr4()))
		await(t, m.Mesh, "the frontend to know of one only", func() error {
			s, err := m.front.Status(t.Context())
			if n := len(s.Services["default/users"].Endpoints); err == nil && n != 1 {
				err = fmt.Errorf("it knows %d", n)
			}
			return err
		})
	}
	sent, wrong := stop()
	check(t, sent, wrong)
}

// The seed's file, byte for byte, on one host where all its apps are.
func TestTheSeedsMeshFileIsFollowedAsItStands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text, err := os.ReadFile("../../controlplane/meshfile/testdata/mesh-config.yml")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "mesh-config.yml"), text, 0o600)
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "certs"), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=mesh",
		"-keyout", filepath.Join(dir, "certs/server.key"), "-out", filepath.Join(dir, "certs/server.crt")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	m := start(t, "--config", filepath.Join(dir, "mesh-config.yml"))
	set(t, m, `{"mtls_mode": "permissive"}`) // what the file does not name
	for _, port := range []int{8001, 8011, 8002} {
		serve(t, m.ControlNode(), fmt.Sprint(port), port, nil)
	}
	want := map[string]string{
		"user-service/localhost:8001": "healthy", "user-service/localhost:8011": "healthy", "order-service/localhost:8002": "healthy",
		"order-service/localhost:8012": "unhealthy", "product-service/localhost:8003": "unhealthy", "product-service/localhost:8013": "unhealthy",
	}
	await(t, m, "the seed's instances", func() error {
		out, err := m.ControlNode().Output(t.Context(), m.Program("weir"), "get", "endpoints", "-o", "json", "--token-file", m.TokenFile())
		var eps []struct {
			Service string `json:"service"`
			Spec    struct {
				ID        string `json:"id"`
				RateLimit int    `json:"rate_limit"`
			} `json:"spec"`
			Status struct {
				Status string `json:"status"`
			} `json:"status"`
		}
		if err == nil {
			err = json.Unmarshal([]byte(out), &eps)
		}
		if err != nil || len(eps) != len(want) {
			return fmt.Errorf("%d endpoints, %w", len(eps), err)
		}
		for _, e := range eps {
			if got := want[e.Service+"/"+e.Spec.ID]; got != e.Status.Status || e.Spec.RateLimit != 100 {
				return fmt.Errorf("%+v", e)
			}
		}
		return nil
	})
	s, err := m.API.Status(t.Context())
	if err != nil || s.ConfigFile == nil || s.ConfigFile.State != "applied" || len(s.ConfigFile.Warnings) != 6 {
		t.Errorf("%+v, %v", s.ConfigFile, err)
	}
}
