//go:build soak

package proxy

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestTenThousandHandshakesAtOnce: as many as a sidecar takes connections. Both
// sides are in this process, so half of the memory is the clients'.
func TestTenThousandHandshakesAtOnce(t *testing.T) {
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 16, Max: 1 << 16}); err != nil {
		t.Skip("20 000 descriptors are not to be had: ", err)
	}
	const n, bound = 10_000, 2 << 30
	most := manyAtOnce(t, n)
	t.Logf("%d handshakes at once: %d MiB at most, of both sides", n, most>>20)
	if most > bound {
		t.Errorf("%d handshakes at once took %d MiB", n, most>>20)
	}
}
