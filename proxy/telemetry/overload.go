package telemetry

// Overloaded counts a request or connection refused because too many were under way: bound is one word
// ("concurrent", "pending", "connections").
func (s *Service) Overloaded(bound string) { s.overloads.get(bound).Inc() }

// Ejected counts an endpoint that is left out for doing worse than the others: reason is one word
// ("success-rate", "latency").
func (s *Service) Ejected(reason string) { s.ejections.get(reason).Inc() }

// EjectedNow sets how many endpoints of the service are left out.
func (s *Service) EjectedNow(n int) {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	if !s.forgotten { // a series now would stay for ever
		s.reg.ejected.WithLabelValues(string(s.key.direction), s.key.service, s.key.namespace).Set(float64(n))
	}
}
