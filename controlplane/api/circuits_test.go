package api_test

import (
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func TestCircuitsAreShownAndOrdered(t *testing.T) {
	m := newMesh()
	m.Connect(policy.Figures{}, api.ProxyStatus{ID: "p1", Namespace: "default", ServiceName: "web"})
	closed := `{"namespace":"default","service_name":"user-service","id":"user-service-1","order":"","until":0,"registered":true,"proxies":[]}`
	open := strings.NewReplacer(`"order":""`, `"order":"open"`, `"until":0`, `"until":30`, `[]`,
		`[{"proxy":"p1","namespace":"default","service_name":"web","state":"open","failures":0,"since":60,"ordered":true,"outlier":false}]`).Replace(closed)
	play(t, m, []step{
		{"GET", "/circuits/default/user-service", "", `[]`},
		{"POST", "/services/register", userService1, `{"status":"registered"}`},
		{"GET", "/circuits/default/user-service", "", `[` + closed + `]`},
		{"POST", "/circuits/default/user-service/user-service-1", `{"state":"open","ttl":30}`, `{"status":"circuit opened"}`},
		{"GET", "/circuits/default/user-service", "", `[` + open + `]`},
		{"POST", "/circuits/default/user-service/user-service-1", `{"state":"close"}`, `{"status":"circuit closed"}`},
		{"POST", "/circuits/default/user-service/user-service-1", `{"state":"reset"}`, `{"status":"circuit reset"}`},
		{"GET", "/circuits/default/user-service", "", `[` + closed + `]`},
	})
	c := serve(t, m)
	const path = "/api/v1/circuits/default/user-service/user-service-1"
	for body, want := range map[string]string{
		`{"state":"ajar"}`:              `body.state`,
		`{}`:                            `body.state: is missing`,
		`{"state":"open","ttl":0.5}`:    `body.ttl: 0.5 s is not in 1..2.592e+06 s`,
		`{"state":"open","ttl":"long"}`: `body.ttl`,
		`{"state":"reset","ttl":5}`:     `body.ttl: a reset is done once`,
		`{"state":"open","tttl":5}`:     `did you mean "ttl"?`,
	} {
		if got := send(t, c, "POST", path, body); got.status != 400 || !strings.Contains(got.body, strings.ReplaceAll(want, `"`, `\"`)) {
			t.Errorf("%s: %d %s, want %q", body, got.status, got.body, want)
		}
	}
	refusal(t, send(t, c, "POST", path+"0", `{"state":"open"}`), 404)
	refusal(t, send(t, c, "POST", path, `{"state":"open"}`, "Authorization: "), 401)
	name := policy.ServiceName{Namespace: "default", Name: "user-service"}
	if err := c.OrderCircuit(t.Context(), name, "user-service-1", policy.CircuitOpen, time.Minute); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Circuits(t.Context(), name); err != nil || len(got) != 1 || got[0].Until != 60 || got[0].Proxies[0].State != "open" {
		t.Errorf("%+v, %v", got, err)
	}
}
