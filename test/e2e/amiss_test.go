package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// TestAClusterAtItsQuotaRefusesWritesUntilItsOperatorMakesRoom: etcd's alarm
// NOSPACE, and the commands of the README that end it.
func TestAClusterAtItsQuotaRefusesWritesUntilItsOperatorMakesRoom(t *testing.T) {
	t.Parallel()
	m := startCluster(t, 1, 1, "--quota-backend-bytes", "4194304")
	ctx, etcd := t.Context(), m.Etcd[0]
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = "a", "users", "default", "192.0.2.1", 80
	if err := m.API.Register(ctx, e); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(m.Dir, "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("x", 1<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	n := m.NodeOn(etcd.Host)
	var err error
	for i := 0; err == nil && i < 20; i++ { // versions of one key: what compaction gives back
		_, err = n.Output(ctx, "sh", "-c", `ETCDCTL_API=3 etcdctl put filler <"$0"`, text)
	}
	if err == nil || !strings.Contains(err.Error(), "space") {
		t.Fatalf("etcd took it all: %v", err)
	}
	e.ID = "b"
	var refused *api.Error
	if err := m.API.Register(ctx, e); !errors.As(err, &refused) || refused.Status != 503 || !strings.Contains(refused.Message, "etcd's quota is used up") {
		t.Errorf("a write without room: %v", err)
	}
	if eps, err := m.API.Endpoints(ctx, usersService); err != nil || len(eps) != 1 {
		t.Errorf("reads: %+v, %v", eps, err)
	}
	script := codeBlock(t, "README.md", "etcdctl alarm disarm")
	if _, err := n.Output(ctx, "sh", "-c", "export ETCDCTL_API=3\n"+script); err != nil {
		t.Fatalf("%v\n%s", err, script)
	}
	if err := m.API.Register(ctx, e); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// codeBlock is the block of a document that holds a line.
func codeBlock(t *testing.T, name, line string) string {
	t.Helper()
	for i, block := range strings.Split(readDocument(t, name), "```") {
		if i%2 == 1 && strings.Contains(block, line) {
			_, text, _ := strings.Cut(block, "\n")
			return text
		}
	}
	t.Fatalf("%s has no block with %q", name, line)
	return ""
}

// TestAChangeThatAProxyRefusesIsShownAndTheOldStays: a rule as an older or newer
// control plane might leave it in etcd.
func TestAChangeThatAProxyRefusesIsShownAndTheOldStays(t *testing.T) {
	t.Parallel()
	m := startCluster(t, 1, 2)
	users := newBackend(t, bare(t, m, "users"), "users", 8001)
	enter(t, m, users.node, meshlab.Workload{Host: "users", Service: "users", Ports: []string{"8001"}})
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	allow(t, m, "frontend", "users")
	ask200 := func() error {
		if a := ask(t, front, "http://users/"); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	}
	await(t, m, "the way to users", ask200)
	key := "/weir/mesh/services/default/users/rules/odd"
	if _, err := m.Etcd[0].Ctl(t.Context(), "put", key, `{"id":"odd","match_path":"regex:(","weight":100}`); err != nil {
		t.Fatal(err)
	}
	weir := func(p *meshlab.Plane) string {
		out, err := m.NodeOn(p.Host).Output(t.Context(), m.Program("weir"), "get", "proxies", "--token-file", p.TokenFile())
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, p := range m.Planes { // the one that the proxy is attached to, and the other
		await(t, m, "the refusal in weir get proxies", func() error {
			if out := weir(p); !strings.Contains(out, "service: ") || !strings.Contains(out, "missing closing )") {
				return errors.New(out)
			}
			return nil
		})
	}
	if err := ask200(); err != nil {
		t.Errorf("with what it had before: %v", err)
	}
	s, err := front.Status(t.Context())
	if err != nil || !strings.Contains(fmt.Sprint(s.Control.Rejected), "missing closing )") {
		t.Errorf("the proxy's own status: %+v, %v", s.Control, err)
	}
	// The rule is there to be seen and removed as any other.
	if err := m.API.DeleteTrafficRule(t.Context(), usersService, "odd"); err != nil {
		t.Fatal(err)
	}
	await(t, m, "no refusal any more", func() error {
		if out := weir(m.Planes[0]); strings.Contains(out, "missing closing") {
			return errors.New(out)
		}
		return ask200()
	})
}

// TestAStateFileThatIsDamagedIsLeftAloneAndSaidSo: the proxy starts without it,
// from the control plane, and is not ready before.
func TestAStateFileThatIsDamagedIsLeftAloneAndSaidSo(t *testing.T) {
	t.Parallel()
	m := newPair(t)
	state := filepath.Join(m.Dir, "proxy-front", "state.pb")
	await(t, m.Mesh, "the state to be written", func() error {
		_, err := os.Stat(state)
		return err
	})
	for name, damage := range map[string]func([]byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"changed": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"emptied": func([]byte) []byte { return nil },
	} {
		m.front.Proxy.Kill()
		b, err := os.ReadFile(state)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(state, damage(b), 0o600); err != nil {
			t.Fatal(err)
		}
		before := strings.Count(m.front.Proxy.Log(), "state file ignored")
		if err := m.front.StartProxy(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := strings.Count(m.front.Proxy.Log(), "state file ignored"); n != before+1 {
			t.Errorf("%s: it does not say so:\n%s", name, m.front.Proxy.Tail())
		}
		ask(t, m.front, "http://users/").want(t, 200, "", "")
		await(t, m.Mesh, "the state to be written anew", func() error {
			b, err := os.ReadFile(state)
			if err == nil && len(b) < 100 {
				err = fmt.Errorf("%d bytes", len(b))
			}
			return err
		})
	}
}

// TestWhoHasNoBusinessAtTheControlPlaneIsRefusedLoggedAndCounted.
func TestWhoHasNoBusinessAtTheControlPlaneIsRefusedLoggedAndCounted(t *testing.T) {
	t.Parallel()
	m := start(t)
	n := bare(t, m, "late")
	token, err := m.API.CreateToken(t.Context(), policy.ServiceName{Namespace: "default", Name: "other"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if out := runProxy(t, m, n, "late", editBody(t, token.Token, `"other"`, `"late"`)); !strings.Contains(out, "not signed by this mesh") {
		t.Error(out)
	}
	metrics, err := m.API.Metrics(t.Context())
	if err != nil || metrics.Control == nil || metrics.Control.RefusedJoins["token-signature"] != 1 || len(metrics.Control.RefusedJoins) != 1 {
		t.Errorf("counted are %+v, %v", metrics.Control, err)
	}
	log := m.Control.Log()
	if !strings.Contains(log, "a certificate was refused") || !strings.Contains(log, n.Addr4().String()) || strings.Contains(log, token.Token) {
		t.Errorf("the log says:\n%s", m.Control.Tail())
	}
}

// TestACertificateOfTheMeshIsNoAdminToken: an API that is reached from elsewhere
// asks a workload for the token as it asks everybody.
func TestACertificateOfTheMeshIsNoAdminToken(t *testing.T) {
	t.Parallel()
	m := start(t)
	n := bare(t, m, "far")
	api, dir := "https://"+n.Join(8443)+"/api/v1", filepath.Join(m.Dir, "far")
	if _, err := n.Start(t.Context(), "control-far", 0, m.Program("weir"), "control", "--data-dir", dir, "--http-addr", n.Join(8443), "--grpc-addr", n.Join(8081)); err != nil {
		t.Fatal(err)
	}
	token := func() string {
		b, err := os.ReadFile(filepath.Join(dir, "admin.token"))
		if err != nil {
			t.Fatal(err)
		}
		return "Authorization: Bearer " + strings.TrimSpace(string(b))
	}
	await(t, m, "its API", func() error {
		_, err := n.Output(t.Context(), "curl", "-sSfk", api+"/certificates/ca", "-o", filepath.Join(m.Dir, "ca.pem"))
		return err
	})
	var issued struct {
		PrivateKey  string `json:"private_key"`
		Certificate string `json:"certificate"`
	}
	ca := []string{"--cacert", filepath.Join(m.Dir, "ca.pem")}
	out := curl(t, n, append(ca, "-H", token(), "-d", `{"service_name":"users","namespace":"default"}`, api+"/certificates/issue")...)
	if err := json.Unmarshal([]byte(out), &issued); err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(m.Dir, "cert.pem"), filepath.Join(m.Dir, "key.pem")
	if err := errors.Join(os.WriteFile(cert, []byte(issued.Certificate), 0o600), os.WriteFile(key, []byte(issued.PrivateKey), 0o600)); err != nil {
		t.Fatal(err)
	}
	var join struct {
		Token string `json:"token"`
	}
	out = curl(t, n, append(ca, "-H", token(), "-d", `{"service_name":"users","namespace":"default"}`, api+"/tokens")...)
	if err := json.Unmarshal([]byte(out), &join); err != nil || join.Token == "" {
		t.Fatalf("%s: %v", out, err)
	}
	for name, more := range map[string][]string{
		"a workload's certificate": {"--cert", cert, "--key", key},
		"and its join token":       {"--cert", cert, "--key", key, "-H", "Authorization: Bearer " + join.Token},
	} {
		args := append(append(append([]string{}, ca...), more...), "-o", "/dev/null", "-w", "%{http_code}", api+"/security-rules")
		if code := curl(t, n, args...); code != "401" {
			t.Errorf("%s: %s", name, code)
		}
	}
}
