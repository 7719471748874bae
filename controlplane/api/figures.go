package api

import "context"

func (s *server) getMetrics(context.Context, *nothing) (*output[Metrics], error) {
	var m Metrics
	for _, v := range s.Registry.Services() {
		if v.Endpoints > 0 {
			m.Registry.TotalServices++
		}
		m.Registry.HealthyEndpoints += v.HealthyEndpoints
		m.Registry.UnhealthyEndpoints += v.Endpoints - v.HealthyEndpoints
		m.Registry.TrafficRules += v.TrafficRules
	}
	m.Registry.SecurityRules = len(s.Security.SecurityRules())
	f := s.Proxies.Totals()
	m.LoadBalancer = LoadBalancerMetrics{f.RequestsRouted, f.RoutingFailures, f.BackendFailures}
	m.Proxies = ProxyMetrics{len(s.Proxies.Proxies()), f.InboundRequests, f.OutboundRequests, f.RequestErrors}
	return &output[Metrics]{m}, nil
}

func (s *server) getStatus(context.Context, *nothing) (*output[Status], error) {
	st := Status{Status: "healthy", Proxies: len(s.Proxies.Proxies()), Uptime: s.Now().Sub(s.Started).Seconds()}
	for _, v := range s.Registry.Services() {
		if v.Endpoints > 0 {
			st.Services++
		}
	}
	return &output[Status]{st}, nil
}

func (s *server) listProxies(context.Context, *nothing) (*output[[]ProxyStatus], error) {
	proxies := append([]ProxyStatus{}, s.Proxies.Proxies()...)
	for i := range proxies {
		p := &proxies[i]
		p.Addresses = append([]string{}, p.Addresses...)
		p.Resources = append([]ResourceState{}, p.Resources...)
	}
	return &output[[]ProxyStatus]{proxies}, nil
}
