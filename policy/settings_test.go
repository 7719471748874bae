package policy

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestSeedConfigurationIsTaken(t *testing.T) {
	// Seed B, "Configuration Management", as it stands.
	s, err := DefaultSettings().Merge([]byte(`{"global_timeout": 12.5, "default_retry_attempts": 5, "circuit_breaker_enabled": false,
		"mtls_mode": "permissive", "observability": {"tracing_enabled": true, "metrics_enabled": true, "access_logging": true}}`))
	if err != nil {
		t.Fatal(err)
	}
	tr := s.TrafficFor(ServiceName{"default", "x"})
	if tr.Timeout != 12500*time.Millisecond || tr.Retry.Attempts != 5 || tr.Breaker.Enabled || tr.MTLS != Permissive {
		t.Errorf("traffic is %+v", tr)
	}
	if !s.Observability.Tracing.Enabled || !s.Observability.AccessLogging {
		t.Errorf("observability is %+v", s.Observability)
	}
	shown, err := s.Effective()
	if err != nil {
		t.Fatal(err)
	}
	if shown["global_timeout"] != 12.5 || shown["default_retry_attempts"] != 5.0 || shown["circuit_breaker_enabled"] != false {
		t.Errorf("shortcuts show %v", shown)
	}
}

func TestSeedGroupsAreTaken(t *testing.T) {
	// Seed A, mesh-config.yml, without the list of services.
	_, err := DefaultSettings().Merge([]byte(`{"security": {"jwt_secret": "your-secret-key",
		"ssl": {"enabled": true, "cert_file": "certs/server.crt", "key_file": "certs/server.key"},
		"cors": {"enabled": true, "allow_origins": ["http://localhost:3000"], "allow_methods": ["GET"], "allow_headers": ["Authorization"]},
		"rate_limiting": {"enabled": true, "default_limit": 100, "window": 60}, "authentication": {"enabled": true, "protected_paths": ["/api/"]}},
		"observability": {"metrics": {"enabled": true, "path": "/metrics", "interval": 15}, "tracing": {"enabled": true, "jaeger_host": "localhost", "jaeger_port": 6831},
		"logging": {"level": "INFO", "format": "json", "output": "stdout"}},
		"resilience": {"circuit_breaker": {"enabled": true, "failure_threshold": 5, "timeout": 60.0}, "retry": {"enabled": true, "max_attempts": 3, "delay": 1.0},
		"timeout": {"enabled": true, "default": 30.0}}, "load_balancing": {"strategy": "round_robin", "health_check": {"enabled": true, "interval": 30, "timeout": 5}}}`))
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	for patch, want := range map[string]string{
		`{"globl_timeout": 3}`:                                             `globl_timeout: unknown setting; did you mean "global_timeout"?`,
		`{"resilience": {"retry": {"max_atempts": 3}}}`:                    `resilience.retry.max_atempts: unknown setting; did you mean "max_attempts"?`,
		`{"resilience": {"retry": {"max_attempts": "3"}}}`:                 `resilience.retry.max_attempts: "3" is not a whole number`,
		`{"resilience": {"retry": {"max_attempts": 0}}}`:                   `resilience.retry.max_attempts: 0 is not in 1..100`,
		`{"resilience": 7}`:                                                `resilience: 7 is not an object`,
		`{"global_timeout": "soon"}`:                                       `global_timeout: "soon" is not a number`,
		`{"global_timeout": 1, "resilience": {"timeout": {"default": 2}}}`: `which is the same setting`,
		`{"mtls_mode": "strickt"}`:                                         `mtls_mode: "strickt" is not one of strict, permissive, disabled`,
		`{"services": {"a": {"rate_limit": {"limit": -1}}}}`:               `services.a.rate_limit.limit: -1 is not in 0..`,
		`{"services": {"A!": {}}}`:                                         `services.A!:`,
		`{"security": {"cors": {"allow_origins": "x"}}}`:                   `security.cors.allow_origins: "x" is not a list`,
		`{"load_balancing": {"strategy": "fastest"}}`:                      `load_balancing.strategy: "fastest" is not one of`,
		`[1]`:   `not a JSON object`,
		`{}}`:   `more follows`,
		`null`:  `not a JSON object: null`,
		`{} {}`: `more follows`,
		`{`:     `not a JSON object`,
		`{"security": {"ssl": {"enabled": true}}}`:          `security.ssl: enabled needs cert_file`,
		`{"observability": {"logging": {"level": "LOUD"}}}`: `observability.logging.level:`,
	} {
		before := DefaultSettings()
		after, err := before.Merge([]byte(patch))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", patch, err, want)
		}
		if a, b := mustJSON(t, before), mustJSON(t, after); a != b {
			t.Errorf("%s: something of a refused patch was taken over", patch)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestAServicesOwnSettingsLieOverTheMeshs(t *testing.T) {
	s, err := DefaultSettings().Merge([]byte(`{"security": {"rate_limiting": {"enabled": true}}, "services": {
		"users": {"strategy": "round_robin", "timeout": 2, "rate_limit": {"limit": 7}},
		"prod/users": {"rate_limit": {"limit": 0}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	users := s.TrafficFor(ServiceName{"default", "users"})
	if users.Strategy != "round_robin" || users.Timeout != 2*time.Second || users.RateLimit != (RateLimit{Limit: 7, Window: time.Minute}) || users.Retry.Attempts != 3 {
		t.Errorf("users: %+v", users)
	}
	if prod := s.TrafficFor(ServiceName{"prod", "users"}); prod.RateLimit.Limit != 0 || prod.Strategy != "p2c_ewma" {
		t.Errorf("prod/users: %+v", prod)
	}
	if other := s.TrafficFor(ServiceName{"default", "other"}); other.RateLimit.Limit != 100 {
		t.Errorf("other: %+v", other)
	}
	s, err = s.Merge([]byte(`{"services": {"users": null}}`))
	if err != nil || s.TrafficFor(ServiceName{"default", "users"}).RateLimit.Limit != 100 {
		t.Errorf("null does not remove: %v", err)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	s, err := DefaultSettings().Merge([]byte(`{"security": {"jwt_secret": "hush-hush"}}`))
	if err != nil {
		t.Fatal(err)
	}
	shown, _ := s.Effective()
	if strings.Contains(mustJSON(t, shown), "hush") {
		t.Error("the secret is shown")
	}
	if s.Security.JWTSecret != "hush-hush" {
		t.Error("the secret is not kept")
	}
}

func TestVirtualAddresses(t *testing.T) {
	v4, v6, err := VirtualAddrs(258)
	if err != nil || v4.String() != "240.240.1.2" || v6.String() != "fd77:6569:7200::102" {
		t.Errorf("got %v %v %v", v4, v6, err)
	}
	for _, index := range []int{0, -1, MaxVirtual + 1} {
		if _, _, err := VirtualAddrs(index); err == nil {
			t.Errorf("%d is taken", index)
		}
	}
}

func TestServiceNames(t *testing.T) {
	for in, want := range map[string]string{"a": "default/a", "a.b": "b/a", "b/a": "b/a"} {
		if n, err := ParseServiceName(in, "default"); err != nil || n.String() != want {
			t.Errorf("%q: %v %v, want %s", in, n, err, want)
		}
	}
	for _, bad := range []string{"", "A", "-a", "a-", "a_b", "a/b/c", "a.b.c", strings.Repeat("x", 64), "a\x00"} {
		if _, err := ParseServiceName(bad, "default"); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	n := ServiceName{"ns", "svc"}
	if got, err := ParseSPIFFEPath("/ns/ns/sa/svc"); err != nil || got != n {
		t.Errorf("got %v %v", got, err)
	}
	if n.SPIFFE("weir.local") != "spiffe://weir.local/ns/ns/sa/svc" {
		t.Error(n.SPIFFE("weir.local"))
	}
	for _, bad := range []string{"/ns/a/sa/", "/ns/a", "/ns/a/sa/b/c", "ns/a/sa/b", "/x/a/sa/b"} {
		if _, err := ParseSPIFFEPath(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestEndpointProblemsNameThePath(t *testing.T) {
	e := DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = "a", "users", "default", "10.0.0.1", 8001
	if p := e.Validate(); len(p) > 0 {
		t.Fatalf("a good endpoint has %v", p)
	}
	for want, change := range map[string]func(*Endpoint){
		"port: 70000 is not in 1..65535": func(e *Endpoint) { e.Port = 70000 },
		"id:":                            func(e *Endpoint) { e.ID = "a/b" },
		"service_name:":                  func(e *Endpoint) { e.ServiceName = "Users" },
		"namespace:":                     func(e *Endpoint) { e.Namespace = ControlPlane.Namespace },
		`ip: "localhost" is not an IP`:   func(e *Endpoint) { e.IP = "localhost" },
		"ip: 0.0.0.0":                    func(e *Endpoint) { e.IP = "0.0.0.0" },
		"ip: 240.240.0.1":                func(e *Endpoint) { e.IP = "240.240.0.1" },
		"protocol:":                      func(e *Endpoint) { e.Protocol = "smtp" },
		"health_check_path:":             func(e *Endpoint) { e.HealthCheckPath = "health" },
		"weight:":                        func(e *Endpoint) { e.Weight = -1 },
		"labels.version:":                func(e *Endpoint) { e.Labels = map[string]string{"version": "a\nb"} },
	} {
		bad := e
		change(&bad)
		if got := bad.Validate().Error(); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"max_attempts", "delay", "enabled"}
	for in, want := range map[string]string{"max_atempts": "max_attempts", "delays": "delay", "zzz": "", "enable": "enabled"} {
		if got := Nearest(in, known); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// FuzzMerge: whatever the patch, settings are either refused and unchanged, or
// valid and shown again as they were set.
func FuzzMerge(f *testing.F) {
	for _, s := range []string{`{}`, `{"global_timeout": 3}`, `{"services": {"a": null}}`, `{"services": {"a": {"strategy": "random"}}}`, `{"observability": {"tracing_enabled": true}}`, `{"security":null}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, patch []byte) {
		s, err := DefaultSettings().Merge(patch)
		if err != nil {
			return
		}
		if p := s.Validate(); len(p) > 0 {
			t.Fatalf("taken, but %v", p)
		}
		shown, err := s.Effective()
		if err != nil {
			t.Fatal(err)
		}
		again, err := s.Merge([]byte(mustJSON(t, shown)))
		if err != nil {
			t.Fatalf("what is shown is refused: %v", err)
		}
		if a, b := mustJSON(t, again), mustJSON(t, s); a != b {
			t.Fatalf("%s became %s", b, a)
		}
	})
}
