package identity

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/policy/wire"
)

func newIdentity(t testing.TB, cfg Config) *Identity {
	t.Helper()
	id, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// logged gives a logger and what came out of it.
func logged() (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(zap.InfoLevel)
	return zap.New(core), logs
}

func TestJoinWithAToken(t *testing.T) {
	ca := newAuthority(t)
	l := listen(t)
	newControl(t, ca).serve(l)
	id := newIdentity(t, Config{
		Control: []string{l.Addr().String()}, Service: web,
		TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
	})
	if err := id.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := time.Until(id.Expiry()); left < 23*time.Hour || id.TrustDomain() != domain {
		t.Error(left, id.TrustDomain())
	}
	if _, _, serverErr, clientErr := handshake(t, workload(t, ca, store).ServerTLS(), id.ClientTLS(store)); serverErr != nil || clientErr != nil {
		t.Error(serverErr, clientErr)
	}
}

func TestWhatWaitingDoesNotHealIsSaidAtOnce(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	later := time.Now().Add(time.Hour)
	for name, tc := range map[string]struct {
		token string
		spoil func(*control)
		serve func(*tls.Config)
		want  string
	}{
		"no token":              {"", nil, nil, "weir token create --service web --namespace shop"},
		"not a token":           {"hunter2", nil, nil, "not a join token"},
		"expired token":         {ca.token(web, time.Now().Add(-time.Hour)), nil, nil, "expired at"},
		"another service":       {ca.token(store, later), nil, nil, "is of shop/store, but this proxy is to be shop/web"},
		"another control plane": {other.token(web, later), nil, nil, "not the one of the join token"},
		"another trust domain": {ca.token(web, later, func(m map[string]any) { m["td"] = "elsewhere" }), nil, nil,
			"not of our trust domain"},
		"refused": {ca.token(web, later), func(c *control) { c.fail = status.Error(codes.Unauthenticated, "signature is wrong") }, nil,
			"refused: signature is wrong"},
		"a workload instead of the control plane": {ca.token(web, later), nil, func(c *tls.Config) {
			h := mustHeld(t, ca, store, time.Now(), later)
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{h.chain[0].Raw, ca.cert.Raw}, PrivateKey: h.cert.PrivateKey}}
		}, "the server is shop/store"},
		"the right root, but not its signature": {ca.token(web, later), nil, func(c *tls.Config) {
			h := mustHeld(t, ca.impostor(t), policy.ControlPlane, time.Now(), later)
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{h.chain[0].Raw, ca.cert.Raw}, PrivateKey: h.cert.PrivateKey}}
		}, "unknown authority"},
		"no root shown": {ca.token(web, later), nil, func(c *tls.Config) {
			c.Certificates[0].Certificate = c.Certificates[0].Certificate[:1]
		}, "no certificate that it shows has the fingerprint"},
		"answers from another trust domain": {ca.token(web, later), func(c *control) {
			c.spoil = func(r *wire.JoinResponse) { r.TrustDomain = "elsewhere" }
		}, nil, "elsewhere"},
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := newControl(t, ca)
			if tc.spoil != nil {
				tc.spoil(c)
			}
			var change []func(*tls.Config)
			if tc.serve != nil {
				change = append(change, tc.serve)
			}
			c.serve(l, change...)
			file := filepath.Join(t.TempDir(), "none")
			if tc.token != "" {
				file = tokenFile(t, tc.token)
			}
			err := newIdentity(t, Config{Control: []string{l.Addr().String()}, Service: web, TokenFile: file}).Start(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want …%s…", err, tc.want)
			}
			if tc.token != "" && strings.Contains(err.Error(), tc.token) {
				t.Error("the token is told")
			}
			if c.fail == nil && c.spoil == nil && c.joins > 0 {
				t.Error("the token was sent to whom it should not")
			}
		})
	}
}

func TestAnswersThatAreNotForUs(t *testing.T) {
	ca := newAuthority(t)
	key := newKey(t)
	now := time.Now()
	for name, spoil := range map[string]func(*wire.JoinResponse){
		"another key": func(r *wire.JoinResponse) {
			r.Certificate = encode(ca.leaf(t, web, &key.PublicKey, now, now.Add(time.Hour)))
		},
		"no certificate":  func(r *wire.JoinResponse) { r.Certificate = nil },
		"another bundle":  func(r *wire.JoinResponse) { r.Bundle = newAuthority(t).pem() },
		"an empty bundle": func(r *wire.JoinResponse) { r.Bundle = nil },
	} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			c := newControl(t, ca)
			c.spoil = spoil
			c.serve(l)
			id := newIdentity(t, Config{Control: []string{l.Addr().String()}, Service: web, TokenFile: tokenFile(t, ca.token(web, now.Add(time.Hour)))})
			if err := id.join(t.Context()); err == nil || id.now.Load() != nil {
				t.Error("taken:", err)
			}
		})
	}
}

func TestTheNextAddressIsTried(t *testing.T) {
	ca := newAuthority(t)
	dead, l := listen(t), listen(t)
	dead.Close()
	newControl(t, ca).serve(l)
	id := newIdentity(t, Config{
		Control: []string{dead.Addr().String(), l.Addr().String()}, Service: web,
		TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
	})
	if err := id.join(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAControlPlaneThatIsAwayIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		l, dial := inMemory()
		up := time.Now().Add(time.Minute)
		tries := 0
		log, logs := logged()
		newControl(t, ca).serve(l)
		id := newIdentity(t, Config{
			Control: []string{"control:8081"}, Service: web, Log: log,
			TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
			Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				tries++
				if time.Now().Before(up) {
					return nil, os.ErrDeadlineExceeded
				}
				return dial(ctx, network, address)
			},
		})
		if err := id.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if tries < 6 || tries > 30 {
			t.Errorf("%d tries in a minute", tries)
		}
		if got := logs.FilterMessage("no certificate yet; trying again").Len(); got != tries-1 {
			t.Errorf("%d lines for %d failures", got, tries-1)
		}
	})
}

func TestStartEndsWithItsContextAndSaysWhy(t *testing.T) {
	ca := newAuthority(t)
	dead := listen(t)
	dead.Close()
	ctx, cancel := context.WithCancel(t.Context())
	id := newIdentity(t, Config{
		Control: []string{dead.Addr().String()}, Service: web, Rand: func() float64 { cancel(); return 0 },
		TokenFile: tokenFile(t, ca.token(web, time.Now().Add(time.Hour))),
	})
	if err := id.Start(ctx); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}

// running starts an Identity inside a synctest bubble and gives its control plane.
// FuzzParseToken asserts that what is accepted names a valid service and does
// not change by surrounding space.
func FuzzParseToken(f *testing.F) {
	ca := newAuthority(f)
	f.Add(ca.token(web, time.Unix(1, 0)))
	f.Add("weir1.e30.x")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseToken(text)
		if err != nil {
			if len(text) > 20 && strings.Contains(err.Error(), text) {
				t.Error("the error tells the token")
			}
			return
		}
		if got.service.Validate() != nil || got.domain.IsZero() {
			t.Errorf("%+v", got)
		}
		if again, err := parseToken(" " + text + "\n"); err != nil || again != got {
			t.Errorf("%+v, %v", again, err)
		}
	})
}

// FuzzParseCache asserts that what is accepted can be written and read again.
