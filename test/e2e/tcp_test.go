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

	"golang.org/x/net/dns/dnsmessage"

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
	// The program people use for it.
	if got := output(t, m.front, "bash", "-c", "printf hello | nc -N data 9001"); got != "hello" {
		t.Errorf("nc -N got %q", got)
	}
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

func portless(t *testing.T, m *tcpMesh) {
	for range 8 {
		ask(t, m.front, "http://data/").want(t, 200, "", "")
	}
	if m.app.count() != 8 {
		t.Errorf("the app saw %d of 8 requests", m.app.count())
	}
}

func egress(t *testing.T, m *tcpMesh) {
	s := seenBy(t, ask(t, m.front, "http://"+m.outside.Join(8080)+"/x"))
	for _, name := range []string{"X-Request-Id", "X-Source-Service", "X-Source-Namespace", "Traceparent"} {
		if s.Header.Get(name) != "" {
			t.Errorf("outside the mesh the app saw %s: %s", name, s.Header.Get(name))
		}
	}
	// Not even what is wrong is touched.
	odd := "GET /odd HTTP/1.1\r\nHost: a\r\nX-Own : 1\r\n\r\n"
	if out, err := echoedBy(t, m, odd); out != odd {
		t.Errorf("odd bytes came back as %q, %v", out, err)
	}
	out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://"+m.outside.Join(81)+"/")
	if err == nil || !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "refused") {
		t.Errorf("a closed port gave %q, %v", out, err)
	}
}

func echoedBy(t *testing.T, m *tcpMesh, text string) (string, error) {
	ln := echoServer(t, m.outside, 9009, "")
	defer func() { _ = ln.Close() }()
	return echoed(t.Context(), m.front, m.outside.Join(9009), text)
}

func egressDeny(t *testing.T, m *tcpMesh) {
	set(t, m.Mesh, `{"egress":"deny"}`)
	defer func() {
		set(t, m.Mesh, `{"egress":"allow"}`)
		await(t, m.Mesh, "egress to be allowed", func() error {
			_, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://"+m.outside.Join(8080)+"/")
			return err
		})
	}()
	await(t, m.Mesh, "egress to be denied", func() error {
		out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "http://"+m.outside.Join(8080)+"/")
		if err == nil || !strings.Contains(err.Error(), "reset") {
			return fmt.Errorf("%q, %w", out, err)
		}
		return nil
	})
	m.outsideApp.forget()
	c := dial(t, m.front, m.outside.Join(2525))
	_, _ = io.WriteString(c, "hello\r\n")
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a denied connection gave %d bytes, %v", n, err)
	}
	ask(t, m.front, "http://data:8001/").want(t, 200, "", "")
	if m.outsideApp.count() != 0 {
		t.Errorf("outside saw %q", m.outsideApp.targets())
	}
}

func hostLeads(t *testing.T, m *tcpMesh) {
	to := "http://" + m.outside.Join(8001) + "/led"
	s := seenBy(t, ask(t, m.front, "-H", "Host: data", to))
	if s.Header.Get("X-Source-Service") != "frontend" || s.Target != "/led" {
		t.Errorf("the app saw %+v", s)
	}
	if out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "10", "-H", "Host: nobody", to); err == nil {
		t.Errorf("nothing listens there, and it gave %q", out)
	}
}

func ipv6(t *testing.T, m *tcpMesh) {
	for _, args := range [][]string{{"-4", "http://data:8001/"}, {"-6", "http://data:8001/"}} {
		if s := seenBy(t, ask(t, m.front, args...)); s.Header.Get("X-Source-Service") != "frontend" {
			t.Errorf("%v: the app saw %+v", args, s)
		}
	}
	// An endpoint that has an IPv6 address only.
	six := bare(t, m.Mesh, "six")
	serve(t, six, "six", 8001, nil)
	enter(t, m.Mesh, six, meshlab.Workload{Host: "six", Service: "six", Proxy: []string{"--advertise", six.Addr6().String()}})
	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = "six", "six", "default", six.Addr6().String(), 8001
	if err := m.API.Register(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "six")); err != nil {
		t.Fatal(err)
	}
	for _, family := range []string{"-4", "-6"} {
		await(t, m.Mesh, "the endpoint by IPv6", func() error {
			a := ask(t, m.front, family, "http://six/")
			if a.Status != 200 {
				return fmt.Errorf("%d %s", a.Status, a.Body)
			}
			if s := seenBy(t, a); s.Header.Get("X-Source-Service") != "frontend" {
				t.Errorf("the app saw %+v: no mTLS", s)
			}
			return nil
		})
	}
	if s := seenBy(t, ask(t, m.front, "-g", "http://"+net.JoinHostPort(six.Addr6().String(), "8001")+"/")); s.Header.Get("X-Source-Service") != "frontend" {
		t.Errorf("by the endpoint's address the app saw %+v", s)
	}
	outside := echoServer(t, m.outside, 9010, "")
	defer func() { _ = outside.Close() }()
	if out, err := echoed(t.Context(), m.front, net.JoinHostPort(m.outside.Addr6().String(), "9010"), "hello"); out != "hello" {
		t.Errorf("egress by IPv6: %q, %v", out, err)
	}
}

// dig asks as any program of the namespace would.
func dig(t *testing.T, n *meshlab.Node, args ...string) string {
	t.Helper()
	return strings.TrimSpace(output(t, n, "dig", append([]string{"+time=3", "+tries=1"}, args...)...))
}

func dnsNames(t *testing.T, m *tcpMesh) {
	var v4, v6 string
	services, err := m.API.Services(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range services {
		if s.ServiceName == "data" {
			v4, v6 = s.VirtualIPv4, s.VirtualIPv6
		}
	}
	if v4 == "" || v6 == "" {
		t.Fatalf("no virtual addresses: %+v", services)
	}
	for _, name := range []string{"data", "data.", "DATA", "data.default", "data.default.svc", "data.default.svc.cluster.local", "data.default.svc.cluster.local."} {
		for _, how := range [][]string{{"+notcp"}, {"+tcp"}, {"+notcp", "@192.0.2.1"}} { // whichever server is meant
			args := append([]string{"+short"}, how...)
			if got := dig(t, m.front, append(args, "A", name)...); got != v4 {
				t.Errorf("%v A %s: %q, want %s", how, name, got, v4)
			}
			if got := dig(t, m.front, append(args, "AAAA", name)...); got != v6 {
				t.Errorf("%v AAAA %s: %q, want %s", how, name, got, v6)
			}
		}
	}
	if got := dig(t, m.front, "MX", "data"); !strings.Contains(got, "status: NOERROR") || !strings.Contains(got, "ANSWER: 0") {
		t.Errorf("MX data: %s", got)
	}
	if got := output(t, m.front, "getent", "ahostsv4", "data"); !strings.HasPrefix(got, v4+" ") {
		t.Errorf("the C library says %q", got)
	}
}

// dnsForward has to run while nothing but its own server answers at the bridge.
func dnsForward(t *testing.T, m *tcpMesh) {
	for _, name := range []string{"www.example.org", "nosuch", "nosuch.default.svc.cluster.local"} {
		// Nobody answers there: the failure comes back at once, not after a timeout.
		if got := dig(t, m.front, name); !strings.Contains(got, "status: SERVFAIL") && !strings.Contains(got, "status: NXDOMAIN") {
			t.Errorf("%s: %s", name, got)
		}
	}
	pc, err := m.Lab.Bridge().ListenUDP(":53")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); answerDNS(pc) }()
	defer func() { _ = pc.Close(); <-done }()
	if got := dig(t, m.front, "+short", "www.example.org"); got != "192.0.2.7" {
		t.Errorf("www.example.org: %q", got)
	}
	if got := dig(t, m.front, "+short", "data"); !strings.HasPrefix(got, "240.240.") {
		t.Errorf("data: %q", got)
	}
}

// answerDNS is a resolver of the world outside: every name is 192.0.2.7.
func answerDNS(pc *net.UDPConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := pc.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		var msg dnsmessage.Message
		if msg.Unpack(buf[:n]) != nil || len(msg.Questions) == 0 {
			continue
		}
		msg.Response, msg.RecursionAvailable, msg.Additionals = true, true, nil
		if q := msg.Questions[0]; q.Type == dnsmessage.TypeA {
			msg.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 5},
				Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}},
			}}
		}
		if out, err := msg.Pack(); err == nil {
			_, _ = pc.WriteToUDPAddrPort(out, from)
		}
	}
}

func ownService(t *testing.T, m *tcpMesh) {
	for _, u := range []string{"http://data:8001/own", "http://" + m.data.Join(8001) + "/own", "http://127.0.0.1:8001/own", "http://localhost:8001/own"} {
		if s := seenBy(t, ask(t, m.data, "-4", u)); s.Target != "/own" {
			t.Errorf("%s: the app saw %+v", u, s)
		}
	}
	if s := seenBy(t, ask(t, m.data, "-4", "http://data:8001/own")); s.Header.Get("X-Source-Service") != "data" {
		t.Errorf("by its name the caller is %q", s.Header["X-Source-Service"])
	}
	if got := output(t, m.data, "redis-cli", "-h", "data", "ping"); got != "PONG\n" {
		t.Errorf("redis-cli: %q", got)
	}
}

func explicitMode(t *testing.T, m *tcpMesh) {
	for _, port := range []string{"15001", "15006"} {
		u := "http://127.0.0.1:" + port + "/explicit"
		s := seenBy(t, ask(t, m.front, "-H", "X-Target-Service: data", u))
		if s.Target != "/explicit" || s.Header.Get("X-Source-Service") != "frontend" || s.Header.Get("X-Target-Service") != "" {
			t.Errorf("port %s: the app saw %+v", port, s)
		}
		ask(t, m.front, "-H", "X-Target-Service: data", "-H", "X-Target-Namespace: default", u).want(t, 200, "", "")
		ask(t, m.front, "-H", "X-Target-Service: data", "-H", "X-Target-Namespace: none", u).want(t, 503, "no-endpoints", "")
		ask(t, m.front, "-H", "X-Target-Service: nosuch", u).want(t, 503, "no-endpoints", `{"error":"No healthy endpoints available"}`+"\n")
		ask(t, m.front, "-H", "X-Target-Service: a/b c", u).want(t, 400, "no-target", "")
		// With no target it is the local app that is meant.
		if s := seenBy(t, ask(t, m.data, u)); s.Target != "/explicit" {
			t.Errorf("port %s: the local app saw %+v", port, s)
		}
		ask(t, m.front, u).want(t, 503, "app-unavailable", `{"error":"Service unavailable"}`+"\n") // the frontend serves nothing
	}
	m.app.forget()
	// Strangers would borrow the frontend's identity.
	a := ask(t, m.outside, "-H", "X-Target-Service: data", "http://"+m.front.Join(15006)+"/")
	a.want(t, 403, "not-local", `{"error":"Only the local app may name a target"}`+"\n")
	a = ask(t, m.outside, "http://"+m.data.Join(15006)+"/")
	a.want(t, 403, "mtls-required", denial)
	for _, port := range []int{15000, 15001, 15053} {
		if out, err := m.outside.Output(t.Context(), "curl", "-sS", "--max-time", "10", "-H", "X-Target-Service: data", "http://"+m.front.Join(port)+"/"); err == nil {
			t.Errorf("port %d answers from outside: %q", port, out)
		}
	}
	if m.app.count() != 0 {
		t.Errorf("the app saw %q", m.app.targets())
	}
}

func uidMode(t *testing.T, m *tcpMesh) {
	n := bare(t, m.Mesh, "uid")
	b := serve(t, n, "uid", 8001, nil)
	w := meshlab.Workload{Host: "uid", Service: "uid", Ports: []string{"8001"}, UIDMode: true}
	if !otherUsers() { // it cannot work, and has to say why
		if err := m.Join(t.Context(), n, w); err == nil || !strings.Contains(err.Error(), "this user namespace has no uid") {
			t.Errorf("in a user namespace without the uid: %v", err)
		}
		return
	}
	enter(t, m.Mesh, n, w)
	for _, pair := range [][2]string{{"frontend", "uid"}, {"uid", "data"}, {"uid", "uid"}} {
		if _, err := m.API.AddSecurityRule(t.Context(), allMethods(pair[0], pair[1])); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		from   *meshlab.Node
		url    string
		source string
	}{{m.front, "http://uid:8001/in", "frontend"}, {n, "http://data:8001/out", "uid"}, {n, "http://uid:8001/own", "uid"}} {
		await(t, m.Mesh, c.url, func() error {
			a := ask(t, c.from, c.url)
			if a.Status != 200 {
				return fmt.Errorf("%d %s", a.Status, a.Body)
			}
			if s := seenBy(t, a); s.Header.Get("X-Source-Service") != c.source {
				t.Errorf("%s: the app saw %+v", c.url, s)
			}
			return nil
		})
	}
	if b.count() == 0 {
		t.Error("the app saw nothing")
	}
	ask(t, m.outside, "http://"+n.Join(8001)+"/").want(t, 403, "mtls-required", denial)
}
