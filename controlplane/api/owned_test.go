package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/policy"
)

// Whatever the way in, who changes what the mesh file keeps is told so, and where
// it is to be changed.
func TestWhatTheMeshFileKeepsIsAConflict(t *testing.T) {
	m := newMesh()
	client := serve(t, m)
	const endpoint = `{"namespace": "default", "service_name": "web", "id": "e", "ip": "10.0.0.1", "port": 80}`
	send(t, client, "POST", "/api/v1/services/register", endpoint)
	m.Break(fmt.Errorf("endpoint e of default/web %w /etc/mesh.yml; change it there", policy.ErrOwned))
	for _, dryRun := range []string{"", "?dry_run=1"} {
		for _, call := range []struct{ method, path, body string }{
			{"POST", "/services/register", endpoint},
			{"PUT", "/services/default/web/e", `{"ip": "10.0.0.1", "port": 80}`},
			{"DELETE", "/services/default/web/e", ""},
			{"POST", "/config", `{"egress": "deny"}`},
			{"PUT", "/config", `{"egress": "deny"}`},
			{"DELETE", "/config", ""},
			{"POST", "/apply", `{"documents": [{"kind": "Config", "spec": {"egress": "deny"}}]}`},
		} {
			a := send(t, client, call.method, "/api/v1"+call.path+dryRun, call.body)
			if a.status != 409 || !strings.Contains(a.body, "kept by the mesh file /etc/mesh.yml; change it there") {
				t.Errorf("%s %s%s: %d %s", call.method, call.path, dryRun, a.status, a.body)
			}
		}
	}
}
