package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startTestBackend runs a backend on ports of its own, and gives them by service.
func startTestBackend(t *testing.T) map[service]string {
	t.Helper()
	b, err := newBackend(0)
	if err != nil {
		t.Fatal(err)
	}
	addr := map[service]string{}
	for fd, does := range b.listener {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		addr[does] = "127.0.0.1:" + strconv.Itoa(sa.(*unix.SockaddrInet4).Port)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); wg.Wait() })
	return addr
}

// generate runs `bench load` in this process, for long enough that even a busy machine
// gives it a turn.
func generate(t *testing.T, args ...string) (sample, error) {
	t.Helper()
	var out bytes.Buffer
	err := runLoad(t.Context(), append([]string{"-for", "250ms", "-warm", "5ms"}, args...), strings.NewReader(""), &out)
	var s sample
	if err == nil {
		if err := json.Unmarshal(out.Bytes(), &s); err != nil {
			t.Fatalf("%v in %q", err, out.String())
		}
	}
	return s, err
}

func TestGeneratorAndBackendUnderstandEachOther(t *testing.T) {
	addr := startTestBackend(t)
	for name, args := range map[string][]string{
		"small answers":        {"-to", addr[serveSmall], "-conns", "8"},
		"large answers":        {"-to", addr[serveLarge], "-conns", "8"},
		"HTTP/2":               {"-to", addr[serveH2], "-mode", "h2", "-conns", "4"},
		"gRPC":                 {"-to", addr[serveGRPC], "-mode", "grpc", "-conns", "4", "-streams", "40"},
		"echo":                 {"-to", addr[serveEcho], "-mode", "echo", "-conns", "8"},
		"bulk":                 {"-to", addr[serveBulk], "-mode", "bulk", "-conns", "1"},
		"new HTTP connections": {"-to", addr[serveSmall], "-fresh", "-conns", "4"},
		"new TCP connections":  {"-to", addr[serveEcho], "-mode", "echo", "-fresh", "-conns", "4"},
		"a fixed rate":         {"-to", addr[serveSmall], "-rate", "1000", "-conns", "4"},
		"two targets":          {"-to", addr[serveSmall] + "," + addr[serveLarge], "-conns", "4"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := generate(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			if s.Units == 0 || s.Errors != 0 || s.Client <= 0 {
				t.Errorf("the generator saw %+v", s)
			}
		})
	}
}

func TestAProxysCPUTimeIsTaken(t *testing.T) {
	addr := startTestBackend(t)
	s, err := generate(t, "-to", addr[serveSmall], "-conns", "2", "-proxy", strconv.Itoa(os.Getppid()))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Proxy[os.Getppid()]; !ok || len(s.Proxy) != 1 {
		t.Errorf("CPU times are of %v, want of %d", s.Proxy, os.Getppid())
	}
	if _, err := generate(t, "-to", addr[serveSmall], "-proxy", "x"); err == nil {
		t.Error("-proxy x was taken")
	}
}

func TestRefusalsAreErrorsNotWork(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
	}))
	defer srv.Close()
	_, err := generate(t, "-to", srv.Listener.Addr().String(), "-conns", "2")
	if err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("a proxy that refuses: %v, want an error with its status", err)
	}
}

func TestNobodyThereIsAnError(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"http", "h2", "grpc", "echo", "bulk", "hold"} {
		if _, err := generate(t, "-to", addr, "-mode", mode, "-conns", "2"); err == nil {
			t.Errorf("-mode %s against a closed port is no error", mode)
		}
	}
}

func TestBadFlagsAreNamed(t *testing.T) {
	for want, args := range map[string][]string{
		"-to":      {"-to", "bench.example:80"},
		"-mode":    {"-to", "127.0.0.1:1", "-mode", "udp"},
		"-streams": {"-to", "127.0.0.1:1", "-mode", "h2", "-streams", "0"},
		"-fresh":   {"-to", "127.0.0.1:1", "-mode", "grpc", "-fresh"},
		"-cert":    {"-to", "127.0.0.1:1", "-mode", "handshake"},
	} {
		if _, err := generate(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want an error that names %s", args, err, want)
		}
	}
	if err := run(t.Context(), []string{"-work", "nothing"}); err == nil || !strings.Contains(err.Error(), "http-small") {
		t.Errorf("-work nothing: %v, want the list of works", err)
	}
	if err := run(t.Context(), []string{"-peer", "nobody"}); err == nil || !strings.Contains(err.Error(), "haproxy") {
		t.Errorf("-peer nobody: %v, want the list of peers", err)
	}
}

func TestHeldConnectionsStandUntilTheyAreReleased(t *testing.T) {
	addr := startTestBackend(t)
	for _, exchange := range []string{"http", "echo"} {
		to := addr[serveEcho]
		if exchange == "http" {
			to = addr[serveSmall]
		}
		release, stdin := io.Pipe()
		stdout, said := io.Pipe()
		done := make(chan error, 1)
		go func() {
			args := []string{"-mode", "hold", "-exchange", exchange, "-to", to, "-conns", "40"}
			done <- runLoad(t.Context(), args, release, said)
		}()
		line := make([]byte, 64)
		if n, err := stdout.Read(line); err != nil || string(line[:n]) != "held 40\n" {
			t.Fatalf("%s: the generator said %q, %v", exchange, line[:n], err)
		}
		if err := stdin.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// echoTLS answers like a proxy in front of the echo service.
func echoTLS(t *testing.T, dir clientCert) string {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(dir.cert, dir.key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp4", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"weir"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l.Addr().String()
}

func TestHandshakesFullAndResumed(t *testing.T) {
	cert, err := writeCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	to := echoTLS(t, cert)
	for _, resume := range []string{"false", "true"} {
		s, err := generate(t, "-mode", "handshake", "-to", to, "-conns", "2", "-cert", cert.cert, "-key", cert.key, "-alpn", "weir", "-resume="+resume)
		if err != nil {
			t.Fatal(err)
		}
		if s.Units == 0 || s.Errors != 0 || s.Curve != tls.X25519MLKEM768 {
			t.Errorf("resume=%s: the generator saw %+v", resume, s)
		}
	}
}

func TestArgumentsMakeTheSameLoad(t *testing.T) {
	want := load{
		mode: "echo", targets: "127.0.0.1:1", conns: 3, streams: 5, fresh: true, rate: 12.5, warm: time.Second, length: time.Minute,
		proxy: "1,2", backend: 3, exchange: "http", cert: "c", key: "k", alpn: "a", resume: true, concurrent: 7,
	}
	var got load
	f := newLoadFlags(&got)
	if err := f.Parse(want.args()[1:]); err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}
