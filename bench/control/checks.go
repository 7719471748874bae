package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// answers stands for every endpoint: it answers health checks.
type answers struct {
	ln    net.Listener
	count atomic.Int64
	open  sync.WaitGroup
}

// serve answers until the listener is closed, and returns when the last answer
// is given.
func (a *answers) serve() {
	defer a.open.Wait()
	for {
		c, err := a.ln.Accept()
		if err != nil {
			return
		}
		a.open.Go(func() {
			defer func() { _ = c.Close() }()
			if req, err := http.ReadRequest(bufio.NewReaderSize(c, 512)); err == nil {
				_ = req.Body.Close()
				a.count.Add(1)
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") // who asked may be gone
			}
		})
	}
}

// checks has all endpoints checked, at last without proxies: those of theirs
// would want mTLS.
func checks(ctx context.Context, s *stage, rep *report) (err error) {
	s.fleet.close()
	node := s.mesh.ControlNode()
	if _, err := node.Output(ctx, "ip", "route", "add", "local", addresses, "dev", "lo"); err != nil {
		return err
	}
	ln, err := s.mesh.Host.ListenTCP("0.0.0.0:8001")
	if err != nil {
		return err
	}
	a := &answers{ln: ln}
	var serving sync.WaitGroup
	serving.Go(a.serve)
	defer serving.Wait()
	defer func() { err = errors.Join(err, ln.Close()) }()

	every := s.size.checkEvery
	if err := s.setChecks(ctx, every); err != nil {
		return err
	}
	// Each has had its first check after the interval, then they come evenly.
	if err := sleep(ctx, every+every/2); err != nil {
		return err
	}
	before, err := s.look()
	if err != nil {
		return err
	}
	n := a.count.Load()
	if err := sleep(ctx, every/2); err != nil {
		return err
	}
	after, err := s.look()
	if err != nil {
		return err
	}
	used, checked := after.since(before), float64(a.count.Load()-n)
	rep.set("checks_per_s", checked/used.seconds())
	rep.set("checks_cpu_percent", 100*used.cpu.Seconds()/used.seconds())
	rep.set("checks_cpu_us_each", used.cpu.Seconds()*1e6/checked)
	m, err := s.api().Metrics(ctx)
	if err != nil {
		return err
	}
	rep.set("checks_wrong", float64(m.Registry.UnhealthyEndpoints))
	return s.setChecks(ctx, 0)
}

// setChecks turns the health checks on with an interval, or off with 0.
func (s *stage) setChecks(ctx context.Context, every time.Duration) error {
	on := fmt.Sprintf(`{"enabled": %v, "interval": %v}`, every > 0, max(every, time.Second).Seconds())
	warnings, err := s.api().UpdateSettings(ctx, json.RawMessage(`{"load_balancing": {"health_check": `+on+`}}`))
	if len(warnings) > 0 {
		s.logf("settings: %s", strings.Join(warnings, "; "))
	}
	return err
}
