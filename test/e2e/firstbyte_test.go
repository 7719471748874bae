package e2e

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/meshlab"
)

// firstByte tells how long the first byte of an answer takes, from before the
// connection, without a proxy, with one and with two. It only reports: the table
// is in docs/CONNECTIONS.md. The ways take turns, so that what else the machine does
// meets all of them.
func firstByte(t *testing.T, m *programMesh) {
	direct := m.ControlNode() // a host without redirection
	for _, n := range []*meshlab.Node{direct, m.outside} {
		echoServer(t, n, 2600, greeting)
		echoServer(t, n, 2601, "")
		serve(t, n, "first", 2602, nil)
	}
	// Looked up once: the answer of DNS is not what is measured.
	data, _, err := net.SplitHostPort(dial(t, m.front, "data:9001").RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	ways := []struct {
		name string
		from *meshlab.Node
		to   func(port, declared int) string
	}{
		{"direct", direct, func(port, _ int) string { return m.outside.Join(port) }},
		{"one proxy", m.front, func(port, _ int) string { return m.outside.Join(port) }},
		{"two proxies, mTLS", m.front, func(_, declared int) string { return net.JoinHostPort(data, strconv.Itoa(declared)) }},
	}
	for _, c := range []struct {
		name           string
		port, declared int
		says           string
	}{
		{"the server speaks first", 2600, 2525, ""},
		{"the client says one byte", 2601, 9001, "?"},
		{"the client says what could become HTTP", 2601, 9001, "GETTING ON\n"},
		{"HTTP/1.1", 2602, 8001, "GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n"},
	} {
		const rounds = 40
		took := make([][]time.Duration, len(ways))
		for range rounds {
			for i, w := range ways {
				began := time.Now()
				conn := dial(t, w.from, w.to(c.port, c.declared))
				if _, err := io.WriteString(conn, c.says); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					t.Fatalf("%s, %s: %v", c.name, w.name, err)
				}
				took[i] = append(took[i], time.Since(began))
				_ = conn.Close()
			}
		}
		row := []string{c.name}
		for i, w := range ways {
			slices.Sort(took[i])
			row = append(row, fmt.Sprintf("%s %v (+%v)", w.name, median(took[i]), median(took[i])-median(took[0])))
		}
		t.Log(strings.Join(row, "; "))
	}
}

func median(sorted []time.Duration) time.Duration {
	return sorted[len(sorted)/2].Round(10 * time.Microsecond)
}

// urgentData: the byte that an app sends as urgent is not lost (RFC 6093).
func urgentData(t *testing.T, m *programMesh) {
	m.fromBoth(t, "urgent", func(t *testing.T, from *meshlab.Node, host string) {
		c := dial(t, from, net.JoinHostPort(host, "9001"))
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "\xff\xf4") // as FTP's ABOR is sent: IAC IP, then IAC DM, which is urgent
		err = raw.Control(func(fd uintptr) {
			if err := unix.Sendto(int(fd), []byte("\xff\xf2"), unix.MSG_OOB, nil); err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "ABOR\r\n")
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "\xff\xf4\xff\xf2ABOR\r\n" || err != nil {
			t.Errorf("%q came back, %v", got, err)
		}
	})
}
