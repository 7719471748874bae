package launch

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestPublishIsRefusedUnlessItIsClear(t *testing.T) {
	for _, bad := range []string{
		"", "80", ":80", "80:", "0:80", "80:0", "80:65536", "65536:80", "host:80:80", "1.2.3.4:80", "::1:80:80", "1.2.3.4::80", "a:b:c", "80:80:80", "[::1]:80",
	} {
		if p, err := parsePublish(bad); err == nil {
			t.Errorf("%q is %+v", bad, p)
		}
	}
	for text, want := range map[string]publication{
		"8080:80":         {"127.0.0.1:8080", 80},
		"0.0.0.0:8080:80": {"0.0.0.0:8080", 80},
		"[::1]:8080:80":   {"[::1]:8080", 80},
	} {
		if got, err := parsePublish(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func TestASubnetGivesEachRunAnAddress(t *testing.T) {
	for _, bad := range []string{"", "10.0.0.0", "10.0.0.0/30", "10.0.0.0/7", "fd00::/64", "x/24"} {
		if s, err := parseSubnet(bad); err == nil {
			t.Errorf("%q is %v", bad, s)
		}
	}
	s, err := parseSubnet("10.79.0.77/24")
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string][2]netip.Addr{
		"machine": {s.gateway(), netip.MustParseAddr("10.79.0.1")}, "first": {s.of(1), netip.MustParseAddr("10.79.0.2")},
		"last": {s.of(s.last()), netip.MustParseAddr("10.79.0.254")}, // 255 is the broadcast address
	} {
		if c[0] != c[1] {
			t.Errorf("the %s has %v, want %v", what, c[0], c[1])
		}
	}
	if wide, _ := parseSubnet("10.0.0.0/8"); wide.of(255) != netip.MustParseAddr("10.0.1.0") {
		t.Errorf("run 255 of a wide one has %v", wide.of(255))
	}
	if a, b := hardware(s.of(1)), hardware(s.of(2)); a.String() == b.String() || a[0]&3 != 2 {
		t.Errorf("hardware addresses %v, %v: want different ones, local and of one host", a, b)
	}
}

func TestTheEnvironmentOfAnotherUserIsHis(t *testing.T) {
	base := []string{"HOME=/root", "USER=root", "LOGNAME=root", "A=base", "B=base", "C=base"}
	a := account{name: "eve", home: "/home/eve"}
	got := a.environ(base, []string{"A=file", "B=file"}, []string{"B=flag", "HOME=/x"})
	slices.Sort(got)
	if want := []string{"A=file", "B=flag", "C=base", "HOME=/x", "LOGNAME=eve", "USER=eve"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (account{}).environ(base, nil, nil); !slices.Equal(got, base) {
		t.Errorf("without another user %q", got)
	}
	if base[0] != "HOME=/root" {
		t.Error("the environment that was given has changed")
	}
}

func TestAnEnvFileIsRefusedAtItsFirstWrongLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "env")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("A=1\n# a comment\n\nB= two words # kept\r\nC=\n")
	got, err := readEnvFile(path)
	if want := []string{"A=1", "B= two words # kept", "C="}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	for _, bad := range []string{"A=1\nB\n", "A=1\n=2\n"} {
		write(bad)
		if _, err := readEnvFile(path); err == nil || !strings.Contains(err.Error(), path+":2: ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestResolvConfOfProgramAndProxy(t *testing.T) {
	c := parseResolvConf("# comment\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver x\nsearch a b\noptions edns0\n")
	if want := []string{"127.0.0.53:53", "[fe80::1%eth0]:53"}; !slices.Equal(c.servers, want) {
		t.Errorf("servers %q, want %q", c.servers, want)
	}
	if got, want := c.forProgram(nil), "nameserver 127.0.0.54\nsearch a b\noptions edns0\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := c.forProgram([]string{"shop"}), "nameserver 127.0.0.54\noptions edns0\nsearch shop\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// Without a resolver there is nobody to pass a question to, and no name leaves.
	if got := (resolvConf{}).forProxy(); got != "" {
		t.Errorf("%q", got)
	}
}

func TestExitStatusIsAShells(t *testing.T) {
	for status, want := range map[syscall.WaitStatus]int{0: 0, 7 << 8: 7, 255 << 8: 255, 9: 137, 15: 143, 3 | 0x80: 131} {
		if got := exitStatus(status); got != want {
			t.Errorf("%#x: %d, want %d", int(status), got, want)
		}
	}
	if got := Status(&startError{"no", 127}); got != 127 {
		t.Errorf("%d", got)
	}
	if got := Status(errors.Join(&signalError{syscall.SIGINT})); got != 130 {
		t.Errorf("%d", got)
	}
	if got := Status(errors.New("else")); got != 125 {
		t.Errorf("%d", got)
	}
}

func TestSlots(t *testing.T) {
	s := slots{filepath.Join(t.TempDir(), "weir", "run")}
	keep := func(Entry) error { t.Helper(); t.Error("a live run is removed"); return nil }
	take := func(remove func(Entry) error) (got *slot, err error) {
		err = s.exclusively(func() (err error) { got, err = s.take(2, remove); return err })
		return got, err
	}
	grab := func(remove func(Entry) error) *slot {
		t.Helper()
		got, err := take(remove)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	one, two := grab(keep), grab(keep)
	if one.number != 1 || two.number != 2 {
		t.Errorf("numbers %d, %d", one.number, two.number)
	}
	if _, err := take(keep); err == nil || !strings.Contains(err.Error(), "--subnet") {
		t.Errorf("a third of two: %v", err)
	}
	e := Entry{Number: 1, Service: "web", Command: []string{"x"}}
	if err := one.tell(e); err != nil {
		t.Fatal(err)
	}
	if live, err := s.live(); err != nil || len(live) != 1 || !reflect.DeepEqual(live[0], e) {
		t.Errorf("live %+v, %v", live, err)
	}
	// The kernel lets go of the lock of a run that is killed; what it told is left.
	one.lock.Close()
	if live, err := s.live(); err != nil || len(live) != 0 {
		t.Errorf("a dead run is listed: %+v, %v", live, err)
	}
	failing := errors.New("cannot")
	if _, err := take(func(Entry) error { return failing }); !errors.Is(err, failing) {
		t.Errorf("what cannot be removed is taken all the same: %v", err)
	}
	var removed []Entry
	one = grab(func(e Entry) error { removed = append(removed, e); return nil })
	if one.number != 1 || len(removed) != 1 || removed[0].Service != "web" {
		t.Errorf("number %d after removing %+v", one.number, removed)
	}
	if err := errors.Join(one.free(), two.free(), s.exclusively(s.remove)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(s.dir)); !os.IsNotExist(err) {
		t.Errorf("the directory is left: %v", err)
	}
}
