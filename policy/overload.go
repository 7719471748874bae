package policy

// Overload bounds what each proxy sends to a service at once. 0 is no bound, but
// for Pending.
type Overload struct {
	Concurrent  int // requests under way
	Pending     int // requests that wait while Concurrent are; 0 is none
	Connections int // connections to its endpoints
}

// OverloadLimits sets the bounds for every service of the mesh.
type OverloadLimits struct {
	MaxConcurrent  int `json:"max_concurrent"`
	MaxPending     int `json:"max_pending"`
	MaxConnections int `json:"max_connections"`
}

const maxAtOnce = 1_000_000

func (l *OverloadLimits) validate() Problems {
	var p Problems
	p.intIn("max_concurrent", l.MaxConcurrent, 0, maxAtOnce)
	p.intIn("max_pending", l.MaxPending, 0, maxAtOnce)
	p.intIn("max_connections", l.MaxConnections, 0, maxAtOnce)
	return p
}

// validateQueue refuses a queue that nobody would ever stand in.
func (l *OverloadLimits) validateQueue() Problems {
	var p Problems
	if l.MaxPending > 0 && l.MaxConcurrent == 0 && l.MaxConnections == 0 {
		p.add("max_pending", "has no effect without max_concurrent or max_connections; set one of them")
	}
	return p
}

func (l *OverloadLimits) overload() Overload {
	return Overload{Concurrent: l.MaxConcurrent, Pending: l.MaxPending, Connections: l.MaxConnections}
}

// overload lays a service's own bounds over the mesh's.
func (v *ServiceSettings) overload(mesh OverloadLimits) OverloadLimits {
	take(&mesh.MaxConcurrent, v.MaxConcurrent)
	take(&mesh.MaxPending, v.MaxPending)
	take(&mesh.MaxConnections, v.MaxConnections)
	return mesh
}
