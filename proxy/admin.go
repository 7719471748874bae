package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"time"

	"github.com/weir-mesh/weir/proxy/telemetry"
)

// admin is the proxy's own HTTP server, for whoever operates it. It only
// answers questions; nothing can be changed through it.
type admin struct {
	ln  net.Listener
	srv *http.Server
}

func (p *Proxy) newAdmin(o *ports) (*admin, error) {
	ln, err := net.Listen("tcp", p.cfg.Admin)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", p.answerHealth)
	mux.HandleFunc("GET /ready", p.answerReady)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { p.answerStatus(w, o) })
	mux.Handle("GET /", p.metricsHandler())
	if p.cfg.Profiles {
		addProfiles(mux)
	}
	a := &admin{ln: ln, srv: &http.Server{Handler: onlyReads(mux), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}}
	return a, nil
}

// onlyReads is in front of all routes: the app beside the proxy reaches this
// port, and is to have nothing done by it.
func onlyReads(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			writeJSON(w, http.StatusMethodNotAllowed, map[string]any{"error": "this port only answers questions; changes go to the control plane"})
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (a *admin) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = a.srv.Close() })
	defer stop()
	if err := a.srv.Serve(a.ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (a *admin) close() { _ = a.ln.Close() }

// maxProfile bounds how long one request has the process profiled, in seconds.
const maxProfile = 60

// addProfiles answers as net/http/pprof does, as far as "go tool pprof" and "go
// tool trace" ask. That package would take 0.3 MiB more of every sidecar, knows no
// bound, and puts itself into http.DefaultServeMux.
func addProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/{$}", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "profile?seconds=30 (at most %d)\ntrace?seconds=1\n", maxProfile)
		for _, p := range pprof.Profiles() {
			_, _ = fmt.Fprintf(w, "%s?debug=1 (%d)\n", p.Name(), p.Count())
		}
	})
	mux.HandleFunc("GET /debug/pprof/profile", recorded("30", pprof.StartCPUProfile, pprof.StopCPUProfile))
	mux.HandleFunc("GET /debug/pprof/trace", recorded("1", trace.Start, trace.Stop))
	mux.HandleFunc("GET /debug/pprof/{name}", func(w http.ResponseWriter, r *http.Request) {
		p := pprof.Lookup(r.PathValue("name"))
		if p == nil {
			writeJSON(w, http.StatusNotFound, map[string]any{"error": "no such profile; /debug/pprof/ lists them"})
			return
		}
		debug, err := strconv.ParseUint(cmp.Or(r.FormValue("debug"), "0"), 10, 8)
		if err != nil {
			writeJSON(w, http.StatusBadRequest, map[string]any{"error": "debug: meant is 0, 1 or 2"})
			return
		}
		if debug == 0 {
			w.Header().Set("Content-Type", "application/octet-stream")
		}
		_ = p.WriteTo(w, int(debug))
	})
}

// recorded answers with what is recorded in the time asked for, or until the
// client or the proxy has enough. There is one recording of a kind at a time.
func recorded(seconds string, start func(io.Writer) error, stop func()) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseUint(cmp.Or(r.FormValue("seconds"), seconds), 10, 8)
		if err != nil || n < 1 || n > maxProfile {
			writeJSON(w, http.StatusBadRequest, map[string]any{"error": fmt.Sprintf("seconds: meant is a number in 1..%d", maxProfile)})
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		if err := start(w); err != nil {
			writeJSON(w, http.StatusConflict, map[string]any{"error": err.Error()})
			return
		}
		defer stop()
		select {
		case <-r.Context().Done():
		case <-time.After(time.Duration(n) * time.Second):
		}
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// answerHealth is the seed's: the sidecar runs.
func (p *Proxy) answerHealth(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{
		"status": "healthy", "service": p.cfg.Service.String(),
		"proxy_port": portOf(p.cfg.Inbound), "service_port": p.servicePort(),
	})
}

func portOf(addrs []string) int {
	if len(addrs) == 0 {
		return 0
	}
	_, port, err := net.SplitHostPort(addrs[0])
	if err != nil {
		return 0
	}
	n, _ := net.LookupPort("tcp", port)
	return n
}

// Ready is closed once the mesh's settings and this service's rules are known.
func (p *Proxy) Ready() <-chan struct{} { return p.feed.Ready() }

// answerReady is 200 once the mesh's settings and this service's rules are
// known: from then on traffic is treated as policy says.
func (p *Proxy) answerReady(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-p.Ready():
		writeJSON(w, http.StatusOK, map[string]any{"ready": true})
	default:
		writeJSON(w, http.StatusServiceUnavailable, map[string]any{"ready": false, "error": "the control plane has not been heard yet"})
	}
}

// answerStatus tells how the proxy stands, for people.
func (p *Proxy) answerStatus(w http.ResponseWriter, o *ports) {
	services := map[string]any{}
	now := time.Now()
	for name, d := range p.dests.Load().byName {
		var eps []map[string]any
		leaving, panics := 0.0, false
		if pk := d.picks[pickKey{}]; pk != nil {
			if panics = pk.panics.Load(); pk.near.set != nil && !panics {
				leaving = float64(pk.leaving.Load()) / math.MaxUint32
			}
			for _, e := range pk.members {
				circuit := "off"
				if e.circuit != nil {
					circuit = e.circuit.State(now).String()
				}
				eps = append(eps, map[string]any{
					"id": e.id, "address": e.addr.String(), "protocol": e.protocol, "mtls": e.mtls, "circuit": circuit,
					"zone": e.zone, "healthy": !e.sick, "outlier": e.ejected(),
					"in_flight": e.stats.InFlight(), "latency_ms": float64(e.stats.Latency(now)) / float64(time.Millisecond),
				})
			}
		}
		services[name.String()] = map[string]any{
			"virtual": []string{fmt.Sprint(d.svc.Virtual4), fmt.Sprint(d.svc.Virtual6)}, "strategy": d.svc.Traffic.Strategy, "endpoints": eps,
			"leaving_zone": leaving, "panic": panics,
			"under_way": d.gates.requests.Inside(), "waiting": d.gates.requests.Waiting(), "connections": d.gates.conns.Inside(),
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"service": p.cfg.Service.String(), "id": p.cfg.ID, "certificate_until": p.id.Expiry(), "control": p.feed.Status(), "services": services,
		"outbound": o.outbound.Figures(), "inbound": o.inbound.Figures(), "dns": o.dns.Figures(),
	})
}

// metricsHandler answers at the path that the mesh has set for metrics, and at no
// other that is left.
func (p *Proxy) metricsHandler() http.Handler {
	h := p.metrics.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mesh := p.mesh.Load()
		if path := cmp.Or(mesh.MetricsPath, "/metrics"); r.URL.Path != path {
			writeJSON(w, http.StatusNotFound, map[string]any{"error": "there is no " + r.URL.Path + " here; metrics are at " + path})
			return
		}
		if !mesh.Metrics {
			writeJSON(w, http.StatusNotFound, map[string]any{"error": "metrics are turned off in the mesh's settings (observability.metrics.enabled)"})
			return
		}
		h.ServeHTTP(w, r)
	})
}

// ownMetrics is the handle for requests to the app.
func (p *Proxy) ownMetrics() *telemetry.Service { return p.conns.own }

// connectionMetrics are the handles for connections of each kind.
type connectionMetrics struct {
	own                       *telemetry.Service
	outboundHTTP, outboundTCP *telemetry.Connections
	inboundHTTP, inboundTCP   *telemetry.Connections
	outboundH2, inboundH2     *telemetry.Connections
	passThrough, egressDenied *telemetry.Connections
	explicit, handshakeFailed *telemetry.Connections

	outboundUpgraded, inboundUpgraded upgradeMetrics
}

func newConnectionMetrics(r *telemetry.Registry, own *telemetry.Service) connectionMetrics {
	return connectionMetrics{
		own:             own,
		outboundHTTP:    r.Connections(telemetry.Outbound, "http1"),
		outboundH2:      r.Connections(telemetry.Outbound, "http2"),
		inboundH2:       r.Connections(telemetry.Inbound, "http2"),
		outboundTCP:     r.Connections(telemetry.Outbound, "tcp"),
		inboundHTTP:     r.Connections(telemetry.Inbound, "http1"),
		inboundTCP:      r.Connections(telemetry.Inbound, "tcp"),
		passThrough:     r.Connections(telemetry.Outbound, "passthrough"),
		egressDenied:    r.Connections(telemetry.Outbound, "egress-denied"),
		explicit:        r.Connections(telemetry.Inbound, "explicit"),
		handshakeFailed: r.Connections(telemetry.Inbound, "mtls"),

		outboundUpgraded: newUpgradeMetrics(r, telemetry.Outbound),
		inboundUpgraded:  newUpgradeMetrics(r, telemetry.Inbound),
	}
}
