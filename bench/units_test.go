package main

import (
	"bytes"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAnswerLength(t *testing.T) {
	ok := "HTTP/1.1 200 OK\r\n"
	for name, c := range map[string]struct {
		in   string
		want int
		err  bool
	}{
		"not all here":           {ok + "Content-Length: 5\r\n", -1, false},
		"as usual":               {ok + "Content-Length: 5\r\n\r\n", len(ok) + 21 + 5, false},
		"lower case":             {ok + "content-length: 5\r\n\r\n", len(ok) + 21 + 5, false},
		"another content- first": {ok + "Content-Type: a\r\ncontent-Length:12\r\n\r\n", len(ok) + 17 + 21 + 12, false},
		"403":                    {"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\n", 0, true},
		"chunked":                {ok + "Transfer-Encoding: chunked\r\n\r\n", 0, true},
		"no number":              {ok + "Content-Length: x\r\n\r\n", 0, true},
		"endless":                {ok + strings.Repeat("a", 17<<10), 0, true},
	} {
		got, err := answerLength([]byte(c.in))
		if (err != nil) != c.err || !c.err && got != c.want {
			t.Errorf("%s: %d, %v; want %d, error %v", name, got, err, c.want, c.err)
		}
	}
}

// FuzzAnswerLength: whatever comes, an answer is at least as long as its head,
// and more bytes after the head change nothing.
func FuzzAnswerLength(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 200 OK\r\ncontent-type: a\r\ncontent-length: 007\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := answerLength(b)
		head := bytes.Index(b, headEnd)
		if head < 0 {
			if got > 0 {
				t.Fatalf("%d without a head", got)
			}
			return
		}
		more, err2 := answerLength(append(bytes.Clone(b), "more"...))
		if more != got || (err == nil) != (err2 == nil) {
			t.Fatalf("%d, %v; with more bytes %d, %v", got, err, more, err2)
		}
	})
}

func TestHistogramKeepsQuantilesToOnePartIn64(t *testing.T) {
	var h histogram
	for i := range 100_000 {
		h.add(time.Duration(i+1) * time.Microsecond)
	}
	for q, want := range map[float64]float64{0: 1e3, .5: 50_000e3, .99: 99_000e3, .999: 99_900e3, 1: 100_000e3} {
		if got := float64(h.quantile(q)); math.Abs(got-want) > want/32 {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := (&histogram{}).quantile(.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func FuzzBucket(f *testing.F) {
	f.Add(uint64(0))
	f.Add(uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, v uint64) {
		i := bucket(v)
		low := lowest(i)
		if low > v || v-low > v/64 || bucket(low) != i {
			t.Fatalf("%d is in bucket %d, which begins at %d", v, i, low)
		}
	})
}

func TestCPUTimeGrowsWithWork(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for start := before; start < before+5_000_000; { // until it has grown
		if start, err = cpuTime(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cpuTime(1 << 22); err == nil {
		t.Error("a process that does not exist has a CPU clock")
	}
	if now, err := busy(); err != nil || now <= 0 {
		t.Errorf("busy: %d, %v", now, err)
	}
}

func TestProgramsInheritTheCPUAndAreFound(t *testing.T) {
	var have unix.CPUSet
	if err := unix.SchedGetaffinity(0, &have); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !have.IsSet(cpu) {
		cpu++
	}
	// A shell with a child, and a name with brackets in it.
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	odd := filepath.Join(t.TempDir(), "a) b (c")
	if err := os.Symlink(sh, odd); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), odd, "-c", "sleep 60 & echo up; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := onCPU(cpu, 0, cmd.Start); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	all, err := family(cmd.Process.Pid)
	if err != nil || len(all) != 2 {
		t.Fatalf("the family of the shell is %v, %v; want two", all, err)
	}
	defer func() {
		for _, pid := range slices.Backward(all) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		_ = cmd.Wait()
	}()
	for _, pid := range all {
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(pid, &set); err != nil || set.Count() != 1 || !set.IsSet(cpu) {
			t.Errorf("process %d may use %d CPUs, %v", pid, set.Count(), err)
		}
		if rss, err := resident(pid); err != nil || rss < 4096 {
			t.Errorf("process %d has %d bytes, %v", pid, rss, err)
		}
		if own, err := private(pid); err != nil || own <= 0 {
			t.Errorf("process %d has %d bytes of its own, %v", pid, own, err)
		}
	}
	var now unix.CPUSet
	if err := unix.SchedGetaffinity(0, &now); err != nil || now != have {
		t.Errorf("this process may use %d CPUs, %v; before %d", now.Count(), err, have.Count())
	}
}

func TestConfigurationsOfPeersAreComplete(t *testing.T) {
	v := values{Server: "10.77.0.9", Far: "10.77.0.10", Dir: "/certificates", State: "/state"}
	for _, p := range peers("envoy") {
		p.modules = nil // not where this test runs
		for _, side := range []string{"client", "server"} {
			v.Big = p.big
			text, err := p.render(side, v)
			if err != nil {
				t.Errorf("%s, %s: %v", p.name, side, err)
			}
			wants := []string{"16001", "16002", "16003", "16004", "16005", "16006", "16011", "16012", "16013", "16016", v.Server, v.Far, v.Dir}
			if side == "server" {
				wants = []string{"17001", "17002", "17003", "17006", v.Dir}
			}
			for _, want := range wants {
				if !bytes.Contains(text, []byte(want)) {
					t.Errorf("%s, %s: %s is not in it", p.name, side, want)
				}
			}
			if bytes.Contains(text, []byte("no value")) {
				t.Errorf("%s, %s: something is left open:\n%s", p.name, side, text)
			}
		}
	}
}

func TestPeersAreInterceptedForAllButTheirUser(t *testing.T) {
	got := outputRules("10.77.0.9", map[int]int{8001: 16001})
	want := []string{"-t nat -A OUTPUT -p tcp -d 10.77.0.9 --dport 8001 -m owner ! --uid-owner " + strconv.Itoa(peerUID) + " -j REDIRECT --to-ports 16001"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
