package api_test

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/weir-mesh/weir/controlplane/api"
)

// planes is a cluster whose store may be away.
type planes struct {
	asked int
	away  error
}

func (p *planes) Fresh(context.Context) error { p.asked++; return p.away }

func (p *planes) Members(context.Context) ([]api.Member, error) {
	return []api.Member{{Name: "a", Address: "10.0.0.1:8081"}, {Name: "b", Leader: true, Proxies: 3}}, p.away
}

func (p *planes) Figures(context.Context) api.ControlMetrics {
	return api.ControlMetrics{Name: "a", Members: 2, RefusedJoins: map[string]uint64{"token-expired": 1}}
}

func TestAReadSaysWhenItMayBeOutOfDate(t *testing.T) {
	p := &planes{}
	c, ctx := serve(t, newMesh(), func(cfg *api.Config) { cfg.Cluster = p }), t.Context()
	var heard []string
	c.Stale = func(why string) { heard = append(heard, why) }
	_, err := c.Services(ctx)
	check(t, err)
	if len(heard) != 0 || p.asked != 1 {
		t.Errorf("with the store: %q, asked %d times", heard, p.asked)
	}
	p.away = errors.New("etcd does not \"answer\"\r\nX-Evil: 1")
	_, err = c.Services(ctx)
	check(t, err)
	if len(heard) != 1 || heard[0] != "this may be out of date: etcd does not 'answer'  X-Evil: 1" {
		t.Errorf("without: %q", heard)
	}
	// Who has no token does not make us ask, nor does a write or the root.
	p.asked = 0
	stranger := &api.Client{BaseURL: c.BaseURL, Token: "wrong", HTTP: c.HTTP}
	if _, err := stranger.Services(ctx); err == nil {
		t.Error("a wrong token was taken")
	}
	_, err = c.RootPEM(ctx)
	check(t, err)
	_, err = c.UpdateSettings(ctx, map[string]any{"egress": "deny"})
	check(t, err)
	if p.asked != 0 {
		t.Errorf("asked %d times", p.asked)
	}
}

func TestStatusAndMetricsTellOfTheControlPlanes(t *testing.T) {
	p := &planes{}
	c, ctx := serve(t, newMesh(), func(cfg *api.Config) { cfg.Cluster = p }), t.Context()
	want, _ := p.Members(ctx)
	for _, away := range []error{nil, errors.New("since noon: etcd does not answer")} {
		p.away = away
		s, err := c.Status(ctx)
		check(t, err)
		healthy := away == nil
		if s.Leader != "b" || !reflect.DeepEqual(s.Members, want) || (s.Status == "healthy") != healthy || strings.Contains(s.Trouble, "noon") == healthy {
			t.Errorf("status %+v", s)
		}
	}
	m, err := c.Metrics(ctx)
	check(t, err)
	if m.Control == nil || m.Control.Name != "a" || m.Control.RefusedJoins["token-expired"] != 1 {
		t.Errorf("metrics %+v", m.Control)
	}
	got := send(t, c, http.MethodGet, api.BasePath+"/status", "")
	if got.header.Get("Warning") != "" { // it says so in words
		t.Error(got.header)
	}
}
