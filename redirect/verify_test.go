package redirect

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/test/netlab"
)

func (f *fixture) verify(cfg Config) Report {
	f.t.Helper()
	p, err := NewPlan(cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	var r Report
	if err := InNamespace(f.app.Path(), func() (err error) { r, err = p.Verify(f.t.Context()); return err }); err != nil {
		f.t.Fatal(err)
	}
	return r
}

func names(r Report, s Status) []string {
	var out []string
	for _, c := range r.Checks {
		if c.Status == s {
			out = append(out, c.Name)
		}
	}
	return out
}

func text(r Report) string {
	var b strings.Builder
	_ = r.Print(&b)
	return b.String()
}

func TestVerifySeesEveryWay(t *testing.T) {
	for name, cfg := range kernelPlans(t) {
		if name == "no-dns" || name == "plain" || name == "ipv4" { // with fewer ways
			continue
		}
		t.Run(name, func(t *testing.T) {
			bothBackEnds(t, func(t *testing.T, f *fixture, mode Mode) {
				cfg.Mode = mode
				f.apply(cfg)
				before := f.saved()
				r := f.verify(cfg)
				want := []string{"rules IPv4", "rules IPv6"}
				for _, fam := range []string{"IPv4", "IPv6"} {
					for _, what := range []string{"outbound", "route", "virtual address", "DNS over TCP", "DNS over UDP", "own service", "inbound"} {
						want = append(want, what+" "+fam)
					}
				}
				if got := names(r, OK); !slices.Equal(got, want) {
					t.Errorf("ok are %q\n%s", got, text(r))
				}
				if after := f.saved(); after != before {
					t.Errorf("Verify changed\n%s\nto\n%s", before, after)
				}
			})
		})
	}
}

func TestVerifyBesideARunningProxy(t *testing.T) {
	f := newFixture(t)
	f.apply(DefaultConfig())
	for _, a := range []string{"127.0.0.1:15001", "[::1]:15001", ":15006", "127.0.0.1:15053", "[::1]:15053"} {
		greet(f, f.app, a, "proxy")
	}
	for _, a := range []string{"127.0.0.1:15053", "[::1]:15053"} {
		echoUDP(f, f.app, a)
	}
	r := f.verify(DefaultConfig())
	if len(names(r, OK)) != 16 {
		t.Errorf("not all is ok:\n%s", text(r))
	}
	if !strings.Contains(text(r), "in use, and something answers") {
		t.Errorf("it does not say how it looked:\n%s", text(r))
	}
}

func echoUDP(f *fixture, h *netlab.Host, addr string) {
	c := f.listenUDP(h, addr)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, who, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(buf[:n], who)
		}
	}()
	f.t.Cleanup(func() { c.Close(); <-done })
}

func TestVerifySaysWhatIsWrongAndWhatToDo(t *testing.T) {
	f := newFixture(t)
	if r := f.verify(DefaultConfig()); r.OK() || !slices.Contains(names(r, Failed), "rules IPv4") || !slices.Contains(names(r, Failed), "inbound IPv6") {
		t.Errorf("with no rules at all:\n%s", text(r))
	}
	f.apply(DefaultConfig())
	f.command(f.app, "ip6tables-nft", "-t", "nat", "-I", "WEIR_OUTPUT", "1", "-p", "udp", "-j", "RETURN")
	f.command(f.app, "iptables-nft", "-t", "nat", "-F", "WEIR_INBOUND")
	f.command(f.app, "ip", "route", "del", "240.240.0.0/16")
	r := f.verify(DefaultConfig())
	want := []string{"rules IPv4", "rules IPv6", "route IPv4", "inbound IPv4", "DNS over UDP IPv6"}
	if got := names(r, Failed); r.OK() || !slices.Equal(got, want) {
		t.Errorf("failed are %q, want %q\n%s", got, want, text(r))
	}
	for _, c := range r.Checks {
		if (c.Status == Failed) != (c.Todo != "") || c.Detail == "" {
			t.Errorf("%+v", c)
		}
	}
	for _, part := range []string{"missing: -t nat -A WEIR_INBOUND", "not planned: -t nat -A WEIR_OUTPUT -p udp -j RETURN"} {
		if !strings.Contains(text(r), part) {
			t.Errorf("it does not say %q:\n%s", part, text(r))
		}
	}
	if err := r.Print(brokenWriter{}); err == nil {
		t.Error("Print hides that writing failed")
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrShortWrite }
