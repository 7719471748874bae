//go:build !race

package telemetry

const poolAllocs = 0
