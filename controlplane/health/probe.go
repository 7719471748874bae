package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/weir-mesh/weir/policy"
)

const (
	alpn = "weir" // of the mesh's mTLS on the endpoint's own port
	// A proxy accepts before it knows whether its app does, so a relayed
	// connection is watched for so long: an app that is down shows as an end.
	// Longer would hold one of the concurrent checks for nothing; the price is
	// that an app which takes more time to refuse passes.
	settle = 500 * time.Millisecond
	// maxDetail bounds a finding's text, which may quote what the app sent.
	maxDetail = 256
)

// finding is what one check found.
type finding struct {
	check   string
	passed  bool
	unclear bool // what it found says nothing of the app
	detail  string
}

// probe checks one endpoint once; false when it cannot be checked from here.
func (c *Checker) probe(ctx context.Context, t *policy.Target) (finding, bool) {
	if t.Meshed && (c.cfg.TLS == nil || c.cfg.TLS() == nil) {
		c.cfg.Log.Debug("a meshed endpoint is not checked: there is no certificate yet", zap.String("endpoint", t.ID))
		return finding{}, false
	}
	timeout := c.cfg.Timeout()
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	f := finding{}
	var err error
	switch t.Protocol {
	case "tcp", "tls":
		f.check = "tcp"
		f.detail, err = c.probeTCP(ctx, t, min(settle, timeout/2))
	case "grpc":
		f.check = "grpc"
		f.detail, err = c.probeGRPC(ctx, t)
	case "http2":
		f.check = "http"
		f.detail, err = c.probeHTTP(ctx, t, true)
		if errors.Is(err, errIsGRPC) {
			f.check = "grpc"
			f.detail, err = c.probeGRPC(ctx, t)
		}
	default:
		f.check = "http"
		f.detail, err = c.probeHTTP(ctx, t, false)
	}
	f.passed = err == nil
	if err != nil {
		f.detail = clip(describe(ctx, err))
		f.unclear = ofTime(err)
	}
	return f, true
}

// ofTime tells whether a check failed for the time of day alone: the workload's
// certificate has ended by this clock. If that is so, its callers find it out for
// themselves; if it is this clock that is wrong, every endpoint of the mesh would
// be taken from its callers.
func ofTime(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}

// describe puts the time limit's own words in place of "context deadline
// exceeded", after the step that was under way.
func describe(ctx context.Context, err error) string {
	if cause := context.Cause(ctx); ctx.Err() != nil && cause != nil {
		var s *stepError
		if errors.As(err, &s) {
			return s.step + ": " + cause.Error()
		}
		return cause.Error()
	}
	return err.Error()
}

func clip(s string) string {
	if len(s) > maxDetail {
		s = s[:maxDetail] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// stepError tells in which step a check failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// connect dials the endpoint and, where it is meshed, goes through the mesh's
// TLS on the same port.
func (c *Checker) connect(ctx context.Context, t *policy.Target) (net.Conn, error) {
	conn, err := c.cfg.Dial(ctx, "tcp", t.Addr().String())
	if err != nil {
		return nil, &stepError{"connect", root(err)}
	}
	if !t.Meshed {
		return conn, nil
	}
	secure := tls.Client(conn, c.tlsFor(t))
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, &stepError{"TLS", err}
	}
	return secure, nil
}

// root drops the addresses that net's errors carry: the endpoint is known.
func root(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

var errUnverified = errors.New("the configuration verifies nothing: RootCAs, VerifyPeer or a verify func of its own is needed")

// tlsFor makes the configuration for one endpoint: the mesh's protocol, and
// nobody but the service that is meant.
func (c *Checker) tlsFor(t *policy.Target) *tls.Config {
	cfg := c.cfg.TLS().Clone()
	cfg.NextProtos = []string{alpn}
	cfg.MinVersion = tls.VersionTLS13
	if cfg.ServerName == "" {
		cfg.ServerName = t.Namespace + "." + t.ServiceName
	}
	verify, blind := cfg.VerifyConnection, cfg.InsecureSkipVerify && cfg.VerifyPeerCertificate == nil
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if blind && verify == nil && c.cfg.VerifyPeer == nil {
			return errUnverified
		}
		if verify != nil {
			if err := verify(state); err != nil {
				return err
			}
		}
		if c.cfg.VerifyPeer != nil {
			if err := c.cfg.VerifyPeer(state, t.Service()); err != nil {
				return err
			}
		}
		if state.NegotiatedProtocol != alpn {
			return errors.New("the port takes TLS, but not the mesh's: no proxy answers there")
		}
		return nil
	}
	return cfg
}

// probeTCP connects; behind a proxy it also waits whether the connection ends.
func (c *Checker) probeTCP(ctx context.Context, t *policy.Target, settle time.Duration) (string, error) {
	conn, err := c.connect(ctx, t)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if !t.Meshed {
		return "connected", nil
	}
	_ = conn.SetReadDeadline(time.Now().Add(settle)) // within the check's time limit
	_, err = conn.Read(make([]byte, 1))
	var timeout net.Error
	switch {
	case err == nil, errors.As(err, &timeout) && timeout.Timeout():
		return "connected", nil
	case errors.Is(err, io.EOF):
		return "", &stepError{"read", errors.New("the proxy accepted, but the app behind it did not")}
	default:
		return "", &stepError{"read", root(err)}
	}
}
