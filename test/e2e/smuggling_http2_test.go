package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// framed is a line of testdata/smuggling_http2.txt.
type framed struct {
	line, outcome    string
	fields, trailers []string // names and values in turn
	data             string
}

func framedCases(t *testing.T) (all []framed) {
	text, err := os.ReadFile("testdata/smuggling_http2.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		parts := strings.Split(strings.TrimSpace(line), " | ")
		if len(parts) < 4 || line[0] == '#' {
			continue
		}
		c := framed{line: strings.TrimSpace(line), outcome: parts[1]}
		own, raw := strings.CutPrefix(parts[2], "raw ")
		if c.fields = eachUnquoted(t, own); !raw {
			c.fields = append([]string{":method", "POST", ":scheme", "http", ":authority", "web", ":path", "/0000/first"}, c.fields...)
		}
		c.data = unquoted(t, parts[3])
		if len(parts) > 4 {
			c.trailers = eachUnquoted(t, parts[4])
		}
		all = append(all, c)
	}
	return all
}

// eachUnquoted lists texts in Go's quotes.
func eachUnquoted(t *testing.T, line string) (all []string) {
	for line != "" {
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, unquoted(t, quoted))
		line = strings.TrimSpace(line[len(quoted):])
	}
	return all
}

// frames are the case as the i-th.
func (c *framed) frames(i int) func(*http2.Framer) error {
	fields := make([]string, len(c.fields))
	for k, f := range c.fields {
		fields[k] = numbered(f, i)
	}
	return func(f *http2.Framer) error {
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: fieldBlock(fields...)})
		if err == nil {
			err = f.WriteData(1, len(c.trailers) == 0, []byte(numbered(c.data, i)))
		}
		if err == nil && len(c.trailers) > 0 {
			err = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: fieldBlock(c.trailers...)})
		}
		return err
	}
}

func TestNothingIsSmuggledOutOfHTTP2(t *testing.T) {
	t.Parallel()
	m, all := newSmugglingMesh(t), framedCases(t)
	if len(all) < 100 {
		t.Fatalf("only %d cases", len(all))
	}
	var running sync.WaitGroup
	for _, n := range m.noters {
		running.Go(func() {
			at := fmt.Sprintf("%s:%d", n.service, n.port)
			for i := range all {
				c := &all[i]
				out, err := inFrames(t.Context(), m.front, at, c.frames(i))
				relayed := strings.Contains(out, ":status: ") && !strings.Contains(out, "weir-error: ") && !strings.HasPrefix(out, ":status: 400")
				switch {
				case out == "" && err == nil, strings.Contains(fmt.Sprint(err), "timeout"):
					t.Errorf("%s: no answer to %s: %v", n.name, c.line, err)
				case c.outcome != "any" && c.outcome != "cut" && relayed != (c.outcome == "yes"):
					t.Errorf("%s: got %q, %v: %s", n.name, out, err, c.line)
				}
				next, err := halfClosed(t.Context(), m.front, at, numbered("GET /0000/next HTTP/1.1\r\nHost: web\r\n\r\n", i))
				if s := finalStatuses(next); len(s) != 1 || s[0] != 200 || n.echoes && !strings.HasSuffix(next, numbered("\r\n\r\nGET /0000/next\n", i)) {
					t.Errorf("%s: the next client got %q, %v: after %s", n.name, next, err, c.line)
				}
			}
		})
	}
	running.Wait()
	for _, n := range m.noters {
		seen := n.seen(t)
		for i := range all {
			c := &all[i]
			bounds := map[string][2]int{"yes": {1, 1}, "no": {0, 0}, "cut": {0, 1}, "any": {0, 1}}[c.outcome]
			if got := seen[i]["first"]; got < bounds[0] || got > bounds[1] {
				t.Errorf("%s saw the request %d times: %s", n.name, got, c.line)
			}
			if seen[i]["smuggled"] != 0 {
				t.Errorf("%s saw what was smuggled: %s", n.name, c.line)
			}
			if seen[i]["next"] != 1 {
				t.Errorf("%s saw the next request %d times: after %s", n.name, seen[i]["next"], c.line)
			}
		}
	}
}
