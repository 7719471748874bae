//go:build !race

package relay

// Beside the relay there is the runtime, now and then.
const mostAllocations = 0.05
