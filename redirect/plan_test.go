package redirect

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func with(change func(*Config)) Config {
	c := DefaultConfig()
	change(&c)
	return c
}

func uid(n uint32) *uint32 { return &n }

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

var goldenPlans = map[string]Config{
	"default": DefaultConfig(),
	"no-dns":  with(func(c *Config) { c.DNS = false }),
	"ipv4":    with(func(c *Config) { c.IPv6 = IPv6Off }),
	"uid":     with(func(c *Config) { c.ProxyUID = uid(1337) }),
	"plain":   with(func(c *Config) { c.DNS, c.VirtualIPv4, c.VirtualIPv6 = false, netip.Prefix{}, netip.Prefix{} }),
	"ports": with(func(c *Config) {
		c.OutboundPort, c.InboundPort, c.DNSPort, c.AdminPort, c.Mark, c.InboundMark = 1, 2, 3, 0, 4, 5
	}),
	"ignoring": with(ignoring),
	"scope":    with(scoped),
	"source":   with(func(c *Config) { c.PreserveSource = true }),
	"cgroup":   with(func(c *Config) { c.CgroupsToIgnore = []string{"/system.slice/backup.service/"} }),
}

func scoped(c *Config) {
	c.InboundPortsToInclude = []PortRange{{8080, 8080}, {9000, 9100}}
	c.InboundCIDRsToIgnore = prefixes("192.0.2.7/32", "2001:db8::/32")
	c.OutboundPortsToInclude = []PortRange{{80, 80}, {443, 443}}
	c.OutboundCIDRsToInclude = prefixes("10.0.0.0/8", "172.16.0.0/12", "fd00::/8")
	c.UIDsToIgnore, c.GIDsToIgnore = []IDRange{{1000, 1010}, {33, 33}}, []IDRange{{33, 33}}
	c.InterfacesToIgnore = []string{"wg+", "docker0"}
}

func ignoring(c *Config) {
	c.InboundPortsToIgnore = []PortRange{{22, 22}, {9000, 9100}, {9050, 9200}, {9201, 9201}}
	for p := uint16(1000); p < 1060; p += 3 { // more than one rule holds
		c.OutboundPortsToIgnore = append(c.OutboundPortsToIgnore, PortRange{p, p + p%2})
	}
	c.OutboundCIDRsToIgnore = prefixes("10.0.0.0/8", "192.168.1.7/24", "fd00::/8", "2001:db8::5/128")
}

func printed(t testing.TB, cfg Config) string {
	t.Helper()
	p, err := NewPlan(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := p.Print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPlansAreTheGoldenOnes(t *testing.T) {
	for name, cfg := range goldenPlans {
		t.Run(name, func(t *testing.T) {
			got, file := printed(t, cfg), filepath.Join("testdata", "plan", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs (go test ./redirect -update rewrites it); now it is\n%s", file, got)
			}
		})
	}
}

func TestTheSameSettingsGiveTheSameText(t *testing.T) {
	a, b := with(ignoring), with(ignoring)
	slices.Reverse(b.InboundPortsToIgnore)
	slices.Reverse(b.OutboundPortsToIgnore)
	slices.Reverse(b.OutboundCIDRsToIgnore)
	b.OutboundCIDRsToIgnore = append(b.OutboundCIDRsToIgnore, b.OutboundCIDRsToIgnore[0])
	if printed(t, a) != printed(t, b) {
		t.Error("the order of lists shows in the plan")
	}
	if before := with(ignoring).InboundPortsToIgnore; !slices.Equal(a.InboundPortsToIgnore, before) {
		t.Errorf("NewPlan changed the caller's list to %v", a.InboundPortsToIgnore)
	}
}

func TestEveryRuleSaysWhy(t *testing.T) {
	for name, cfg := range goldenPlans {
		for line := range strings.Lines(printed(t, cfg)) {
			if strings.HasPrefix(line, "-") && !strings.Contains(line, `--comment "weir: `) {
				t.Errorf("%s: no reason in %s", name, line)
			}
		}
	}
}

func TestWhatCannotBeIsRefusedByItsField(t *testing.T) {
	for _, tc := range []struct {
		want   string
		change func(*Config)
	}{
		{"OutboundPort: 0", func(c *Config) { c.OutboundPort = 0 }},
		{"InboundPort: 15001 is the OutboundPort", func(c *Config) { c.InboundPort = 15001 }},
		{"DNSPort: 0", func(c *Config) { c.DNSPort = 0 }},
		{"AdminPort: 15053 is the DNSPort", func(c *Config) { c.AdminPort = 15053 }},
		{"Mark: 0", func(c *Config) { c.Mark = 0 }},
		{"InboundMark: 0x0", func(c *Config) { c.InboundMark = 0 }},
		{"InboundMark: 0x77656972", func(c *Config) { c.InboundMark = c.Mark }},
		{"ProxyUID: 0", func(c *Config) { c.ProxyUID = uid(0) }},
		{"PreserveSource: ", func(c *Config) { c.PreserveSource, c.ProxyUID = true, uid(1337) }},
		{"Mode: \"ebpf\"", func(c *Config) { c.Mode = "ebpf" }},
		{"IPv6: \"\"", func(c *Config) { c.IPv6 = "" }},
		{"InboundPortsToIgnore: 0-5", func(c *Config) { c.InboundPortsToIgnore = []PortRange{{0, 5}} }},
		{"OutboundPortsToIgnore: 9-5", func(c *Config) { c.OutboundPortsToIgnore = []PortRange{{9, 5}} }},
		{"OutboundPortsToIgnore: 53", func(c *Config) { c.OutboundPortsToIgnore = []PortRange{{50, 60}} }},
		{"OutboundCIDRsToIgnore: invalid Prefix", func(c *Config) { c.OutboundCIDRsToIgnore = make([]netip.Prefix, 1) }},
		{"OutboundCIDRsToIgnore: ::/0 is everything", func(c *Config) { c.OutboundCIDRsToIgnore = prefixes("::/0") }},
		{"OutboundCIDRsToIgnore: ::ffff:10.0.0.0/104", func(c *Config) { c.OutboundCIDRsToIgnore = prefixes("::ffff:10.0.0.0/104") }},
		{"InboundPortsToInclude: 0-5", func(c *Config) { c.InboundPortsToInclude = []PortRange{{0, 5}} }},
		{"OutboundPortsToInclude: 9-5", func(c *Config) { c.OutboundPortsToInclude = []PortRange{{9, 5}} }},
		{"OutboundCIDRsToInclude: 0.0.0.0/0 is everything", func(c *Config) { c.OutboundCIDRsToInclude = prefixes("0.0.0.0/0") }},
		{"InboundCIDRsToIgnore: invalid Prefix", func(c *Config) { c.InboundCIDRsToIgnore = make([]netip.Prefix, 1) }},
		{"UIDsToIgnore: 9-5", func(c *Config) { c.UIDsToIgnore = []IDRange{{9, 5}} }},
		{"GIDsToIgnore: 4294967295", func(c *Config) { c.GIDsToIgnore = []IDRange{{noID, noID}} }},
		{"CgroupsToIgnore: \"/\"", func(c *Config) { c.CgroupsToIgnore = []string{"/"} }},
		{"CgroupsToIgnore: \"a\\\"b\"", func(c *Config) { c.CgroupsToIgnore = []string{`a"b`} }},
		{"InterfacesToIgnore: \"lo\"", func(c *Config) { c.InterfacesToIgnore = []string{"lo"} }},
		{"InterfacesToIgnore: \"l+\"", func(c *Config) { c.InterfacesToIgnore = []string{"l+"} }},
		{"InterfacesToIgnore: \"eth0 -j\"", func(c *Config) { c.InterfacesToIgnore = []string{"eth0 -j"} }},
		{"InterfacesToIgnore: \"abcdefghijklmnop\"", func(c *Config) { c.InterfacesToIgnore = []string{"abcdefghijklmnop"} }},
		{"VirtualIPv4: fd00::/8", func(c *Config) { c.VirtualIPv4 = netip.MustParsePrefix("fd00::/8") }},
		{"VirtualIPv6: 10.0.0.0/8", func(c *Config) { c.VirtualIPv6 = netip.MustParsePrefix("10.0.0.0/8") }},
	} {
		_, err := NewPlan(with(tc.change))
		if _, typed := errors.AsType[*ConfigError](err); !typed || !strings.HasPrefix(err.Error(), "redirect: "+tc.want) {
			t.Errorf("got %v, want redirect: %s…", err, tc.want)
		}
	}
}

func TestParsePortRanges(t *testing.T) {
	got, err := ParsePortRanges("22, 8000-8100,65535")
	if want := []PortRange{{22, 22}, {8000, 8100}, {65535, 65535}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{",", "0", "65536", "5-4", "http", "1-2-3", "-1", "22,"} {
		if got, err := ParsePortRanges(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

func TestParseIDRangesAndNames(t *testing.T) {
	ids, err := ParseIDRanges("0, 1000-1010,4294967294")
	if want := []IDRange{{0, 0}, {1000, 1010}, {noID - 1, noID - 1}}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("got %v, %v", ids, err)
	}
	for _, bad := range []string{",", "-1", "5-4", "root", "4294967295", "1,"} {
		if got, err := ParseIDRanges(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
	if names, err := ParseNames("docker0, tun+"); err != nil || !slices.Equal(names, []string{"docker0", "tun+"}) {
		t.Errorf("got %v, %v", names, err)
	}
	if got, err := ParseNames("a,,b"); err == nil {
		t.Errorf("an empty name was read as %v", got)
	}
}

func TestParsePrefixes(t *testing.T) {
	got, err := ParsePrefixes("10.0.0.0/8, 192.0.2.1,2001:db8::1")
	if err != nil || !slices.Equal(got, prefixes("10.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128")) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{",", "10.0.0.0/33", "example.com", "fe80::1%eth0", "10.0.0.0/8,"} {
		if got, err := ParsePrefixes(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

// However ranges are merged and grouped, the rules hold the same ports, and no
// rule more than iptables takes.
func FuzzPortRangesKeepTheirPorts(f *testing.F) {
	f.Add("22,8000-8100,8050-9000")
	f.Add("1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31-33,65534-65535")
	f.Fuzz(func(t *testing.T, s string) {
		in, err := ParsePortRanges(s)
		if err != nil {
			return
		}
		merged, err := mergePorts(in)
		if err != nil {
			t.Fatalf("what was parsed cannot be merged: %v", err)
		}
		var out []PortRange
		for _, g := range multiport(merged) {
			if n := strings.Count(g, ",") + 1 + strings.Count(g, ":"); n > 15 {
				t.Errorf("%q takes %d of 15 places", g, n)
			}
			back, err := ParsePortRanges(strings.ReplaceAll(g, ":", "-"))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, back...)
		}
		for p := 0; p <= 65535; p++ {
			if contains(in, uint16(p)) != contains(out, uint16(p)) {
				t.Fatalf("port %d: asked %v, in the rules %v", p, contains(in, uint16(p)), contains(out, uint16(p)))
			}
		}
	})
}

// docs/INTERCEPTION.md gives the reason of every rule of every golden plan.
func TestThePageGivesEveryRulesReason(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "INTERCEPTION.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, cfg := range goldenPlans {
		for line := range strings.Lines(printed(t, cfg)) {
			_, why, ok := strings.Cut(line, `--comment "weir: `)
			if why, _, _ = strings.Cut(why, `"`); ok && !strings.Contains(string(page), why) {
				t.Errorf("%s: the page has no %q", name, why)
			}
		}
	}
}
