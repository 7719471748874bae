package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const smaps = `00400000-00bb5000 r-xp 00000000 fd:00 77 /bin/weir-proxy
Size:               7892 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00bb5000-01562000 r--p 007b5000 fd:00 77 /bin/weir-proxy
Anonymous:             4 kB
01562000-015e1000 rw-p 01162000 fd:00 77 /bin/weir-proxy
Anonymous:             0 kB
01600000-01601000 r--p 00000000 fd:00 77 /bin/weir-proxy
Anonymous:             0 kB
7f71bebd0000-7f71bee00000 r--p 00000000 fd:00 78 /lib/other
Anonymous:             0 kB
7f71bee00000-7f71bef00000 r--p 00000000 00:00 0
Anonymous:             0 kB
7ffe9bab8000-7ffe9bad9000 r-xp 00000000 fd:00 77 /bin/weir-proxy (deleted)
Anonymous:             0 kB
zzz-7ffe9bad9000 r--p 00000000 fd:00 77 /bin/weir-proxy
Anonymous:             0 kB
`

func TestOnlyTheProgramsOwnUnchangedPagesAreDropped(t *testing.T) {
	want := []span{{0x400000, 0xbb5000}, {0x1600000, 0x1601000}}
	if got := cleanMappings(strings.NewReader(smaps), "/bin/weir-proxy"); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if got := cleanMappings(strings.NewReader("\n\nAnonymous:\n-\nx y\n"), "y"); got != nil {
		t.Errorf("%x", got)
	}
}

func TestTheProgramRunsOnWithoutItsPages(t *testing.T) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if len(cleanMappings(f, exe)) == 0 {
		t.Error("nothing is found to drop")
	}
	dropCode()
	if help := newCommand().UsageString(); !strings.Contains(help, "--pprof") {
		t.Error(help)
	}
}

func TestMemoryIsLookedAfterUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		joined, ended := make(chan struct{}), make(chan struct{})
		go func() { keepSmall(ctx, joined); close(ended) }()
		time.Sleep(time.Hour) // not joined: nothing to do
		close(joined)
		time.Sleep(3 * trimEvery)
		stop()
		<-ended
	})
	for _, after := range []time.Duration{0, settle / 2} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), after)
			defer stop()
			joined := make(chan struct{})
			if after > 0 {
				close(joined)
			}
			keepSmall(ctx, joined)
			if ctx.Err() == nil {
				t.Error("ended before its time")
			}
		})
	}
}

func TestWhatACollectionWouldGiveBack(t *testing.T) {
	for _, c := range []struct {
		h    heap
		want uint64
	}{
		{heap{live: 10, objects: 15, free: 3}, 8},
		{heap{live: 10, objects: 8, free: 3}, 3}, // swept below what lived
		{heap{}, 0},
	} {
		if got := c.h.back(); got != c.want {
			t.Errorf("%+v: %d, want %d", c.h, got, c.want)
		}
	}
	if h := readHeap(); h.objects == 0 {
		t.Errorf("%+v: names of the runtime's metrics have changed", h)
	}
}
