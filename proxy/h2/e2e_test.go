package h2

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
)

func TestARequestAndItsAnswer(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Seen", r.Method+" "+r.Host+r.URL.String()+" "+r.Header.Get("X-One")+r.Proto)
		io.WriteString(w, "hello")
	})
	p := startProxy(t, up, nil)
	req := newRequest(t, "GET", p.url()+"/a?b=c", nil)
	req.Host = "orders.shop"
	req.Header.Set("X-One", "1")
	r, err := newClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if body := read(t, r); body != "hello" || r.Header.Get("X-Seen") != "GET orders.shop/a?b=c 1HTTP/2.0" {
		t.Errorf("%q %v", body, r.Header)
	}
}

func TestBodiesOfAllSizesBothWays(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	p := startProxy(t, up, nil)
	c := newClient(t)
	for _, size := range []int{0, 1, 100, 2047, 2048, 2049, 16384, 16385, 65535, 70000, 1 << 20, 2<<20 + 7} {
		body := bytes.Repeat([]byte("0123456789abcde\n"), size/16+1)[:size]
		r, err := c.Do(newRequest(t, "POST", p.url(), bytes.NewReader(body)))
		if err != nil {
			t.Fatal(size, err)
		}
		if got := read(t, r); got != string(body) {
			t.Errorf("%d bytes: %d came back", size, len(got))
		}
	}
	if n := p.dialsMade(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestTrailersBothWays(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, r.Body)
		w.Header().Set("X-Sum", "got "+r.Trailer.Get("X-Check"))
	})
	p := startProxy(t, up, nil)
	req := newRequest(t, "POST", p.url(), strings.NewReader("data"))
	req.ContentLength = -1
	req.Trailer = http.Header{"X-Check": {"42"}}
	r, err := newClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if body := read(t, r); body != "data" || r.Trailer.Get("X-Sum") != "got 42" {
		t.Errorf("%q %v", body, r.Trailer)
	}
}

func TestManyAtOnce(t *testing.T) {
	up := backend(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	p := startProxy(t, up, func(p *proxy) { p.cfg.MaxStreams = 1000 })
	c := newClient(t)
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r, err := c.Get(fmt.Sprintf("%s/%d", p.url(), i))
			if err != nil {
				t.Error(err)
				return
			}
			if body := read(t, r); body != fmt.Sprintf("/%d", i) {
				t.Errorf("%d: %q", i, body)
			}
		}()
	}
	wg.Wait()
}
