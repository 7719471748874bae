package translate

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// far is a server of one version, and near a client of the other that reaches it
// through a Bridge.
func connect(t *testing.T, to Version, h http.HandlerFunc) *http.Client {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	var far, near http.Protocols
	far.SetHTTP1(to == HTTP1)
	far.SetUnencryptedHTTP2(to == HTTP2)
	near.SetHTTP1(to == HTTP2)
	near.SetUnencryptedHTTP2(to == HTTP1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	quiet := log.New(io.Discard, "", 0)
	srv := &http.Server{Handler: h, Protocols: &far, ErrorLog: quiet}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(ln) }()
	b := New(Config{To: to, MaxHeadBytes: 64 << 10, ErrorLog: quiet, Overload: func(error) bool { return false }, Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	}})
	client := &http.Client{Transport: &http.Transport{Protocols: &near, DialContext: func(context.Context, string, string) (net.Conn, error) {
		mine, its := net.Pipe()
		b.Serve(its)
		return mine, nil
	}}, Timeout: 20 * time.Second}
	t.Cleanup(func() {
		client.CloseIdleConnections()
		b.Close()
		_ = srv.Close()
		<-ended
	})
	return client
}

func TestBothWays(t *testing.T) {
	for to, proto := range map[Version]string{HTTP1: "HTTP/1.1", HTTP2: "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			client := connect(t, to, func(w http.ResponseWriter, r *http.Request) {
				if r.Proto != proto || r.Host != "shop.example" || r.RequestURI != "/a%2Fb//c?x=1;y&z" {
					t.Errorf("%s %s %s came", r.Proto, r.Host, r.RequestURI)
				}
				if got := r.Header.Get("X-Forwarded-For"); got != "10.0.0.1" || r.Header.Get("User-Agent") != "" {
					t.Error("fields that nobody sent:", r.Header)
				}
				body, err := io.ReadAll(r.Body)
				if err != nil || len(body) != 100_000 || r.Trailer.Get("Sum") != "7" {
					t.Error(len(body), err, r.Trailer)
				}
				w.Header().Set("Trailer", "Check")
				w.WriteHeader(http.StatusTeapot)
				_, _ = io.WriteString(w, strings.Repeat("b", 200_000))
				w.Header().Set("Check", "9")
			})
			req, err := http.NewRequest("PUT", "http://shop.example/a%2Fb//c?x=1;y&z", io.MultiReader(strings.NewReader(strings.Repeat("a", 100_000))))
			if err != nil {
				t.Fatal(err)
			}
			req.Header["User-Agent"] = []string{""}
			req.Header.Set("X-Forwarded-For", "10.0.0.1")
			req.Trailer = http.Header{"Sum": {"7"}}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || len(body) != 200_000 || resp.StatusCode != http.StatusTeapot || resp.Trailer.Get("Check") != "9" {
				t.Error(len(body), err, resp.Status, resp.Trailer)
			}
		})
	}
}

func TestAnAnswerComesAsItIsWritten(t *testing.T) {
	for to, name := range map[Version]string{HTTP1: "HTTP/1.1", HTTP2: "HTTP/2.0"} {
		t.Run(name, func(t *testing.T) {
			said, heard := make(chan string), make(chan struct{})
			client := connect(t, to, func(w http.ResponseWriter, _ *http.Request) {
				for word := range said {
					_, _ = io.WriteString(w, word)
					w.(http.Flusher).Flush()
					<-heard
				}
			})
			go func() { said <- "one" }()
			resp, err := client.Get("http://shop.example/")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			for _, next := range []string{"two", ""} {
				b := make([]byte, 3)
				if _, err := io.ReadFull(resp.Body, b); err != nil {
					t.Fatal(err)
				}
				heard <- struct{}{}
				if next == "" {
					close(said)
				} else {
					said <- next
				}
			}
		})
	}
}

func TestAServerThatFailsIsAConnectionThatFails(t *testing.T) {
	for to, name := range map[Version]string{HTTP1: "HTTP/1.1", HTTP2: "HTTP/2.0"} {
		t.Run(name, func(t *testing.T) {
			client := connect(t, to, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
			resp, err := client.Post("http://shop.example/", "text/plain", strings.NewReader("x"))
			if err == nil {
				resp.Body.Close()
				t.Error("answered with", resp.Status)
			}
		})
	}
}

func TestAClosedBridgeServesNobody(t *testing.T) {
	b := New(Config{To: HTTP1, MaxHeadBytes: 1 << 10, ErrorLog: log.New(io.Discard, "", 0)})
	b.Close()
	mine, its := net.Pipe()
	b.Serve(its)
	if _, err := mine.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
}
