package meshfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/weir-mesh/weir/policy"
)

// Ports of Jaeger: the agent that took UDP until Jaeger 1.62 and is gone from
// version 2, and OTLP over gRPC.
const (
	jaegerAgentPort = 6831
	otlpPort        = 4317
)

// shortSecret is the length in bytes below which a key of HS256 can be guessed
// sooner than the signature (RFC 7518 section 3.2).
const shortSecret = 32

// readSettings checks the patch that the file amounts to and keeps it.
func (r *reader) readSettings(patch map[string]any) {
	if r.empties("mesh", patch) {
		return
	}
	exported := r.replaceAgentPort(patch)
	text, err := json.Marshal(patch)
	if err != nil {
		r.wrong("mesh", "%v", err)
		return
	}
	merged, err := policy.DefaultSettings().Merge(text)
	var problems policy.Problems
	if err != nil && !errors.As(err, &problems) {
		problems = policy.Problems{{Message: err.Error()}}
	}
	for _, p := range problems {
		if p.Path == "security.jwt_secret" { // the message would show it, in logs too
			p.Message = "is not a string; put it in quotes"
		}
		r.wrong(r.inFile(p.Path), "%s", p.Message)
	}
	if len(problems) > 0 {
		return
	}
	r.out.Settings = text
	for _, path := range merged.Idle(text) {
		if path != "observability.tracing" && path != "observability.tracing_enabled" {
			r.warn(join("mesh", path), "kept, without effect: it is for a gateway, which this version has not%s", idleInstead[path])
		} else if !exported {
			r.warn(join("mesh", path), "traces are begun and passed on, but this version sends them nowhere")
		}
	}
	r.warnOfTheRest(&merged)
	if ssl := &merged.Security.SSL; ssl.Enabled {
		r.out.certificate = &certificate{
			cert: r.problem("mesh.security.ssl.cert_file", "%s", ssl.CertFile),
			key:  r.problem("mesh.security.ssl.key_file", "%s", ssl.KeyFile),
		}
	}
}

// idleInstead tells who relied on a setting that has no effect what has.
var idleInstead = map[string]string{
	"security.ssl":            "; between proxies there is mTLS (mtls_mode), and to the app what it speaks itself",
	"security.authentication": "; nobody is asked for a token but by security rules with required_jwt",
}

// empties finds keys without a value, which YAML calls null: to take them for
// "not said" would hide what was forgotten.
func (r *reader) empties(path string, v any) bool {
	found := false
	switch v := v.(type) {
	case nil:
		r.wrong(r.inFile(strings.TrimPrefix(path, "mesh.")), "is empty; give it a value or leave it out")
		return true
	case map[string]any:
		for _, key := range sortedKeys(v) {
			found = r.empties(join(path, key), v[key]) || found
		}
	case []any:
		for i := range v {
			found = r.empties(fmt.Sprintf("%s[%d]", path, i), v[i]) || found
		}
	}
	return found
}

// inFile gives the file's path for a path of the patch.
func (r *reader) inFile(path string) string {
	for p := path; p != ""; p = p[:max(0, strings.LastIndexAny(p, ".["))] {
		if from, ok := r.from[p]; ok {
			return from + strings.TrimPrefix(path, p)
		}
	}
	return strings.TrimSuffix(join("mesh", path), ".")
}

// replaceAgentPort puts the port that traces go to in the place of the one they
// went to when the file was written, and says so.
func (r *reader) replaceAgentPort(patch map[string]any) bool {
	observability, _ := patch["observability"].(map[string]any)
	tracing, _ := observability["tracing"].(map[string]any)
	if n, ok := asNumber(tracing["jaeger_port"]); !ok || n != jaegerAgentPort {
		return false
	}
	tracing["jaeger_port"] = json.Number(fmt.Sprint(otlpPort))
	r.warn("mesh.observability.tracing.jaeger_port", "%d was the UDP port of Jaeger's agent, which is no more: traces go by OTLP to port %d of that host, which is taken in its place; this version begins traces and passes them on, and sends them nowhere yet", jaegerAgentPort, otlpPort)
	return true
}

func (r *reader) warnOfTheRest(merged *policy.Settings) {
	if secret := merged.Security.JWTSecret; secret != "" && len(secret) < shortSecret {
		r.warn("mesh.security.jwt_secret", "%d bytes are fewer than the %d that HS256 needs (RFC 7518 section 3.2): one token that is seen may be enough to guess the secret", len(secret), shortSecret)
	}
	r.warnOfLoopback()
	if merged.Resilience.CircuitBreaker.Enabled {
		return
	}
	for i := range r.out.Instances {
		inst := &r.out.Instances[i]
		own, _ := merged.ServiceSettings(inst.Endpoint.Service())
		if inst.Endpoint.CircuitTimeout != 0 && (own.Breaker == nil || !own.Breaker.Enabled) {
			r.warn(join(inst.path, "circuit_timeout"), "without effect: resilience.circuit_breaker.enabled is false")
		}
	}
}

// warnOfLoopback says once what an address of loopback amounts to.
func (r *reader) warnOfLoopback() {
	more := 0
	var first *Instance
	for i := range r.out.Instances {
		inst := &r.out.Instances[i]
		if a, ok := inst.Addr(); !ok || !a.IsLoopback() {
			continue
		}
		if first == nil || r.of(inst.path).Line < r.of(first.path).Line {
			first = inst
		}
		more++
	}
	if first == nil {
		return
	}
	also := ""
	if more > 1 {
		also = fmt.Sprintf("; there are %d more like it", more-1)
	}
	r.warn(join(first.path, "url"), "%s is the control plane's own host to the health check, and each caller's own to its proxy: right only where all are one host%s", first.Host, also)
}
