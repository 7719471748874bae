//go:build soak

package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// clientsEnv makes the test binary the clients of TestTenThousandHandshakesAtOnce:
// address, number and the file of their certificate.
const clientsEnv = "WEIR_HANDSHAKE_CLIENTS"

// TestTenThousandHandshakesAtOnce: as many as a sidecar takes connections. The
// clients are another process, so the memory is that of the sidecar alone.
func TestTenThousandHandshakesAtOnce(t *testing.T) {
	if spec := os.Getenv(clientsEnv); spec != "" {
		beClients(t, strings.Fields(spec))
		return
	}
	const n, bound = 10_000, 1 << 30
	// One keepalive a second of 10 000 connections, on a busy machine, would lose some.
	was := impatient
	impatient = keepAlive
	defer func() { impatient = was }()
	r := newRoot(t)
	b := called(t, r, func(p *Proxy) { p.cfg.HandshakeTime = 10 * time.Minute })
	// Declared, so that the app, which is in this process, is not dialled for each.
	b.p.cfg.AppPorts = []AppPort{{Port: uint16(b.server.Addr().(*net.TCPAddr).Port), Protocol: "http"}}
	cert := r.leaf(shop)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/cert"
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	clients := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$")
	clients.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", clientsEnv, b.at, n, file))
	var most uint64
	ended := make(chan error, 1)
	began := time.Now()
	go func() {
		out, err := clients.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		ended <- err
	}()
	for running := true; running; {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapInuse+m.StackInuse)
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		case <-time.After(100 * time.Millisecond):
		}
	}
	awaitFigure(t, b.p, done("server", "full"), fmt.Sprint(n))
	t.Logf("%d handshakes at once: %v, %d MiB at most", n, time.Since(began).Round(time.Second), most>>20)
	if most > bound {
		t.Errorf("%d handshakes at once took %d MiB", n, most>>20)
	}
	if _, answer, err := get(b.at, clientOf(&cert)); err != nil || !strings.HasSuffix(answer, "hello") {
		t.Errorf("afterwards: %q, %v", answer, err)
	}
}

// beClients connects, and then has all shake hands at the same time.
func beClients(t *testing.T, spec []string) {
	var n int
	if _, err := fmt.Sscan(spec[1], &n); err != nil {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(spec[2], spec[2])
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, n)
	for i := range conns {
		if conns[i], err = net.DialTimeout("tcp", spec[0], time.Minute); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
			if err := tls.Client(c, clientOf(&cert)).Handshake(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, c := range conns {
		_ = c.Close()
	}
}
