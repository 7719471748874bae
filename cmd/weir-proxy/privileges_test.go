package main

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatAModeHasNoUseForIsNamed(t *testing.T) {
	bits := func(of ...int) (p privileges) {
		for _, n := range of {
			p |= 1 << n
		}
		return p
	}
	all := privileges(1<<len(capabilities) - 1)
	for _, c := range []struct {
		name string
		mark string
		dns  uint16
		has  privileges
		want string
	}{
		{"what marks need", "0x1", 15053, bits(unix.CAP_NET_RAW), ""},
		{"before Linux 5.17", "0x1", 15053, bits(unix.CAP_NET_ADMIN), ""},
		{"one of two is enough", "0x1", 15053, bits(unix.CAP_NET_RAW, unix.CAP_NET_ADMIN), "CAP_NET_ADMIN"},
		{"a low port", "0x1", 53, bits(unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE), ""},
		{"no low port", "0x1", 15053, bits(unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE), "CAP_NET_BIND_SERVICE"},
		{"uid mode", "none", 15053, bits(unix.CAP_NET_RAW, unix.CAP_BPF), "CAP_NET_RAW CAP_BPF"},
		{"uid mode without any", "none", 15053, 0, ""},
	} {
		f := defaults()
		f.mark, f.dnsPort = c.mark, c.dns
		if got := strings.Join(f.needless(c.has), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if got := defaults().needless(all); len(got) != len(capabilities)-1 {
		t.Errorf("root has %d needless ones of %d: %v", len(got), len(capabilities), got)
	}
	if len(capabilities) != unix.CAP_LAST_CAP+1 {
		t.Errorf("%d names, the kernel's header knows %d", len(capabilities), unix.CAP_LAST_CAP+1)
	}
}
