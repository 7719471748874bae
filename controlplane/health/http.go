package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/weir-mesh/weir/policy"
)

const (
	userAgent  = "weir-health"
	maxBody    = 64 << 10
	maxHeaders = 64 << 10
)

// errIsGRPC says that a GET was answered by a gRPC server.
var errIsGRPC = errors.New("the server speaks gRPC")

// probeHTTP sends one GET on one connection; h2 is HTTP/2 with prior knowledge.
// Redirects are not followed: where they lead is not this endpoint.
func (c *Checker) probeHTTP(ctx context.Context, t *policy.Target, h2 bool) (string, error) {
	conn, err := c.connect(ctx, t)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	step := "GET " + t.HealthCheckPath
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.Addr().String()+t.HealthCheckPath, nil)
	if err != nil {
		return "", &stepError{step, err}
	}
	req.Header.Set("User-Agent", userAgent)
	exchange := exchangeH1
	if h2 {
		exchange = exchangeH2
	}
	resp, err := exchange(ctx, conn, req) //nolint:bodyclose // exchange has read and closed it
	if err != nil {
		return "", &stepError{step, root(err)}
	}
	if h2 && strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc") {
		return "", errIsGRPC
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return "", &stepError{step, errors.New(codeText(resp.StatusCode))}
	}
	return codeText(resp.StatusCode), nil
}

// exchangeH1 does without http.Transport, which writes to the process's log when
// a server speaks before it is asked.
func exchangeH1(ctx context.Context, conn net.Conn, req *http.Request) (*http.Response, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	r := bufio.NewReader(io.LimitReader(conn, maxHeaders+maxBody))
	for {
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue // interim, RFC 9110 section 15.2; the limit ends an app that sends nothing else
		}
		drain(conn, resp.Body)
		return resp, nil // nothing to close but the connection, which the caller does
	}
}

func exchangeH2(_ context.Context, conn net.Conn, req *http.Request) (*http.Response, error) {
	tr := &http.Transport{
		DialContext: once(conn), DisableKeepAlives: true, DisableCompression: true,
		MaxResponseHeaderBytes: maxHeaders, Protocols: new(http.Protocols),
	}
	defer tr.CloseIdleConnections()
	tr.Protocols.SetUnencryptedHTTP2(true)
	resp, err := tr.RoundTrip(req) // a RoundTripper follows no redirect
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	drain(conn, resp.Body)
	return resp, nil
}

// drain reads on so that the app can finish its answer, but the head has decided
// already: a body without end is not waited for.
func drain(conn net.Conn, body io.Reader) {
	stop := time.AfterFunc(settle, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop.Stop()
	_, _ = io.CopyN(io.Discard, body, maxBody)
}

// codeText leaves out the reason phrase that the app sent: it is the app's text.
func codeText(code int) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", code, http.StatusText(code)))
}

// once hands out a connection a single time, so that no client dials on its own.
func once(conn net.Conn) func(context.Context, string, string) (net.Conn, error) {
	used := make(chan struct{}, 1)
	return func(context.Context, string, string) (net.Conn, error) {
		select {
		case used <- struct{}{}:
			return conn, nil
		default:
			return nil, errors.New("the connection ended")
		}
	}
}
