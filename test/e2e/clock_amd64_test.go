package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/test/meshlab"
)

// clock is what one running program takes for the time of day. The machine's
// clock is left alone: others live by it. A program asks the vDSO, pages of code
// that the kernel puts into each process, and /proc/PID/mem can write to a copy
// of its own. There clock_gettime becomes the system call and, for CLOCK_REALTIME,
// an addition. The program is the real one and notices nothing but the time.
type clock struct {
	mem    *os.File
	offset int64 // where the seconds to be added are
}

// clockGettime is the code in place of the vDSO's. What is added follows at
// clockAdded. Registers are those of the System V ABI: edi is the clock, rsi the
// result; the system call spoils rcx and r11, which a function may.
var clockGettime = []byte{
	0xb8, 0xe4, 0, 0, 0, // mov eax, 228 (SYS_clock_gettime)
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi (CLOCK_REALTIME is 0)
	0x75, 10, // jne ret
	0x48, 0x8b, 0x0d, clockAdded - 18, 0, 0, 0, // mov rcx, [rip + …]
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0xc3, // ret
}

const clockAdded = 32

// clockOf takes a program's clock over; it goes right until it is set.
func clockOf(t *testing.T, pid int) *clock {
	t.Helper()
	c, err := takeClock(pid)
	if err != nil {
		t.Fatalf("take the clock of process %d over: %v", pid, err)
	}
	t.Cleanup(func() { _ = c.mem.Close() })
	return c
}

func takeClock(pid int) (_ *clock, err error) {
	from, to, err := vdso(pid)
	if err != nil {
		return nil, err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = mem.Close()
		}
	}()
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, from); err != nil {
		return nil, err
	}
	function, err := symbol(image, "__vdso_clock_gettime")
	if err != nil {
		return nil, err
	}
	room := int64(len(image)-2*clockAdded) &^ 15
	if len(bytes.Trim(image[room:], "\x00")) > 0 {
		return nil, errors.New("the vDSO has no room at its end")
	}
	jump := binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(room-function-5))
	// Stopped, so that no thread runs what is half written.
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)) }()
	if _, err := mem.WriteAt(clockGettime, from+room); err != nil {
		return nil, err
	}
	if _, err := mem.WriteAt(jump, from+function); err != nil {
		return nil, err
	}
	return &clock{mem, from + room + clockAdded}, nil
}

// set sets the clock apart from the machine's.
func (c *clock) set(t *testing.T, by time.Duration) {
	t.Helper()
	if _, err := c.mem.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(by/time.Second)), c.offset); err != nil {
		t.Fatalf("set the clock: %v", err)
	}
}

func vdso(pid int) (from, to int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	m := regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) .*\[vdso\]$`).FindSubmatch(maps)
	if m == nil {
		return 0, 0, errors.New("it has no vDSO")
	}
	from, errFrom := strconv.ParseInt(string(m[1]), 16, 64)
	to, errTo := strconv.ParseInt(string(m[2]), 16, 64)
	return from, to, errors.Join(errFrom, errTo)
}

func symbol(image []byte, name string) (int64, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, err
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == name })
	if i < 0 {
		return 0, fmt.Errorf("the vDSO has no %s", name)
	}
	return int64(symbols[i].Value), nil
}

// TestClocksThatJump: while traffic flows and changes are made, the clock of the
// control plane, and then that of a proxy, is suddenly another and suddenly right
// again. No request fails, no endpoint goes, nothing that was answered is lost,
// and who is refused for the time's sake is taken in when it is right.
func TestClocksThatJump(t *testing.T) {
	m := newPair(t)
	book := newLedger(t, m.Mesh)
	missing := m.watchEndpoint(t, m.users[0])
	stop := m.load(t)
	nobody := bare(t, m.Mesh, "nobody")
	set(t, m.Mesh, `{"load_balancing":{"health_check":{"interval":1}}}`)
	control := clockOf(t, m.Control.Pid())
	machine := time.Now()
	for _, jump := range []time.Duration{90 * time.Minute, -90 * time.Minute, 36 * time.Hour} {
		control.set(t, jump)
		t.Run("control_"+jump.String(), func(t *testing.T) { controlJumped(t, m, book, nobody, jump) })
		control.set(t, 0)
		m.current(t, 3)
	}
	t.Run("a_token_of_another_time", func(t *testing.T) { tokenOfAnotherTime(t, m, control) })
	proxy := clockOf(t, m.users[1].node.Proxy.Pid())
	for _, jump := range []time.Duration{90 * time.Minute, -90 * time.Minute} {
		t.Run("proxy_"+jump.String(), func(t *testing.T) { proxyJumped(t, m, proxy, jump) })
	}
	if gone := time.Since(machine.Round(0)); gone < 0 || gone > 30*time.Minute {
		t.Fatalf("the machine's own clock was set, by about %v", gone) // a bug of this test
	}
	sent, wrong := stop()
	check(t, sent, wrong)
	if missing := missing(); len(missing) > 0 {
		t.Errorf("endpoints were missing: %v", missing)
	}
	book.close(t)
}

// current awaits that so many proxies have taken all there is.
func (m *pair) current(t *testing.T, n int) {
	t.Helper()
	await(t, m.Mesh, "all proxies to be current", func() error {
		proxies, err := m.API.Proxies(t.Context())
		if err != nil {
			return err
		}
		for _, p := range proxies {
			if p.State != "current" {
				return fmt.Errorf("%s is %s: %+v", p.ID, p.State, p.Resources)
			}
		}
		if len(proxies) != n {
			return fmt.Errorf("there are %d proxies", len(proxies))
		}
		return nil
	})
}

// controlJumped: it tells the time it has, and does all it did before.
func controlJumped(t *testing.T, m *pair, book *ledger, nobody *meshlab.Node, jump time.Duration) {
	ctx := t.Context()
	before := m.connectedAt(t)
	book.writesAgain(t)
	await(t, m.Mesh, "a change that is dated so", func() error {
		newest, err := m.API.History(ctx, 0, 1)
		if err != nil || len(newest) != 1 {
			return fmt.Errorf("the history is %+v, %w", newest, err)
		}
		if at := time.UnixMilli(int64(newest[0].Time * 1000)); time.Until(at.Add(-jump)).Abs() > 10*time.Minute {
			return fmt.Errorf("the newest change is of %v", at)
		}
		return nil
	})
	allow(t, m.Mesh, "frontend", "elsewhere") // a change that reaches a proxy
	m.current(t, 3)
	// Health is checked on: that of an endpoint where nobody is, and of the others.
	register(t, m.Mesh, nobody, "nobody", "n1", 9, "http")
	name := policy.ServiceName{Namespace: "default", Name: "nobody"}
	await(t, m.Mesh, "the endpoint where nobody is to be unhealthy", func() error { return statuses(t, m, name, policy.Unhealthy) })
	enough := float64(time.Now().Add(jump + 5*time.Second).Unix()) // more than turn an endpoint
	await(t, m.Mesh, "checks of some seconds", func() error {
		if at := m.lastCheck(t); at < enough || at > enough+3600 {
			return fmt.Errorf("the newest is of %v, wanted is one of %v", at, enough)
		}
		return nil
	})
	if err := statuses(t, m, usersService, policy.Healthy, policy.Healthy); err != nil {
		t.Errorf("users: %v", err)
	}
	if err := m.API.Deregister(ctx, name, "n1"); err != nil {
		t.Error(err)
	}
	if jump > 0 {
		return
	}
	// gRPC tells by the time of day whether a peer is alive: those who speak after
	// the clock was set back count as silent, and are cut after 15 s. They come back
	// with certificates that are of later than now.
	await(t, m.Mesh, "the proxies to come again", func() error {
		for id, at := range m.connectedAt(t) {
			if at == before[id] {
				return fmt.Errorf("%s is connected since %v", id, at)
			}
		}
		return nil
	})
	m.current(t, 3)
}

// connectedAt is when each proxy connected, by the control plane's clock.
func (m *pair) connectedAt(t *testing.T) map[string]float64 {
	t.Helper()
	proxies, err := m.API.Proxies(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, p := range proxies {
		out[p.ID] = p.ConnectedAt
	}
	return out
}

// statuses wants the endpoints of a service to be so.
func statuses(t *testing.T, m *pair, name policy.ServiceName, want ...string) error {
	eps, err := m.API.Endpoints(t.Context(), name)
	if err != nil {
		return err
	}
	var got []string
	for _, e := range eps {
		got = append(got, e.Status)
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("%v", got)
	}
	return nil
}

// lastCheck is when the app of the first users was checked, in Unix seconds of the
// control plane's clock.
func (m *pair) lastCheck(t *testing.T) float64 {
	t.Helper()
	id := fmt.Sprintf("users-%s-8001", m.users[0].node.Addr4())
	a, got := call(t, m.Mesh, "GET", "/services/default/users/"+id+"/health", "")
	h, _ := got.(map[string]any)
	history, _ := h["history"].([]any)
	if a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if len(history) == 0 {
		return 0
	}
	last, _ := history[len(history)-1].(map[string]any)
	at, _ := last["at"].(float64)
	return at
}

// tokenOfAnotherTime: a token that has ended by the control plane's clock is
// refused with advice, and taken when the clock is right.
func tokenOfAnotherTime(t *testing.T, m *pair, control *clock) {
	n := bare(t, m.Mesh, "late")
	token, err := m.API.CreateToken(t.Context(), policy.ServiceName{Namespace: "default", Name: "late"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Token), 0o600); err != nil {
		t.Fatal(err)
	}
	control.set(t, 90*time.Minute)
	start := func() *meshlab.Process {
		t.Helper()
		p, err := n.Start(t.Context(), "proxy-late", 0, m.Program("weir-proxy"), "--control", m.ControlAddr(), "--service", "late", "--token-file", file, "--app-port", "8001", "--advertise", n.Addr4().String())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := start()
	select {
	case <-p.Done():
	case <-time.After(30 * time.Second):
		t.Fatalf("it was not refused: %s", p.Tail())
	}
	if !strings.Contains(p.Log(), "join token: expired at") || !strings.Contains(p.Log(), "make one with: weir token create") {
		t.Errorf("it says %s", p.Tail())
	}
	control.set(t, 0)
	p = start()
	m.current(t, 4)
	if err := p.Stop(45 * time.Second); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	m.current(t, 3)
}

// proxyJumped: a workload's proxy whose clock is wrong may find its peers'
// certificates not valid, and is then passed over; right again, it serves.
func proxyJumped(t *testing.T, m *pair, c *clock, jump time.Duration) {
	c.set(t, jump)
	m.served(t, m.users[0])
	m.current(t, 3)
	c.set(t, 0)
	m.served(t, m.users[1])
}

// served awaits that a backend is asked again some times.
func (m *pair) served(t *testing.T, b *backend) {
	t.Helper()
	before := b.count()
	await(t, m.Mesh, "requests at "+b.node.Host.Name(), func() error {
		if n := b.count() - before; n < 10 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}
