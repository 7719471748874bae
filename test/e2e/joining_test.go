package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// TestATokenIsForAsManyProxiesAsItSays: over two control planes and a kill -9 of
// one; a proxy that has joined restarts without a use; a token is revoked; each
// refusal is told, logged and counted with its reason.
func TestATokenIsForAsManyProxiesAsItSays(t *testing.T) {
	t.Parallel()
	m := startWith(t, meshlab.Config{Planes: 2, Etcd: 1})
	tok, err := m.API.CreateTokenFor(t.Context(), usersService, time.Hour, 2)
	if err != nil {
		t.Fatal(err)
	}
	joins := func(host string, plane int, dir string) string {
		t.Helper()
		n, err := m.Bare(host)
		if err != nil {
			t.Fatal(err)
		}
		return runOnce(t, m, n, m.Planes[plane].GRPCAddr(), tok.Token, dir)
	}
	first := filepath.Join(m.Dir, "first")
	if log := joins("one", 0, first); !strings.Contains(log, `"joined"`) {
		t.Fatalf("the first did not join: %s", log)
	}
	m.Planes[0].Process.Kill()
	if err := m.Planes[0].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if log := joins("two", 1, m.Dir+"/second"); !strings.Contains(log, `"joined"`) {
		t.Fatalf("the second did not join: %s", log)
	}
	for plane := range m.Planes {
		if log := joins(fmt.Sprintf("three%d", plane), plane, m.Dir+"/third"); !strings.Contains(log, "used up by 2 of 2 ("+tok.ID+")") {
			t.Errorf("a third at control plane %d: %s", plane+1, log)
		}
	}
	n := m.NodeOn(m.Planes[1].Host)
	if log := runOnce(t, m, n, m.Planes[1].GRPCAddr(), tok.Token, first); strings.Contains(log, `"joined"`) || !strings.Contains(log, "taken from the cache") {
		t.Errorf("restarted with its state: %s", log)
	}
	list := operate(t, m, "token", "list")
	if !regexp.MustCompile(`(?m)^` + tok.ID + ` +default +users +used-up +2/2 `).MatchString(list) {
		t.Errorf("listed is\n%s", list)
	}
	any, err := m.API.CreateToken(t.Context(), usersService, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	operate(t, m, "token", "revoke", any.ID)
	tok = any
	if log := joins("four", 1, m.Dir+"/fourth"); !strings.Contains(log, "revoked at ") || !strings.Contains(log, "make one with: weir token create") {
		t.Errorf("with a revoked token: %s", log)
	}
	figures, err := m.Planes[1].API.Metrics(t.Context())
	if err != nil || figures.Control.RefusedJoins["token-used-up"] != 1 || figures.Control.RefusedJoins["token-revoked"] != 1 {
		t.Errorf("counted are %+v, %v", figures.Control, err)
	}
	if log := m.Planes[1].Process.Log(); !strings.Contains(log, "used up by 2 of 2") || strings.Contains(log, tok.Token) {
		t.Error("the control plane's log does not say why it refused, or it shows a token")
	}
}

// runOnce runs a proxy of users until it is running, or ends, and gives its log.
func runOnce(t *testing.T, m *meshlab.Mesh, n *meshlab.Node, control, token, dir string) string {
	t.Helper()
	runs++
	name := fmt.Sprintf("proxy-once-%d", runs)
	p, err := n.Start(t.Context(), name, 0, m.Program("weir-proxy"), "--control", control, "--service", "users", "--token-file", tokenIn(t, token), "--state-dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	await(t, m, "the proxy to say something", func() error {
		select {
		case <-p.Done():
			return nil
		default:
		}
		if !strings.Contains(p.Log(), `"running"`) {
			return errors.New(p.Log())
		}
		return nil
	})
	return p.Log()
}

var runs int // of runOnce, for the names of logs

func tokenIn(t *testing.T, token string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestJoiningDoesWhatItsDocumentSays runs the commands of docs/JOINING.md.
func TestJoiningDoesWhatItsDocumentSays(t *testing.T) {
	t.Parallel()
	text := readDocument(t, "docs/JOINING.md")
	all := steps(section(t, text, "Join tokens"))
	if len(all) < 5 {
		t.Fatalf("there are %d steps only", len(all))
	}
	for i, printed := range inShell(t, all) {
		if line := claimed(printed, all[i].output); line != "" {
			t.Errorf("step %d:\n%s\nshould print:\n%s\nprinted:\n%s", i+1, all[i].commands, line, printed)
		}
	}
}
