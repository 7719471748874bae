package controlplane

import (
	"slices"
	"strings"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/controlplane/store"
	"github.com/weir-mesh/weir/policy"
)

// snapshot shows a state of the store as the API wants it.
type snapshot struct {
	store *store.Store
	st    *store.State
}

// Revision implements api.Snapshot.
func (s snapshot) Revision() int64 { return s.st.Revision }

// Services implements api.Snapshot.
func (s snapshot) Services() []api.ServiceSummary {
	out := make([]api.ServiceSummary, 0, s.st.Services.Len())
	for _, svc := range s.st.Services.All() {
		out = append(out, summary(svc))
	}
	slices.SortFunc(out, func(a, b api.ServiceSummary) int {
		return strings.Compare(a.Service().String(), b.Service().String())
	})
	return out
}

// Service implements api.Snapshot.
func (s snapshot) Service(name policy.ServiceName) (api.ServiceSummary, bool) {
	svc := s.st.Services.Get(name)
	if svc == nil {
		return api.ServiceSummary{}, false
	}
	return summary(svc), true
}

func summary(svc *store.Service) api.ServiceSummary {
	sum := api.ServiceSummary{Namespace: svc.Name.Namespace, ServiceName: svc.Name.Name, Endpoints: len(svc.Endpoints), TrafficRules: len(svc.Rules)}
	if v4, v6, err := policy.VirtualAddrs(svc.VirtualIndex); err == nil {
		sum.VirtualIPv4, sum.VirtualIPv6 = v4.String(), v6.String()
	}
	for i := range svc.Endpoints {
		if svc.Endpoints[i].Status != policy.Unhealthy {
			sum.HealthyEndpoints++
		}
	}
	return sum
}

// Endpoints implements api.Snapshot.
func (s snapshot) Endpoints(name policy.ServiceName) []api.EndpointState {
	stored := s.store.EndpointsIn(s.st, name)
	out := make([]api.EndpointState, len(stored))
	for i := range stored {
		out[i] = api.EndpointState{Endpoint: stored[i].Endpoint, Version: stored[i].Revision, ProxyID: stored[i].ProxyID}
	}
	return out
}

// TrafficRules implements api.Snapshot.
func (s snapshot) TrafficRules(name policy.ServiceName) []api.Versioned[policy.TrafficRule] {
	if svc := s.st.Services.Get(name); svc != nil {
		return versioned(svc.Rules, svc.RuleRevisions)
	}
	return nil
}

// SecurityRules implements api.Snapshot.
func (s snapshot) SecurityRules() []api.Versioned[policy.SecurityRule] {
	return versioned(s.st.Security, s.st.SecurityRevisions)
}

// Settings implements api.Snapshot.
func (s snapshot) Settings() api.Versioned[policy.Settings] {
	return api.Versioned[policy.Settings]{Value: s.st.Settings, Version: s.st.SettingsRevision}
}

func versioned[T any](values []T, revisions []int64) []api.Versioned[T] {
	out := make([]api.Versioned[T], len(values))
	for i := range values {
		out[i] = api.Versioned[T]{Value: values[i], Version: revisions[i]}
	}
	return out
}

// touched names what a change of the store may have changed in the API's lists.
func touched(c store.Change) api.Touched {
	out := api.Touched{Security: c.Security, Settings: c.Settings}
	for name := range c.Services {
		out.Services = append(out.Services, name)
	}
	slices.SortFunc(out.Services, func(a, b policy.ServiceName) int { return strings.Compare(a.String(), b.String()) })
	return out
}
