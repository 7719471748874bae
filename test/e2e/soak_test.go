//go:build soak

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/weir-mesh/weir/test/meshlab"
	"github.com/weir-mesh/weir/test/netlab"
)

// fault is something that goes wrong, until mend.
type fault struct {
	name string
	mend func()
}

// soak chooses what goes wrong. A seed names the whole story.
type soak struct {
	*pair
	t    *testing.T
	rand *rand.Rand
}

func (s *soak) plane() *meshlab.Plane { return s.Planes[s.rand.IntN(len(s.Planes))] }
func (s *soak) member() *meshlab.Etcd { return s.Etcd[s.rand.IntN(len(s.Etcd))] }
func (s *soak) node() *meshlab.Node {
	return []*meshlab.Node{s.front, s.users[0].node, s.users[1].node}[s.rand.IntN(3)]
}

func (s *soak) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) fault() fault {
	switch s.rand.IntN(8) {
	case 0:
		p := s.plane()
		p.Process.Kill()
		return fault{"kill " + p.Name, func() { s.check(p.Run()) }}
	case 1:
		p := s.plane()
		s.check(syscall.Kill(p.Process.Pid(), syscall.SIGSTOP))
		return fault{"halt " + p.Name, func() { s.check(syscall.Kill(p.Process.Pid(), syscall.SIGCONT)) }}
	case 2:
		e := s.member()
		e.Process.Kill()
		return fault{"kill " + e.Name, func() { s.check(e.Start()) }}
	case 3: // the majority, too
		i := s.rand.IntN(len(s.Etcd))
		for n, e := range s.Etcd {
			if n != i {
				e.Process.Kill()
			}
		}
		return fault{"kill all of etcd but " + s.Etcd[i].Name, func() {
			for n, e := range s.Etcd {
				if n != i {
					s.check(e.Start())
				}
			}
		}}
	case 4:
		p := s.plane()
		return fault{"cut " + p.Name + " off from etcd", s.cut(s.t, p.Host, s.etcdHosts()...)}
	case 5:
		p, n := s.plane(), s.node()
		return fault{"cut " + n.Host.Name() + " off from " + p.Name, s.cut(s.t, n.Host, p.Host)}
	case 6:
		e := s.member()
		var others []*netlab.Host
		for _, o := range s.Etcd {
			if o != e {
				others = append(others, o.Host)
			}
		}
		return fault{"cut " + e.Name + " off from its peers", s.cut(s.t, e.Host, others...)}
	default:
		n := s.users[s.rand.IntN(2)].node
		n.Proxy.Kill()
		return fault{"kill the proxy of " + n.Host.Name(), func() { s.check(n.StartProxy(s.t.Context())) }}
	}
}

// TestSoak: one trouble after the other, for WEIR_SOAK; WEIR_SOAK_SEED tells
// which story again.
func TestSoak(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv("WEIR_SOAK"))
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("WEIR_SOAK_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("WEIR_SOAK_SEED=%d", seed)
	s := &soak{pair: pairOn(t, startCluster(t, 3, 3)), t: t, rand: rand.New(rand.NewPCG(seed, 0))}
	s.everywhere(t, 2)
	book := newLedger(t, s.Mesh)
	stop := s.load(t)
	for end, n := time.Now().Add(limit), 1; time.Now().Before(end); n++ {
		f := s.fault()
		lasts := time.Duration(1+s.rand.IntN(14)) * time.Second
		t.Logf("%d: %s for %v", n, f.name, lasts)
		time.Sleep(lasts)
		f.mend()
		for _, p := range s.Planes {
			s.check(p.Await(t.Context()))
		}
		book.writesAgain(t)
		s.everywhere(t, 2)
		s.leads(t, nil)
		for _, n := range []*meshlab.Node{s.front, s.users[0].node, s.users[1].node} {
			await(t, s.Mesh, n.Host.Name()+" to be connected", func() error {
				if st, err := n.Status(t.Context()); err != nil || !st.Control.Connected {
					return fmt.Errorf("%+v, %v", st.Control, err)
				}
				return nil
			})
		}
	}
	sent, wrong := stop()
	check(t, sent, wrong)
	t.Logf("%d requests", sent)
	book.close(t)
}
