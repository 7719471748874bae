package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"google.golang.org/grpc/credentials"
)

// Access says who we are to an etcd cluster, and by which authority the cluster
// is known. All are paths of files in PEM, read anew for each connection: one
// that is replaced holds from the next connection on, and one that cannot be
// read then fails that connection, not those that are there.
type Access struct {
	CAFile   string // certificate authorities of the cluster; "" takes the system's
	CertFile string // our certificate, where the cluster asks for one
	KeyFile  string // its key
	UserFile string // one line, USER:PASSWORD, read when the store is opened
}

// Check reads the files, so that what is wrong with them is told at the start.
// The error names the flag.
func (a *Access) Check(endpoints []string) error {
	secure := false
	for _, e := range endpoints {
		secure = secure || strings.HasPrefix(e, "https://")
	}
	if !secure && a.CAFile+a.CertFile+a.KeyFile != "" {
		return errors.New("--store-ca-file, --store-cert-file and --store-key-file are for https:// URLs, and --store has none")
	}
	if _, _, err := a.user(); err != nil {
		return err
	}
	_, err := a.config()
	return err
}

// config reads the files.
func (a *Access) config() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12} // etcd 3.4's Go has no choice to ask for more
	if (a.CertFile == "") != (a.KeyFile == "") {
		return nil, errors.New("--store-cert-file and --store-key-file go together; one of them is missing")
	}
	if a.CAFile != "" {
		pem, err := os.ReadFile(a.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--store-ca-file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--store-ca-file: %s holds no certificate in PEM", a.CAFile)
		}
	}
	if a.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(a.CertFile, a.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("--store-cert-file %s, --store-key-file %s: %w", a.CertFile, a.KeyFile, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// user reads the name and the password; both "" without a file.
func (a *Access) user() (name, password string, err error) {
	if a.UserFile == "" {
		return "", "", nil
	}
	b, err := os.ReadFile(a.UserFile)
	if err != nil {
		return "", "", fmt.Errorf("--store-user-file: %w", err)
	}
	name, password, ok := strings.Cut(strings.TrimSpace(string(b)), ":")
	if !ok || name == "" || password == "" {
		return "", "", fmt.Errorf("--store-user-file: %s does not hold one line USER:PASSWORD", a.UserFile)
	}
	return name, password, nil
}

// connecting keeps what went wrong last with a connection: etcd's client tries
// again until the time is up, and then tells of the time alone.
type connecting struct {
	secure bool // a connection stands only after its handshake

	mu  sync.Mutex // guards what follows
	err error
}

func (c *connecting) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// explain is explain, with what went wrong with the last connection.
func (c *connecting) explain(err error) error {
	if !errors.Is(err, ErrUnavailable) {
		err = explain(err)
	}
	if c == nil || !errors.Is(err, ErrUnavailable) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return err
	}
	return fmt.Errorf("%w (%w)", err, c.err)
}

func (c *connecting) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil || !c.secure {
		c.note(err)
	}
	return conn, err
}

// reloading are transport credentials that are made anew for each connection.
type reloading struct {
	access *Access
	last   *connecting
}

func (r reloading) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := r.access.config()
	var info credentials.AuthInfo
	if err == nil {
		conn, info, err = credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
	}
	if err != nil {
		err = fmt.Errorf("TLS with etcd at %s: %w", authority, err)
	}
	r.last.note(err)
	return conn, info, err
}

func (r reloading) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("etcd is called, and does not call")
}

func (r reloading) Info() credentials.ProtocolInfo { return credentials.NewTLS(&tls.Config{}).Info() }

func (r reloading) Clone() credentials.TransportCredentials { return r }

func (r reloading) OverrideServerName(string) error { return nil }
