//go:build race

package relay

// The race detector has sync.Pool drop one of four, to find who uses what was
// put back.
const mostAllocations = 1.5
