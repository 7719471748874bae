package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// silence is how long TestSilentConnections says nothing: WEIR_SILENCE (`make
// silent-hour` says an hour), or a moment.
func silence(t *testing.T) time.Duration {
	text := os.Getenv("WEIR_SILENCE")
	if text == "" {
		return time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("WEIR_SILENCE=%s: want a time, such as 90s or 1h", text)
	}
	return d
}

// quietPair is a connection between a client and a server that hold their tongues.
type quietPair struct {
	name           string
	client, server *net.TCPConn
}

// firstWords is how long a port declared http waits for a client's.
const firstWords = 5 * time.Minute

// TestSilentConnections: nothing is said on a connection, by neither side, for as
// long as they like; then either may begin. Only where HTTP is declared, whose
// servers all limit that, the proxy ends a connection without a request.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	long := silence(t)
	m := start(t)
	set(t, m, `{"mtls_mode":"permissive","load_balancing":{"health_check":{"enabled":false}}}`)
	data, outside := bare(t, m, "data"), bare(t, m, "outside")
	enter(t, m, data, meshlab.Workload{Host: "data", Service: "data", Ports: []string{"8001/http", "9001/tcp", "9002/tls"}})
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	r := allMethods("*", "data")
	r.SourceNamespace = "*"
	if _, err := m.API.AddSecurityRule(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	echo := echoServer(t, data, 9001, "")
	for _, c := range []struct {
		from *meshlab.Node
		to   string
	}{{front, "data:9001"}, {outside, data.Join(9001)}} {
		await(t, m, "the rules", func() error { _, err := echoed(t.Context(), c.from, c.to, "x"); return err })
	}
	_ = echo.Close() // the test itself is the server from here on

	var pairs []*quietPair
	for _, c := range []struct {
		name   string
		from   *meshlab.Node
		to     string
		server *meshlab.Node
		port   int
		begin  func(t *testing.T, p *quietPair)
	}{
		{"two proxies", front, "data:9001", data, 9001, nil},
		{"two proxies, after words", front, "data:9001", data, 9001, passWords},
		{"two proxies, declared tls", front, "data:9002", data, 9002, nil},
		{"two proxies, upgraded", front, "data:8001", data, 8001, upgradeBoth},
		{"one proxy, the server's", outside, data.Join(9001), data, 9001, nil},
		{"one proxy, the server's, after words", outside, data.Join(9001), data, 9001, passWords},
		{"one proxy, the client's", front, outside.Join(9009), outside, 9009, nil},
		{"one proxy, the client's, after words", front, outside.Join(9009), outside, 9009, passWords},
	} {
		ln, err := c.server.ListenTCP(fmt.Sprintf(":%d", c.port))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // at the end the client begins on the first, the server on the second
			p := &quietPair{name: c.name, client: dial(t, c.from, c.to)}
			if c.begin == nil {
				p.server = accept(t, ln)
			} else if c.begin(t, p); p.server == nil {
				p.server = accept(t, ln)
				c.begin(t, p)
			}
			pairs = append(pairs, p)
		}
		_ = ln.Close()
	}
	http := dial(t, front, "data:8001")
	began := time.Now()
	holdTongues(t, pairs, http, began, long)
	for i, p := range pairs {
		first, second := p.client, p.server
		if i%2 == 1 {
			first, second = second, first
		}
		say(t, p.name, first, second, "are you there?")
		say(t, p.name, second, first, "I am.")
	}
	t.Logf("%d connections said nothing for %v", len(pairs), time.Since(began).Round(time.Second))
}

// holdTongues waits, and hears what should not be there to hear.
func holdTongues(t *testing.T, pairs []*quietPair, http *net.TCPConn, began time.Time, long time.Duration) {
	var all sync.WaitGroup
	defer all.Wait()
	quiet := func(name string, c *net.TCPConn) {
		_ = c.SetDeadline(began.Add(long))
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: after %v: %d bytes, %v", name, time.Since(began), n, err)
		}
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	}
	for _, p := range pairs {
		all.Go(func() { quiet(p.name+", the client", p.client) })
		all.Go(func() { quiet(p.name+", the server", p.server) })
	}
	all.Go(func() {
		if long < firstWords+time.Minute {
			quiet("declared http", http)
			return
		}
		_ = http.SetDeadline(began.Add(long))
		n, err := http.Read(make([]byte, 1))
		if took := time.Since(began); n != 0 || err != io.EOF || took < firstWords-time.Second {
			t.Errorf("declared http: after %v: %d bytes, %v; want its end after %v", took, n, err, firstWords)
		}
	})
}

func say(t *testing.T, name string, from, to *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	got := make([]byte, len(text))
	if n, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Errorf("%s: %q arrived as %q, %v", name, text, got[:n], err)
	}
}

// passWords has both sides say something, once there are both.
func passWords(t *testing.T, p *quietPair) {
	if p.server == nil {
		return
	}
	say(t, p.name, p.client, p.server, "hello\r\n")
	say(t, p.name, p.server, p.client, "hello yourself\r\n")
}

// upgradeBoth changes to a protocol that the proxies do not know.
func upgradeBoth(t *testing.T, p *quietPair) {
	if p.server == nil {
		_, _ = io.WriteString(p.client, "GET / HTTP/1.1\r\nHost: data\r\nConnection: Upgrade\r\nUpgrade: silence\r\n\r\n")
		return
	}
	if _, err := http.ReadRequest(bufio.NewReader(p.server)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(p.server, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: silence\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(p.client), nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%s: %+v, %v", p.name, resp, err)
	}
}
