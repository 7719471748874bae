package e2e

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestSIGTERMDrains(t *testing.T) {
	t.Parallel()
	m := newPair(t)
	t.Run("TheEndpointLeavesAtOnceAndTheRequestInFlightFinishes", func(t *testing.T) {
		hold := make(chan struct{})
		for _, b := range m.users {
			b.forget()
			b.mu.Lock()
			b.hold = hold
			b.mu.Unlock()
		}
		type result struct {
			out string
			err error
		}
		got := make(chan result, 1)
		go func() {
			out, err := m.front.Output(t.Context(), "curl", "-sS", "--max-time", "20", "-d", "x", "-w", "%{http_code}", "http://users/slow")
			got <- result{out, err}
		}()
		var at *backend
		await(t, m.Mesh, "the request to arrive", func() error {
			for _, b := range m.users {
				if b.count() > 0 {
					at = b
					return nil
				}
			}
			return errors.New("not yet")
		})
		ended := make(chan error, 1)
		go func() { ended <- at.node.Proxy.Stop(15 * time.Second) }()
		m.endpoints(t, 1)
		select {
		case r := <-got:
			t.Fatalf("the request did not wait: %q, %v", r.out, r.err)
		case err := <-ended:
			t.Fatalf("the proxy did not wait: %v", err)
		default:
		}
		close(hold)
		if r := <-got; r.err != nil || r.out != at.name+"\n200" {
			t.Errorf("the request got %q, %v", r.out, r.err)
		}
		if err := <-ended; err != nil {
			t.Errorf("the proxy ended with %v", err)
		}
		for _, b := range m.users {
			b.reset()
		}
		if err := at.node.StartProxy(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.endpoints(t, 2)
	})
	t.Run("CallersNoticeNothing", func(t *testing.T) {
		stop := m.load(t)
		for range 2 {
			if err := m.users[1].node.Proxy.Stop(15 * time.Second); err != nil {
				t.Error(err)
			}
			if err := m.users[1].node.StartProxy(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		sent, wrong := stop()
		check(t, sent, wrong)
	})
	t.Run("TheCallersProxyTellsItsAppToClose", func(t *testing.T) {
		hold := make(chan struct{})
		for _, b := range m.users {
			b.forget()
			b.mu.Lock()
			b.hold = hold
			b.mu.Unlock()
		}
		c := dial(t, m.front, "users:80")
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: users\r\n\r\n")
		await(t, m.Mesh, "the request to arrive", func() error {
			if m.users[0].count()+m.users[1].count() == 0 {
				return errors.New("not yet")
			}
			return nil
		})
		ended := make(chan error, 1)
		go func() { ended <- m.front.Proxy.Stop(15 * time.Second) }()
		await(t, m.Mesh, "the proxy to drain", func() error {
			if !strings.Contains(m.front.Proxy.Log(), `"draining"`) {
				return errors.New("not yet")
			}
			return nil
		})
		time.Sleep(300 * time.Millisecond) // its drain delay is 100 ms; an earlier release only makes the test less sharp
		close(hold)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 || !resp.Close {
			t.Errorf("got %+v, %v", resp, err)
		}
		if err := <-ended; err != nil {
			t.Errorf("the proxy ended with %v", err)
		}
	})
}
