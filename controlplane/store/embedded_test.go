package store

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

func TestWhatWasAcknowledgedSurvivesKill(t *testing.T) {
	dir := dataDir(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var acknowledged []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		acknowledged = append(acknowledged, lines.Text())
		if len(acknowledged) == 50 {
			must(t, cmd.Process.Kill()) // what is in the pipe by now counts too
		}
	}
	cmd.Wait() // its error is that it was killed
	if len(acknowledged) < 50 {
		t.Fatalf("the child acknowledged only %d writes", len(acknowledged))
	}

	s := run(t, Config{DataDir: dir})
	have := map[string]bool{}
	virtual := map[int]policy.ServiceName{}
	for name, svc := range s.State().Services.All() {
		if other, taken := virtual[svc.VirtualIndex]; taken {
			t.Errorf("%s and %s have the same virtual address", name, other)
		}
		virtual[svc.VirtualIndex] = name
		for _, e := range svc.Endpoints {
			have[e.ID] = true
		}
	}
	for _, id := range acknowledged {
		if !have[id] {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
}

func TestADirectoryHasOneUser(t *testing.T) {
	dir := dataDir(t)
	run(t, Config{DataDir: dir})
	_, err := Open(t.Context(), Config{DataDir: dir})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "process") {
		t.Errorf("the error is %v; want ErrLocked with directory and process", err)
	}
}

func TestADirectoryCanBeUsedAgainAfterClose(t *testing.T) {
	dir := dataDir(t)
	for i := range 2 {
		s, err := Open(t.Context(), Config{DataDir: dir})
		must(t, err)
		if n := s.State().Services.Len(); n != i {
			t.Errorf("start %d finds %d services", i, n)
		}
		// Before Run, a write reads back by itself.
		must(t, s.PutEndpoint(t.Context(), endpoint("a", "e")))
		must(t, s.PutEndpoint(t.Context(), endpoint("b", "e")))
		if n := s.State().Services.Len(); n != 2 {
			t.Errorf("%d services are known after writing two", n)
		}
		must(t, s.DeleteEndpoint(t.Context(), "shop", "b", "e"))
		must(t, s.Close())
		must(t, s.Close())
		if err := s.PutEndpoint(t.Context(), endpoint("a", "e")); !errors.Is(err, ErrClosed) {
			t.Errorf("a write after Close gives %v", err)
		}
		if err := s.Run(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Run after Close gives %v", err)
		}
	}
}

func TestNothingOfTheStoreCanBeReached(t *testing.T) {
	dir := dataDir(t)
	before := listeners(t)
	run(t, Config{DataDir: dir})
	if after := listeners(t); after > before {
		t.Errorf("%d sockets listen, %d before", after, before)
	}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	}))
}

// listeners counts this process's sockets that listen.
func listeners(t *testing.T) int {
	t.Helper()
	probe, err := net.Listen("tcp", "127.0.0.1:0") // the count must see something
	must(t, err)
	defer probe.Close()
	own := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			own[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	n := 0
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/self/net/" + table)
		must(t, err)
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && own[f[9]] {
				n++
			}
		}
	}
	text, err := os.ReadFile("/proc/self/net/unix")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 6 && f[3] == "00010000" && own[f[6]] {
			n++
		}
	}
	if n == 0 {
		t.Fatal("the probe was not counted")
	}
	return n
}

func TestADamagedDirectoryIsAnErrorThatSaysSo(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, etcd string){
		"database": func(t *testing.T, etcd string) {
			overwrite(t, filepath.Join(etcd, "member", "snap", "db"), 0, 16384)
		},
		"log": func(t *testing.T, etcd string) {
			logs, err := filepath.Glob(filepath.Join(etcd, "member", "wal", "*.wal"))
			must(t, err)
			overwrite(t, logs[0], 0, 4096)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := dataDir(t)
			s, err := Open(t.Context(), Config{DataDir: dir})
			must(t, err)
			must(t, s.PutEndpoint(t.Context(), endpoint("a", "e")))
			must(t, s.Close())
			damage(t, dir)
			// In a process of its own: where etcd gives up it leaves goroutines.
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+dir)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Fatalf("the process ended with %v: %s", err, out)
			}
			if !strings.Contains(string(out), dir) || strings.Contains(string(out), "goroutine ") {
				t.Errorf("the error is %s", out)
			}
			t.Logf("%s", out)
		})
	}
}

func overwrite(t *testing.T, path string, at int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte(strings.Repeat("\xa5", n)), at)
	must(t, err)
}

func TestADirectoryThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, dir := range []string{"", file, filepath.Join(file, "below"), "/proc/weir"} {
		if _, err := Open(t.Context(), Config{DataDir: dir}); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("data directory %q: the error is %v", dir, err)
		}
	}
}

func TestAnEtcdThatIsAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 1e9)
	defer cancel()
	_, err := Open(ctx, Config{Endpoints: []string{"http://127.0.0.1:1"}})
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "http://127.0.0.1:1") {
		t.Errorf("the error is %v", err)
	}
}
