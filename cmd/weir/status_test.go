package main

import (
	"strings"
	"testing"
	"time"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

func TestWhatNeedsAttentionOfCertificates(t *testing.T) {
	now := time.Unix(1000, 0)
	o := &overview{Proxies: map[string]int{}}
	o.addProxies([]api.ProxyStatus{
		{ID: "fresh", CertificateBegins: 900, CertificateExpires: 1900},
		{ID: "late", CertificateBegins: 0.5, CertificateExpires: 1300},
		{ID: "silent", CertificateExpires: 1000 + 3599},
	}, 1.0/3, now)
	o.addCA(&api.CA{
		Certificates: []api.Certified{{Kind: api.KindRoot, Name: "CN=old", Attention: true, Expires: 2000}, {Kind: api.KindRoot, Name: "CN=new", Signs: true, Expires: 9000}},
		Files:        &api.CAFiles{Path: "ca.pem", State: "in-force", Problem: "--ca-cert ca.pem: not PEM"},
		Rotation:     &api.RotationView{Stage: policy.StageTrust, Behind: []api.ProxyBehind{{ProxyName: api.ProxyName{ID: "slow"}, Reason: "is not connected"}}},
	})
	text := strings.Join(o.Attention, "\n")
	for _, want := range []string{"of proxy late ends", "of proxy silent ends", "root certificate CN=old ends at 1970-01-01T00:33:20Z", "not PEM", "waits for proxy slow: it is not connected"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "fresh") || len(o.Attention) != 5 || o.Rotation != policy.StageTrust || o.RootExpires.Unix() != 9000 {
		t.Errorf("%+v", o)
	}
}
