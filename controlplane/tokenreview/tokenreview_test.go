package tokenreview

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// apiServer answers reviews as kube-apiserver does, of the tokens it has.
type apiServer struct {
	*httptest.Server
	users  map[string]string // by token
	status int
	answer string // in the place of a review
}

func newAPIServer(t *testing.T) (*apiServer, Config) {
	t.Helper()
	a := &apiServer{users: map[string]string{}}
	a.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q review
		if r.Method != http.MethodPost || r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" || r.Header.Get("Authorization") != "Bearer ours" ||
			json.NewDecoder(r.Body).Decode(&q) != nil || q.Kind != "TokenReview" || len(q.Spec.Audiences) != 1 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if a.status != 0 {
			w.WriteHeader(a.status)
			return
		}
		if a.answer != "" {
			_, _ = w.Write([]byte(a.answer))
			return
		}
		user, audience, _ := strings.Cut(a.users[q.Spec.Token], "@")
		q.Status.User.Username = user
		if q.Status.Authenticated = user != "" && (audience == "" || audience == q.Spec.Audiences[0]); q.Status.Authenticated && audience != "" {
			q.Status.Audiences = q.Spec.Audiences
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(q)
	}))
	t.Cleanup(a.Close)
	dir := t.TempDir()
	cfg := Config{Server: a.URL, CAFile: filepath.Join(dir, "ca"), TokenFile: filepath.Join(dir, "token"), Audience: "weir"}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw})
	for file, text := range map[string][]byte{cfg.CAFile: ca, cfg.TokenFile: []byte("ours\n")} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return a, cfg
}

func TestAnAccountJoinsAsItselfOrAsWhatItIsMappedTo(t *testing.T) {
	a, cfg := newAPIServer(t)
	a.users = map[string]string{
		"cart": "system:serviceaccount:shop:cart@weir", "web": "system:serviceaccount:shop:web@weir", "bank": "system:serviceaccount:bank:cart@weir",
		"api": "system:serviceaccount:shop:cart@https://kubernetes.default.svc", "old": "system:serviceaccount:shop:cart",
		"human": "admin@weir", "node": "system:node:n1@weir",
	}
	var err error
	if cfg.Map, err = ParseMap([]string{"shop/web=front", "shop/web=mobile", "bank/cart=ledger"}); err != nil {
		t.Fatal(err)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, c := range []struct {
		token, namespace, service, says string
	}{
		{"cart", "shop", "cart", ""}, {"web", "shop", "web", ""}, {"web", "shop", "front", ""}, {"web", "shop", "mobile", ""}, {"bank", "bank", "ledger", ""},
		{"cart", "shop", "front", "may join as cart; as front only with --kubernetes-map shop/cart=front"},
		{"bank", "shop", "cart", "of another namespace"}, {"bank", "shop", "ledger", "of another namespace"}, {"cart", "bank", "cart", "of another namespace"},
		{"nobody", "shop", "cart", "does not know the token"}, {"api", "shop", "cart", "does not know the token, or not for the audience"},
		{"old", "shop", "cart", "not for the audience"}, {"human", "shop", "cart", "not a service account"}, {"node", "shop", "cart", "not a service account"},
	} {
		err := r.Allow(t.Context(), c.token, policy.ServiceName{Namespace: c.namespace, Name: c.service})
		if c.says == "" && err != nil || c.says != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s as %s/%s: %v; want %q", c.token, c.namespace, c.service, err, c.says)
		}
	}
}

func TestWhoCannotBeAskedIsNoYes(t *testing.T) {
	a, cfg := newAPIServer(t)
	a.users["cart"] = "system:serviceaccount:shop:cart@weir"
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cart := policy.ServiceName{Namespace: "shop", Name: "cart"}
	fails := func(what, says string) {
		t.Helper()
		err := r.Allow(t.Context(), "cart", cart)
		if err == nil || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "ours") {
			t.Errorf("%s: %v", what, err)
		}
	}
	a.status = http.StatusForbidden
	fails("no right to ask", "system:auth-delegator")
	a.status, a.answer = 0, `{"kind":"Status"}`
	fails("another answer", "no TokenReview")
	a.answer = ""
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Allow(ctx, "cart", cart); err == nil || errors.Is(err, ErrRefused) {
		t.Errorf("an end: %v", err)
	}
	if err := r.Allow(t.Context(), "cart", cart); err != nil {
		t.Errorf("it answers again: %v", err)
	}
	r.Close()
	if err := os.Remove(cfg.TokenFile); err != nil {
		t.Fatal(err)
	}
	fails("no token of our own", "--kubernetes-token-file")
	a.Close()
	if err := os.WriteFile(cfg.TokenFile, []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails("away", "token review: ")
}

func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestAnotherServerIsNotAsked(t *testing.T) {
	_, cfg := newAPIServer(t)
	if err := os.WriteFile(cfg.CAFile, selfSigned(t), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Allow(t.Context(), "cart", policy.ServiceName{Namespace: "shop", Name: "cart"}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v", err)
	}
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	_, good := newAPIServer(t)
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for says, change := range map[string]func(*Config){
		"this is no pod":              func(c *Config) { c.Server = "" },
		"--kubernetes-api":            func(c *Config) { c.Server = "http://k:80" },
		"--kubernetes-audience":       func(c *Config) { c.Audience = "" },
		"--kubernetes-ca: open":       func(c *Config) { c.CAFile += "x" },
		"holds no certificate in PEM": func(c *Config) { c.CAFile = c.TokenFile },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v; want %q", err, says)
		}
	}
	for _, bad := range []string{"", "a", "a=b", "a/b", "a/=c", "a/b=", "a/b=C", "A/b=c"} {
		if _, err := ParseMap([]string{bad}); err == nil {
			t.Errorf("the mapping %q is taken", bad)
		}
	}
}
