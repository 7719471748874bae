package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// loopback is how many packets went over a host's loopback.
func loopback(t *testing.T, n *meshlab.Node) int {
	t.Helper()
	text := output(t, n, "cat", "/proc/net/dev")
	_, line, ok := strings.Cut(text, "lo:")
	if !ok {
		t.Fatal(text)
	}
	packets, err := strconv.Atoi(strings.Fields(line)[1])
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

// shortMesh is a frontend and a web server with redis, with the short cut.
func shortMesh(t *testing.T) (m *meshlab.Mesh, front, data *meshlab.Node, app *meshlab.Process) {
	t.Helper()
	m = start(t)
	data = bare(t, m, "data")
	if os.Geteuid() != 0 || !manyUsers(t) {
		out, err := exec.Command(m.Program("weir-init"), "--netns", data.Path(), "--shortcut", "on").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "operation not permitted") {
			t.Fatalf("no root of the machine, but: %v\n%s", err, out)
		}
		t.Skip("the kernel lets only the machine's root load programs: ", string(out))
	}
	if _, err := data.Start(t.Context(), "redis", 6379, "redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", m.Dir); err != nil {
		t.Fatal(err)
	}
	www := filepath.Join(m.Dir, "www-data")
	if err := os.MkdirAll(www, 0o755); err != nil {
		t.Fatal(err)
	}
	_, _ = randomFile(t, www, "big", 64<<20, 9)
	app = web(t, m, data, "8001", map[string]string{"index.html": "hello\n"})
	enter(t, m, data, meshlab.Workload{Host: "data", Service: "data", Ports: []string{"8001", "6379/tcp"}, Init: []string{"--shortcut", "on"}})
	front = join(t, m, meshlab.Workload{Host: "front", Service: "frontend", Init: []string{"--shortcut", "on"}})
	if _, err := m.API.AddSecurityRule(t.Context(), allMethods("frontend", "data")); err != nil {
		t.Fatal(err)
	}
	await(t, m, "the rules", func() error {
		if a := ask(t, front, "http://data:8001/"); a.Status != 200 {
			return fmt.Errorf("%d %s", a.Status, a.Body)
		}
		return nil
	})
	return m, front, data, app
}

func manyUsers(t *testing.T) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), "4294967295")
}

func TestWithTheShortCutProgramsWorkAsBefore(t *testing.T) {
	t.Parallel()
	m, front, data, app := shortMesh(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"NothingOfARequestIsSeenOnLoopback", func(t *testing.T) {
			// One connection, one request and answer after the other.
			count := func(requests int) int {
				before := loopback(t, front)
				args := []string{"-o", "/dev/null"}
				for range requests {
					args = append(args, "http://data:8001/")
				}
				curl(t, front, args...)
				return loopback(t, front) - before
			}
			few, many := count(1), count(101)
			if more := many - few; more > 30 { // two for each without it
				t.Errorf("100 requests more are %d packets more on loopback", more)
			}
		}},
		{"RedisAnswers", func(t *testing.T) {
			if got := output(t, front, "redis-cli", "-h", "data", "set", "k", "value"); got != "OK\n" {
				t.Errorf("set: %q", got)
			}
			got := output(t, front, "bash", "-c", `for i in $(seq 2000); do echo INCR n; done | redis-cli -h data --pipe; redis-cli -h data get n`)
			if !strings.Contains(got, "errors: 0, replies: 2000") || !strings.HasSuffix(got, "\n2000\n") {
				t.Errorf("2000 pipelined commands: %q", got)
			}
		}},
		{"ADownloadIsExactAlsoToASlowReader", func(t *testing.T) {
			want := sumOf(t, front, "http://"+data.Join(8001)+"/big")
			_, sum := randomFile(t, t.TempDir(), "big", 64<<20, 9)
			if want != sum {
				t.Errorf("other bytes came")
			}
			if got := sumOf(t, front, "--limit-rate", "20M", "http://data:8001/big"); got != sum {
				t.Errorf("other bytes came to a slow reader")
			}
		}},
		{"AReaderThatStallsBoundsMemoryAndThenGetsEverything", func(t *testing.T) { stall(t, front) }},
		{"ADeadProxyIsNoticedAndItsSuccessorServes", func(t *testing.T) {
			c := dial(t, front, "data:6379")
			_, _ = io.WriteString(c, "PING\r\n")
			if b := make([]byte, 7); !readFull(c, b) || string(b) != "+PONG\r\n" {
				t.Fatalf("%q", b)
			}
			front.Proxy.Kill()
			if n, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("%d bytes from a dead proxy", n)
			}
			if err := front.StartProxy(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := curl(t, front, "http://data:8001/"); got != "hello\n" {
				t.Errorf("%q", got)
			}
		}},
		{"ADeadAppIsNoticed", func(t *testing.T) {
			app.Kill()
			if a := ask(t, front, "http://data:8001/"); a.Status != 502 && a.Status != 503 {
				t.Errorf("%d %s", a.Status, a.Body)
			}
			web(t, m, data, "8001", map[string]string{"index.html": "hello again\n"})
			await(t, m, "the app", func() error {
				if a := ask(t, front, "http://data:8001/"); a.Status != 200 {
					return fmt.Errorf("%d %s", a.Status, a.Body)
				}
				return nil
			})
		}},
		{"RemovedUnderTrafficItLosesNothing", func(t *testing.T) {
			c := dial(t, front, "data:6379")
			ping := func() {
				_, _ = io.WriteString(c, "PING\r\n")
				if b := make([]byte, 7); !readFull(c, b) || string(b) != "+PONG\r\n" {
					t.Fatalf("%q", b)
				}
			}
			ping()
			out, err := exec.CommandContext(t.Context(), m.Program("weir-init"), "--netns", front.Path(), "--shortcut", "off").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "the short cut between app and proxy was removed") {
				t.Fatalf("%v\n%s", err, out)
			}
			ping()
			if got := curl(t, front, "http://data:8001/"); got != "hello again\n" {
				t.Errorf("%q", got)
			}
		}},
	} {
		t.Run(c.name, c.run)
	}
}

func readFull(c net.Conn, b []byte) bool {
	_, err := io.ReadFull(c, b)
	return err == nil
}

// stall downloads with a program that does not read for a while.
func stall(t *testing.T, front *meshlab.Node) {
	c := dial(t, front, "data:8001")
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	_, _ = io.WriteString(c, "GET /big HTTP/1.1\r\nHost: data\r\nConnection: close\r\n\r\n")
	// What our socket is charged for, as ss(8) sees it, until it grows no more.
	filter := "sport = :" + strconv.Itoa(c.LocalAddr().(*net.TCPAddr).Port)
	charge := regexp.MustCompile(`skmem:\(r(\d+),`)
	waits := func() int {
		text := output(t, front, "ss", "-Htnm", filter)
		m := charge.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("ss: %q", text)
		}
		return atoi(m[1])
	}
	most := 0
	for still := 0; still < 5; time.Sleep(100 * time.Millisecond) {
		now := waits()
		if still++; now > most {
			most, still = now, 0
		}
	}
	if most < 2<<20 || most > 6<<20 {
		t.Errorf("%d bytes wait at a program that does not read; a few MiB were meant", most)
	}
	n, err := io.Copy(io.Discard, c)
	if err != nil || n < 64<<20 {
		t.Errorf("then it got %d bytes, %v", n, err)
	}
}
