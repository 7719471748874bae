package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
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
	mux.Handle("GET /metrics", p.metricsHandler())
	a := &admin{ln: ln, srv: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}}
	return a, nil
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

// answerReady is 200 once the mesh's settings and this service's rules are
// known: from then on traffic is treated as policy says.
func (p *Proxy) answerReady(w http.ResponseWriter, _ *http.Request) {
	select {
	case <-p.feed.Ready():
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
		if pk := d.picks[pickKey{}]; pk != nil {
			for _, e := range pk.endpoints {
				circuit := "off"
				if e.circuit != nil {
					circuit = e.circuit.State(now).String()
				}
				eps = append(eps, map[string]any{
					"id": e.id, "address": e.addr.String(), "protocol": e.protocol, "mtls": e.mtls, "circuit": circuit,
					"in_flight": e.stats.InFlight(), "latency_ms": float64(e.stats.Latency(now)) / float64(time.Millisecond),
				})
			}
		}
		services[name.String()] = map[string]any{
			"virtual": []string{fmt.Sprint(d.svc.Virtual4), fmt.Sprint(d.svc.Virtual6)}, "strategy": d.svc.Traffic.Strategy, "endpoints": eps,
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"service": p.cfg.Service.String(), "id": p.cfg.ID, "certificate_until": p.id.Expiry(), "control": p.feed.Status(), "services": services,
		"outbound": o.outbound.Figures(), "inbound": o.inbound.Figures(), "dns": o.dns.Figures(),
	})
}

func (p *Proxy) metricsHandler() http.Handler {
	h := p.metrics.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.mesh.Load().Metrics {
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
	passThrough, egressDenied *telemetry.Connections
	explicit, handshakeFailed *telemetry.Connections
}

func newConnectionMetrics(r *telemetry.Registry, own *telemetry.Service) connectionMetrics {
	return connectionMetrics{
		own:             own,
		outboundHTTP:    r.Connections(telemetry.Outbound, "http1"),
		outboundTCP:     r.Connections(telemetry.Outbound, "tcp"),
		inboundHTTP:     r.Connections(telemetry.Inbound, "http1"),
		inboundTCP:      r.Connections(telemetry.Inbound, "tcp"),
		passThrough:     r.Connections(telemetry.Outbound, "passthrough"),
		egressDenied:    r.Connections(telemetry.Outbound, "egress-denied"),
		explicit:        r.Connections(telemetry.Inbound, "explicit"),
		handshakeFailed: r.Connections(telemetry.Inbound, "mtls"),
	}
}
