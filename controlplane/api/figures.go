package api

import "context"

func (s *Server) getMetrics(ctx context.Context, _ *nothing) (*output[Metrics], error) {
	var m Metrics
	for _, v := range s.Mesh.Snapshot().Services() {
		if v.Endpoints > 0 {
			m.Registry.TotalServices++
		}
		m.Registry.HealthyEndpoints += v.HealthyEndpoints
		m.Registry.UnhealthyEndpoints += v.Endpoints - v.HealthyEndpoints
		m.Registry.TrafficRules += v.TrafficRules
	}
	m.Registry.SecurityRules = len(s.Mesh.Snapshot().SecurityRules())
	f := s.Proxies.Totals()
	m.LoadBalancer = LoadBalancerMetrics{f.RequestsRouted, f.RoutingFailures, f.BackendFailures}
	m.Proxies = ProxyMetrics{s.connected(), f.InboundRequests, f.OutboundRequests, f.RequestErrors}
	m.API = APIMetrics{s.feed.watching(), s.refused.total()}
	if s.Cluster != nil {
		f := s.Cluster.Figures(ctx)
		m.Control = &f
	}
	return &output[Metrics]{m}, nil
}

func (s *Server) getStatus(ctx context.Context, _ *nothing) (*output[Status], error) {
	st := Status{Status: "healthy", Proxies: s.connected(), Uptime: s.Now().Sub(s.Started).Seconds(), Version: s.Version}
	for _, v := range s.Mesh.Snapshot().Services() {
		if v.Endpoints > 0 {
			st.Services++
		}
	}
	if s.ConfigFile != nil {
		st.ConfigFile = s.ConfigFile()
	}
	s.addMembers(ctx, &st)
	return &output[Status]{st}, nil
}

// addMembers tells of the control planes. One whose store does not answer is
// degraded: it tells what it knew.
func (s *Server) addMembers(ctx context.Context, st *Status) {
	if s.Cluster == nil {
		return
	}
	members, err := s.Cluster.Members(ctx)
	st.Members = members
	if err != nil {
		st.Status, st.Trouble = "degraded", err.Error()
	}
	for _, m := range members {
		if m.Leader {
			st.Leader = m.Name
		}
	}
}

// connected counts the proxies that are connected, here or elsewhere.
func (s *Server) connected() int {
	n := 0
	for _, p := range s.Proxies.Proxies() {
		if p.State != Away {
			n++
		}
	}
	return n
}

func (s *Server) listProxies(context.Context, *nothing) (*output[[]ProxyStatus], error) {
	proxies := append([]ProxyStatus{}, s.Proxies.Proxies()...)
	for i := range proxies {
		p := &proxies[i]
		p.Addresses = append([]string{}, p.Addresses...)
		p.Resources = append([]ResourceState{}, p.Resources...)
	}
	return &output[[]ProxyStatus]{proxies}, nil
}
