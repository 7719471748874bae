package api

import (
	"context"
	"maps"
	"slices"

	"github.com/weir-mesh/weir/policy"
)

// Applied is what became of a document.
type Applied struct {
	Document string   `json:"document"`
	Result   string   `json:"result"` // registered, added, unchanged, updated
	ID       string   `json:"id,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// Apply makes the call that a document stands for. Rules are added only if
// there is none like it yet, so that applying a file again changes nothing; a
// timeout or the like that the document leaves out is taken to be like one
// that is spelled out with the mesh's value.
func (c *Client) Apply(ctx context.Context, d *Document) (Applied, error) {
	out := Applied{Document: d.String()}
	var err error
	switch d.Kind {
	case "Endpoint":
		out.Result, out.ID = "registered", d.endpoint.ID
		err = c.Register(ctx, d.endpoint)
	case "TrafficRule":
		err = c.applyTrafficRule(ctx, d, &out)
	case "SecurityRule":
		err = c.applySecurityRule(ctx, d, &out)
	case "Config":
		out.Result = "updated"
		out.Warnings, err = c.UpdateSettings(ctx, d.settings)
	}
	return out, err
}

func (c *Client) applyTrafficRule(ctx context.Context, d *Document, out *Applied) error {
	rules, err := c.TrafficRules(ctx, d.service)
	if err != nil {
		return err
	}
	settings, err := get[policy.Settings](ctx, c, "/config")
	if err != nil {
		return err
	}
	traffic := settings.TrafficFor(d.service)
	want := viewTrafficRule(&d.traffic, &traffic)
	for _, r := range rules {
		if have := viewTrafficRule(&r, &traffic); sameTrafficRule(&have, &want) {
			out.Result, out.ID = "unchanged", r.ID
			return nil
		}
	}
	out.Result = "added"
	out.ID, err = c.AddTrafficRule(ctx, d.service, d.traffic)
	return err
}

func sameTrafficRule(a, b *trafficRuleView) bool {
	return maps.Equal(a.MatchHeaders, b.MatchHeaders) && same(a.MatchPath, b.MatchPath) &&
		same(a.MatchMethod, b.MatchMethod) && a.DestinationService == b.DestinationService &&
		same(a.DestinationSubset, b.DestinationSubset) && a.Weight == b.Weight && a.Timeout == b.Timeout &&
		a.RetryAttempts == b.RetryAttempts && a.CircuitBreaker == b.CircuitBreaker
}

func same(a, b *string) bool { return a == b || a != nil && b != nil && *a == *b }

func (c *Client) applySecurityRule(ctx context.Context, d *Document, out *Applied) error {
	rules, err := c.SecurityRules(ctx)
	if err != nil {
		return err
	}
	settings, err := get[policy.Settings](ctx, c, "/config")
	if err != nil {
		return err
	}
	mode := d.security.MTLSMode
	if mode == "" {
		mode = settings.MTLSMode
	}
	for _, r := range rules {
		if r.Source() == d.security.Source() && r.Destination() == d.security.Destination() &&
			r.RequiredJWT == d.security.RequiredJWT && r.MTLSMode == mode && slices.Equal(r.AllowedMethods, d.security.AllowedMethods) {
			out.Result, out.ID = "unchanged", r.ID
			return nil
		}
	}
	out.Result = "added"
	out.ID, err = c.AddSecurityRule(ctx, d.security)
	return err
}
