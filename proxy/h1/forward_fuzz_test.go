package h1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// FuzzForward: what we send on is one request to every reader. net/http reads it as
// we did and finds the next one right behind it, whatever the client sent; a reader
// that goes by less finds nothing else that frames it; and nobody else says who calls.
func FuzzForward(f *testing.F) {
	for _, in := range wellFormed {
		f.Add([]byte(in))
	}
	for _, in := range []string{
		"POST /a HTTP/1.1\r\nHost: a\r\nx_source-Service: admin\r\nConnection: x-source-service, content-length\r\nContent-Length: 2\r\n\r\nab",
		"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n1;x\r\na\r\n0\r\nX_Source_Service: admin\r\nT: v\r\n\r\n",
		"GET http://b?c HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
		"DELETE /a HTTP/1.1\r\nHost: a\r\nContent_Length: 9\r\nKeep-Alive: 1\r\n\r\n",
	} {
		f.Add([]byte(in))
	}
	cfg := (*Config)(nil).withDefaults()
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 32<<10 {
			return
		}
		var x Exchange
		buf := bytes.Clone(in)
		x.Req.reset()
		if done, err := x.Req.parse(buf, &cfg); err != nil || !done {
			return
		}
		kind := noBody
		switch {
		case x.Req.chunked:
			kind = byChunks
		case x.Req.cl > 0:
			kind = byLength
		}
		x.body.begin(kind, x.Req.cl, buf, len(x.Req.b), len(buf))
		if x.body.advance() != nil || !x.body.done {
			return
		}
		x.Set("X-Source-Service", "front")
		if _, err := url.ParseRequestURI(x.Req.Target); err != nil {
			x.SetTarget("/") // net/http parses URLs, which we pass on as they are
		}
		head := x.appendRequest(nil)
		checkHead(t, string(head))
		data := string(x.body.data())
		checkOneRequest(t, x.appendBody(head), x.Req.Method, data)
	})
}

// checkHead looks for what a lenient reader could take for framing.
func checkHead(t *testing.T, head string) {
	framing := 0
	for _, line := range strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")[1:] {
		name, value, _ := strings.Cut(line, ":")
		switch strings.ToLower(name) {
		case "transfer-encoding":
			if framing++; value != " chunked" {
				t.Fatalf("sent on: %q", line)
			}
		case "content-length":
			framing++
		}
		if strings.ContainsAny(line, "\r\n\x00") || strings.TrimSpace(name) != name || name == "" {
			t.Fatalf("sent on: %q", line)
		}
	}
	if framing > 1 {
		t.Fatalf("framed in %d ways: %q", framing, head)
	}
}

func checkOneRequest(t *testing.T, sent []byte, method, data string) {
	const next = "GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
	br := bufio.NewReaderSize(strings.NewReader(string(sent)+next), 64<<10)
	req, err := http.ReadRequest(br)
	if err != nil {
		if strings.Contains(err.Error(), "bad trailer key") {
			return // the Trailer announcement, which frames nothing
		}
		t.Fatalf("net/http refuses what we send on: %v: %q", err, sent)
	}
	body, err := io.ReadAll(req.Body)
	if err != nil || string(body) != data || req.Method != method {
		t.Fatalf("net/http reads %s with %q, %v; we %s with %q", req.Method, body, err, method, data)
	}
	for _, h := range []http.Header{req.Header, req.Trailer} {
		for name, values := range h {
			if strings.EqualFold(strings.ReplaceAll(name, "_", "-"), "X-Source-Service") && !slices.Equal(values, []string{"front"}) {
				t.Fatalf("sent on: %s %q", name, values)
			}
		}
	}
	if req, err = http.ReadRequest(br); err != nil || req.RequestURI != "/next" {
		t.Fatalf("behind it net/http reads %+v, %v: %q", req, err, sent)
	}
	if _, err := br.ReadByte(); err != io.EOF {
		t.Fatalf("there is more behind it: %q", sent)
	}
}
