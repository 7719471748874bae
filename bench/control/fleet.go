package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
	"github.com/weir-mesh/weir/proxy/feed"
)

// fleet is many proxies, each with its own certificate, connection, streams and
// lease. What follows the control plane is the proxy's own feed; what is left
// out is all that carries traffic.
type fleet struct {
	size      *size
	followers [][]int // of each of the few services
	news      []news  // one for each of the few
	proxies   []*follower
	weights   []atomic.Int64 // of the first endpoint of each of the few

	updates atomic.Int64 // services taken, by all
	read    atomic.Int64 // bytes, TLS included
	written atomic.Int64
	writes  atomic.Int64 // calls: one for each ACK, mostly
	lost    atomic.Int64 // services that were taken away

	stop context.CancelFunc
	runs sync.WaitGroup
}

// follower is one simulated proxy.
type follower struct {
	fleet *fleet
	index int
	feed  *feed.Feed
	at    map[policy.ServiceName]int // place in followed and digests
	of    []int                      // services followed

	mu      sync.Mutex // guards digests
	digests []digest
}

// dial opens a connection to the control plane.
type dial func(ctx context.Context, network, address string) (net.Conn, error)

func newFleet(z *size) *fleet {
	return &fleet{size: z, followers: z.followers(), news: make([]news, z.few), weights: make([]atomic.Int64, z.few)}
}

// next is a weight for a service's first endpoint that it never had before.
func (f *fleet) next(service int) int { return 100 + int(f.weights[service].Add(1)) }

// start issues the certificates and starts to follow.
func (f *fleet) start(ctx context.Context, client *api.Client, control string, d dial) error {
	root, err := client.RootPEM(ctx)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	f.proxies = make([]*follower, f.size.proxies)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range f.proxies {
		g.Go(func() (err error) {
			cert, err := issue(gctx, client, serviceName(f.size.home(i)))
			if err == nil {
				f.proxies[i], err = f.newFollower(i, control, d, &tls.Config{
					MinVersion: tls.VersionTLS13, RootCAs: roots, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{cert},
					ServerName: policy.ControlPlane.Name + "." + policy.ControlPlane.Namespace,
				})
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, p := range f.proxies {
		f.runs.Go(func() { _ = p.feed.Run(ctx) }) // it gives nil
		for _, s := range p.of {
			p.feed.Touch(serviceName(s))
		}
	}
	return nil
}

// close ends the proxies; those that are connected take leave.
func (f *fleet) close() {
	if f.stop != nil {
		f.stop()
		f.runs.Wait()
	}
}

// issue has a certificate made for a key of our own, as a proxy that joins does.
func issue(ctx context.Context, client *api.Client, name policy.ServiceName) (tls.Certificate, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	made, err := client.Issue(ctx, name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	if err != nil {
		return tls.Certificate{}, err
	}
	cert := tls.Certificate{PrivateKey: key}
	for rest := []byte(made.Certificate); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return cert, nil
		}
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
}

func (f *fleet) newFollower(index int, control string, d dial, cfg *tls.Config) (*follower, error) {
	p := &follower{fleet: f, index: index, of: f.size.followed(index), at: map[policy.ServiceName]int{}}
	for k, s := range p.of {
		p.at[serviceName(s)] = k
	}
	p.digests = make([]digest, len(p.of))
	home := f.size.home(index)
	// The endpoints that proxies bring come before those that are registered.
	own := endpoint(home, f.size.endpoints-1-index/(f.size.few-1), 100)
	ip := netip.MustParseAddr(own.IP)
	var err error
	p.feed, err = feed.New(feed.Config{
		Control: []string{control}, TLS: func() *tls.Config { return cfg }, ProxyID: fmt.Sprintf("sim-%05d", index), Version: "sim",
		Service: serviceName(home), Addresses: []netip.Addr{ip}, Endpoints: []policy.Target{{Endpoint: own, Meshed: true}},
		IdleAfter: 24 * time.Hour, // nothing is to be forgotten while it is measured
		Hooks:     feed.Hooks{OnService: p.take},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := d(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &counted{Conn: c, fleet: f}, nil
		},
	})
	return p, err
}

// take notes what the control plane says of a service.
func (p *follower) take(name policy.ServiceName, s *policy.Service) error {
	now := time.Now()
	f := p.fleet
	if s == nil {
		f.lost.Add(1)
		return nil
	}
	f.updates.Add(1)
	k, ok := p.at[name]
	if !ok {
		return fmt.Errorf("%s was not asked for", name)
	}
	first, sum := -1, digest(0)
	for i := range s.Endpoints {
		e := &s.Endpoints[i].Endpoint
		sum.add(e)
		if e.ID == "e00" {
			first = e.Weight
		}
	}
	f.news[p.of[k]].heard(p.index, first, now)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.digests[k] = sum
	return nil
}

// behind counts the services of proxies that differ from what they should be,
// by the digest of each of the few.
func (f *fleet) behind(want []digest) int {
	n := 0
	for _, p := range f.proxies {
		p.mu.Lock()
		for k, s := range p.of {
			if p.digests[k] != want[s] {
				n++
			}
		}
		p.mu.Unlock()
	}
	return n
}

// connected counts the proxies that follow at this moment.
func (f *fleet) connected() int {
	n := 0
	for _, p := range f.proxies {
		if p.feed.Connected() {
			n++
		}
	}
	return n
}

// counted counts a connection's bytes.
type counted struct {
	net.Conn
	fleet *fleet
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.fleet.read.Add(int64(n))
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.fleet.written.Add(int64(n))
	c.fleet.writes.Add(1)
	return n, err
}
