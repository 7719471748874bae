//go:build race

package telemetry

// Under the race detector sync.Pool loses a quarter of what it is given, at random.
const poolAllocs = 4
