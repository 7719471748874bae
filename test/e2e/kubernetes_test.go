//go:build kubernetes

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// cluster is a real kube-apiserver with an etcd, beside the control plane.
type cluster struct {
	t    *testing.T
	dir  string
	at   string // host:port
	http *http.Client
}

const adminOfCluster = "admin-of-the-cluster"

func newCluster(t *testing.T, m *meshlab.Mesh) *cluster {
	t.Helper()
	program := os.Getenv("KUBE_APISERVER")
	if program == "" {
		t.Fatal("KUBE_APISERVER is not set; make kubernetes builds one and runs this test")
	}
	n := bare(t, m, "kube")
	c := &cluster{t: t, dir: t.TempDir(), at: n.Join(6443)}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c.write("sa.key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	c.write("tokens.csv", []byte(adminOfCluster+",admin,1,system:masters\n"))
	if _, err := n.Start(t.Context(), "kube-etcd", 2379, "etcd", "--data-dir", c.path("etcd"), "--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "error"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Start(t.Context(), "kube-apiserver", 0, program, "--etcd-servers=http://127.0.0.1:2379", "--bind-address="+n.Addr4().String(), "--advertise-address="+n.Addr4().String(),
		"--secure-port=6443", "--cert-dir="+c.path("certs"), "--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+c.path("sa.key"),
		"--service-account-signing-key-file="+c.path("sa.key"), "--token-auth-file="+c.path("tokens.csv"), "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
		"--disable-admission-plugins=ServiceAccount", "--service-cluster-ip-range=10.96.0.0/24"); err != nil {
		t.Fatal(err)
	}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return n.DialContext(ctx, network, n.Join(6443))
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}, Timeout: 10 * time.Second}
	t.Cleanup(c.http.CloseIdleConnections)
	await(t, m, "the API server, and its roles", func() error {
		_, err := c.call("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:auth-delegator", "")
		return err
	})
	return c
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) write(name string, content []byte) string {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), content, 0o600); err != nil {
		c.t.Fatal(err)
	}
	return c.path(name)
}

func (c *cluster) call(method, path, body string) (map[string]any, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, "https://kube"+path, bytes.NewBufferString(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+adminOfCluster)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	var out map[string]any
	return out, json.Unmarshal(text, &out)
}

func (c *cluster) create(path, body string) {
	c.t.Helper()
	if _, err := c.call("POST", path, body); err != nil {
		c.t.Fatal(err)
	}
}

// token is what a projected volume would hold.
func (c *cluster) token(account, audience string) string {
	c.t.Helper()
	namespace, name, _ := strings.Cut(account, "/")
	got, err := c.call("POST", "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+name+"/token", fmt.Sprintf(`{"spec":{"audiences":[%q],"expirationSeconds":3600}}`, audience))
	if err != nil {
		c.t.Fatal(err)
	}
	return got["status"].(map[string]any)["token"].(string)
}

// TestPodsJoinWithTheirServiceAccount: a real kube-apiserver reviews the tokens. A
// pod joins as its account, or as what that is mapped to; not as another, not with
// a token for the API server, not after its account is gone.
func TestPodsJoinWithTheirServiceAccount(t *testing.T) {
	t.Parallel()
	m := start(t)
	c := newCluster(t, m)
	certs, err := os.ReadFile(c.path("certs/apiserver.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, namespace := range []string{"shop", "bank", "weir"} {
		c.create("/api/v1/namespaces", fmt.Sprintf(`{"metadata":{"name":%q}}`, namespace))
	}
	for _, account := range []string{"shop/cart", "shop/web", "bank/cart", "weir/control"} {
		namespace, name, _ := strings.Cut(account, "/")
		c.create("/api/v1/namespaces/"+namespace+"/serviceaccounts", fmt.Sprintf(`{"metadata":{"name":%q}}`, name))
	}
	caFile, ownFile := c.write("ca.pem", certs), c.write("own", []byte(c.token("weir/control", "https://kubernetes.default.svc")))
	server := "https://" + c.at
	p := secondPlane(t, m, "--kubernetes-join", "--kubernetes-api", server, "--kubernetes-ca", caFile, "--kubernetes-token-file", ownFile, "--kubernetes-map", "shop/web=front")
	root := output(t, m.ControlNode(), "curl", "-sf", "http://127.0.0.1:8090/api/v1/certificates/ca")
	rootFile := c.write("root.pem", []byte(root))
	joins := func(namespace, service, token string) string {
		t.Helper()
		runs++
		tokenFile := c.write(fmt.Sprint("token", runs), []byte(token))
		n := bare(t, m, fmt.Sprint("pod", runs))
		proxy, err := n.Start(t.Context(), fmt.Sprint("proxy-pod", runs), 0, m.Program("weir-proxy"), "--control", m.Host.Join(8091), "--namespace", namespace, "--service", service,
			"--join-kubernetes", "--kubernetes-token-file", tokenFile, "--control-ca", rootFile)
		if err != nil {
			t.Fatal(err)
		}
		defer proxy.Kill()
		await(t, m, "the proxy to join or end", func() error {
			select {
			case <-proxy.Done():
				return nil
			default:
			}
			if log := proxy.Log(); !strings.Contains(log, `"joined"`) && !strings.Contains(log, "trying again") {
				return errors.New(log)
			}
			return nil
		})
		return proxy.Log()
	}
	if log := joins("shop", "cart", c.token("shop/cart", "weir")); !strings.Contains(log, "trying again") || !strings.Contains(p.Log(), "system:auth-delegator") {
		t.Errorf("without the right to ask: %s\n%s", log, p.Tail())
	}
	c.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"metadata":{"name":"weir"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"system:auth-delegator"},"subjects":[{"kind":"ServiceAccount","namespace":"weir","name":"control"}]}`)
	await(t, m, "the right to ask", func() error {
		if log := joins("shop", "cart", c.token("shop/cart", "weir")); !strings.Contains(log, `"joined"`) {
			return errors.New(log)
		}
		return nil
	})
	for _, x := range []struct{ account, audience, namespace, service, says string }{
		{"shop/web", "weir", "shop", "web", `"joined"`},
		{"shop/web", "weir", "shop", "front", `"joined"`},
		{"shop/cart", "weir", "shop", "front", "as front only with --kubernetes-map"},
		{"bank/cart", "weir", "shop", "cart", "of another namespace"},
		{"shop/cart", "https://kubernetes.default.svc", "shop", "cart", "not for the audience"},
	} {
		if log := joins(x.namespace, x.service, c.token(x.account, x.audience)); !strings.Contains(log, x.says) {
			t.Errorf("%s for %s as %s/%s: want %q\n%s", x.account, x.audience, x.namespace, x.service, x.says, log)
		}
	}
	if log := joins("shop", "cart", "nonsense"); !strings.Contains(log, "does not know the token") {
		t.Errorf("with nonsense: %s", log)
	}
	gone := c.token("shop/cart", "weir")
	if _, err := c.call("DELETE", "/api/v1/namespaces/shop/serviceaccounts/cart", ""); err != nil {
		t.Fatal(err)
	}
	await(t, m, "the account to be gone for the API server, too", func() error {
		if log := joins("shop", "cart", gone); !strings.Contains(log, "does not know the token") {
			return errors.New(log)
		}
		return nil
	})
}

// secondPlane runs a control plane of its own beside that of the lab.
func secondPlane(t *testing.T, m *meshlab.Mesh, flags ...string) *meshlab.Process {
	t.Helper()
	args := append([]string{"control", "--data-dir", filepath.Join(m.Dir, "second"), "--http-addr", "127.0.0.1:8090", "--grpc-addr", m.Host.Join(8091)}, flags...)
	p, err := m.ControlNode().Start(t.Context(), "second-control", 8090, m.Program("weir"), args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
