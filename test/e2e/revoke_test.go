package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// freeze stops a node's proxy, as a machine that hangs does.
func freeze(t *testing.T, n *meshlab.Node) {
	t.Helper()
	if err := syscall.Kill(-n.Proxy.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-n.Proxy.Pid(), syscall.SIGCONT) })
}

func thaw(t *testing.T, n *meshlab.Node) {
	t.Helper()
	if err := syscall.Kill(-n.Proxy.Pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// held are connections of each kind that an app keeps to a service.
type held struct {
	node  *meshlab.Node
	bytes io.ReadWriteCloser
	h1    *http.Client
	h2    *http.Client
}

func hold(t *testing.T, n *meshlab.Node) *held {
	t.Helper()
	c, err := n.DialContext(t.Context(), "tcp", "vault:9001")
	if err != nil {
		t.Fatal(err)
	}
	var h2 http.Protocols
	h2.SetUnencryptedHTTP2(true)
	h := &held{node: n, bytes: c,
		h1: &http.Client{Transport: &http.Transport{DialContext: n.DialContext}, Timeout: 20 * time.Second},
		h2: &http.Client{Transport: &http.Transport{DialContext: n.DialContext, Protocols: &h2}, Timeout: 20 * time.Second},
	}
	t.Cleanup(h.close)
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for _, client := range []*http.Client{h.h1, h.h2} {
		if err := get(t.Context(), client, "http://vault:8001/"); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *held) close() {
	_ = h.bytes.Close()
	h.h1.CloseIdleConnections()
	h.h2.CloseIdleConnections()
}

// cut waits until the connection of bytes has ended and tells how long that took.
func (h *held) cut(t *testing.T, since time.Time) time.Duration {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, h.bytes)
	}()
	select {
	case <-ended:
		return time.Since(since)
	case <-time.After(30 * time.Second):
		t.Fatal("the connection was not cut")
		return 0
	}
}

func revocations(t *testing.T, m *meshlab.Mesh) string {
	t.Helper()
	return weir(t, m, "revoke", "list")
}

func cutConnections(t *testing.T, n *meshlab.Node, direction string) bool {
	t.Helper()
	out := curl(t, n, "http://127.0.0.1:15000/metrics")
	return strings.Contains(out, `weir_revoked_total{direction="`+direction+`",what="connection"}`)
}

// The caller is revoked: its connections are cut at the service, and it cannot come
// back by its certificate nor by its token, until that is lifted.
func TestARevokedCallerIsCutOffAndStaysOut(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	h := hold(t, m.front)
	began := time.Now()
	weir(t, m.Mesh, "revoke", "--identity", "default/frontend", "--reason", "its key was in a log")
	t.Logf("the connection was cut %v after the command began", h.cut(t, began))
	if list := revocations(t, m.Mesh); !strings.Contains(list, "identity default/frontend") || !strings.Contains(list, "its key was in a log") {
		t.Errorf("weir revoke list:\n%s", list)
	}
	for name, client := range map[string]*http.Client{"HTTP/1.1": h.h1, "HTTP/2": h.h2} {
		if err := get(t.Context(), client, "http://vault:8001/"); err == nil {
			t.Errorf("a request over %s still passes", name)
		}
	}
	await(t, m.Mesh, "its counter", func() error {
		if !cutConnections(t, m.node, "inbound") {
			return fmt.Errorf("no connection counted")
		}
		return nil
	})
	if !strings.Contains(m.node.Proxy.Log(), `a connection is cut`) || !strings.Contains(m.node.Proxy.Log(), "revoked") {
		t.Error("the log does not say why")
	}
	await(t, m.Mesh, "its proxy to be away from the control plane", func() error {
		proxies, err := m.API.Proxies(t.Context())
		for _, p := range proxies {
			if p.ServiceName == "frontend" && p.Subscribed > 0 {
				err = fmt.Errorf("%+v", p)
			}
		}
		return err
	})
	// Neither the certificate that it kept nor the token lets it in.
	if _, err := m.API.CreateToken(t.Context(), policy.ServiceName{Namespace: "default", Name: "frontend"}, time.Hour); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a new token: %v", err)
	}
	m.front.Proxy.Kill()
	forget(t, m.Mesh, m.front)
	p := startAgain(t, m.front)
	await(t, m.Mesh, "the proxy to be refused", func() error {
		if log := p(); !strings.Contains(log, "revoked") {
			return fmt.Errorf("%s", log)
		}
		return nil
	})
	weir(t, m.Mesh, "revoke", "lift", "--identity", "default/frontend")
	if err := m.front.StartProxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.until(t, m.front, 200, "", "http://vault:8001/")
}

// forget removes what a proxy keeps but its token.
func forget(t *testing.T, m *meshlab.Mesh, n *meshlab.Node) {
	t.Helper()
	dir := filepath.Join(m.Dir, "proxy-"+n.Host.Name())
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "token" {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// startAgain starts a proxy that is to be refused, and gives its log.
func startAgain(t *testing.T, n *meshlab.Node) (log func() string) {
	t.Helper()
	if err := n.StartProxy(t.Context()); err == nil {
		t.Fatal("the proxy is ready")
	}
	return n.Proxy.Log
}

// The server is revoked, by its certificate's number: its callers' connections are
// cut at the callers, who are told why.
func TestARevokedCertificateOfAServerIsRefusedByItsCallers(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	h := hold(t, m.front)
	serial := ""
	await(t, m.Mesh, "the serial number", func() error {
		proxies, err := m.API.Proxies(t.Context())
		for _, p := range proxies {
			if p.ServiceName == "vault" {
				serial = p.CertificateSerial
			}
		}
		if err == nil && serial == "" {
			err = fmt.Errorf("%+v", proxies)
		}
		return err
	})
	began := time.Now()
	weir(t, m.Mesh, "revoke", "--serial", strings.ToUpper(serial), "--for", "1h")
	t.Logf("the connection was cut %v after the command began", h.cut(t, began))
	await(t, m.Mesh, "its counter", func() error {
		if !cutConnections(t, m.front, "outbound") {
			return fmt.Errorf("no connection counted")
		}
		return nil
	})
	// It cannot renew by the certificate, nor join by the token; with another token it
	// gets another certificate, and is there again.
	await(t, m.Mesh, "the app to be out of reach", func() error {
		if a := ask(t, m.front, "http://vault:8001/"); a.Status == 200 {
			return fmt.Errorf("%d", a.Status)
		}
		return nil
	})
	m.node.Proxy.Kill()
	forget(t, m.Mesh, m.node)
	log := startAgain(t, m.node)
	if !strings.Contains(log(), "revoked") {
		t.Errorf("its log does not say why:\n%s", log())
	}
	token, err := m.API.CreateToken(t.Context(), policy.ServiceName{Namespace: "default", Name: "vault"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Dir, "proxy-"+m.node.Host.Name(), "token"), []byte(token.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.node.StartProxy(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.until(t, m.front, 200, "", "http://vault:8001/")
}

// A revocation with an end vanishes by itself.
func TestARevocationEndsWithItsTime(t *testing.T) {
	t.Parallel()
	m := newSecureMesh(t)
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	if _, err := m.API.Revoke(t.Context(), policy.Revocation{Identity: policy.ServiceName{Namespace: "default", Name: "frontend"}}, 3*time.Second); err != nil {
		t.Fatal(err)
	}
	await(t, m.Mesh, "the revocation to be over", func() error {
		list, err := m.API.Revocations(t.Context())
		if err == nil && len(list) > 0 {
			err = fmt.Errorf("%+v", list)
		}
		return err
	})
	m.until(t, m.front, 200, "", "http://vault:8001/")
}
