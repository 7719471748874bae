package redirect

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestOnlyWhatIsIncludedIsRedirected(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		cfg := modeConfig(mode)
		cfg.InboundPortsToInclude = []PortRange{{8080, 8081}}
		cfg.InboundCIDRsToIgnore = prefixes(f.peer.Addr6().String() + "/128")
		cfg.OutboundPortsToInclude = []PortRange{{80, 80}, {8080, 8081}}
		cfg.OutboundCIDRsToInclude = prefixes("192.0.2.0/24", f.peer.Addr4().String()+"/32", f.peer.Addr6().String()+"/128")
		cfg.OutboundPortsToIgnore = []PortRange{{8081, 8081}}
		f.apply(cfg)
		in, out4, out6 := f.listen(f.app, ":15006"), f.listen(f.app, "127.0.0.1:15001"), f.listen(f.app, "[::1]:15001")
		f.arrives(f.peer, at(f.app.Addr4(), 8080), nil, in)
		f.reachesDirectly(f.peer, at(f.app.Addr4(), 9000), nil, f.listen(f.app, ":9000"))
		f.reachesDirectly(f.peer, at(f.app.Addr6(), 8080), nil, f.listen(f.app, ":8080")) // a caller to ignore
		for _, to := range []string{f.peer.Join(80), f.peer.Join(8080), "192.0.2.9:80"} {
			f.arrives(f.app, addr(to), nil, out4)
		}
		f.arrives(f.app, at(f.peer.Addr6(), 8080), nil, out6)
		f.reachesDirectly(f.app, at(f.peer.Addr4(), 9001), nil, f.listen(f.peer, ":9001")) // another port
		f.reachesDirectly(f.app, at(f.peer.Addr4(), 8081), nil, f.listen(f.peer, ":8081")) // ignored, though included
		if c, err := f.dial(f.app, "192.0.3.9:80", nil); err == nil {
			t.Errorf("another destination was answered by %v", c.RemoteAddr())
		}
		// The virtual ranges are redirected whatever is included.
		f.arrives(f.app, addr("240.240.0.1:9000"), nil, out4)
		f.arrives(f.app, addr("[fd77:6569:7200::1]:9000"), nil, out6)
		f.nothingWaits(in)
	})
}

func TestUsersAndGroupsAreLeftAloneWithTheirDNS(t *testing.T) {
	if !manyUsers(t) {
		t.Skip("this user namespace has one user only (/proc/self/uid_map)")
	}
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		cfg := modeConfig(mode)
		cfg.UIDsToIgnore, cfg.GIDsToIgnore = []IDRange{{1000, 1010}}, []IDRange{{77, 77}}
		f.apply(cfg)
		greet(f, f.app, "127.0.0.1:15001", "the proxy")
		greet(f, f.app, "[::1]:15001", "the proxy")
		greet(f, f.app, "127.0.0.1:15053", "the proxy's DNS")
		greet(f, f.peer, ":8080", "the peer")
		greet(f, f.peer, ":53", "a resolver")
		bin := readableBinary(t)
		for _, c := range []struct {
			who        []string
			web, names string
		}{
			{[]string{"--reuid=1005", "--regid=5", "--clear-groups"}, "the peer", "a resolver"},
			{[]string{"--reuid=5", "--regid=77", "--clear-groups"}, "the peer", "a resolver"},
			{[]string{"--reuid=5", "--regid=5", "--groups=77"}, "the proxy", "the proxy's DNS"}, // a supplementary group does not count
			{[]string{"--reuid=1011", "--regid=5", "--clear-groups"}, "the proxy", "the proxy's DNS"},
		} {
			for _, to := range []string{at(f.peer.Addr4(), 8080).String(), at(f.peer.Addr6(), 8080).String()} {
				if got := runAs(t, f.app, bin, c.who, "dial", to, "plain"); got != c.web {
					t.Errorf("%v to %s met %q", c.who, to, got)
				}
			}
			if got := runAs(t, f.app, bin, c.who, "dial", at(f.peer.Addr4(), 53).String(), "plain"); got != c.names {
				t.Errorf("DNS of %v met %q", c.who, got)
			}
		}
	})
}

func TestADNSAnswerOfWhatIsLeftAloneArrives(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		cfg := modeConfig(mode)
		cfg.InterfacesToIgnore = []string{"eth+"}
		f.apply(cfg)
		for _, own := range []string{at(f.peer.Addr4(), 53).String(), at(f.peer.Addr6(), 53).String()} {
			if got := f.ask(f.app, addr("[::]:0"), addr(own), nil, f.listenUDP(f.peer, own), "answer"); got != "answer" {
				t.Errorf("got %q", got)
			}
		}
	})
}

func TestInterfacesAreLeftAlone(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		cfg := modeConfig(mode)
		cfg.InterfacesToIgnore = []string{"eth0"}
		f.apply(cfg)
		in, out := f.listen(f.app, ":15006"), f.listen(f.app, "127.0.0.1:15001")
		f.reachesDirectly(f.peer, at(f.app.Addr4(), 8080), nil, f.listen(f.app, ":8080"))
		f.reachesDirectly(f.app, at(f.peer.Addr6(), 8080), nil, f.listen(f.peer, ":8080"))
		f.arrives(f.app, addr("240.240.0.1:80"), nil, out) // by lo
		f.nothingWaits(in)
	})
}

func TestACgroupIsLeftAlone(t *testing.T) {
	mount := cgroup2Mount()
	name := "weir-test-" + strconv.Itoa(os.Getpid())
	dir := filepath.Join(mount, name)
	if err := os.MkdirAll(filepath.Join(dir, "below"), 0o755); mount == "" || err != nil {
		if os.Geteuid() == 0 && manyUsers(t) {
			t.Fatalf("root cannot make a cgroup: mount %q, %v", mount, err)
		}
		t.Skipf("no cgroup of its own here: mount %q, %v", mount, err)
	}
	t.Cleanup(func() {
		_ = os.Remove(filepath.Join(dir, "below"))
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		cfg := modeConfig(mode)
		cfg.CgroupsToIgnore = []string{name}
		f.apply(cfg)
		greet(f, f.app, "127.0.0.1:15001", "the proxy")
		greet(f, f.peer, ":8080", "the peer")
		bin := readableBinary(t)
		const enter = `echo $$ >"$0/cgroup.procs" && exec "$@"`
		for where, want := range map[string]string{dir: "the peer", filepath.Join(dir, "below"): "the peer", mount: "the proxy"} {
			cmd := f.app.Command(t.Context(), "sh", "-c", enter, where, bin, f.peer.Join(8080), "plain")
			if got := output(t, cmd, "dial"); got != want {
				t.Errorf("from %s it met %q, want %q", where, got, want)
			}
		}
	})
}
