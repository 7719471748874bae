package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/weir-mesh/weir/test/netlab"
)

// resolverAddr is where the machine's resolvers are found in a namespace. It is the
// program's resolver too, by name: the rules lead what the program asks it to the
// proxy.
const resolverAddr = "127.0.0.54"

const (
	questions    = 512             // waiting for an answer at once; more are dropped, and asked again
	questionTime = 5 * time.Second // as the C library waits
	largestDNS   = 64 << 10
)

// resolvConf is what the machine's /etc/resolv.conf says.
type resolvConf struct {
	servers []string // addresses with port 53, in order
	rest    []string // search, domain and options lines
}

// parseResolvConf passes over what is not understood, as the C library does.
func parseResolvConf(text string) resolvConf {
	var c resolvConf
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil {
				c.servers = append(c.servers, net.JoinHostPort(a.String(), "53"))
			}
		case "search", "domain", "options":
			c.rest = append(c.rest, strings.Join(words, " "))
		}
	}
	return c
}

// forProgram is the resolv.conf that the program sees. A search list of one's own
// takes the place of the machine's.
func (c resolvConf) forProgram(search []string) string {
	var b strings.Builder
	b.WriteString("nameserver " + resolverAddr + "\n")
	for _, line := range c.rest {
		if len(search) == 0 || strings.HasPrefix(line, "options") {
			b.WriteString(line + "\n")
		}
	}
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	return b.String()
}

// forProxy is the proxy's: it asks the machine's resolvers, if there are any.
func (c resolvConf) forProxy() string {
	if len(c.servers) == 0 {
		return ""
	}
	return "nameserver " + resolverAddr + "\n"
}

func machineResolvConf() resolvConf {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return resolvConf{} // none: only the mesh's names exist then
	}
	return parseResolvConf(string(b))
}

// resolver passes DNS from a namespace to the machine's resolvers, which may be on
// its loopback or where the namespace has no way to.
type resolver struct {
	servers []string
	udp     net.PacketConn
	tcp     *relay
	wg      sync.WaitGroup
}

// newResolver listens in the namespace; nil where the machine has no resolvers.
func newResolver(ns *netlab.Namespace, servers []string) (*resolver, error) {
	if len(servers) == 0 {
		return nil, nil
	}
	r := &resolver{servers: servers}
	var ln net.Listener
	err := ns.Do(func() (err error) {
		address := net.JoinHostPort(resolverAddr, "53")
		if r.udp, err = net.ListenPacket("udp4", address); err != nil {
			return err
		}
		ln, err = net.Listen("tcp4", address)
		return err
	})
	if err != nil {
		if r.udp != nil {
			_ = r.udp.Close()
		}
		return nil, fmt.Errorf("pass DNS to the machine's resolvers: %w", err)
	}
	r.tcp = newRelay(ln, r.dialTCP)
	r.wg.Go(r.serve)
	return r, nil
}

func (r *resolver) close() {
	if r == nil {
		return
	}
	_ = r.udp.Close()
	r.tcp.close()
	r.wg.Wait()
}

// dialTCP takes the first resolver that is there.
func (r *resolver) dialTCP(ctx context.Context) (net.Conn, error) {
	var errs []error
	for _, server := range r.servers {
		c, err := dialTo(server)(ctx)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (r *resolver) serve() {
	room := make(chan struct{}, questions)
	buf := make([]byte, largestDNS)
	for {
		n, from, err := r.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		select {
		case room <- struct{}{}:
		default:
			continue
		}
		question := bytes.Clone(buf[:n])
		r.wg.Go(func() {
			defer func() { <-room }()
			if answer := r.ask(question); answer != nil {
				_, _ = r.udp.WriteTo(answer, from) // who has gone needs none
			}
		})
	}
}

// ask asks one resolver after the other, until one answers.
func (r *resolver) ask(question []byte) []byte {
	for _, server := range r.servers {
		c, err := net.Dial("udp", server)
		if err != nil {
			continue
		}
		answer := make([]byte, largestDNS)
		_ = c.SetDeadline(time.Now().Add(questionTime / time.Duration(len(r.servers))))
		n := 0
		if _, err = c.Write(question); err == nil {
			n, err = c.Read(answer)
		}
		_ = c.Close()
		if err == nil {
			return answer[:n]
		}
	}
	return nil
}
