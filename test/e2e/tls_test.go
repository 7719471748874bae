package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

func mtlsModes(t *testing.T, m *secureMesh) {
	anybody := allMethods("*", "vault")
	anybody.SourceNamespace = "*"
	m.rule(t, anybody)
	defer set(t, m.Mesh, `{"mtls_mode":"strict"}`)
	plain := []string{"-H", "X-Source-Service: admin", "http://" + m.node.Join(8001) + "/"}
	const marker = "/the-word-on-the-wire"
	pid := m.node.Proxy.Pid()
	for _, c := range []struct {
		mode    string
		outside int
		onWire  bool
	}{{"strict", 403, false}, {"permissive", 200, false}, {"disabled", 200, true}, {"strict", 403, false}} {
		t.Run(c.mode, func(t *testing.T) {
			set(t, m.Mesh, fmt.Sprintf(`{"mtls_mode":%q}`, c.mode))
			word := ""
			if c.outside == 403 {
				word = "mtls-required"
			}
			a := m.until(t, m.outside, c.outside, word, plain...)
			if a.Status == 200 && len(seenBy(t, a).Header["X-Source-Service"]) != 0 {
				t.Errorf("a caller without a certificate is %q to the app", seenBy(t, a).Header["X-Source-Service"])
			}
			if out, err := echoed(t.Context(), m.outside, m.node.Join(9001), "hello"); (out == "hello") != (c.outside == 200) {
				t.Errorf("raw bytes came back as %q, %v", out, err)
			}
			await(t, m.Mesh, "the wire to show it", func() error {
				var status int
				wire := capture(t, m.Mesh, func() { status = ask(t, m.front, "http://vault:8001"+marker).Status })
				if status != 200 || strings.Contains(wire, marker) != c.onWire {
					return fmt.Errorf("status %d, plaintext on the wire: %v", status, strings.Contains(wire, marker))
				}
				return nil
			})
		})
	}
	if m.node.Proxy.Pid() != pid {
		t.Error("the proxy was restarted")
	}
	select {
	case <-m.node.Proxy.Done():
		t.Error("the proxy ended")
	default:
	}
}

// capture gives all the frames that crossed the bridge while f ran.
func capture(t *testing.T, m *meshlab.Mesh, f func()) string {
	t.Helper()
	fd := -1
	err := m.Lab.Bridge().Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		if err != nil {
			return err
		}
		// Enough for what a test sends: nobody reads before its end. In a user
		// namespace it is less, and what is lost is counted below.
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); errors.Is(err, unix.EPERM) {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<20)
		}
		return err
	})
	if fd >= 0 {
		defer func() { _ = unix.Close(fd) }()
	}
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	f()
	var all []byte
	buf := make([]byte, 70_000)
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatalf("capture: %v", err)
		}
		all = append(all, buf[:n]...)
	}
	if stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err != nil || stats.Drops > 0 || len(all) < 500 {
		t.Errorf("captured %d bytes, %+v, %v", len(all), stats, err)
	}
	return string(all)
}

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)}) }

func ruleModes(t *testing.T, m *secureMesh) {
	plain := "http://" + m.node.Join(8001) + "/"
	t.Run("permissive", func(t *testing.T) {
		r := allMethods("*", "vault")
		r.SourceNamespace, r.MTLSMode = "*", policy.Permissive
		m.rule(t, r)
		m.until(t, m.outside, 200, "", plain)
		m.until(t, m.front, 200, "", "http://vault:8001/")
	})
	m.until(t, m.outside, 403, "mtls-required", plain)
	t.Run("disabled", func(t *testing.T) {
		r := allMethods("frontend", "vault")
		r.MTLSMode = policy.Disabled
		m.rule(t, r)
		const marker = "/rule-disables-mtls"
		await(t, m.Mesh, "plaintext on the wire", func() error {
			var status int
			if wire := capture(t, m.Mesh, func() { status = ask(t, m.front, "http://vault:8001"+marker).Status }); status != 200 || !strings.Contains(wire, marker) {
				return fmt.Errorf("status %d, plaintext %v", status, strings.Contains(wire, marker))
			}
			return nil
		})
		ask(t, m.outside, plain).want(t, 403, "mtls-required", denial) // the rule is for the frontend's address only
	})
	m.until(t, m.front, 403, "no-rule", "http://vault:8001/")
}

func TestTheAppsOwnTLSIsNeverTouched(t *testing.T) {
	t.Parallel()
	m := start(t)
	// The check of a port that is declared as nothing is a GET, which a TLS
	// server fails: it is reached because nobody asks.
	set(t, m, `{"load_balancing":{"health_check":{"enabled":false}}}`)
	n := bare(t, m, "shop")
	dir := filepath.Join(m.Dir, "tls")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	key, cert := filepath.Join(dir, "key"), filepath.Join(dir, "cert")
	if _, err := n.Output(t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
		"-subj", "/CN=shop", "-addext", "subjectAltName=DNS:shop", "-keyout", key, "-out", cert); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"8443", "8444", "8445"} {
		if _, err := n.Start(t.Context(), "openssl-"+port, atoi(port), "openssl", "s_server", "-accept", port, "-key", key, "-cert", cert, "-www", "-quiet"); err != nil {
			t.Fatal(err)
		}
	}
	// The same server behind a port declared as TLS, as TCP, and as nothing.
	enter(t, m, n, meshlab.Workload{Host: "shop", Service: "shop", Ports: []string{"8443/tls", "8444/tcp", "8445"}})
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	outside := bare(t, m, "outside")
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "shop")); err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"8443", "8444", "8445"} {
		await(t, m, "port "+port, func() error {
			out, err := front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "--cacert", cert, "-o", "/dev/null", "-w", "%{http_code} %{ssl_verify_result}", "https://shop:"+port+"/")
			if out != "200 0" {
				return fmt.Errorf("%q, %w", out, err)
			}
			return nil
		})
		certs, out := shown(t, front, "-connect", "shop:"+port, "-servername", "shop")
		if len(certs) != 1 || certs[0].Subject.CommonName != "shop" {
			t.Errorf("port %s shows %d certificates:\n%s", port, len(certs), out)
		}
	}
	// From outside it is plaintext to the mesh: strict refuses it, and permissive
	// leaves it alone just as well.
	r := allMethods("*", "shop")
	r.SourceNamespace = "*"
	if _, err := m.API.AddSecurityRule(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	direct := []string{"-sS", "--max-time", "10", "-k", "-o", "/dev/null", "-w", "%{http_code}", "https://" + n.Join(8443) + "/"}
	if out, err := outside.Output(t.Context(), "curl", direct...); err == nil {
		t.Errorf("strict let it in: %s", out)
	}
	set(t, m, `{"mtls_mode":"permissive"}`)
	await(t, m, "permissive to take it", func() error {
		out, err := outside.Output(t.Context(), "curl", direct...)
		if out != "200" {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
}
