package dns

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseResolvConf(t *testing.T) {
	ap := netip.MustParseAddrPort
	for _, tc := range []struct {
		name, in string
		want     ResolvConf
	}{
		{"empty", "", ResolvConf{Ndots: 1}},
		{"a pod's", "search shop.svc.cluster.local svc.cluster.local cluster.local.\nnameserver 10.96.0.10\noptions ndots:5 timeout:1\n",
			ResolvConf{Nameservers: []netip.AddrPort{ap("10.96.0.10:53")},
				Search: []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"}, Ndots: 5}},
		{"comments, spaces, no newline at the end", "# x\n;nameserver 9.9.9.9\n  \nnameserver\t192.0.2.1 # first\r\nnameserver fe80::1%eth0\nnameserver ::1",
			ResolvConf{Nameservers: []netip.AddrPort{ap("192.0.2.1:53"), ap("[fe80::1%eth0]:53"), ap("[::1]:53")}, Ndots: 1}},
		{"the last search or domain counts", "search a b\ndomain c\n", ResolvConf{Search: []string{"c"}, Ndots: 1}},
		{"what is not known or not right", "nameserver\nnameserver example.com\nsortlist 1.2.3.4\noptions ndots:x ndots:99 rotate\nsearch .\n",
			ResolvConf{Ndots: 15}},
	} {
		got, err := ParseResolvConf(strings.NewReader(tc.in))
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, %v; want %+v", tc.name, got, err, tc.want)
		}
	}
	broken := errors.New("disk")
	if _, err := ParseResolvConf(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}
