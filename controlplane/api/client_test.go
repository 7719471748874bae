package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

var web = policy.ServiceName{Namespace: "default", Name: "web"}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheClientTellsWhatTheServerKeeps(t *testing.T) {
	m := newMesh()
	c, ctx := serve(t, m), t.Context()

	e := policy.DefaultEndpoint()
	e.ID, e.ServiceName, e.Namespace, e.IP, e.Port, e.Weight = "web:1", "web", "default", "fd00::1", 80, 0
	e.Labels = map[string]string{"version": "v2"}
	check(t, c.Register(ctx, e))
	e.LastSeen = 1700000090
	endpoints, err := c.Endpoints(ctx, web)
	check(t, err)
	if !reflect.DeepEqual(endpoints, []policy.Endpoint{e}) {
		t.Errorf("endpoints: %+v", endpoints)
	}
	services, err := c.Services(ctx)
	check(t, err)
	if len(services) != 1 || services[0].Service() != web || services[0].Endpoints != 1 {
		t.Errorf("services: %+v", services)
	}

	rule := policy.DefaultTrafficRule()
	rule.MatchPath, rule.DestinationSubset, rule.CircuitBreaker, rule.Weight = "/api/*", "v2", false, 0
	rule.ID, err = c.AddTrafficRule(ctx, web, rule)
	check(t, err)
	rule.Timeout, rule.RetryAttempts = 30, 3
	rules, err := c.TrafficRules(ctx, web)
	check(t, err)
	if !reflect.DeepEqual(rules, []policy.TrafficRule{rule}) {
		t.Errorf("traffic rules: %+v", rules)
	}

	allow := policy.SecurityRule{SourceNamespace: "*", SourceService: "*", DestinationNamespace: "default", DestinationService: "web", RequiredJWT: true}
	allow.ID, err = c.AddSecurityRule(ctx, allow)
	check(t, err)
	allow.AllowedMethods, allow.MTLSMode = policy.DefaultMethods(), policy.Strict
	allowed, err := c.SecurityRules(ctx)
	check(t, err)
	if !reflect.DeepEqual(allowed, []policy.SecurityRule{allow}) {
		t.Errorf("security rules: %+v", allowed)
	}

	check(t, c.Deregister(ctx, web, e.ID))
	check(t, c.DeleteTrafficRule(ctx, web, rule.ID))
	check(t, c.DeleteSecurityRule(ctx, allow.ID))
	if services, err := c.Services(ctx); err != nil || len(services) != 0 {
		t.Errorf("left: %+v, %v", services, err)
	}
}

func TestTheClientReadsFiguresSettingsAndSecrets(t *testing.T) {
	m := newMesh()
	p := api.ProxyStatus{ID: "p", Namespace: "default", ServiceName: "web", Addresses: []string{"10.0.0.1"},
		Resources: []api.ResourceState{{Type: "Service", Version: "a1", Refused: "no"}}}
	p.SetFigures(policy.Figures{InboundRequests: 1, OutboundRequests: 2, RequestErrors: 3, RequestDurationTotal: 4, CircuitBreakerOpens: 5})
	m.Connect(policy.Figures{}, p)
	c, ctx := serve(t, m), t.Context()

	proxies, err := c.Proxies(ctx)
	check(t, err)
	if !reflect.DeepEqual(proxies, m.Proxies()) {
		t.Errorf("proxies: %+v", proxies)
	}
	status, err := c.Status(ctx)
	check(t, err)
	if !reflect.DeepEqual(status, api.Status{Status: "healthy", Proxies: 1, Uptime: 90}) {
		t.Errorf("status: %+v", status)
	}
	metrics, err := c.Metrics(ctx)
	check(t, err)
	if metrics.Proxies.TotalProxies != 1 {
		t.Errorf("metrics: %+v", metrics)
	}

	warnings, err := c.UpdateSettings(ctx, json.RawMessage(`{"egress":"deny","security":{"cors":{"enabled":true}}}`))
	check(t, err)
	if len(warnings) != 1 || warnings[0] != "security.cors: kept, but not acted on by this version" {
		t.Errorf("warnings: %q", warnings)
	}
	settings, err := c.Settings(ctx)
	check(t, err)
	if settings["egress"] != "deny" || settings["global_timeout"] != 30.0 {
		t.Errorf("settings: %v", settings)
	}

	root, err := c.RootPEM(ctx)
	check(t, err)
	own, err := c.Issue(ctx, web, nil)
	check(t, err)
	signed, err := c.Issue(ctx, web, []byte(signingRequest(t)))
	check(t, err)
	if string(root) != "ROOT\n" || own.PrivateKey != "KEY" || signed.PrivateKey != "" || signed.Certificate == "" {
		t.Errorf("root %q, own %+v, signed %+v", root, own, signed)
	}
	tok, err := c.CreateToken(ctx, web, time.Hour)
	check(t, err)
	if tok != (api.Token{Token: "weir1.default/web", Expires: 1700003600, ID: "t1"}) {
		t.Errorf("token: %+v", tok)
	}
}

func TestTheClientSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	c, ctx := serve(t, newMesh()), t.Context()
	wantError := func(err error, status int, text string) {
		t.Helper()
		var ae *api.Error
		if !errors.As(err, &ae) || ae.Status != status || err.Error() != text {
			t.Errorf("got %v, want %d %s", err, status, text)
		}
	}
	wantError(c.Register(ctx, policy.Endpoint{ID: "x", ServiceName: "web", Namespace: "default", IP: "10.0.0.1", Port: 70000}), 400, "body.port: 70000 is not in 1..65535")
	wantError(c.DeleteSecurityRule(ctx, "r9"), 404, "security rule r9: not found")
	stranger := *c
	if list, err := c.Tokens(ctx); err != nil || len(list) != 3 || list[1].State != "used-up" {
		t.Errorf("tokens: %+v %v", list, err)
	}
	if tok, err := c.CreateTokenFor(ctx, web, time.Hour, 7); err != nil || tok.Uses != 7 {
		t.Errorf("token for seven: %+v %v", tok, err)
	}
	if err := c.RevokeToken(ctx, "t1"); err != nil {
		t.Error(err)
	}
	wantError(c.RevokeToken(ctx, "t9"), 404, "join token t9: not found")
	stranger.Token = "guess"
	_, err := stranger.Status(ctx)
	wantError(err, 401, "the admin token is wrong (--token-file or WEIR_TOKEN_FILE names the file with the admin token)")

	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			fmt.Fprint(w, "<html>hello</html>")
			return
		}
		http.Error(w, "<html>go away</html>", http.StatusTeapot)
	}))
	defer other.Close()
	elsewhere := api.Client{BaseURL: other.URL + "/", HTTP: other.Client()}
	wantError(elsewhere.DeleteSecurityRule(ctx, "r"), 418, "the control plane answered 418 I'm a teapot")
	if _, err := elsewhere.Status(ctx); err == nil || !strings.Contains(err.Error(), "is not a control plane") {
		t.Errorf("an answer from something else: %v", err)
	}
}

func TestNoControlPlaneThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	url := "http://" + l.Addr().String()
	l.Close()
	_, err = (&api.Client{BaseURL: url}).Status(t.Context())
	want := "connection refused: is `weir control` running on " + url + "? (--server or WEIR_SERVER)"
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if _, err := (&api.Client{BaseURL: "http://no-such-host.invalid"}).Status(t.Context()); err == nil || !strings.Contains(err.Error(), "--server") {
		t.Errorf("%v", err)
	}
	if _, err := (&api.Client{BaseURL: ":nonsense"}).Status(t.Context()); err == nil {
		t.Error("a bad URL is taken")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&api.Client{BaseURL: url}).Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestManyCallersAtOnce(t *testing.T) {
	m := newMesh()
	c, ctx := serve(t, m), t.Context()
	const callers, each = 8, 10
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for j := range each {
				e := policy.DefaultEndpoint()
				e.ID, e.ServiceName, e.Namespace, e.IP, e.Port = fmt.Sprintf("e%d-%d", i, j), "web", "default", "10.0.0.1", 80
				if err := c.Register(ctx, e); err != nil {
					t.Error(err)
				}
				if _, err := c.AddTrafficRule(ctx, web, policy.DefaultTrafficRule()); err != nil {
					t.Error(err)
				}
				if _, err := c.UpdateSettings(ctx, map[string]any{"global_timeout": 1 + i}); err != nil {
					t.Error(err)
				}
				for _, path := range []string{"/openapi.json", "/config", "/metrics"} {
					if got := send(t, c, "GET", api.BasePath+path, ""); got.status != 200 {
						t.Errorf("%s: %d", path, got.status)
					}
				}
			}
		})
	}
	wg.Wait()
	endpoints, err := c.Endpoints(ctx, web)
	check(t, err)
	if len(endpoints) != callers*each || len(m.TrafficRules(web)) != callers*each {
		t.Errorf("%d endpoints, %d rules", len(endpoints), len(m.TrafficRules(web)))
	}
}
