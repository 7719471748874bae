package h1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
)

var defaults = (*Config)(nil).withDefaults()

// parsed is everything that a message says, for comparison.
type parsed struct {
	err     string
	line    string
	host    string
	fields  []string
	body    string
	trailer string
	whole   bool // the body ended
	rest    string
}

// readRequest feeds pieces to the parser as a connection would.
func readRequest(pieces [][]byte) parsed {
	var r Request
	r.reset()
	return readMessage(pieces, func(b []byte) (bool, error) { return r.parse(b, &defaults) },
		func() (parsed, framing, int64, int) {
			kind := noBody
			if r.chunked {
				kind = byChunks
			} else if r.cl > 0 {
				kind = byLength
			}
			p := parsed{line: fmt.Sprintf("%s %s 1.%d", r.Method, r.Target, r.Minor), host: r.Host, fields: fieldsOf(&r.message)}
			return p, kind, r.cl, len(r.b)
		})
}

func readResponse(pieces [][]byte) parsed {
	var r Response
	r.reset()
	return readMessage(pieces, func(b []byte) (bool, error) { return r.parse(b, &defaults) },
		func() (parsed, framing, int64, int) {
			kind := untilClose
			switch {
			case r.bodyless("GET"):
				kind = noBody
			case r.chunked:
				kind = byChunks
			case r.cl >= 0:
				kind = byLength
			}
			return parsed{line: fmt.Sprintf("1.%d %d %s", r.minor, r.Status, r.Reason), fields: fieldsOf(&r.message)}, kind, r.cl, len(r.b)
		})
}

func fieldsOf(m *message) (fields []string) {
	for name, value := range m.All() {
		fields = append(fields, http.CanonicalHeaderKey(name)+": "+value)
	}
	return fields
}

func readMessage(pieces [][]byte, parse func([]byte) (bool, error), head func() (parsed, framing, int64, int)) parsed {
	buf := make([]byte, largeBuffer)
	have, i := 0, 0
	for {
		done, err := parse(buf[:have])
		if err != nil {
			return parsed{err: err.Error()}
		}
		if done {
			break
		}
		if i == len(pieces) {
			return parsed{err: "more"}
		}
		have += copy(buf[have:], pieces[i])
		i++
	}
	p, kind, cl, n := head()
	p.line, p.host = strings.Clone(p.line), strings.Clone(p.host)
	for k := range p.fields {
		p.fields[k] = strings.Clone(p.fields[k])
	}
	var b body
	b.begin(kind, cl, buf, n, have)
	for {
		if err := b.advance(); err != nil {
			return parsed{err: err.Error()}
		}
		if b.done || i == len(pieces) {
			break
		}
		b.took(copy(b.room(), pieces[i]))
		i++
	}
	p.body, p.whole = string(b.data()), b.done
	p.trailer = string(b.chunks.trailer)
	p.rest = string(b.buf[b.raw:b.end])
	for ; i < len(pieces); i++ {
		p.rest += string(pieces[i])
	}
	return p
}

const host = "Host: a\r\n"

func TestRequestsThatAreRefused(t *testing.T) {
	long := strings.Repeat("a", 70<<10)
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"bare LF after the request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", errBareLF},
		{"bare LF after a field", "GET / HTTP/1.1\r\nHost: a\n\r\n", errBareLF},
		{"bare LF as the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", errBareLF},
		{"bare CR in the request line", "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", errTarget},
		{"bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", errFieldValue},
		{"CR CR LF", "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", errFieldValue},
		{"folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", errFold},
		{"folded with a tab", "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n", errFold},
		{"indented first field", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", errFold},
		{"space before the colon", "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", errFieldName},
		{"tab before the colon", "GET / HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n", errFieldName},
		{"no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", errNoColon},
		{"empty name", "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", errEmptyName},
		{"byte in a name", "GET / HTTP/1.1\r\nHost: a\r\nX(y: b\r\n\r\n", errFieldName},
		{"high byte in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\xe9: b\r\n\r\n", errFieldName},
		{"NUL in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n", errFieldName},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: b\x00\r\n\r\n", errFieldValue},
		{"DEL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: b\x7f\r\n\r\n", errFieldValue},
		{"escape in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[1m\r\n\r\n", errFieldValue},
		{"no Host", "GET / HTTP/1.1\r\nX: a\r\n\r\n", errNoHost},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", errRepeatedHost},
		{"two Hosts in 1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", errRepeatedHost},
		{"userinfo in Host", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", errHost},
		{"slash in Host", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", errHost},
		{"space in Host", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", errHost},
		{"two Content-Lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", errRepeatedLength},
		{"the same Content-Length twice", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", errRepeatedLength},
		{"a list of lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3, 3\r\n\r\nabc", errLength},
		{"plus in the length", "POST / HTTP/1.1\r\n" + host + "Content-Length: +3\r\n\r\nabc", errLength},
		{"minus in the length", "POST / HTTP/1.1\r\n" + host + "Content-Length: -3\r\n\r\nabc", errLength},
		{"hexadecimal length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x3\r\n\r\nabc", errLength},
		{"empty length", "POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\nabc", errLength},
		{"length beyond 2^60", "POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551619\r\n\r\nabc", errLength},
		{"length and chunks", "POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errBothFramings},
		{"chunks and length", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", errBothFramings},
		{"chunks in 1.0", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errBothFramings},
		{"identity", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n", errEncoding},
		{"gzip, chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", errEncoding},
		{"chunked, chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", errEncoding},
		{"chunked twice", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", errEncoding},
		{"chunked, identity", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", errEncoding},
		{"xchunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", errEncoding},
		{"vertical tab before chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", errFieldValue},
		{"empty Transfer-Encoding", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n\r\n", errEncoding},
		{"Connection is no list of tokens", "GET / HTTP/1.1\r\n" + host + "Connection: a b\r\n\r\n", errConnection},
		{"Connection names too many", "GET / HTTP/1.1\r\n" + host + "Connection: a" + strings.Repeat(",a", maxNamed) + "\r\n\r\n", errConnection},
		{"empty line", "\r\n\r\n", errRequestLine},
		{"no target", "GET HTTP/1.1\r\n" + host + "\r\n", errRequestLine},
		{"two spaces after the method", "GET  / HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"two spaces before the version", "GET /  HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"space in the target", "GET /a b HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"tab in the target", "GET /a\tb HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"high byte in the target", "GET /\xe9 HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"fragment in the target", "GET /#a HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"target without a slash", "GET a HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"asterisk with GET", "GET * HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"another scheme", "GET ftp://a/ HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"absolute without a host", "GET http:///a HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"absolute with userinfo", "GET http://u@a/ HTTP/1.1\r\n" + host + "\r\n", errTarget},
		{"method is no token", "G(T / HTTP/1.1\r\n" + host + "\r\n", errMethod},
		{"empty method", " / HTTP/1.1\r\n" + host + "\r\n", errMethod},
		{"HTTP/0.9", "GET /\r\n\r\n", errRequestLine},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", errVersion},
		{"HTTP/1.2", "GET / HTTP/1.2\r\n" + host + "\r\n", errVersion},
		{"http/1.1 in lower case", "GET / http/1.1\r\n" + host + "\r\n", errVersionForm},
		{"HTTP/1.10", "GET / HTTP/1.10\r\n" + host + "\r\n", errVersionForm},
		{"trailing space", "GET / HTTP/1.1 \r\n" + host + "\r\n", errVersionForm},
		{"CONNECT", "CONNECT a:443 HTTP/1.1\r\n" + host + "\r\n", errConnect},
		{"long request line", "GET /" + long + " HTTP/1.1\r\n" + host + "\r\n", errLineTooLong},
		{"long request line without an end", "GET /" + long, errLineTooLong},
		{"large field", "GET / HTTP/1.1\r\n" + host + "X: " + long + "\r\n\r\n", errHeadTooLarge},
		{"large head", "GET / HTTP/1.1\r\n" + host + strings.Repeat("X: "+long[:1<<10]+"\r\n", 70) + "\r\n", errHeadTooLarge},
		{"many fields", "GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 128) + "\r\n", errTooManyFields},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := readRequest([][]byte{[]byte(c.in)}); got.err != c.want.Error() {
				t.Errorf("got %q, want %q", got.err, c.want)
			}
			if got := readRequest(oneByOne(c.in)); got.err != c.want.Error() {
				t.Errorf("byte by byte: got %q, want %q", got.err, c.want)
			}
			if !errors.Is(c.want, ErrMalformed) && !errors.Is(c.want, ErrTooLarge) {
				t.Errorf("%v is of no class", c.want)
			}
		})
	}
}

func TestChunksThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name, body string
		want       error
	}{
		{"no size", "\r\nabc\r\n0\r\n\r\n", errChunkSize},
		{"not hexadecimal", "g\r\nabc\r\n", errChunkSize},
		{"0x", "0x3\r\nabc\r\n", errChunkSize},
		{"plus", "+3\r\nabc\r\n", errChunkSize},
		{"minus", "-3\r\nabc\r\n", errChunkSize},
		{"space before", " 3\r\nabc\r\n", errChunkSize},
		{"space after", "3 \r\nabc\r\n", errChunkSize},
		{"space before the extension", "3 ;a\r\nabc\r\n", errChunkSize},
		{"underscore", "1_0\r\nabc\r\n", errChunkSize},
		{"overflow", "fffffffffffffffff\r\nabc\r\n", errChunkSize},
		{"overflow to small", "10000000000000003\r\nabc\r\n", errChunkSize},
		{"many zeros", "0000000000000000\r\n\r\n", errChunkSize},
		{"bare LF after the size", "3\nabc\r\n0\r\n\r\n", errChunkSize},
		{"bare CR after the size", "3\rabc\r\n0\r\n\r\n", errChunkSize},
		{"bare LF in the extension", "3;a\nabc\r\n0\r\n\r\n", errChunkExtension},
		{"bare CR in the extension", "3;a\rb\r\nabc\r\n0\r\n\r\n", errChunkSize},
		{"NUL in the extension", "3;a\x00\r\nabc\r\n0\r\n\r\n", errChunkExtension},
		{"long extension", "3;" + strings.Repeat("a", maxExtensions+1) + "\r\nabc\r\n0\r\n\r\n", errChunkExtension},
		{"extensions long together", strings.Repeat("1;"+strings.Repeat("a", 100)+"\r\nb\r\n", 50), errChunkExtension},
		{"data longer than said", "3\r\nabcd\r\n0\r\n\r\n", errChunkEnd},
		{"data shorter than said", "5\r\nabc\r\n0\r\n\r\n", errChunkEnd},
		{"bare LF after the data", "3\r\nabc\n0\r\n\r\n", errChunkEnd},
		{"bare CR after the data", "3\r\nabc\rX0\r\n\r\n", errChunkEnd},
		{"bare LF as the end", "0\r\n\n", errBareLF},
		{"bare LF in the trailer", "0\r\nA: b\n\r\n", errBareLF},
		{"control in the trailer", "0\r\nA: \x01\r\n\r\n", errFieldValue},
		{"folded trailer", "0\r\nA: b\r\n c\r\n\r\n", errFold},
		{"space before the colon in the trailer", "0\r\nA : b\r\n\r\n", errFieldName},
		{"request in the trailer", "0\r\nGET / HTTP/1.1\r\n\r\n", errFieldName},
		{"large trailer", "0\r\n" + strings.Repeat("A: bcdefghijkl\r\n", 1100), errTrailerTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + c.body
			if got := readRequest([][]byte{[]byte(in)}); got.err != c.want.Error() {
				t.Errorf("got %q, want %q", got.err, c.want)
			}
			if got := readRequest(oneByOne(in)); got.err != c.want.Error() {
				t.Errorf("byte by byte: got %q, want %q", got.err, c.want)
			}
		})
	}
}

func TestResponsesThatAreRefused(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     error
	}{
		{"HTTP/2", "HTTP/2.0 200 OK\r\n\r\n", errVersion},
		{"lower case", "http/1.1 200 OK\r\n\r\n", errVersion},
		{"no code", "HTTP/1.1\r\n\r\n", errStatusLine},
		{"two digits", "HTTP/1.1 20 OK\r\n\r\n", errStatusLine},
		{"four digits", "HTTP/1.1 2000 OK\r\n\r\n", errStatusLine},
		{"code below 100", "HTTP/1.1 099 OK\r\n\r\n", errStatusLine},
		{"two spaces", "HTTP/1.1  200 OK\r\n\r\n", errStatusLine},
		{"control in the reason", "HTTP/1.1 200 O\x00K\r\n\r\n", errStatusLine},
		{"bare LF", "HTTP/1.1 200 OK\n\r\n", errBareLF},
		{"folded", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", errFold},
		{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", errRepeatedLength},
		{"length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", errBothFramings},
		{"chunks in 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", errBothFramings},
		{"gzip", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", errEncoding},
		{"not HTTP", "SSH-2.0-OpenSSH_9.2\r\n", errStatusLine},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := readResponse([][]byte{[]byte(c.in)}); got.err != c.want.Error() {
				t.Errorf("got %q, want %q", got.err, c.want)
			}
			if got := readResponse(oneByOne(c.in)); got.err != c.want.Error() {
				t.Errorf("byte by byte: got %q, want %q", got.err, c.want)
			}
		})
	}
}

func TestTargetsAreReadInAllTheirForms(t *testing.T) {
	for _, c := range []struct{ in, target, host string }{
		{"GET /a?b=c HTTP/1.1", "/a?b=c", "h"},
		{"GET /%zz?100% HTTP/1.1", "/%zz?100%", "h"},
		{"GET http://other:81/a HTTP/1.1", "/a", "other:81"},
		{"GET HTTP://other HTTP/1.1", "/", "other"},
		{"GET http://other?q=1 HTTP/1.1", "/?q=1", "other"},
		{"GET https://[::1]:8443/x HTTP/1.1", "/x", "[::1]:8443"},
		{"OPTIONS * HTTP/1.1", "*", "h"},
		{"OPTIONS http://other HTTP/1.1", "*", "other"},
		{"OPTIONS http://other/ HTTP/1.1", "/", "other"},
		{"GET / HTTP/1.0", "/", "h"},
	} {
		got := readRequest([][]byte{[]byte(c.in + "\r\nHost: h\r\n\r\n")})
		target := strings.Fields(got.line + " -")
		if got.err != "" || target[1] != c.target || got.host != c.host {
			t.Errorf("%s: got %+v", c.in, got)
		}
	}
}

func oneByOne(s string) (pieces [][]byte) {
	for i := range len(s) {
		pieces = append(pieces, []byte{s[i]})
	}
	return pieces
}

var wellFormed = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /next HTTP/1.1\r\n",
	"POST /a HTTP/1.1\r\nHost:a\r\nContent-Length:  5 \r\nX:\t y z \r\n\r\nabcdeREST",
	"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n00a;x=\"y\"\r\n0123456789\r\n0\r\nT: v\r\nContent-Length: 7\r\n\r\nREST",
	"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"GET http://b/c HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-a\r\nX-A: 1\r\n\r\n",
	"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab",
}

// However the bytes are split, the outcome is the same.
func TestSplitsChangeNothing(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	for _, in := range wellFormed {
		want := readRequest([][]byte{[]byte(in)})
		if want.err != "" {
			t.Fatalf("%q: %v", in, want.err)
		}
		for range 200 {
			compare(t, in, readRequest(split(in, chance.IntN)), want)
		}
		compare(t, in, readRequest(oneByOne(in)), want)
	}
}

func compare(t *testing.T, in string, got, want parsed) {
	t.Helper()
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Fatalf("%q:\n got %+v\nwant %+v", in, got, want)
	}
}

func split(s string, intN func(int) int) (pieces [][]byte) {
	for len(s) > 0 {
		n := 1 + intN(min(len(s), 20))
		pieces = append(pieces, []byte(s[:n]))
		s = s[n:]
	}
	return pieces
}

// What we accept net/http accepts, and frames alike; and no split changes the
// outcome. We may refuse more.
func FuzzRequest(f *testing.F) {
	for _, in := range wellFormed {
		f.Add([]byte(in), uint64(7))
	}
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), uint64(1))
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		if len(in) > 32<<10 {
			return
		}
		got := readRequest([][]byte{bytes.Clone(in)})
		chance := rand.New(rand.NewPCG(seed, 0))
		compare(t, string(in), readRequest(split(string(in), chance.IntN)), got)
		if got.err != "" || !got.whole {
			return
		}
		checkRequest(t, in, got)
	})
}

func checkRequest(t *testing.T, in []byte, got parsed) {
	r := bytes.NewReader(in)
	br := bufio.NewReaderSize(r, 64<<10)
	req, err := http.ReadRequest(br)
	if err != nil && strings.Contains(err.Error(), "bad trailer key") {
		return // it reads the Trailer announcement, which frames nothing
	}
	target := strings.Fields(got.line)[1]
	if err != nil { // it also parses URLs, which we pass on as they are
		line, rest, _ := bytes.Cut(in, []byte("\r\n"))
		words := bytes.Fields(line)
		in = append(fmt.Appendf(nil, "%s / %s\r\n", words[0], words[2]), rest...)
		r = bytes.NewReader(in)
		br = bufio.NewReaderSize(r, 64<<10)
		if req, err = http.ReadRequest(br); err != nil {
			t.Fatalf("we accept what net/http refuses: %v", err)
		}
	} else if strings.HasPrefix(req.RequestURI, "/") && target != req.RequestURI {
		t.Fatalf("target %q, net/http says %q", target, req.RequestURI)
	} else if req.Host != got.host && !strings.ContainsAny(got.host, "%") {
		t.Fatalf("host %q, net/http says %q", got.host, req.Host)
	}
	if want := fmt.Sprintf("%s %s 1.%d", req.Method, target, req.ProtoMinor); got.line != want {
		t.Fatalf("request line %q, net/http says %q", got.line, want)
	}
	checkFields(t, got.fields, req.Header)
	checkBody(t, got, req.Body, br, r)
}

func checkFields(t *testing.T, fields []string, header http.Header) {
	seen := map[string]int{}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		switch name {
		case "Host", "Transfer-Encoding", "Content-Length", "Trailer":
			continue
		}
		values := header[name]
		if i := seen[name]; i >= len(values) || values[i] != value {
			t.Fatalf("field %q: net/http has %q", f, values)
		}
		seen[name]++
	}
	for name, values := range header {
		switch name {
		case "Content-Length", "Trailer", "Cache-Control": // it invents the last from Pragma
			continue
		}
		if seen[name] != len(values) {
			t.Fatalf("net/http has %s %q, we saw %d", name, values, seen[name])
		}
	}
}

func checkBody(t *testing.T, got parsed, body io.Reader, br *bufio.Reader, r *bytes.Reader) {
	data, err := io.ReadAll(body)
	if err != nil {
		t.Fatalf("net/http refuses a body that we accept: %v", err)
	}
	if string(data) != got.body {
		t.Fatalf("body %q, net/http says %q", got.body, data)
	}
	if rest := br.Buffered() + r.Len(); rest != len(got.rest) {
		t.Fatalf("%d bytes left, net/http leaves %d", len(got.rest), rest)
	}
}

// FuzzResponse is FuzzRequest for what an upstream may send.
func FuzzResponse(f *testing.F) {
	for _, in := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcREST",
		"HTTP/1.1 204 \r\n\r\n",
		"HTTP/1.0 404\r\nX: y\r\n\r\nto the end",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n3;e\r\nabc\r\n0\r\nT: v\r\n\r\nREST",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
	} {
		f.Add([]byte(in), uint64(7))
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		if len(in) > 32<<10 {
			return
		}
		got := readResponse([][]byte{bytes.Clone(in)})
		chance := rand.New(rand.NewPCG(seed, 0))
		compare(t, string(in), readResponse(split(string(in), chance.IntN)), got)
		if got.err != "" {
			return
		}
		r := bytes.NewReader(in)
		br := bufio.NewReaderSize(r, 64<<10)
		resp, err := http.ReadResponse(br, &http.Request{Method: "GET"})
		if err != nil {
			if strings.Contains(err.Error(), "bad trailer key") {
				return
			}
			t.Fatalf("we accept what net/http refuses: %v", err)
		}
		if want := fmt.Sprintf("1.%d %d", resp.ProtoMinor, resp.StatusCode); !strings.HasPrefix(got.line, want) {
			t.Fatalf("status line %q, net/http says %q", got.line, want)
		}
		checkFields(t, got.fields, resp.Header)
		if got.whole || resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 {
			checkBody(t, got, resp.Body, br, r)
		}
	})
}
