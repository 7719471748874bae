package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

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
