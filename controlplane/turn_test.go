package controlplane

import (
	"testing"

	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

var shop = policy.ServiceName{Namespace: "default", Name: "shop"}

// turnStory is what callers send and receivers take, at a service's port 80 and at 90.
func turnStory(v *view) (sends, takes [2]policy.MTLSMode) {
	svc, _ := v.Service(users)
	in := v.Inbound(users)
	for i, port := range []uint16{80, 90} {
		sends[i] = policy.Strict
		if svc.Traffic.SendsPlaintext(shop, port) {
			sends[i] = policy.Disabled
		}
		takes[i] = in.Mode(port)
	}
	return sends, takes
}

func TestModesChangeInTwoTurns(t *testing.T) {
	const strict, permissive, disabled = policy.Strict, policy.Permissive, policy.Disabled
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80")
	s.service(shop, 2, "10.0.0.2:80")
	for i, step := range []struct {
		mode             policy.MTLSMode
		ports            map[string]policy.MTLSMode
		sends, takes     [2]policy.MTLSMode // in the first turn
		sendsAt, takesAt [2]policy.MTLSMode // after it
	}{
		// To plain text: receivers take it before callers send it.
		{disabled, nil, [2]policy.MTLSMode{strict, strict}, [2]policy.MTLSMode{disabled, disabled}, [2]policy.MTLSMode{disabled, disabled}, [2]policy.MTLSMode{disabled, disabled}},
		// And back: callers cease to send it before receivers refuse it.
		{strict, nil, [2]policy.MTLSMode{strict, strict}, [2]policy.MTLSMode{disabled, disabled}, [2]policy.MTLSMode{strict, strict}, [2]policy.MTLSMode{strict, strict}},
		{permissive, nil, [2]policy.MTLSMode{strict, strict}, [2]policy.MTLSMode{permissive, permissive}, [2]policy.MTLSMode{strict, strict}, [2]policy.MTLSMode{permissive, permissive}},
		// One port by itself.
		{strict, map[string]policy.MTLSMode{"90": disabled}, [2]policy.MTLSMode{strict, strict}, [2]policy.MTLSMode{permissive, disabled}, [2]policy.MTLSMode{strict, disabled}, [2]policy.MTLSMode{strict, disabled}},
		{strict, nil, [2]policy.MTLSMode{strict, strict}, [2]policy.MTLSMode{strict, disabled}, [2]policy.MTLSMode{strict, strict}, [2]policy.MTLSMode{strict, strict}},
	} {
		s.st.Settings.MTLSMode = step.mode
		s.st.Settings.Services = map[string]policy.ServiceSettings{"users": {MTLSPorts: step.ports}}
		if c := s.apply(store.Change{Settings: true}); !c.AllInbounds || !c.AllServices || !s.v.turning() {
			t.Errorf("step %d: touched %+v, turning %v", i, c, s.v.turning())
		}
		if sends, takes := turnStory(s.v); sends != step.sends || takes != step.takes {
			t.Errorf("step %d, first turn: callers send %v, receivers take %v", i, sends, takes)
		}
		s.v.turned()
		if sends, takes := turnStory(s.v); sends != step.sendsAt || takes != step.takesAt {
			t.Errorf("step %d: callers send %v, receivers take %v", i, sends, takes)
		}
	}
	s.st.Settings.Egress = "deny"
	if s.apply(store.Change{Settings: true}); s.v.turning() {
		t.Error("a setting that is no mode begins a turn")
	}
}

func TestARulesModeChangesInTwoTurns(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80")
	s.service(shop, 2, "10.0.0.2:80")
	rule := policy.SecurityRule{
		ID: "r", SourceNamespace: shop.Namespace, SourceService: shop.Name, DestinationNamespace: users.Namespace, DestinationService: users.Name, AllowedMethods: []string{"*"},
	}
	set := func(mode policy.MTLSMode) {
		rule.MTLSMode = mode
		s.st.Security = []policy.SecurityRule{rule}
		s.apply(store.Change{Security: true})
	}
	sends := func() bool { svc, _ := s.v.Service(users); return svc.Traffic.SendsPlaintext(shop, 80) }
	takes := func() policy.InboundRule { return s.v.Inbound(users).Rules[0] }
	set("")
	s.v.turned()
	set(policy.Disabled)
	if sends() || takes().MTLSMode != policy.Disabled || len(takes().Addresses) != 1 {
		t.Errorf("first turn to plain text: sent %v, taken %+v", sends(), takes())
	}
	if s.v.turned(); !sends() {
		t.Error("no plain text is sent")
	}
	set("")
	if sends() || takes().MTLSMode != policy.Disabled || len(takes().Addresses) != 1 {
		t.Errorf("first turn back: sent %v, taken %+v", sends(), takes())
	}
	if s.v.turned(); sends() || takes().MTLSMode != "" || len(takes().Addresses) != 0 {
		t.Errorf("sent %v, taken %+v", sends(), takes())
	}
	s.st.Security = nil
	if s.apply(store.Change{Security: true}); len(s.v.Inbound(users).Rules) != 0 {
		t.Error("a rule that is gone is kept for a turn")
	}
}

func TestADenyKnowsItsSourcesWherePlainTextIsTaken(t *testing.T) {
	s := newSteps()
	s.service(users, 1, "10.0.0.1:80")
	s.service(shop, 2, "10.0.0.2:80")
	s.st.Security = []policy.SecurityRule{{
		ID: "d", Sources: []string{"default/sh*"}, DestinationNamespace: users.Namespace, DestinationService: users.Name, AllowedMethods: []string{"*"}, Action: policy.Deny,
	}}
	s.apply(store.Change{Security: true})
	if in := s.v.Inbound(users); len(in.Rules[0].Addresses) != 0 {
		t.Errorf("where nothing but mTLS is taken: %v", in.Rules[0].Addresses)
	}
	s.st.Settings.Namespaces = map[string]policy.NamespaceRules{"default": {MTLSMode: policy.Permissive}}
	s.apply(store.Change{Settings: true})
	if in := s.v.Inbound(users); len(in.Rules[0].Addresses) != 1 || in.Rules[0].Addresses[0].String() != "10.0.0.2" {
		t.Errorf("addresses %v", in.Rules[0].Addresses)
	}
	if c := s.service(shop, 2, "10.0.0.9:80"); !c.AllInbounds {
		t.Error("the source moved, and those who know it by address do not hear of it")
	}
}
