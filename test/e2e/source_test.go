package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/test/meshlab"
)

// TestTheAppSeesItsCallersAddress in each of the ways, by HTTP on connections that
// are used again, by a connection each, and as raw TCP.
func TestTheAppSeesItsCallersAddress(t *testing.T) {
	t.Parallel()
	m := start(t)
	front := join(t, m, meshlab.Workload{Host: "front", Service: "frontend"})
	other := join(t, m, meshlab.Workload{Host: "other", Service: "frontend"})
	for _, c := range []struct {
		service, listen string
		proxy, init     []string
		want            func(caller, app *meshlab.Node) string
	}{
		{"own", "", nil, nil, func(_, app *meshlab.Node) string { return app.Addr4().String() }},
		{"client", "", []string{"--app-source", "client"}, []string{"--preserve-source"}, func(caller, _ *meshlab.Node) string { return caller.Addr4().String() }},
		{"fixed", "", []string{"--app-source", "127.0.0.6"}, nil, func(_, _ *meshlab.Node) string { return "127.0.0.6" }},
		{"header", " proxy_protocol", []string{"--app-source", "proxy-protocol"}, nil, func(caller, _ *meshlab.Node) string { return caller.Addr4().String() }},
	} {
		t.Run(c.service, func(t *testing.T) {
			app := join(t, m, meshlab.Workload{Host: c.service, Service: c.service, Ports: []string{"8000/http", "8001/tcp"}, Proxy: c.proxy, Init: c.init})
			seen := "$remote_addr"
			if c.listen != "" {
				seen = "$proxy_protocol_addr"
			}
			nginx(t, m, app, 8000, fmt.Sprintf(`server { listen 8000%[1]s; location / { return 200 "%[2]s\n"; } }
server { listen 8001%[1]s; location / { return 200 "%[2]s\n"; } }`, c.listen, seen))
			allow(t, m, "frontend", c.service)
			for _, port := range []string{"8000", "8001"} {
				url := "http://" + c.service + ":" + port + "/"
				await(t, m, url+" answers", func() error {
					out, err := front.Output(t.Context(), "curl", "-sSf", "--max-time", "5", url)
					if err != nil {
						return fmt.Errorf("%w %s", err, out)
					}
					return nil
				})
				for range 3 { // in turn, so that a connection kept for one would be taken for the other
					for _, caller := range []*meshlab.Node{front, other} {
						want := strings.Repeat(c.want(caller, app)+"\n", 2)
						if got := curl(t, caller, url, url); got != want {
							t.Errorf("port %s: %s is seen as %q, want %q", port, caller.Addr4(), got, want)
						}
					}
				}
			}
		})
	}
}
