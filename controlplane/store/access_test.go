package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// authority signs certificates for 127.0.0.1.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{t, cert, key}
}

func (a *authority) writeCA(path string) string {
	writePEM(a.t, path, "CERTIFICATE", a.cert.Raw)
	return path
}

// write signs for a new key and replaces both files.
func (a *authority) write(certFile, keyFile string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "weir"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	must(a.t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(a.t, err)
	writePEM(a.t, certFile, "CERTIFICATE", der)
	writePEM(a.t, keyFile, "PRIVATE KEY", pkcs8)
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	must(t, os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	must(t, os.Rename(path+".new", path))
}

// etcdWith starts an etcd of the test's own.
func etcdWith(t *testing.T, scheme string, change func(*embed.Config)) *embed.Etcd {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = "own", t.TempDir()
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.ListenPeerUrls = nil
	cfg.ListenClientUrls = []url.URL{{Scheme: scheme, Host: "127.0.0.1:0"}}
	cfg.UnsafeNoFsync = true
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	change(cfg)
	e, err := embed.StartEtcd(cfg)
	must(t, err)
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return e
}

func TestCertificatesThatAreReplacedHoldFromTheNextConnectionOn(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	clients, first, second := newAuthority(t), newAuthority(t), newAuthority(t)
	clients.writeCA(at("clients"))
	clients.write(at("cert"), at("key"))
	first.write(at("server-cert"), at("server-key"))
	first.writeCA(at("ca"))
	e := etcdWith(t, "https", func(c *embed.Config) {
		tls := &c.ClientTLSInfo
		tls.CertFile, tls.KeyFile, tls.TrustedCAFile, tls.ClientCertAuth = at("server-cert"), at("server-key"), at("clients"), true
	})
	w := &wire{t: t, addr: "127.0.0.1:0", to: e.Clients[0].Addr().String()}
	w.up()
	t.Cleanup(func() { w.cut() })
	access := Access{CAFile: at("ca"), CertFile: at("cert"), KeyFile: at("key")}
	s := open(t, func(c *Config) { c.Endpoints, c.Access = []string{"https://" + w.addr}, access })
	must(t, s.PutEndpoint(t.Context(), endpoint("cart", "a")))

	// Who shows no certificate, or trusts another authority, is told so.
	for name, a := range map[string]Access{"no certificate": {CAFile: at("ca")}, "another authority": {CAFile: at("clients"), CertFile: at("cert"), KeyFile: at("key")}} {
		short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := Open(short, Config{Endpoints: []string{"https://" + w.addr}, Access: a})
		cancel()
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), w.addr) || name == "another authority" && !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("%s: %v", name, err)
		}
	}

	w.cut()
	second.write(at("server-cert"), at("server-key"))
	second.writeCA(at("ca"))
	clients.write(at("cert"), at("key"))
	w.up()
	err := s.PutEndpoint(t.Context(), endpoint("cart", "b"))
	for errors.Is(err, ErrUnavailable) { // the first may meet the connection that was cut
		err = s.PutEndpoint(t.Context(), endpoint("cart", "b"))
	}
	must(t, err)
	until(t, s, "both are known", func(st *State) bool { return len(st.Services.Get(shop("cart")).Endpoints) == 2 })
}

func TestAClusterWithUsers(t *testing.T) {
	e := etcdWith(t, "http", func(c *embed.Config) { c.BcryptCost = 4 }) // the least: this is not about guessing
	at := "http://" + e.Clients[0].Addr().String()
	admin := run(t, Config{Endpoints: []string{at}})
	ctx := t.Context()
	_, err := admin.client.UserAdd(ctx, "root", "r:t")
	must(t, err)
	_, err = admin.client.UserGrantRole(ctx, "root", "root")
	must(t, err)
	_, err = admin.client.AuthEnable(ctx)
	must(t, err)
	file := filepath.Join(t.TempDir(), "user")
	for text, want := range map[string]string{"": "authentication", "root:wrong\n": "authentication failed", "root:r:t\n": ""} {
		access := Access{}
		if text != "" {
			must(t, os.WriteFile(file, []byte(text), 0o600))
			access.UserFile = file
		}
		s, err := Open(ctx, Config{Endpoints: []string{at}, Access: access})
		if want == "" {
			must(t, err)
			must(t, s.PutEndpoint(ctx, endpoint("cart", "a")))
			must(t, s.Close())
			continue
		}
		// Waiting does not heal this.
		if err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "user") && !strings.Contains(err.Error(), want) {
			t.Errorf("with %q: %v", text, err)
		}
	}
	// The test's own user is shut out now; let it end in peace.
	c, err := newClient(Config{Endpoints: []string{at}, Access: Access{UserFile: writeUser(t, "root:r:t")}, Log: zap.NewNop()}, &connecting{})
	must(t, err)
	_, err = c.AuthDisable(ctx)
	must(t, errors.Join(err, c.Close()))
}

func writeUser(t *testing.T, text string) string {
	file := filepath.Join(t.TempDir(), "user")
	must(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

func TestWhatIsWrongWithTheFilesNamesTheFlag(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t)
	good := ca.writeCA(filepath.Join(dir, "ca"))
	ca.write(filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
	none := filepath.Join(dir, "none")
	for name, c := range map[string]struct {
		url    string
		access Access
		want   string
	}{
		"no file of authorities": {"https://x", Access{CAFile: none}, "--store-ca-file: open " + none},
		"not PEM":                {"https://x", Access{CAFile: writeUser(t, "hello")}, "holds no certificate in PEM"},
		"a certificate alone":    {"https://x", Access{CAFile: good, CertFile: good}, "--store-cert-file and --store-key-file go together"},
		"not its key":            {"https://x", Access{CertFile: good, KeyFile: filepath.Join(dir, "key")}, "--store-cert-file " + good},
		"files without https":    {"http://x", Access{CAFile: good}, "are for https:// URLs"},
		"no file of users":       {"http://x", Access{UserFile: none}, "--store-user-file: open " + none},
		"no password":            {"http://x", Access{UserFile: writeUser(t, "root")}, "USER:PASSWORD"},
	} {
		_, err := Open(t.Context(), Config{Endpoints: []string{c.url}, Access: c.access})
		if err == nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
