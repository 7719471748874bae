package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// App is a plain server that knows nothing of the mesh, for machines without
// nginx, python3 or redis.
type App struct {
	Instance, Version string
	Listen            string // "ADDRESS:PORT"
	FailFile          string // while it exists all answers but /health are 500
	Echo              bool   // a TCP echo server, not a web server
}

// Run serves until ctx ends.
func (a App) Run(ctx context.Context) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	return a.serve(ctx, ln)
}

func (a App) serve(ctx context.Context, ln net.Listener) error {
	if a.Echo {
		return echo(ctx, ln)
	}
	srv := &http.Server{Handler: a, ReadHeaderTimeout: 10 * time.Second}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = srv.Close(); close(closed) })
	err := srv.Serve(ln)
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ServeHTTP answers as nginx is told to in the demo.
func (a App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/plain")
	h.Set("X-Instance", a.Instance)
	h.Set("X-Version", a.Version)
	h.Set("X-Caller", r.Header.Get("X-Source-Namespace")+"/"+r.Header.Get("X-Source-Service"))
	if r.URL.Path == "/health" {
		_, _ = io.WriteString(w, "ok\n")
		return
	}
	if _, err := os.Stat(a.FailFile); a.FailFile != "" && err == nil {
		http.Error(w, a.Instance+" fails", http.StatusInternalServerError)
		return
	}
	_, _ = fmt.Fprintf(w, "%s %s uri=%s note=%s\n", a.Instance, a.Version, r.RequestURI, r.Header.Get("X-Note"))
}

// echo sends everything back, until ctx ends.
func echo(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		wg.Go(func() {
			unblock := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer unblock()
			defer func() { _ = c.Close() }()
			_, _ = io.Copy(c, c) // whoever broke it off knows
		})
	}
}
