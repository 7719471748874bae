//go:build soak

package e2e

import "testing"

func TestSoakTwentyCertificatesUnderTraffic(t *testing.T) { renewed(t, 21) }
