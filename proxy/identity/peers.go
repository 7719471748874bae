package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// known is a peer whose certificate stood under our roots.
type known struct {
	leaf        *x509.Certificate
	name        policy.ServiceName
	serial      string    // hexadecimal
	from, until time.Time // when its chain is valid: the narrowest of its certificates
}

func newKnown(chain []*x509.Certificate, name policy.ServiceName) *known {
	p := &known{leaf: chain[0], name: name, serial: serialOf(chain[0]), from: chain[0].NotBefore, until: chain[0].NotAfter}
	for _, c := range chain[1:] {
		if c.NotBefore.After(p.from) {
			p.from = c.NotBefore
		}
		if c.NotAfter.Before(p.until) {
			p.until = c.NotAfter
		}
	}
	return p
}

func (p *known) validAt(now time.Time) bool { return !now.Before(p.from) && !now.After(p.until) }

// peerKey is a certificate, by its hash, and what it was verified for.
type peerKey struct {
	leaf [sha256.Size]byte
	use  x509.ExtKeyUsage
}

// maxPeers bounds the memory of peers, about 3 KiB each. Only whom our roots
// vouch for gets in, so that no stranger can push the others out.
const maxPeers = 4096

// peers remembers who was verified. It has two generations: what is asked for
// moves to the young one, and when that is half of all, the old one is
// forgotten. That is nearly the order of last use, at the price of a look-up.
// The zero value is empty.
type peers struct {
	mu         sync.Mutex // guards what follows
	young, old map[peerKey]*known
}

// get gives a peer that is known and valid at a moment, else nil.
func (p *peers) get(key peerKey, now time.Time) *known {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.young[key]
	if k == nil {
		if k = p.old[key]; k != nil {
			p.putLocked(key, k)
		}
	}
	if k == nil || !k.validAt(now) {
		return nil
	}
	return k
}

// put remembers a peer and gives the one to use: of two that were verified at
// the same time, the first.
func (p *peers) put(key peerKey, k *known) *known {
	p.mu.Lock()
	defer p.mu.Unlock()
	if first := p.young[key]; first != nil {
		return first
	}
	p.putLocked(key, k)
	return k
}

func (p *peers) putLocked(key peerKey, k *known) {
	if p.young == nil || len(p.young) >= maxPeers/2 {
		p.old, p.young = p.young, map[peerKey]*known{}
	}
	p.young[key] = k
}
