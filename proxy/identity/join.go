package identity

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

// callTimeout bounds one attempt with one address, connection and handshake
// included.
const callTimeout = 10 * time.Second

// lasting marks an error that trying again does not heal.
type lasting struct{ error }

func (e lasting) Unwrap() error { return e.error }

// join gets a certificate with the token. Its key stays the same until it has
// one: the control plane counts a token's uses by keys, and an answer may be lost.
func (i *Identity) join(ctx context.Context) error {
	c, err := i.credential()
	if err != nil {
		return lasting{err}
	}
	if i.joinKey == nil {
		if i.joinKey, err = makeKey(); err != nil {
			return err
		}
	}
	csr, err := request(i.joinKey, i.cfg.Service, c.domain)
	if err != nil {
		return err
	}
	// The server's name is not checked by crypto/tls: verify looks at the token's
	// fingerprint, or at the roots given, before the token is sent.
	first := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: curves, NextProtos: []string{"h2"}, Time: i.cfg.Now,
		ServerName:         c.calls,
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := c.verify(cs, i.cfg.Now()); err != nil {
				return lasting{err}
			}
			return nil
		},
	}
	resp, err := i.ask(ctx, first, func(ctx context.Context, client wire.JoinClient) (*wire.JoinResponse, error) {
		return client.Join(ctx, c.ask(csr))
	})
	if errors.As(err, &lasting{}) { // the token is of no use here
		return fmt.Errorf("join: %w; %s", err, i.advice())
	}
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	domain := c.domain
	if domain.IsZero() {
		if domain, err = spiffeid.TrustDomainFromString(resp.GetTrustDomain()); err != nil {
			return fmt.Errorf("join: the control plane's answer: %w", err)
		}
	}
	if err := i.take(resp, i.joinKey, domain); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	i.joinKey = nil
	return nil
}

// renew gets a certificate with the present one.
func (i *Identity) renew(ctx context.Context) error {
	domain := i.now.Load().trust.domain
	key, err := makeKey()
	if err != nil {
		return err
	}
	csr, err := request(key, i.cfg.Service, domain)
	if err != nil {
		return err
	}
	resp, err := i.ask(ctx, i.ControlTLS(), func(ctx context.Context, c wire.JoinClient) (*wire.JoinResponse, error) {
		return c.Renew(ctx, &wire.RenewRequest{Csr: csr})
	})
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	if err := i.take(resp, key, domain); err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	return nil
}

// makeKey makes an Ed25519 key (RFC 8032): to sign and to verify takes two
// thirds of the CPU that ECDSA on P-256 takes, once each per side of a full
// handshake, and certificate and signature are smaller.
func makeKey() (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, nil
}

// request makes the request to sign a key. The key never leaves this process but
// for the cache file. Without a trust domain it names nobody.
func request(key crypto.Signer, name policy.ServiceName, domain spiffeid.TrustDomain) ([]byte, error) {
	template := &x509.CertificateRequest{Subject: pkix.Name{Organization: []string{"Service Mesh"}, CommonName: name.Namespace + "." + name.Name}}
	if !domain.IsZero() {
		id, err := url.Parse(name.SPIFFE(domain.Name()))
		if err != nil {
			return nil, fmt.Errorf("make certificate request: %w", err)
		}
		template.URIs = []*url.URL{id}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return csr, nil
}

// ask makes a call to the first address that answers it. The error lasts only
// if it does so at every address.
func (i *Identity) ask(ctx context.Context, cfg *tls.Config, call func(context.Context, wire.JoinClient) (*wire.JoinResponse, error)) (*wire.JoinResponse, error) {
	var errs []error
	all := true
	for _, address := range i.cfg.Control {
		resp, err := i.askAt(ctx, address, cfg, call)
		if err == nil {
			return resp, nil
		}
		errs = append(errs, fmt.Errorf("control plane at %s: %w", address, err))
		all = all && errors.As(err, &lasting{})
		if ctx.Err() != nil {
			return nil, errors.Join(errs...)
		}
	}
	if all {
		return nil, lasting{errors.Join(errs...)}
	}
	// Whoever looks at the whole must not find the mark of a part.
	return nil, errors.New(errors.Join(errs...).Error())
}

func (i *Identity) askAt(ctx context.Context, address string, cfg *tls.Config, call func(context.Context, wire.JoinClient) (*wire.JoinResponse, error)) (*wire.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	why := &firstError{}
	cfg = cfg.Clone()
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error { return why.keep(verify(cs)) }
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(cfg)),
		grpc.WithNoProxy(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			c, err := i.cfg.Dial(ctx, "tcp", address)
			return c, why.keep(err)
		}))
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	defer conn.Close()
	resp, err := call(ctx, wire.NewJoinClient(conn))
	if err == nil {
		return resp, nil
	}
	// What was seen here is plainer than what gRPC makes of it.
	if e := why.get(); e != nil {
		return nil, e
	}
	switch s := status.Convert(err); s.Code() {
	case codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument:
		return nil, lasting{fmt.Errorf("refused: %s", s.Message())}
	default:
		return nil, fmt.Errorf("%s: %s", s.Code(), s.Message())
	}
}

// firstError keeps what went wrong first in another goroutine.
type firstError struct {
	mu  sync.Mutex // guards what follows
	err error
}

func (f *firstError) keep(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	return err
}

func (f *firstError) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// take checks an answer and puts it in force: the certificate must be of the key
// that we made, name us, and stand under the bundle that came with it.
func (i *Identity) take(resp *wire.JoinResponse, key crypto.Signer, domain spiffeid.TrustDomain) error {
	if resp.GetTrustDomain() != domain.Name() {
		return lasting{fmt.Errorf("the control plane is of the trust domain %q, not %q", resp.GetTrustDomain(), domain.Name())}
	}
	if ms := resp.GetClock(); ms != 0 && i.cfg.OnClock != nil {
		i.cfg.OnClock(time.UnixMilli(ms))
	}
	h, err := newHeld(resp.GetCertificate(), resp.GetBundle(), key, domain)
	if err == nil {
		err = h.isFor(i.cfg.Service, i.cfg.Now())
	}
	if err != nil {
		return fmt.Errorf("the control plane's answer: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.replaceLocked(h)
	return nil
}
