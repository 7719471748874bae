package proxy

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

func TestTheHeaderOfThePROXYProtocol(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"192.0.2.1:51234", "198.51.100.2:443", "0d0a0d0a000d0a515549540a" + "2111000c" + "c0000201" + "c6336402" + "c822" + "01bb"},
		{"[2001:db8::1]:1", "[2001:db8::2]:65535", "0d0a0d0a000d0a515549540a" + "21210024" +
			"20010db8000000000000000000000001" + "20010db8000000000000000000000002" + "0001" + "ffff"},
	} {
		if got := hex.EncodeToString(proxyHeader(netip.MustParseAddrPort(c.from), netip.MustParseAddrPort(c.to))); got != c.want {
			t.Errorf("%s to %s is\n%s, want\n%s", c.from, c.to, got, c.want)
		}
	}
}

func TestParseAppSource(t *testing.T) {
	for text, want := range map[string]AppSource{
		"own": {}, "client": {Client: true}, "proxy-protocol": {ProxyProtocol: true}, "127.0.0.6": {Fixed: netip.MustParseAddr("127.0.0.6")}, "::6": {Fixed: netip.MustParseAddr("::6")},
	} {
		if got, err := ParseAppSource(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "Client", "0.0.0.0", "::", "224.0.0.1", "fe80::1%eth0", "::ffff:127.0.0.6", "127.0.0.6:80"} {
		if got, err := ParseAppSource(bad); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
}

// A connection to the app is used again for who it tells the app of, and nobody else.
func TestConnectionsToTheAppAreKeptByWhatItIsTold(t *testing.T) {
	peer := netip.MustParseAddrPort("192.0.2.1:5")
	for want, s := range map[netip.AddrPort]AppSource{
		{}: {Fixed: peer.Addr()}, netip.MustParseAddrPort("192.0.2.1:0"): {Client: true}, peer: {ProxyProtocol: true},
	} {
		if got := s.perCaller(peer); got != want {
			t.Errorf("%+v: %v, want %v", s, got, want)
		}
	}
}
