package relay

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestALargeFlowThatGoesQuietHoldsNoPipe(t *testing.T) {
	s := start(t, Config{})
	bulk := strings.Repeat("0123456789abcdef", 1<<20) // 16 MiB: the mark is raised too
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { send(t, s.app, bulk) })
		expect(t, s.server, bulk)
		wg.Wait()
		// The last byte may have arrived before its pipe was put back; the
		// echo comes after.
		send(t, s.server, "ok")
		expect(t, s.app, "ok")
		waitFor(t, func() string {
			if lent, free := s.pipes(t); lent != 0 || free == 0 {
				return fmt.Sprintf("%d pipes are lent and %d are free", lent, free)
			}
			return ""
		})
	}
	// And it works on after the return to small messages.
	for i := range 3 * smallFills {
		text := fmt.Sprintf("message %d", i)
		send(t, s.app, text)
		expect(t, s.server, text)
	}
	s.app.Close()
	s.server.Close()
	if r := s.result(t); r.Reason != EOF {
		t.Errorf("got %v: %v", r.Reason, r.Err)
	}
}

func TestNoDescriptorForAPipeMeansCopying(t *testing.T) {
	s := start(t, Config{})
	send(t, s.app, "x")
	expect(t, s.server, "x")

	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)

	bulk := strings.Repeat("0123456789abcdef", 1<<18)
	var wg sync.WaitGroup
	wg.Go(func() { send(t, s.app, bulk) })
	expect(t, s.server, bulk)
	wg.Wait()
	if _, free := s.pipes(t); free != 0 {
		t.Errorf("%d pipes were made: the limit did not bite", free)
	}
}
