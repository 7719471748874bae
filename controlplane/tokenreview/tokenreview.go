// Package tokenreview asks a Kubernetes API server which service account a token is of, and decides
// as which service of the mesh that account may join. It issues nothing.
//
// One POST of the authentication.k8s.io/v1 API is all it needs, so it is made with net/http: client-go would
// be forty modules and twenty megabytes for it (decisions/0019).
package tokenreview

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
)

// Where a pod finds its API server, and what it shows there.
const (
	InClusterCA    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
	InClusterToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
)

// ErrRefused says that a token entitles to nothing, or not to what was asked for.
// Any other error means that nobody could be asked.
var ErrRefused = errors.New("refused")

const (
	timeout   = 5 * time.Second
	maxAnswer = 1 << 20 // bytes
	atOnce    = 16      // reviews; more joins wait
)

// Config says whom to ask, and what to allow.
type Config struct {
	Server    string // URL of the API server; "" is that of the pod we are in
	CAFile    string // PEM, whom to trust there; read anew for each connection
	TokenFile string // what we show there: may create tokenreviews; read anew for each review
	Audience  string // that tokens must have been made for
	// Map lists, by service account "namespace/account", further services that it
	// may join as, in its own namespace.
	Map map[string][]string
}

// Reviewer asks. Its methods may be called by many goroutines.
type Reviewer struct {
	cfg    Config
	url    string
	client *http.Client
	slots  chan struct{}
}

// New checks the configuration. It asks nobody yet.
func New(cfg Config) (*Reviewer, error) {
	if cfg.Server == "" {
		host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
		if host == "" || port == "" {
			return nil, errors.New("this is no pod (KUBERNETES_SERVICE_HOST is not set); --kubernetes-api names the API server")
		}
		cfg.Server = "https://" + net.JoinHostPort(host, port)
	}
	u, err := url.Parse(cfg.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("--kubernetes-api %q: meant is https://HOST:PORT; the tokens of pods go there", cfg.Server)
	}
	if cfg.Audience == "" {
		return nil, errors.New("--kubernetes-audience is empty: then tokens made for the API server itself would be taken")
	}
	r := &Reviewer{cfg: cfg, url: strings.TrimRight(cfg.Server, "/") + "/apis/authentication.k8s.io/v1/tokenreviews", slots: make(chan struct{}, atOnce)}
	r.client = &http.Client{Timeout: timeout, Transport: &http.Transport{DialTLSContext: r.dial, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute}}
	if _, err := r.roots(); err != nil {
		return nil, err
	}
	return r, nil
}

// Close closes idle connections.
func (r *Reviewer) Close() { r.client.CloseIdleConnections() }

func (r *Reviewer) roots() (*x509.CertPool, error) {
	text, err := os.ReadFile(r.cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("--kubernetes-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("--kubernetes-ca: %s holds no certificate in PEM", r.cfg.CAFile)
	}
	return pool, nil
}

func (r *Reviewer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	roots, err := r.roots()
	if err != nil {
		return nil, err
	}
	d := tls.Dialer{Config: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	return d.DialContext(ctx, network, addr)
}

// review is the part of a TokenReview that is spoken of.
type review struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		Token     string   `json:"token,omitempty"`
		Audiences []string `json:"audiences"`
	} `json:"spec"`
	Status struct {
		Authenticated bool     `json:"authenticated"`
		Audiences     []string `json:"audiences"`
		Error         string   `json:"error"`
		User          struct {
			Username string `json:"username"`
		} `json:"user"`
	} `json:"status"`
}

// Allow tells whether the account of a token may join as a service: the service's
// namespace is to be the account's, its name the account's or one that Map has.
// The error wraps ErrRefused if not, and never shows the token.
func (r *Reviewer) Allow(ctx context.Context, token string, want policy.ServiceName) error {
	account, err := r.account(ctx, token)
	if err != nil {
		return err
	}
	if account.Namespace != want.Namespace {
		return fmt.Errorf("%w: the service account %s is of another namespace than %s", ErrRefused, account, want)
	}
	if account.Name == want.Name || slices.Contains(r.cfg.Map[account.String()], want.Name) {
		return nil
	}
	return fmt.Errorf("%w: the service account %s may join as %s; as %s only with --kubernetes-map %s=%s", ErrRefused, account,
		strings.Join(append([]string{account.Name}, r.cfg.Map[account.String()]...), ", "), want.Name, account, want.Name)
}

// account is whose token it is.
func (r *Reviewer) account(ctx context.Context, token string) (policy.ServiceName, error) {
	none := policy.ServiceName{}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return none, fmt.Errorf("token review: %w: %d are under way", ctx.Err(), atOnce)
	}
	got, err := r.ask(ctx, token)
	if err != nil {
		return none, fmt.Errorf("token review: %w", err)
	}
	switch s := &got.Status; {
	case !s.Authenticated:
		return none, fmt.Errorf("%w: Kubernetes does not know the token, or not for the audience %q: %s", ErrRefused, r.cfg.Audience, s.Error)
	case !slices.Contains(s.Audiences, r.cfg.Audience):
		// A server that does not know audiences answers without any: then the token
		// may be meant for anybody.
		return none, fmt.Errorf("%w: the token is not for the audience %q", ErrRefused, r.cfg.Audience)
	}
	parts := strings.Split(got.Status.User.Username, ":")
	if len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return none, fmt.Errorf("%w: %q is not a service account", ErrRefused, got.Status.User.Username)
	}
	return policy.ServiceName{Namespace: parts[2], Name: parts[3]}, nil
}

func (r *Reviewer) ask(ctx context.Context, token string) (*review, error) {
	q := review{APIVersion: "authentication.k8s.io/v1", Kind: "TokenReview"}
	q.Spec.Token, q.Spec.Audiences = token, []string{r.cfg.Audience}
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	own, err := os.ReadFile(r.cfg.TokenFile)
	if err != nil {
		return nil, fmt.Errorf("--kubernetes-token-file: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(own)))
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s: may our account create tokenreviews (ClusterRole system:auth-delegator)?", r.url, resp.Status)
	}
	got := &review{}
	if err := json.Unmarshal(answer, got); err != nil || got.Kind != "TokenReview" {
		return nil, fmt.Errorf("%s answers with what is no TokenReview", r.url)
	}
	return got, nil
}

// ParseMap reads "namespace/account=service" entries.
func ParseMap(entries []string) (map[string][]string, error) {
	out := map[string][]string{}
	for _, e := range entries {
		account, service, ok := strings.Cut(e, "=")
		namespace, name, slash := strings.Cut(account, "/")
		if !ok || !slash || name == "" {
			return nil, fmt.Errorf("--kubernetes-map %q: meant is NAMESPACE/ACCOUNT=SERVICE", e)
		}
		if err := (policy.ServiceName{Namespace: namespace, Name: service}).Validate(); err != nil {
			return nil, fmt.Errorf("--kubernetes-map %q: %w", e, err)
		}
		out[account] = append(out[account], service)
	}
	return out, nil
}
