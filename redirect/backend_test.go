package redirect

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestTheBackEndInUseIsFollowed(t *testing.T) {
	const foreign = "*filter\n-A INPUT -p icmp -j ACCEPT\nCOMMIT\n"
	for _, tc := range []struct {
		name  string
		holds []Mode
		want  Mode
		why   string
	}{
		{"neither holds rules", nil, ModeNFT, "neither holds rules"},
		{"legacy holds rules", []Mode{ModeLegacy}, ModeLegacy, "1 rules of others"},
		{"nft holds rules", []Mode{ModeNFT}, ModeNFT, "1 rules of others"},
		{"both hold rules", []Mode{ModeNFT, ModeLegacy}, ModeNFT, "1 rules of others"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t)
			for _, m := range tc.holds {
				f.restore("iptables-"+string(m)+"-restore", foreign)
			}
			res := f.apply(DefaultConfig())
			if res.Backend != tc.want || !strings.Contains(res.Why, tc.why) {
				t.Errorf("Apply says %+v", res)
			}
			// Its own rules decide from now on, whatever others do meanwhile.
			f.restore("iptables-legacy-restore", foreign)
			if again := f.apply(DefaultConfig()); again.Changed || again.Backend != tc.want {
				t.Errorf("the second Apply says %+v", again)
			}
		})
	}
}

func TestMovingToTheOtherBackEndLeavesNothingInTheFirst(t *testing.T) {
	f := newFixture(t)
	f.apply(modeConfig(ModeLegacy))
	res := f.apply(modeConfig(ModeNFT))
	if !res.Changed || res.Backend != ModeNFT || len(res.Notes) != 1 || !strings.Contains(res.Notes[0], "legacy") {
		t.Errorf("Apply says %+v", res)
	}
	for _, tool := range saveTools {
		if has, want := strings.Contains(f.command(f.app, tool), "WEIR"), strings.Contains(tool, "nft"); has != want {
			t.Errorf("%s shows our rules: %v", tool, has)
		}
	}
	f.arrives(f.app, at(f.peer.Addr4(), 80), nil, f.listen(f.app, "127.0.0.1:15001"))
}

func TestIPv6OffIsSaidAndDone(t *testing.T) {
	f := newFixture(t)
	f.apply(DefaultConfig())
	res := f.apply(with(func(c *Config) { c.IPv6 = IPv6Off }))
	if res.IPv6 || len(res.Notes) == 0 || !strings.Contains(res.Notes[0], "IPv6 is not redirected") {
		t.Errorf("Apply says %+v", res)
	}
	f.reachesDirectly(f.app, at(f.peer.Addr6(), 80), nil, f.listen(f.peer, ":80"))
}

// istio#57199: IPv6 in the kernel, switched off by sysctl.
func TestWhereIPv6IsSwitchedOffRulesWaitForIt(t *testing.T) {
	f := newFixture(t)
	err := f.app.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	if res := f.apply(DefaultConfig()); !res.IPv6 || len(res.Notes) != 1 {
		t.Errorf("Apply says %+v", res)
	}
	if !strings.Contains(ourPart(f), "fd77:6569:7200::/48") {
		t.Error("no rules for IPv6")
	}
	f.remove()
}

// A kernel without IPv6 shows itself by a missing file; here only the decision is tried.
func TestAKernelWithoutIPv6IsSaidOrRefused(t *testing.T) {
	f := newFixture(t)
	p, err := NewPlan(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	err = InNamespace(f.app.Path(), func() error {
		res, err := p.install(t.Context(), lookBoth(t.Context(), false), false)
		if res.IPv6 || len(res.Notes) != 1 || !strings.Contains(res.Notes[0], "no IPv6") {
			t.Errorf("install says %+v", res)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p.cfg.IPv6 = IPv6On
	if _, err := p.install(t.Context(), [2]installed{}, false); err == nil {
		t.Error("IPv6 on, without IPv6, was taken")
	}
}

func TestAMissingIptablesIsNamed(t *testing.T) {
	_, err := findTools(t.Context(), true, "nosuch")
	if !errors.Is(err, errNoIptables) || !strings.Contains(err.Error(), "apt-get install iptables") || !strings.Contains(err.Error(), "ip6tables") {
		t.Errorf("findTools: %v", err)
	}
	none := installed{err: errNoIptables}
	if _, _, _, err := choose(ModeAuto, [2]installed{none, none}); !errors.Is(err, errNoIptables) {
		t.Errorf("choose: %v", err)
	}
	if c, _, why, err := choose(ModeAuto, [2]installed{none, {backend: ModeLegacy}}); err != nil || c.backend != ModeLegacy || !strings.Contains(why, "nft cannot be used") {
		t.Errorf("choose: %v, %v, %v", c.backend, why, err)
	}
}
