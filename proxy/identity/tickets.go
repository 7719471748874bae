package identity

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// tickets makes and reads the session tickets of one server configuration.
// Those of crypto/tls hold the peer's certificate and its chain, 1 KiB that the
// client sends with every connection and that stays in both sides' buffers for
// as long as it lasts. These hold the certificate's hash, 130 bytes: it is looked
// up among the peers that were verified under the roots of now, which is
// also the check that resuming needs. Who is not among them, or no longer
// valid, makes a full handshake.
type tickets struct {
	i *Identity

	mu   sync.Mutex   // guards what follows
	keys [2]ticketKey // the present one, which seals, and the one before
}

type ticketKey struct {
	seals cipher.AEAD // nil before there is one
	from  time.Time
}

// ticketLife is how long a key seals; it opens for as long again. Whoever
// learns a key learns no traffic by it, as every handshake has an exchange of
// keys of its own (RFC 8446 section 2.2).
const ticketLife = 12 * time.Hour

// wrap is crypto/tls's WrapSession.
func (t *tickets) wrap(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errNothingShown
	}
	state, err := s.Bytes()
	if err != nil {
		return nil, fmt.Errorf("session ticket: %w", err)
	}
	leaf := cs.PeerCertificates[0].Raw
	at := bytes.Index(state, leaf)
	if at < 0 {
		return nil, errors.New("session ticket: the session does not hold the peer's certificate")
	}
	keys, err := t.current()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(leaf)
	plain := make([]byte, 0, sha256.Size+4+len(state)-len(leaf))
	plain = append(plain, sum[:]...)
	plain = binary.BigEndian.AppendUint32(plain, uint32(at))
	plain = append(plain, state[:at]...)
	plain = append(plain, state[at+len(leaf):]...)
	return keys[0].seals.Seal(nil, nil, plain, nil), nil
}

// unwrap is crypto/tls's UnwrapSession. A ticket that is of no use is no error:
// without a session there is a full handshake.
func (t *tickets) unwrap(ticket []byte, _ tls.ConnectionState) (*tls.SessionState, error) {
	h := t.i.now.Load()
	if h == nil {
		return nil, nil
	}
	plain := t.open(ticket)
	if len(plain) < sha256.Size+4 {
		return nil, nil
	}
	key := peerKey{[sha256.Size]byte(plain), x509.ExtKeyUsageClientAuth}
	at := int(binary.BigEndian.Uint32(plain[sha256.Size:]))
	rest := plain[sha256.Size+4:]
	p := h.trust.seen.get(key, t.i.cfg.Now())
	if p == nil || at > len(rest) {
		return nil, nil
	}
	state := make([]byte, 0, len(rest)+len(p.leaf.Raw))
	state = append(state, rest[:at]...)
	state = append(state, p.leaf.Raw...)
	state = append(state, rest[at:]...)
	s, err := tls.ParseSessionState(state)
	if err != nil {
		return nil, nil
	}
	return s, nil
}

func (t *tickets) open(ticket []byte) []byte {
	keys, err := t.current()
	if err != nil {
		return nil
	}
	for _, k := range keys {
		if k.seals == nil {
			continue
		}
		if plain, err := k.seals.Open(nil, nil, ticket, nil); err == nil {
			return plain
		}
	}
	return nil
}

// current gives the keys of now, and turns them over when it is time.
func (t *tickets) current() ([2]ticketKey, error) {
	now := t.i.cfg.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	age := now.Sub(t.keys[0].from)
	if t.keys[0].seals != nil && age < ticketLife {
		return t.keys, nil
	}
	next, err := newTicketKey(now)
	if err != nil {
		return t.keys, err
	}
	t.keys = [2]ticketKey{next, t.keys[0]}
	if age >= 2*ticketLife {
		t.keys[1] = ticketKey{}
	}
	return t.keys, nil
}

// newTicketKey makes a key for AES-256-GCM with nonces by chance, good for 2³²
// tickets (NIST SP 800-38D section 8.3): 99 000 a second for its life.
func newTicketKey(now time.Time) (ticketKey, error) {
	secret := make([]byte, 32)
	rand.Read(secret) // never fails
	block, err := aes.NewCipher(secret)
	if err != nil {
		return ticketKey{}, fmt.Errorf("session ticket key: %w", err)
	}
	seals, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return ticketKey{}, fmt.Errorf("session ticket key: %w", err)
	}
	return ticketKey{seals, now}, nil
}
