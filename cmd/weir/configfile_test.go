package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
)

// Both commands that tell how the mesh is tell how its file stands, and the one
// for the whole mesh that it needs attention.
func TestAConfigFileThatIsNotInForceNeedsAttention(t *testing.T) {
	s := api.Status{Status: "healthy", ConfigFile: &api.ConfigFile{
		Path: "/etc/mesh.yml", State: "refused", Digest: "abc", AppliedAt: 60, AppliedBy: "one",
		Errors: []string{"/etc/mesh.yml:4:5: mesh.egres: unknown setting"}, Warnings: []string{"a warning"}, Unresolved: []string{"users: no such host"},
	}}
	const line = "/etc/mesh.yml: refused; what was in force before stays (in force: abc, since 1970-01-01T00:01:00Z, by one)"
	var short, long bytes.Buffer
	o := &overview{ControlPlane: s, Proxies: map[string]int{}}
	o.addConfigFile()
	for _, err := range []error{printStatus(&short, &s), o.write(&long)} {
		if err != nil {
			t.Error(err)
		}
	}
	if want := "config file " + line + "\n  error: /etc/mesh.yml:4:5: mesh.egres: unknown setting\n  warning: a warning\n  unresolved: users: no such host\n"; !strings.HasSuffix(short.String(), want) {
		t.Errorf("weir get status:\n%s", short.String())
	}
	if got := long.String(); !strings.Contains(got, "config file    "+line+", warnings: 1, which weir get status shows\n") || !strings.HasSuffix(got, "needs attention:\n"+
		"  the config file is not in force: /etc/mesh.yml:4:5: mesh.egres: unknown setting\n  the config file has a host name that leads nowhere: users: no such host\n") {
		t.Errorf("weir status:\n%s", got)
	}
}
