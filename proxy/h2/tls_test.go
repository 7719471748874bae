package h2

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weir-mesh/weir/proxy/loop"
	"github.com/weir-mesh/weir/proxy/secure"
)

// chain is two proxies that speak TLS with each other, towards an upstream.
func chain(t *testing.T, upstream string) (inner, outer *proxy) {
	s := httptest.NewTLSServer(nil) // for its certificate
	s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	inner = startProxy(t, upstream, func(p *proxy) {
		p.accepted = func(c loop.Stream) (loop.Stream, error) {
			tc := secure.Server(c.Socket(), nil, &tls.Config{Certificates: s.TLS.Certificates})
			return tc, tc.Handshake(time.Time{})
		}
	})
	return inner, startProxy(t, inner.addr(), func(p *proxy) {
		dial := p.dial
		p.dial = func(addr string) (loop.Stream, error) {
			c, err := dial(addr)
			if err != nil {
				return nil, err
			}
			tc := secure.Client(c.Socket(), &tls.Config{RootCAs: roots, ServerName: "example.com"})
			return tc, tc.Handshake(time.Time{})
		}
	})
}

func TestOverTLS(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, r.Body)
		w.Header().Set("X-Sum", "1")
	})
	_, p := chain(t, up)
	c := newClient(t)
	var wg sync.WaitGroup
	for _, size := range []int{0, 1, 16384, 70000, 700000} {
		for range 5 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				body := bytes.Repeat([]byte("t"), size)
				r, err := c.Do(newRequest(t, "POST", p.url(), bytes.NewReader(body)))
				if err != nil {
					t.Error(size, err)
					return
				}
				if got := read(t, r); got != string(body) || r.Trailer.Get("X-Sum") != "1" {
					t.Errorf("%d bytes: %d came back, %v", size, len(got), r.Trailer)
				}
			}()
		}
	}
	wg.Wait()
}

func TestAConversationOverTLS(t *testing.T) {
	_, up, _ := grpcServer(t, "a")
	_, p := chain(t, up)
	c := grpcClient(t, p.addr())
	var wg sync.WaitGroup
	for n := range 10 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s := openStream(t, guard(t), c, "Chat")
			for i := range 50 {
				text := fmt.Sprint("message ", n, i, strings.Repeat("x", i*100))
				if err := s.SendMsg(wrapperspb.String(text)); err != nil {
					t.Error(err)
					return
				}
				var m stringValue
				if err := s.RecvMsg(&m); err != nil || m.Value != "re: "+text {
					t.Errorf("%v %v", m.Value, err)
					return
				}
			}
			s.CloseSend()
			var m stringValue
			if err := s.RecvMsg(&m); err != io.EOF {
				t.Errorf("%v", err)
			}
		}()
	}
	wg.Wait()
}
