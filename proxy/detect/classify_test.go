package detect

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// realHello is what crypto/tls sends first.
func realHello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	cfg.InsecureSkipVerify = true
	var sent recorder
	err := tls.Client(&sent, cfg).Handshake()
	if !errors.Is(err, errRecorded) {
		t.Fatal(err)
	}
	return sent.Bytes()
}

var errRecorded = errors.New("recorded")

// recorder is a net.Conn that keeps what is written and never answers.
type recorder struct{ bytes.Buffer }

func (*recorder) Read([]byte) (int, error)         { return 0, errRecorded }
func (*recorder) Close() error                     { return nil }
func (*recorder) LocalAddr() net.Addr              { return nil }
func (*recorder) RemoteAddr() net.Addr             { return nil }
func (*recorder) SetDeadline(time.Time) error      { return nil }
func (*recorder) SetReadDeadline(time.Time) error  { return nil }
func (*recorder) SetWriteDeadline(time.Time) error { return nil }

type helloCase struct {
	name string
	cfg  *tls.Config
	want Hello
}

var helloCases = []helloCase{
	{"nothing asked for", &tls.Config{}, Hello{}},
	{"the application's HTTPS", &tls.Config{ServerName: "Shop.Example", NextProtos: []string{"h2", "http/1.1"}},
		Hello{ServerName: "shop.example", ALPN: []string{"h2", "http/1.1"}}},
	{"mesh", &tls.Config{ServerName: "a.b", NextProtos: []string{"weir"}},
		Hello{ServerName: "a.b", ALPN: []string{"weir"}, Mesh: true}},
	{"mesh among others", &tls.Config{NextProtos: []string{"h2", "weir"}}, Hello{ALPN: []string{"h2", "weir"}, Mesh: true}},
	{"almost mesh", &tls.Config{NextProtos: []string{"weird", "wei", "WEIR"}}, Hello{ALPN: []string{"weird", "wei", "WEIR"}}},
	{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12, NextProtos: []string{"weir"}}, Hello{ALPN: []string{"weir"}, Mesh: true}},
	{"TLS 1.3, classic key share", &tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}, ServerName: "x"},
		Hello{ServerName: "x"}},
	{"post-quantum key share", &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, NextProtos: []string{"weir"}},
		Hello{ALPN: []string{"weir"}, Mesh: true}},
}

func TestEveryPrefixOfRealHellos(t *testing.T) {
	for _, tc := range helloCases {
		t.Run(tc.name, func(t *testing.T) {
			hello := realHello(t, tc.cfg)
			for n := range len(hello) {
				r, more := Classify(hello[:n])
				if !more || r.Hello != nil || n > recordHeader && r.Kind != TLS {
					t.Fatalf("%d of %d bytes: %+v, more %v", n, len(hello), r, more)
				}
			}
			for _, after := range []string{"", "early data"} {
				r, more := Classify(append(slices.Clone(hello), after...))
				if more || r.Kind != TLS || r.Hello == nil || !reflect.DeepEqual(*r.Hello, tc.want) {
					t.Errorf("with %q after it: %+v %+v, more %v", after, r, r.Hello, more)
				}
				if r.Mesh() != tc.want.Mesh {
					t.Error("Mesh() says otherwise")
				}
			}
		})
	}
}

// inRecords cuts a hello's only record into records of so many bytes.
func inRecords(hello []byte, size int) (out []byte) {
	for part := range slices.Chunk(hello[recordHeader:], size) {
		out = append(out, hello[:3]...)
		out = binary.BigEndian.AppendUint16(out, uint16(len(part)))
		out = append(out, part...)
	}
	return out
}

func TestHelloInManyRecords(t *testing.T) {
	hello := realHello(t, &tls.Config{ServerName: "a.b", NextProtos: []string{"weir"}})
	for _, size := range []int{1, 3, 4, 5, 100, 1000} {
		cut := inRecords(hello, size)
		for n := range len(cut) {
			if r, more := Classify(cut[:n]); !more || r.Hello != nil {
				t.Fatalf("records of %d: %d of %d bytes: %+v, more %v", size, n, len(cut), r, more)
			}
		}
		if r, more := Classify(cut); more || !r.Mesh() || r.Hello.ServerName != "a.b" {
			t.Errorf("records of %d: %+v, more %v", size, r, more)
		}
	}
}

func TestHellosThatAreNone(t *testing.T) {
	hello := realHello(t, &tls.Config{ServerName: "a.b", NextProtos: []string{"weir"}})
	with := func(change func(b []byte)) []byte {
		b := slices.Clone(hello)
		change(b)
		return b
	}
	endless := make([]byte, MaxBytes)
	copy(endless, "\x16\x03\x01\x40\x00\x01\x00\xff\xff")
	for _, tc := range []struct {
		name string
		in   []byte
		kind Kind
	}{
		{"a type that is not a hello", with(func(b []byte) { b[5] = 2 }), Opaque},
		{"another major version", with(func(b []byte) { b[1] = 2 }), Opaque},
		{"an empty record", []byte("\x16\x03\x01\x00\x00"), Opaque},
		{"a record that is too long", []byte("\x16\x03\x01\xff\xff\x01"), Opaque},
		{"a second record of another type", append(inRecords(hello, 100)[:105], 0x17), TLS},
		{"a hello that does not end", endless, TLS},
		{"a session id longer than the hello", with(func(b []byte) { b[recordHeader+handshakeHeader+34] = 255 }), TLS},
		{"two server names in two extensions", helloWith("\x00\x00\x00\x06\x00\x04\x00\x00\x01a" + "\x00\x00\x00\x06\x00\x04\x00\x00\x01b"), TLS},
		{"two server names in one", helloWith("\x00\x00\x00\x0a\x00\x08\x00\x00\x01a\x00\x00\x01b"), TLS},
		{"an empty protocol", helloWith("\x00\x10\x00\x03\x00\x01\x00"), TLS},
		{"a protocol list that runs over", helloWith("\x00\x10\x00\x03\x00\x09w"), TLS},
		{"an extension cut short", helloWith("\x00\x10\x00\x09\x00"), TLS},
	} {
		if r, more := Classify(tc.in); more || r.Kind != tc.kind || r.Hello != nil {
			t.Errorf("%s: %+v, more %v, want %v without hello", tc.name, r, more, tc.kind)
		}
	}
	if r, _ := Classify(helloWith("")); r.Hello == nil {
		t.Errorf("no extension at all: %+v", r)
	}
}

// helloWith is a small ClientHello with these extensions.
func helloWith(extensions string) []byte {
	body := "\x03\x03" + strings.Repeat("r", 32) + "\x00" + "\x00\x02\x13\x01" + "\x01\x00"
	body += string(binary.BigEndian.AppendUint16(nil, uint16(len(extensions)))) + extensions
	msg := append([]byte{clientHello, 0}, binary.BigEndian.AppendUint16(nil, uint16(len(body)))...)
	msg = append(msg, body...)
	return append(append([]byte{recordHandshake, 3, 1}, binary.BigEndian.AppendUint16(nil, uint16(len(msg)))...), msg...)
}

func TestPlaintext(t *testing.T) {
	for _, tc := range []struct {
		in   string
		kind Kind
		more bool
	}{
		{"", Opaque, true},
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", HTTP1, false},
		{"GET / HTTP/1.0\n", HTTP1, false},
		{"GET /", HTTP1, false},
		{"GET /a/very/long/path", HTTP1, false},
		{"G", Opaque, true},
		{"GET", Opaque, true},
		{"GET ", Opaque, true},
		{"GET h", Opaque, true},
		{"GET http:/", Opaque, true},
		{"GET http://a", HTTP1, false},
		{"GET HTTPS://a/ HT", HTTP1, false},
		{"GET httpx", Opaque, false},
		{"GETX", Opaque, false},
		{"OPTIONS *", HTTP1, false},
		{"CONNECT example.com:443", HTTP1, false},
		{"CONNECT [::1]:443", HTTP1, false},
		{"CONNECT 10.0.0.1:443", HTTP1, false},
		{"VERSION-CONTROL / ", HTTP1, false},
		{"get / HTTP/1.1\r\n", HTTP1, false}, // a server may take it, so our rules must see it
		{"get /", Opaque, false},
		{"FROBNICATE / HTTP/1.1\r\n", HTTP1, false},
		{"\r\nGET / HTTP/1.1\r\n", HTTP1, false},
		{"\r\n\r\nPO", Opaque, true},
		{"\r\n", Opaque, false},
		{"GET / HTTP/9.9\r\n", HTTP1, false}, // for the engine to refuse
		{"GET / HTTP/1.1 \r\n", HTTP1, false},
		{"GET /\r\n", Opaque, false}, // HTTP/0.9
		{"GET / HTTP/1.x\r\n", Opaque, false},
		{"G(T / HTTP/1.1\r\n", Opaque, false},
		{" / HTTP/1.1\r\n", Opaque, false},
		{"GET HTTP/1.1\r\n", HTTP1, false}, // broken HTTP is HTTP: 400

		{"PRI", Opaque, true},
		{preface[:23], Opaque, true},
		{preface, HTTP2, false},
		{preface + "\x00\x00\x00\x04", HTTP2, false},
		{preface[:16] + "\r\nXX", HTTP1, false},

		{"GET key\r\n", Opaque, false},  // Redis, inline
		{"GET /key\r\n", Opaque, false}, // Redis again
		{"*1\r\n$4\r\nPING\r\n", Opaque, false},
		{"PING\r\n", Opaque, false},
		{"get key\r\n", Opaque, false},                   // memcached
		{"SSH-2.0-OpenSSH_9.2\r\n", Opaque, false},       // SSH
		{"EHLO a\r\n", Opaque, false},                    // SMTP
		{"CONNECT {\"verbose\":false", Opaque, false},    // NATS
		{"CONNECT\naccept-version:1.2", Opaque, false},   // STOMP
		{"OPTIONS rtsp://a RTSP/1.0\r", Opaque, false},   // RTSP
		{"OPTIONS sip:a SIP/2.0\r\n", Opaque, false},     // SIP
		{"\x00\x00\x00\x08\x04\xd2\x16/", Opaque, false}, // PostgreSQL SSLRequest
		{"\x10\x0e\x00\x04MQTT", Opaque, false},
		{"\x80\x2e\x01\x03\x01", Opaque, false}, // an SSL 2 hello
		{"\x16", Opaque, true},
		{"\x16\x03", Opaque, true},
		{"\x16\x04", Opaque, false},
		{"\xff\xfe\xfd", Opaque, false},
	} {
		if r, more := Classify([]byte(tc.in)); r.Kind != tc.kind || more != tc.more || r.Hello != nil {
			t.Errorf("%.40q: %v, more %v, want %v, %v", tc.in, r.Kind, more, tc.kind, tc.more)
		}
	}
}

func TestEveryMethodFromItsFirstByteOn(t *testing.T) {
	for _, m := range methods {
		target := "/"
		if m == "CONNECT" {
			target = "[" // the first byte of a target decides
		}
		line := m + " " + target
		for n := range len(line) {
			if r, more := Classify([]byte(line[:n])); r.Kind != Opaque || !more {
				t.Errorf("%q: %v, more %v", line[:n], r.Kind, more)
			}
		}
		for n := len(line); n <= len(line+" HTTP/1.1\r\n"); n++ {
			b := (line + " HTTP/1.1\r\n")[:n]
			if r, more := Classify([]byte(b)); r.Kind != HTTP1 || more {
				t.Errorf("%q: %v, more %v", b, r.Kind, more)
			}
		}
	}
}

func TestWaitingIsBounded(t *testing.T) {
	for _, b := range [][]byte{
		append(bytes.Repeat([]byte("\n"), MaxBytes-2), "GE"...),
		append([]byte("\x16\x03\x01\x40\x00\x01\x00\xff\xff"), make([]byte, MaxBytes-9)...),
	} {
		if _, more := Classify(b); more || len(b) != MaxBytes {
			t.Errorf("%d bytes beginning %q ask for more", len(b), b[:9])
		}
	}
}

// accepted is what crypto/tls makes of a stream, nil if it refuses it.
func accepted(b []byte) (hello *Hello) {
	errSeen := errors.New("seen")
	err := tls.Server(&oneWay{Reader: bytes.NewReader(b)}, &tls.Config{
		GetConfigForClient: func(chi *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = &Hello{ServerName: strings.ToLower(chi.ServerName), ALPN: chi.SupportedProtos}
			hello.Mesh = slices.Contains(hello.ALPN, MeshALPN)
			return nil, errSeen
		},
	}).Handshake()
	if !errors.Is(err, errSeen) {
		return nil
	}
	return hello
}

type oneWay struct {
	recorder
	io.Reader
}

func (o *oneWay) Read(b []byte) (int, error)  { return o.Reader.Read(b) }
func (o *oneWay) Write(b []byte) (int, error) { return len(b), nil }

// What crypto/tls takes for a hello we take for the same one, and the answer for
// a stream does not depend on how much of it came at first.
func FuzzClassify(f *testing.F) {
	for _, tc := range helloCases {
		h := realHello(f, tc.cfg)
		f.Add(h)
		f.Add(inRecords(h, 50))
	}
	f.Add(helloWith("\x00\x10\x00\x07\x00\x05\x04weir"))
	for _, s := range []string{"GET / HTTP/1.1\r\n", preface, "get key\r\n", "\r\n\r\nPUT http://a HTTP/1.1\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b), MaxBytes)]
		kept := slices.Clone(b)
		r, more := Classify(b)
		if !bytes.Equal(kept, b) {
			t.Fatal("the input was changed")
		}
		if (r.Hello != nil) && (r.Kind != TLS || more) {
			t.Fatalf("%+v, more %v", r, more)
		}
		// crypto/tls does not look at the first record's version; we do, for
		// there it tells TLS from other bytes that begin with 0x16.
		if h := accepted(b); h != nil && b[1] == 3 && (r.Hello == nil || !reflect.DeepEqual(*h, *r.Hello)) {
			t.Fatalf("crypto/tls saw %+v, we %+v", h, r.Hello)
		}
		// Once TLS or HTTP is decided from a part, the rest changes nothing. (What
		// is decided as opaque might have become HTTP: that is the price of not
		// waiting.)
		for n := range min(len(b), 64) {
			part, partMore := Classify(b[:n])
			if !partMore && part.Kind != Opaque && part.Kind != r.Kind && !lineEndedAfter(b, n) {
				t.Fatalf("%q gives %v, all of it %v", b[:n], part.Kind, r.Kind)
			}
		}
	})
}

// lineEndedAfter: a request line taken on its first bytes can still turn out
// badly at its end.
func lineEndedAfter(b []byte, n int) bool { return bytes.IndexByte(b[n:], '\n') >= 0 }
