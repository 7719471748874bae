package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// refusal is a certificate that was not taken, and the word for why.
type refusal struct {
	word string
	error
}

func (r *refusal) Unwrap() error { return r.error }

// FailureReason gives one word of a fixed set for why a handshake failed, for a
// metric's label:
//
//	expired, not-yet-valid, untrusted-root, trust-domain, not-a-workload (two SPIFFE IDs, none, or one
//	that names no service), other-service (the server is not who was dialled), usage, revoked: the peer's certificate;
//	no-certificate: it showed none; own-certificate: there is none to show;
//	tls-version, protocol (ALPN): what the peer speaks;
//	timeout, closed: it went silent, or away;
//	alert: it refused us;
//	other: bytes that are no TLS, and what is not foreseen.
func FailureReason(err error) string {
	var r *refusal
	var alert tls.AlertError
	var op *net.OpError
	switch {
	case errors.As(err, &r):
		return r.word
	case errors.Is(err, ErrRevoked):
		return "revoked"
	case errors.Is(err, errNoCertificate):
		return "own-certificate"
	case errors.Is(err, errNothingShown):
		return "no-certificate"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "closed"
	}
	// crypto/tls has no types for these; TestServerRefuses and TestClientRefuses
	// would show it if their texts changed.
	for _, known := range []struct{ text, word string }{
		{"didn't provide a certificate", "no-certificate"},
		{"unsupported versions", "tls-version"}, {"protocol version", "tls-version"},
		{"application protocol", "protocol"},
	} {
		if strings.Contains(err.Error(), known.text) {
			return known.word
		}
	}
	if errors.As(err, &alert) || errors.As(err, &op) && op.Op == "remote error" {
		return "alert"
	}
	return "other"
}

// whyInvalid is the word for a chain that does not stand.
func whyInvalid(err error, begun bool) string {
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &x509.UnknownAuthorityError{}):
		return "untrusted-root"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && begun:
		return "expired"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "not-yet-valid"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "usage"
	}
	return "untrusted-root"
}
