package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/netlab"
)

// runWeb runs an nginx that answers with its name and who calls.
func (m *runMachine) runWeb(name string, port int, flags ...string) *running {
	m.t.Helper()
	conf := m.write(name+".conf", fmt.Sprintf(`daemon off; pid %[1]s/%[2]s.pid; error_log stderr warn; user root root;
events { worker_connections 256; }
http {
  access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server { listen %[3]d; location / { return 200 "%[2]s called by $http_x_source_service\n"; } location /health { return 200; } }
}`, m.dir, name, port))
	args := append([]string{"--service", name, "--port", fmt.Sprint(port)}, flags...)
	r := m.run(append(args, "--", "nginx", "-c", conf)...)
	m.await(name, func() error {
		select {
		case <-r.done:
			m.t.Fatalf("%s ended: %v\n%s", name, r.err, r.out.String())
		default:
		}
		eps, err := m.api.Endpoints(m.t.Context(), policy.ServiceName{Namespace: "default", Name: name})
		if err != nil || len(eps) != 1 || eps[0].Status != policy.Healthy {
			return fmt.Errorf("endpoints %+v, %w", eps, err)
		}
		// It counts as healthy before it was checked, and a check before nginx listens
		// takes it out until the next.
		h, err := m.api.Health(m.t.Context(), policy.ServiceName{Namespace: "default", Name: name}, eps[0].ID)
		if n := len(h.History); err != nil || n == 0 || !h.History[n-1].Passed {
			return fmt.Errorf("checks %+v, %w", h.History, err)
		}
		return nil
	})
	return r
}

// addressOf is a run's address, by its service.
func (m *runMachine) addressOf(service string) string {
	m.t.Helper()
	for line := range strings.Lines(m.must("weir", "run", "--list")) {
		if words := strings.Fields(line); words[0] == "default/"+service {
			return words[2]
		}
	}
	m.t.Fatalf("no run of %s", service)
	return ""
}

func TestRunsFindEachOtherByName(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	m.allow(policy.Any, "web", "")
	m.allow(policy.Any, "users", "")
	web := m.runWeb("web", 8080)
	users := m.runWeb("users", 8081, "--namespace", "default", "--label", "version=v1")
	got := m.must("weir", "run", "--service", "front", "--", "curl", "-sS", "http://web/", "http://users.default/", "http://web:8080/")
	if want := "web called by front\nusers called by front\nweb called by front\n"; got != want {
		t.Errorf("the program got %q, want %q", got, want)
	}
	list := m.must("weir", "run", "--list")
	for _, want := range []string{"default/web", "default/users", "10.79.0.2", "10.79.0.3", "nginx -c"} {
		if !strings.Contains(list, want) {
			t.Errorf("--list has no %s:\n%s", want, list)
		}
	}
	// Withdrawn is withdrawn: when weir run has ended nobody is sent there any more.
	web.signal(syscall.SIGTERM)
	if status := web.ends(); status != 0 {
		t.Errorf("nginx ended with %d\n%s", status, web.out.String())
	}
	if eps, err := m.api.Endpoints(t.Context(), policy.ServiceName{Namespace: "default", Name: "web"}); err != nil || len(eps) != 0 {
		t.Errorf("endpoints of the service that has ended: %v, %v", eps, err)
	}
	users.signal(syscall.SIGQUIT)
	users.ends()
}

// A program that connects with its first instruction is in the mesh: the service
// knows who calls, by the caller's certificate. Each time five start at once.
func TestTheFirstPacketOfARunIsInTheMesh(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	m.allow(policy.Any, "web", "")
	web := m.runWeb("web", 8080)
	url := "http://" + m.addressOf("web") + ":8080/" // an address, not a name: no DNS comes first
	const atOnce, times = 5, 10
	var wg sync.WaitGroup
	for i := range atOnce {
		wg.Go(func() {
			for range times {
				name := fmt.Sprintf("caller-%d", i)
				out, err := m.output("weir", "run", "--service", name, "--", "curl", "-sS", url)
				if want := "web called by " + name + "\n"; err != nil || out != want {
					t.Errorf("%v, %q, want %q", err, out, want)
				}
			}
		})
	}
	wg.Wait()
	web.signal(syscall.SIGTERM)
	web.ends()
}

func TestRunPublishesThroughTheProxy(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	web := m.runWeb("web", 8080, "--publish", "18080:8080", "--publish", "[::1]:18081:8080")
	code := func(address string) string {
		out, err := m.output("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %header{weir-error}", "http://"+address+"/")
		if err != nil {
			return err.Error()
		}
		return out
	}
	// What is published is under the rules: nobody may call this service yet.
	if got := code("127.0.0.1:18080"); !strings.HasPrefix(got, "403 ") {
		t.Errorf("without a rule: %s", got)
	}
	m.allow(policy.Any, "web", policy.Permissive)
	m.await("what is published", func() error {
		for _, address := range []string{"127.0.0.1:18080", "[::1]:18081"} {
			if got := code(address); !strings.HasPrefix(got, "200 ") {
				return fmt.Errorf("%s: %s", address, got)
			}
		}
		return nil
	})
	if out, err := m.output("weir", "run", "--service", "other", "--publish", "18080:1", "--", "true"); exitStatus(err) != 125 || !strings.Contains(out, "address already in use") {
		t.Errorf("published twice: %v\n%s", err, out)
	}
	web.signal(syscall.SIGTERM)
	web.ends()
	if c, err := m.dial(t.Context(), "tcp", "127.0.0.1:18080"); err == nil {
		c.Close()
		t.Error("the published port is still open")
	}
}

func TestRunJoinsANamespaceAndLeavesItAsItWas(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	m.must("sh", "-c", `ip netns add theirs && ip -n theirs link set lo up && ip link add out0 type veth peer name eth0 netns theirs &&
ip addr add 10.5.0.1/24 dev out0 && ip link set out0 up && ip -n theirs addr add 10.5.0.2/24 dev eth0 && ip -n theirs link set eth0 up && ip -n theirs route add default via 10.5.0.1 &&
ip netns exec theirs iptables -A INPUT -p udp --dport 9 -j DROP`)
	defer m.untouched()()
	m.allow(policy.Any, "web", "")
	web := m.runWeb("web", 8080)
	inside := func() string {
		return m.must("ip", "netns", "exec", "theirs", "sh", "-c", "iptables-save | grep ^-; ip6tables-save | grep ^-; ip -o -4 addr; ip -o link | cut -d: -f2; ip route show table all | grep -v fe80 | grep -v ff00; ip rule; true")
	}
	before := inside()
	// The namespace has a way to the bridge of the runs by the machine only.
	r := m.run("--service", "joiner", "--netns", "theirs", "--", "sh", "-c", "iptables-save 2>/dev/null; ip -o -4 addr show eth0; echo there; read line")
	r.says("there")
	if !strings.Contains(r.out.String(), "10.5.0.2") {
		t.Errorf("it is elsewhere:\n%s", r.out.String())
	}
	if out, err := m.output("weir", "run", "--service", "second", "--netns", "theirs", "--", "true"); exitStatus(err) != 125 || !strings.Contains(out, "the run of default/joiner") {
		t.Errorf("two in one namespace: %v\n%s", err, out)
	}
	r.signal(syscall.SIGTERM)
	r.ends()
	if after := inside(); after != before {
		t.Errorf("the namespace has changed from\n%s\nto\n%s", before, after)
	}
	// What a killed run leaves there the next one removes.
	r = m.run("--service", "joiner", "--netns", "/run/netns/theirs", "--", "sh", "-c", "echo there; exec sleep 1000")
	r.says("there")
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.done
	m.must("weir", "run", "--service", "other", "--", "true")
	if after := inside(); after != before {
		t.Errorf("after a kill the namespace has changed from\n%s\nto\n%s", before, after)
	}
	web.signal(syscall.SIGTERM)
	web.ends()
}

func TestAKilledRunTakesItsProgramAlong(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	r := m.run("--service", "one", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000 & echo there; wait")
	r.says("there")
	netns := m.netns(1)
	m.await("both sleeps", func() error {
		if n := len(m.inside(netns, "sleep 1000")); n < 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-r.done
	m.gone(netns)
	if out := m.must("ip", "netns"); !strings.Contains(out, "weir-run-1") {
		t.Errorf("nothing is left for the next one to remove: %s", out)
	}
	if out := m.must("weir", "run", "--list"); strings.Contains(out, "default/one") {
		t.Errorf("a dead run is listed:\n%s", out)
	}
	m.must("weir", "run", "--service", "two", "--", "sh", "-c", "ip -o -4 addr show eth0 | grep 10.79.0.2")
}

func TestAProxyThatIsKilledRunsAgain(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	defer m.untouched()()
	m.allow(policy.Any, "web", "")
	web := m.runWeb("web", 8080)
	address := net.JoinHostPort(m.addressOf("web"), "8080")
	// The program tries all the time; each answer tells who called.
	const program = `while :; do out=$(curl -sS --max-time 5 http://$0/ 2>/dev/null) && echo "$out" || echo refused; done`
	front := m.run("--service", "front", "--", "sh", "-c", program, address)
	front.says("called by front\n")
	pids := m.inside(m.netns(2), "weir-proxy")
	if len(pids) != 1 {
		t.Fatalf("proxies %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	front.says("the proxy has ended (signal: killed); connections are refused until it runs again")
	m.await("answers again", func() error {
		_, later, _ := strings.Cut(front.out.String(), "until it runs again")
		if _, later, _ = strings.Cut(later, "the proxy runs again\n"); !strings.Contains(later, "called by front\n") {
			return fmt.Errorf("%s", later)
		}
		return nil
	})
	front.signal(syscall.SIGTERM)
	front.ends()
	for line := range strings.Lines(front.out.String()) {
		if strings.Contains(line, "called by") && line != "web called by front\n" {
			t.Errorf("past the mesh: %q", line)
		}
	}
	web.signal(syscall.SIGTERM)
	web.ends()
}

// Names outside of the mesh are asked of the machine's resolvers, which may be on
// its loopback.
func TestRunAsksTheMachinesResolvers(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	conf := m.write("resolv.conf", "nameserver 127.0.0.1\nsearch office.example\noptions timeout:2\n")
	m.must("sh", "-c", `mount --bind "$0" "$(readlink -f /etc/resolv.conf)"`, conf)
	defer m.untouched()()
	var udp net.PacketConn
	err := m.net.Do(func() (err error) { udp, err = net.ListenPacket("udp4", "127.0.0.1:53"); return err })
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() { defer close(answered); answerEverything(udp) }()
	defer func() { udp.Close(); <-answered }()
	out := m.must("weir", "run", "--service", "one", "--", "sh", "-c", "getent ahostsv4 printer; cat /etc/resolv.conf")
	for _, want := range []string{"198.51.100.7", "search office.example", "options timeout:2"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// answerEverything is a resolver that knows one address, of printer.office.example.
func answerEverything(udp net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := udp.ReadFrom(buf)
		if err != nil {
			return
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil || len(q.Questions) != 1 {
			continue
		}
		a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RCode: dnsmessage.RCodeNameError}, Questions: q.Questions}
		if q.Questions[0].Name.String() == "printer.office.example." {
			a.RCode = dnsmessage.RCodeSuccess
			if q.Questions[0].Type == dnsmessage.TypeA {
				a.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 1},
					Body:   &dnsmessage.AResource{A: [4]byte{198, 51, 100, 7}},
				}}
			}
		}
		if text, err := a.Pack(); err == nil {
			_, _ = udp.WriteTo(text, from)
		}
	}
}

func TestRunReachesTheWorldByNAT(t *testing.T) {
	t.Parallel()
	m := newRunMachine(t)
	// A host outside, which knows no way to the bridge of the runs.
	m.must("sh", "-c", `ip netns add world && ip -n world link set lo up && ip link add out0 type veth peer name eth0 netns world &&
ip addr add 10.5.0.1/24 dev out0 && ip link set out0 up && ip -n world addr add 10.5.0.2/24 dev eth0 && ip -n world link set eth0 up`)
	world, err := netlab.OpenNamespace(fmt.Sprintf("/proc/%d/root/run/netns/world", m.pid))
	if err != nil {
		t.Fatal(err)
	}
	defer world.Close()
	var ln net.Listener
	if err := world.Do(func() (err error) { ln, err = net.Listen("tcp", "10.5.0.2:8000"); return err }); err != nil {
		t.Fatal(err)
	}
	serveOn(t, ln, "world", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "seen as", r.RemoteAddr) })
	m.await("the host outside", func() error {
		_, err := m.output("curl", "-sf", "--max-time", "1", "http://10.5.0.2:8000/")
		return err
	})
	tables := func() string { return m.must("nft", "list", "ruleset") }
	before := tables()
	defer m.untouched()()
	if out, err := m.output("weir", "run", "--service", "one", "--nat", "--", "true"); exitStatus(err) != 125 || !strings.Contains(out, "net.ipv4.ip_forward=1") {
		t.Errorf("where the machine forwards nothing: %v\n%s", err, out)
	}
	m.must("sysctl", "-qw", "net.ipv4.ip_forward=1")
	out := m.must("weir", "run", "--service", "one", "--nat", "--", "curl", "-sS", "--max-time", "10", "http://10.5.0.2:8000/")
	if !strings.HasPrefix(out, "seen as 10.5.0.1:") {
		t.Errorf("the host outside answered %q", out)
	}
	if after := tables(); after != before {
		t.Errorf("rules have changed from\n%s\nto\n%s", before, after)
	}
}
