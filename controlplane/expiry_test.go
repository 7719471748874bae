package controlplane

import (
	"crypto/x509"
	"testing"
	"time"
)

func TestACertificateEndsSoonWhenLittleOfItsLifeIsLeft(t *testing.T) {
	begin := time.Unix(1_700_000_000, 0)
	c := &x509.Certificate{NotBefore: begin, NotAfter: begin.Add(300 * time.Hour)}
	for _, want := range []struct {
		after time.Duration
		part  float64
		soon  bool
	}{{0, defaultAlarm, false}, {199 * time.Hour, defaultAlarm, false}, {201 * time.Hour, defaultAlarm, true}, {201 * time.Hour, 0.1, false}, {299 * time.Hour, 0.1, true}, {400 * time.Hour, 0.1, true}} {
		if got := endsSoon(c, begin.Add(want.after), want.part); got != want.soon {
			t.Errorf("after %v of 300h, alarm at %.2f: %v", want.after, want.part, got)
		}
	}
}
