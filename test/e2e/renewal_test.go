package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
)

// renewed runs a mesh whose certificates last for 5 s under 1 000 requests a second,
// until the server's proxy has had so many certificates, and wants no request lost
// and the connections of before still there.
func renewed(t *testing.T, times int) {
	m := &secureMesh{Mesh: start(t, "--leaf-ttl", "5s")}
	m.node = bare(t, m.Mesh, "vault")
	m.app = serve(t, m.node, "vault", 8001, nil)
	echoServer(t, m.node, 9001, "")
	enter(t, m.Mesh, m.node, meshlab.Workload{Host: "vault", Service: "vault", Ports: []string{"8001", "9001/tcp"}})
	m.front = join(t, m.Mesh, meshlab.Workload{Host: "front", Service: "frontend"})
	m.rule(t, allMethods("frontend", "vault"))
	m.until(t, m.front, 200, "", "http://vault:8001/")
	s := newSteady(t, m.front, "http://vault:8001/", "vault:9001", 30, 20*time.Millisecond)
	began := time.Now()
	m.renewals(t, m.node, times)
	m.renewals(t, m.front, 2) // beside the other, all the time
	s.check(t, fmt.Sprintf("%d certificates", times))
	s.end()
	took := time.Since(began)
	t.Logf("%d requests in %v (%.0f a second), none lost", s.asked.Load(), took.Round(time.Millisecond), float64(s.asked.Load())/took.Seconds())
}

// renewals waits until the control plane was told of so many certificates of a proxy.
func (m *secureMesh) renewals(t *testing.T, n *meshlab.Node, times int) {
	t.Helper()
	last := ""
	for range times {
		await(t, m.Mesh, "the next certificate of "+n.Name().String(), func() error {
			proxies, err := m.API.Proxies(t.Context())
			for _, p := range proxies {
				if p.ServiceName == n.Name().Name && p.CertificateSerial != last && p.CertificateSerial != "" {
					last = p.CertificateSerial
					return nil
				}
			}
			return errors.Join(fmt.Errorf("it has %s still", last), err)
		})
	}
}

func TestCertificatesAreRenewedUnderTraffic(t *testing.T) { renewed(t, 5) } // the first, and four after it
