package redirect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-mesh/weir/test/netlab"
)

func TestASecondApplyChangesNothing(t *testing.T) {
	for name, cfg := range kernelPlans(t) {
		t.Run(name, func(t *testing.T) {
			bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
				cfg.Mode = mode
				f.apply(cfg)
				before := f.saved()
				if res := f.apply(cfg); res.Changed {
					t.Errorf("the second Apply says %+v", res)
				}
				if after := f.saved(); after != before {
					t.Errorf("was\n%s\nis\n%s", before, after)
				}
			})
		})
	}
}

// What others have: Docker's chains, and rules that mention our names in comments.
const foreignRules = `*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -p tcp -m tcp --dport 8443 -m comment --comment "-j WEIR_OUTPUT" -j DNAT --to-destination 172.17.0.2:8443
COMMIT
*filter
:FORWARD DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A OUTPUT -d 198.18.0.0/15 -j REJECT --reject-with icmp-port-unreachable
COMMIT
*mangle
-A POSTROUTING -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*raw
-A PREROUTING -i docker0 -j NOTRACK
COMMIT
`

func TestRemoveLeavesTheRulesOfOthersAsTheyWere(t *testing.T) {
	for name, c := range kernelPlans(t) {
		if name == "ports" || name == "plain" { // nothing that the others have not
			continue
		}
		bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
			f.restore("iptables-nft-restore", foreignRules)
			f.restore("iptables-legacy-restore", foreignRules)
			f.restore("ip6tables-"+string(mode)+"-restore", "*raw\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\n-A POSTROUTING -o eth9 -j MASQUERADE\nCOMMIT\n")
			before := f.saved()
			c.Mode = mode
			f.apply(c)
			if f.saved() == before {
				t.Fatal("Apply did nothing")
			}
			if res := f.remove(); !res.Changed {
				t.Errorf("Remove says %+v", res)
			}
			if after := f.saved(); after != before {
				t.Errorf("was\n%s\nis\n%s", before, after)
			}
			if res := f.remove(); res.Changed {
				t.Errorf("the second Remove says %+v", res)
			}
		})
	}
}

func TestRemoveFindsAPlanWhoseSettingsNobodyKnows(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		cfg := modeConfig(mode)
		cfg.VirtualIPv4, cfg.VirtualIPv6 = netip.MustParsePrefix("10.200.0.0/16"), netip.MustParsePrefix("fdab::/48")
		f.apply(cfg)
		f.remove()
		for _, word := range []string{"WEIR", "10.200.", "fdab"} {
			if after := f.saved(); strings.Contains(after, word) {
				t.Errorf("%s is still there:\n%s", word, after)
			}
		}
	})
}

// At every moment of a change, traffic is captured by the old plan or the new one.
func TestAChangeOfPlanNeverLetsTrafficBy(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		a, b := modeConfig(mode), modeConfig(mode)
		b.DNS, b.OutboundPortsToIgnore, b.InboundMark = false, []PortRange{{9, 9}}, 5
		f.apply(a)
		greet(f, f.app, "127.0.0.1:15001", "p")
		greet(f, f.app, "[::1]:15001", "p")
		greet(f, f.peer, ":8080", "bypassed")

		ctx, stop := context.WithCancel(t.Context())
		var dials atomic.Int64
		var dialers sync.WaitGroup
		for _, to := range []netip.Addr{f.peer.Addr4(), f.peer.Addr6()} {
			dialers.Go(func() {
				for ctx.Err() == nil {
					c, err := f.app.DialContext(t.Context(), "tcp", at(to, 8080).String())
					if err != nil {
						t.Error(err)
						return
					}
					who, err := io.ReadAll(c)
					c.Close()
					if err != nil || string(who) != "p" {
						t.Errorf("met %q, %v", who, err)
						return
					}
					dials.Add(1)
				}
			})
		}
		for range 4 {
			for _, cfg := range []Config{b, a} {
				if res := f.apply(cfg); !res.Changed {
					t.Errorf("Apply says %+v", res)
				}
			}
		}
		stop()
		dialers.Wait()
		if dials.Load() == 0 {
			t.Error("nothing was dialled in the meantime")
		}
	})
}

func TestAChangedPlanIsTheSameAsAFreshOne(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		fresh := map[string]string{}
		for name, cfg := range kernelPlans(t) {
			cfg.Mode = mode
			f.apply(cfg)
			fresh[name] = ourPart(f)
			f.remove()
		}
		for name, cfg := range kernelPlans(t) { // each from what the one before left
			cfg.Mode = mode
			f.apply(cfg)
			if got := ourPart(f); got != fresh[name] {
				t.Errorf("%s: got\n%s\nfresh\n%s", name, got, fresh[name])
			}
		}
	})
}

func ourPart(f *fixture) string {
	var b strings.Builder
	for _, tool := range saveTools {
		ours, _ := parseSave(f.command(f.app, tool))
		fmt.Fprintf(&b, "%s %s\n", tool, strings.Join(fingerprint(ours), "\n"))
	}
	return b.String()
}

// linkerd2#7767, istio#29478: a run that was killed must not stop the next one.
func TestWhatACrashLeftIsMended(t *testing.T) {
	const halfDone = `*nat
:WEIR_PROBE - [0:0]
:WEIR_OUTPUT - [0:0]
:WEIR_OLD - [0:0]
-A WEIR_PROBE -p tcp -j REDIRECT --to-ports 1
-A WEIR_OUTPUT -p tcp -j RETURN
-A WEIR_OUTPUT -j WEIR_OLD
-A OUTPUT -j WEIR_OUTPUT
-A OUTPUT -m comment --comment "weir: outbound" -j WEIR_OUTPUT
-A OUTPUT -m comment --comment "weir: outbound" -j WEIR_OUTPUT
-A INPUT -j WEIR_OLD
COMMIT
*security
:WEIR_ANCIENT - [0:0]
COMMIT
`
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		want := ourPart(f)
		f.remove()
		clean := f.saved()

		f.restore("iptables-"+string(mode)+"-restore", halfDone)
		f.restore("ip6tables-"+string(mode)+"-restore", halfDone)
		f.apply(modeConfig(mode))
		if got := ourPart(f); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		f.remove()
		f.restore("iptables-"+string(mode)+"-restore", halfDone)
		f.remove()
		if after := f.saved(); after != clean {
			t.Errorf("Remove left\n%s\nwant\n%s", after, clean)
		}
	})
}

func TestDriftIsMended(t *testing.T) {
	bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
		f.apply(modeConfig(mode))
		want := f.saved()
		for _, drift := range [][]string{
			{"ip6tables-" + string(mode), "-t", "nat", "-D", "WEIR_OUTPUT", "1"},
			{"iptables-" + string(mode), "-t", "nat", "-F", "WEIR_INBOUND"},
			{"iptables-" + string(mode), "-t", "nat", "-D", "OUTPUT", "1"},
			{"iptables-" + string(mode), "-t", "mangle", "-A", "WEIR_PREROUTING", "-j", "ACCEPT"},
			{"ip", "route", "del", "240.240.0.0/16"},
			{"ip", "-6", "route", "del", "local", "fd77:6569:7200::/48", "table", "local"},
		} {
			f.command(f.app, drift[0], drift[1:]...)
			if f.saved() == want {
				t.Fatalf("%v changed nothing", drift)
			}
			if res := f.apply(modeConfig(mode)); !res.Changed {
				t.Errorf("after %v: %+v", drift, res)
			}
			if got := f.saved(); got != want {
				t.Errorf("after %v: got\n%s\nwant\n%s", drift, got, want)
			}
		}
	})
}

func TestIPv6ThatFailsTakesIPv4BackToo(t *testing.T) {
	f := newFixture(t)
	// A table of someone who uses nft without iptables, which iptables cannot add to.
	const hostile = "add table ip6 mangle; add chain ip6 mangle PREROUTING { type filter hook input priority 5; }"
	f.command(f.app, "nft", hostile)
	p, err := NewPlan(modeConfig(ModeNFT))
	if err != nil {
		t.Fatal(err)
	}
	try := func() error {
		return InNamespace(f.app.Path(), func() error { _, err := p.Apply(t.Context()); return err })
	}
	for _, first := range []bool{true, false} {
		if !first { // now there is an older plan of ours to come back to
			f.command(f.app, "nft", "delete", "table", "ip6", "mangle")
			f.apply(with(func(c *Config) { c.Mode, c.DNS = ModeNFT, false }))
			f.command(f.app, "nft", "delete", "table", "ip6", "mangle")
			f.command(f.app, "nft", hostile)
		}
		before := ourPart(f) + f.routes()
		if err := try(); err == nil || !strings.Contains(err.Error(), "ip6tables") {
			t.Fatalf("Apply: %v, want an error of ip6tables", err)
		}
		if after := ourPart(f) + f.routes(); after != before {
			t.Errorf("was\n%s\nis\n%s", before, after)
		}
	}
}

func TestWithoutCapabilitiesTheErrorSaysWhatIsNeeded(t *testing.T) {
	f := newFixture(t)
	got := runAs(t, f.app, readableBinary(t), noCapabilities, "apply")
	if !strings.HasPrefix(got, "not permitted: ") || !strings.Contains(got, "CAP_NET_ADMIN") {
		t.Errorf("Apply: %q", got)
	}
}

func TestARouteOfSomeoneElseIsNotTaken(t *testing.T) {
	f := newFixture(t)
	f.command(f.app, "ip", "route", "add", "240.240.0.0/16", "via", f.peer.Addr4().String())
	before := f.saved()
	p, err := NewPlan(DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	err = InNamespace(f.app.Path(), func() error { _, err := p.Apply(t.Context()); return err })
	if err == nil || !strings.Contains(err.Error(), "240.240.0.0/16") {
		t.Errorf("Apply: %v", err)
	}
	if got := ourPart(f); strings.Contains(got, "WEIR") {
		t.Errorf("from\n%s\nto\n%s", before, f.saved())
	}
}

func TestOnlyOneAppliesAtATime(t *testing.T) {
	f := newFixture(t)
	plans := []Config{DefaultConfig(), goldenPlans["ignoring"], goldenPlans["no-dns"]}
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			p, err := NewPlan(plans[i%len(plans)])
			if err == nil {
				err = InNamespace(f.app.Path(), func() error { _, err := p.Apply(t.Context()); return err })
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if res := f.apply(DefaultConfig()); res.Backend != ModeNFT {
		t.Errorf("Apply says %+v", res)
	}
	f.remove()

	// One who holds the lock for good: the wait ends with the context.
	err := f.app.Do(func() error {
		unlock, err := lockNamespace(t.Context())
		if err != nil {
			return err
		}
		defer unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		_, err = Remove(ctx)
		return err
	})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Remove: %v", err)
	}
}

func TestNamespacesByNameAndPath(t *testing.T) {
	app := netlab.New(t).MustHost(t, "app")
	for _, s := range []string{app.Netns(), app.Path()} {
		if got, err := NamespacePath(s); err != nil || got != app.Path() {
			t.Errorf("%s is %s, %v", s, got, err)
		}
	}
	if _, err := NamespacePath("no-such-namespace"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("NamespacePath: %v", err)
	}
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if err := InNamespace("/proc/self/status", func() error { return nil }); !errors.Is(err, unix.EINVAL) {
		t.Errorf("InNamespace of a file that is none: %v", err)
	}
	var inside string
	if err := InNamespace(app.Path(), func() (err error) { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil || inside == home {
		t.Errorf("inside is %s, home is %s, %v", inside, home, err)
	}
	if now, _ := os.Readlink("/proc/thread-self/ns/net"); now != home {
		t.Errorf("came back to %s, home is %s", now, home)
	}
}
