package feed

import (
	"maps"
	"time"
)

// Status is how the feed stands, for people.
type Status struct {
	Connected bool              `json:"connected"`
	Attached  bool              `json:"attached"`             // our endpoints are registered, and our figures taken
	Control   string            `json:"control"`              // the address connected to, or tried last
	Since     time.Time         `json:"since"`                // of Connected as it is
	LastError string            `json:"last_error,omitempty"` // why the last connection ended
	FromFile  bool              `json:"from_file"`            // state is of the file: nothing was heard of a control plane yet
	Services  int               `json:"services"`             // subscribed
	Lookups   int               `json:"lookups"`              // addresses asked for
	Rejected  map[string]string `json:"rejected,omitempty"`   // resource → why a hook refused it
}

// Status returns a copy.
func (f *Feed) Status() Status {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return Status{
		Connected: f.link.down != nil,
		Attached:  f.link.attached,
		Control:   f.link.address,
		Since:     f.link.since,
		LastError: f.link.lastErr,
		FromFile:  f.link.fromFile && !f.link.heard,
		Services:  len(f.subs.services),
		Lookups:   len(f.subs.addresses),
		Rejected:  maps.Clone(f.link.rejected),
	}
}
