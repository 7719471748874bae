package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/test/meshlab"
)

// hiddenAnswer is what no client may get as an answer of its own.
const hiddenAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"

// answersAmiss are answers that two readers could frame differently, or with more
// behind them. What the client gets is the status here; 0 is an answer that is cut.
var answersAmiss = []struct {
	text   string
	status int
}{
	{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + hiddenAnswer, 200},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + hiddenAnswer, 200},
	{"HTTP/1.1 204 No Content\r\nContent-Length: 47\r\n\r\n" + hiddenAnswer, 204},
	{"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2f\r\n" + hiddenAnswer + "\r\n0\r\n\r\n", 204},
	{"HTTP/1.1 304 Not Modified\r\nContent-Length: 47\r\n\r\n" + hiddenAnswer, 304},
	{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 49\r\n\r\nok" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nContent-Length: 2, 49\r\n\r\nok" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\nContent-Length: 2\r\n\r\nok" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\nContent-Length: 2\r\n\r\nok" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 2\r\n\r\nok" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nX: y\r\n Content-Length: 49\r\nContent-Length: 2\r\n\r\nok" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 2\r\n\r\nok", 502},
	{"HTTP/1.1 100 Continue\r\nContent-Length: 47\r\n\r\n" + hiddenAnswer + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 502},
	{"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n" + hiddenAnswer, 502},
	{"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 502},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n" + hiddenAnswer, 502},
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n" + hiddenAnswer, 502},
	{"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + hiddenAnswer, 502},
	{hiddenAnswer[:15], 502},
}

// deafServer answers each head that it reads: /amiss/N with that answer, others with
// their target. It leaves bodies where they are, so that it takes them for requests.
func deafServer(t *testing.T, n *meshlab.Node, port int) {
	ln, err := n.ListenTCP(net.JoinHostPort("", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go answerHeads(c)
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
}

func answerHeads(c net.Conn) {
	defer func() { _ = c.Close() }()
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		for next := line; err == nil && next != "\r\n"; {
			next, err = in.ReadString('\n')
		}
		words := strings.Fields(line)
		if err != nil || len(words) < 2 {
			return
		}
		text := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(words[1]), words[1])
		if at, ok := strings.CutPrefix(words[1], "/amiss/"); ok {
			text = answersAmiss[atoi(at)].text
		}
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
		if strings.HasSuffix(text, hiddenAnswer[:15]) {
			return
		}
	}
}

func TestNobodyGetsTheAnswerOfAnother(t *testing.T) {
	t.Parallel()
	m := start(t)
	n := bare(t, m, "deaf")
	deafServer(t, n, 8001)
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	register(t, m, n, "deaf", "deaf-1", 8001, "http")
	set(t, m, `{"resilience":{"circuit_breaker":{"enabled":false},"retry":{"delay":0.01}}}`)
	await(t, m, "the service", func() error {
		if out := curl(t, front, "http://deaf:8001/ready"); out != "/ready" {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	next := func(after string) {
		t.Helper()
		for range 2 {
			out, err := halfClosed(t.Context(), front, "deaf:8001", "GET /next HTTP/1.1\r\nHost: deaf\r\n\r\n")
			if s := finalStatuses(out); len(s) != 1 || s[0] != 200 || !strings.HasSuffix(out, "\r\n\r\n/next") {
				t.Errorf("the next client got %q, %v after %s", out, err, after)
			}
		}
	}
	for i, c := range answersAmiss {
		out, err := halfClosed(t.Context(), front, "deaf:8001", fmt.Sprintf("GET /amiss/%d HTTP/1.1\r\nHost: deaf\r\n\r\n", i))
		if s := finalStatuses(out); len(s) != 1 || s[0] != c.status || strings.Contains(out, "smuggled") {
			t.Errorf("%q: the client got %q, %v", c.text, out, err)
		}
		next(strconv.Quote(c.text))
	}
	const hidden = "GET /smuggled HTTP/1.1\r\nHost: deaf\r\n\r\n"
	for range 20 { // CL.0: whoever asks next on that connection would be served what the body asked for
		text := fmt.Sprintf("POST /first HTTP/1.1\r\nHost: deaf\r\nContent-Length: %d\r\n\r\n%s", len(hidden), hidden)
		out, err := halfClosed(t.Context(), front, "deaf:8001", text)
		if s := finalStatuses(out); len(s) != 1 || s[0] != 200 || !strings.HasSuffix(out, "\r\n\r\n/first") {
			t.Errorf("the first client got %q, %v", out, err)
		}
		next("a body that was left unread")
	}
}
