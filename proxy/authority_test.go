package proxy

import (
	"bytes"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// begun is what a client of HTTP/2 says at first.
func begun(t testing.TB, authority string, padding uint8) []byte {
	var block, out bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":path", Value: "/"}, {Name: ":authority", Value: authority}} {
		if err := e.WriteField(f); err != nil {
			t.Fatal(err)
		}
	}
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true, PadLength: padding,
		Priority: http2.PriorityParam{Weight: 3},
	}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestTheAuthorityInFirstBytes(t *testing.T) {
	for authority, want := range map[string]string{"users": "users", "users.prod:8080": "users.prod", "[::1]:80": "::1", "": ""} {
		if got := authorityIn(begun(t, authority, 0)); got != want {
			t.Errorf("%q: %q", authority, got)
		}
	}
	if got := authorityIn(begun(t, "users", 7)); got != "" {
		t.Error("padded:", got)
	}
	whole := begun(t, "users", 0)
	for n := range whole {
		if got := authorityIn(whole[:n]); got != "" {
			t.Errorf("of %d bytes of %d: %q", n, len(whole), got)
		}
	}
}

func FuzzAuthorityIn(f *testing.F) {
	f.Add(begun(f, "users", 0))
	f.Add([]byte(http2.ClientPreface))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := authorityIn(b)
		if got != "" && !bytes.Contains(b, []byte{1}) {
			t.Errorf("%q without a HEADERS frame", got)
		}
	})
}
