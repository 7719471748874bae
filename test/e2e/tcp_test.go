package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// tcpMesh is a frontend in front of one service with a redis, a server that
// speaks first, an echo server and an HTTP app, and a host outside the mesh.
type tcpMesh struct {
	*meshlab.Mesh
	front, data, outside *meshlab.Node
	app, outsideApp      *app
}

const greeting = "220 mail.example.org ready\r\n"

func newTCPMesh(t *testing.T) *tcpMesh {
	m := &tcpMesh{Mesh: start(t)}
	// Listeners of the tests take whoever connects first: not a check.
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"enabled":false}}}`)
	m.data, m.outside = bare(t, m.Mesh, "data"), bare(t, m.Mesh, "outside")
	if _, err := m.data.Start(t.Context(), "redis", 6379, "redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", m.Dir); err != nil {
		t.Fatal(err)
	}
	echoServer(t, m.data, 2525, greeting)
	echoServer(t, m.data, 9001, "")
	m.app = serve(t, m.data, "data", 8001, nil)
	enter(t, m.Mesh, m.data, meshlab.Workload{
		Host: "data", Service: "data", Ports: []string{"8001", "6379/tcp", "2525/tcp", "9001/tcp"},
	})
	echoServer(t, m.outside, 2525, greeting)
	m.outsideApp = serve(t, m.outside, "outside", 8080, nil)
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	for _, from := range []string{"frontend", "data"} {
		if _, err := m.API.AddSecurityRule(t.Context(), allMethods(from, "data")); err != nil {
			t.Fatal(err)
		}
	}
	await(t, m.Mesh, "the rules", func() error {
		if a := ask(t, m.front, "http://data:8001/"); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	return m
}

func TestWhatIsNotHTTPWorksThroughTheSameInterception(t *testing.T) {
	t.Parallel()
	m := newTCPMesh(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *tcpMesh)
	}{
		{"RedisWorks", redis},
		{"AServerThatSpeaksFirstIsHeardAtOnce", serverFirst},
		{"AHalfClosedConnectionCarriesTheOtherDirection", halfClose},
		{"AResetArrivesAsAReset", resets},
		{"32MiBBothWaysAreExact", bulk},
		{"ADeadEndpointCostsAConnectionNothing", deadEndpoint},
		{"HTTPToAPortThatNobodyDeclaredGoesToHTTPEndpoints", portless},
		{"OtherDestinationsPassUntouched", egress},
		{"EgressDenyRefusesThem", egressDeny},
		{"AHostThatNamesAServiceLeadsThere", hostLeads},
		{"IPv6WorksLikeIPv4", ipv6},
		{"DNSAnswersTheNamesOfServices", dnsNames},
		{"DNSForwardsOtherNames", dnsForward},
		{"AnAppReachesItsOwnService", ownService},
		{"TheProxyTakesATargetFromItsOwnAppOnly", explicitMode},
		{"AProxyWithoutMarksWorks", uidMode},
	} {
		t.Run(c.name, func(t *testing.T) { m.app.forget(); m.outsideApp.forget(); c.run(t, m) })
	}
}

func output(t *testing.T, n *meshlab.Node, program string, args ...string) string {
	t.Helper()
	out, err := n.Output(t.Context(), "timeout", append([]string{"30", program}, args...)...)
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return out
}

func redis(t *testing.T, m *tcpMesh) {
	if got := output(t, m.front, "redis-cli", "-h", "data", "set", "k", "value"); got != "OK\n" {
		t.Errorf("set: %q", got)
	}
	if got := output(t, m.front, "redis-cli", "-h", "data", "get", "k"); got != "value\n" {
		t.Errorf("get: %q", got)
	}
	got := output(t, m.front, "redis-benchmark", "-h", "data", "-n", "2000", "-c", "10", "-P", "4", "-t", "set,get,lrange_100", "--csv")
	if strings.Count(got, "\n") < 4 || strings.Contains(strings.ToLower(got), "error") {
		t.Errorf("redis-benchmark: %s", got)
	}
}

func dial(t *testing.T, n *meshlab.Node, to string) *net.TCPConn {
	t.Helper()
	c, err := n.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func serverFirst(t *testing.T, m *tcpMesh) {
	for name, to := range map[string]string{"mesh": "data:2525", "by address": m.data.Join(2525), "outside": m.outside.Join(2525)} {
		c := dial(t, m.front, to)
		buf := make([]byte, len(greeting))
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != greeting {
			t.Errorf("%s: the client was silent and heard %q, %v", name, buf, err)
		}
		_, _ = io.WriteString(c, "EHLO a\r\n")
		if _, err := io.ReadFull(c, buf[:8]); err != nil || string(buf[:8]) != "EHLO a\r\n" {
			t.Errorf("%s: then it got %q, %v", name, buf[:8], err)
		}
	}
}

// listener is a TCP server whose test takes the connections, on a port of data
// that the mesh does not know before.
func (m *tcpMesh) listener(t *testing.T, port int) (*net.TCPListener, string) {
	t.Helper()
	ln, err := m.data.ListenTCP(fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	id := fmt.Sprintf("data-%d", port)
	register(t, m.Mesh, m.data, "data", id, port, "tcp")
	t.Cleanup(func() {
		_ = m.API.Deregister(t.Context(), policy.ServiceName{Namespace: "default", Name: "data"}, id)
	})
	known(t, m.Mesh, m.front, "data", id)
	return ln, fmt.Sprintf("data:%d", port)
}

func accept(t *testing.T, ln *net.TCPListener) *net.TCPConn {
	t.Helper()
	_ = ln.SetDeadline(time.Now().Add(20 * time.Second))
	c, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func halfClose(t *testing.T, m *tcpMesh) {
	ln, to := m.listener(t, 9002)
	t.Run("by the client", func(t *testing.T) {
		client := dial(t, m.front, to)
		_, _ = io.WriteString(client, "all of it")
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		server := accept(t, ln)
		if b, err := io.ReadAll(server); string(b) != "all of it" || err != nil {
			t.Errorf("the server got %q, %v", b, err)
		}
		_, _ = io.WriteString(server, "the answer")
		_ = server.Close()
		if b, err := io.ReadAll(client); string(b) != "the answer" || err != nil {
			t.Errorf("the client got %q, %v", b, err)
		}
	})
	t.Run("by the server", func(t *testing.T) {
		client := dial(t, m.front, to)
		server := accept(t, ln)
		_, _ = io.WriteString(server, "goodbye")
		if err := server.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(client); string(b) != "goodbye" || err != nil {
			t.Errorf("the client got %q, %v", b, err)
		}
		_, _ = io.WriteString(client, "one more thing")
		_ = client.Close()
		if b, err := io.ReadAll(server); string(b) != "one more thing" || err != nil {
			t.Errorf("the server got %q, %v", b, err)
		}
	})
}

func resets(t *testing.T, m *tcpMesh) {
	ln, to := m.listener(t, 9003)
	for _, who := range []string{"server", "client"} {
		client := dial(t, m.front, to)
		_, _ = io.WriteString(client, "x")
		server := accept(t, ln)
		if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		from, other := server, client
		if who == "client" {
			from, other = client, server
		}
		_ = from.SetLinger(0)
		_ = from.Close()
		if n, err := other.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a reset by the %s arrived as %d bytes, %v", who, n, err)
		}
	}
	// A port where nobody listens resets as well: it is not an empty answer.
	_ = ln.Close()
	client := dial(t, m.front, to)
	if n, err := client.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a dead port gave %d bytes, %v", n, err)
	}
}

func bulk(t *testing.T, m *tcpMesh) {
	const size = 32 << 20
	for name, to := range map[string]string{"mesh": "data:9001", "outside": ""} {
		if to == "" {
			echoServer(t, m.outside, 9001, "")
			to = m.outside.Join(9001)
		}
		c := dial(t, m.front, to)
		_ = c.SetDeadline(time.Now().Add(60 * time.Second))
		sent := sha256.New()
		written := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.MultiWriter(c, sent), io.LimitReader(rand.NewChaCha8([32]byte{7}), size))
			written <- errors.Join(err, c.CloseWrite())
		}()
		got := sha256.New()
		n, err := io.Copy(got, c)
		if werr := <-written; err != nil || werr != nil || n != size || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
			t.Errorf("%s: %d of %d bytes came back, the same %v, %v, %v", name, n, size, bytes.Equal(got.Sum(nil), sent.Sum(nil)), err, werr)
		}
	}
}

func deadEndpoint(t *testing.T, m *tcpMesh) {
	ln, to := m.listener(t, 9004)
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port, e.Protocol = "dead", "data", "default", m.outside.Addr4().String(), 9004, "tcp"
	if err := m.API.Register(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	defer deregister(t, m.Mesh, "data", "dead")
	for range 6 {
		client := dial(t, m.front, to)
		_, _ = io.WriteString(client, "x")
		server := accept(t, ln)
		if _, err := io.ReadFull(server, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		_ = client.Close()
	}
}
