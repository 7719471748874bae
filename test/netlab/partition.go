package netlab

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
)

// Partition drops all traffic between a and b, both ways and IPv4, IPv6 and ARP
// alike, until heal is called; heal may be called again without effect. Nothing
// changes inside the two hosts: the bridge between them drops. It needs nft(8).
func (l *Lab) Partition(a, b *Host) (heal func() error, err error) {
	if a == l.bridge || b == l.bridge || a == b {
		return nil, fmt.Errorf("netlab: partition %s from %s: want two different hosts", a.name, b.name)
	}
	l.mu.Lock()
	l.broken++
	table := fmt.Sprintf("partition_%d", l.broken)
	portA, portB := l.portLocked(a), l.portLocked(b)
	l.mu.Unlock()

	script := strings.NewReplacer("TABLE", table, "PORTA", portA, "PORTB", portB).Replace(`table bridge TABLE {
	chain between {
		type filter hook forward priority 0; policy accept;
		iifname "PORTA" oifname "PORTB" drop
		iifname "PORTB" oifname "PORTA" drop
	}
}
`)
	if err := l.nft(script); err != nil {
		return nil, fmt.Errorf("netlab: partition %s from %s: %w", a.name, b.name, err)
	}
	return sync.OnceValue(func() error {
		if err := l.nft("delete table bridge " + table + "\n"); err != nil {
			return fmt.Errorf("netlab: heal %s and %s: %w", a.name, b.name, err)
		}
		return nil
	}), nil
}

// portLocked is the name of a host's end at the bridge.
func (l *Lab) portLocked(h *Host) string {
	for i, other := range l.hosts {
		if other == h {
			return fmt.Sprintf("p%d", i+1)
		}
	}
	return "none"
}

func (l *Lab) nft(script string) error {
	return l.bridge.Do(func() error {
		cmd := exec.CommandContext(context.Background(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	})
}
