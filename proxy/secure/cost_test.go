package secure

import (
	"bytes"
	"crypto/tls"
	"io"
	"reflect"
	"runtime"
	"testing"

	"github.com/weir-mesh/weir/proxy/loop"
)

// idleBound is what one end of an idle connection may keep on the heap, with
// its socket and all that crypto/tls keeps.
const idleBound = 6 << 10

func TestTheFieldsOfCryptoTLSAreWhereTheyAreLookedFor(t *testing.T) {
	if !fieldsKnown {
		t.Errorf("crypto/tls of %s was not read yet, or has changed: idle connections keep up to 24 KiB; see borrow.go", runtime.Version())
	}
	if _, ok := findFields(reflect.TypeFor[bytes.Buffer](), runtime.Version()); ok {
		t.Error("fields were found where there are none")
	}
	for _, other := range []string{"go1.27", "go1.260", "devel go1.27-abc", ""} {
		if _, ok := findFields(reflect.TypeFor[tls.Conn](), other); ok {
			t.Errorf("%q is taken for the release that was read", other)
		}
	}
}

func TestAnIdleConnectionIsSmallWhateverItCarried(t *testing.T) {
	t.Run("small messages", func(t *testing.T) { idle(t, 100) })
	t.Run("full records", func(t *testing.T) { idle(t, 20<<10) })
}

func idle(t *testing.T, size int) {
	l := start(t)
	const conns = 200
	server, client := serverConfig(), clientConfig()
	server.SessionTicketsDisabled = true
	held := make([]*Conn, 0, 2*conns)
	onLoop(t, l, server, client) // what is made once
	before := heap()
	for range conns {
		s, c := onLoop(t, l, server, client)
		held = append(held, s, c)
		do(t, l, func() { pingPong(t, l, s, c, size, 3) })
	}
	after := heap()
	per := int(after-before) / len(held)
	t.Logf("%d bytes per idle connection, mean of servers and clients", per)
	if per > idleBound {
		t.Errorf("%d bytes, more than %d", per, idleBound)
	}
	do(t, l, func() {
		for _, c := range held {
			if c.below.in != nil || c.below.out != nil {
				t.Error("an idle connection holds a buffer")
			}
			c.Close()
		}
	})
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // pools keep what they hold over one
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// pingPong sends size bytes there and back.
func pingPong(t testing.TB, l *loop.Loop, a, b *Conn, size, rounds int) {
	there, back := make([]byte, size), make([]byte, size)
	other := l.Spawn(func() {
		for range rounds {
			_, err := io.ReadFull(b, there)
			if err == nil {
				_, err = b.Write(there)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range rounds {
		_, err := a.Write(back)
		if err == nil {
			_, err = io.ReadFull(a, back)
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
	other.Wait()
	for _, c := range []*Conn{a, b} { // there may be no more, but it does not know
		if _, err := c.TryRead(make([]byte, 1)); err != loop.ErrWouldBlock {
			t.Error(err)
		}
	}
}

// crypto/tls allocates 24 bytes for each record it reads, the reader that counts
// them. Nothing else is allocated, neither there nor here.
func TestASmallMessageCostsOneAllocationWhereItIsRead(t *testing.T) {
	l := start(t)
	s, c := onLoop(t, l, serverConfig(), clientConfig())
	const rounds = 2000
	var mallocs uint64
	do(t, l, func() {
		pingPong(t, l, s, c, 100, 100)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		pingPong(t, l, s, c, 100, rounds)
		runtime.ReadMemStats(&after)
		mallocs = after.Mallocs - before.Mallocs
	})
	per := float64(mallocs) / (2 * rounds)
	t.Logf("%.2f allocations per message", per)
	if per > 1.1 && !raceEnabled { // under the race detector pools forget at random
		t.Errorf("%.2f allocations per message, more than one", per)
	}
}

func TestEverythingWorksWhereCryptoTLSIsUnknown(t *testing.T) {
	known := fieldsKnown
	fieldsKnown = false
	defer func() { fieldsKnown = known }()
	t.Run("byte by byte", TestRecordsThatComeByteByByteAreReadWithoutWaiting)
	t.Run("left", TestWhatIsLeftOfARecordIsReadable)
	t.Run("parked", TestParkingWhatIsReadableBeginsAtOnce)
	t.Run("bulk", TestBulkBothWaysWithASlowReader)
	t.Run("cut", TestACutIsNoEnd)
}
