package policy

import "encoding/json"

// Idle names the settings that a patch of Merge switched on and that nothing acts
// on in this version: what a gateway and an exporter of traces would read. The
// receiver is what the patch led to.
func (s *Settings) Idle(patch []byte) []string {
	var p struct {
		Security      map[string]json.RawMessage `json:"security"`
		Observability map[string]json.RawMessage `json:"observability"`
	}
	if json.Unmarshal(patch, &p) != nil {
		return nil // Merge took it, so this cannot be
	}
	var idle []string
	note := func(on bool, in map[string]json.RawMessage, group string, keys ...string) {
		for _, key := range keys {
			if _, ok := in[key]; ok && on {
				idle = append(idle, group+"."+key)
			}
		}
	}
	note(s.Security.CORS.Enabled, p.Security, "security", "cors")
	note(s.Security.SSL.Enabled, p.Security, "security", "ssl")
	note(s.Security.Authentication.Enabled, p.Security, "security", "authentication")
	note(s.Observability.Tracing.Enabled, p.Observability, "observability", "tracing", "tracing_enabled")
	return idle
}
