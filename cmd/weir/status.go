package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// Workloads renew their certificates at half their life, 24 h unless told otherwise:
// one that has an hour left was not renewed. That is for proxies that do not tell
// when theirs began.
const leafEndsSoon = time.Hour

func newStatusCommand(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how the mesh is, and what needs attention", Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, _ []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			o, err := oversee(cmd.Context(), c, time.Now())
			if err != nil {
				return err
			}
			return opt.print(cmd, o, o.write)
		}),
	}
}

// overview is the mesh on one screen.
type overview struct {
	ControlPlane api.Status `json:"control_plane"`
	Services     struct {
		Total     int `json:"total"`
		Healthy   int `json:"healthy"`   // all their endpoints are
		Unhealthy int `json:"unhealthy"` // some are not
		Down      int `json:"down"`      // none is
	} `json:"services"`
	Endpoints struct {
		Healthy   int `json:"healthy"`
		Unhealthy int `json:"unhealthy"`
	} `json:"endpoints"`
	TrafficRules  int            `json:"traffic_rules"`
	SecurityRules int            `json:"security_rules"`
	Proxies       map[string]int `json:"proxies"` // by state
	RootExpires   time.Time      `json:"root_expires,omitzero"`
	Rotation      string         `json:"rotation,omitempty"` // the stage of one that is under way
	Revocations   int            `json:"revocations"`
	LastChange    *api.Revision  `json:"last_change,omitempty"`
	Attention     []string       `json:"attention"`
}

// oversee asks for all that the screen shows.
func oversee(ctx context.Context, c *api.Client, now time.Time) (*overview, error) {
	o := &overview{Proxies: map[string]int{}, Attention: []string{}}
	var err error
	if o.ControlPlane, err = c.Status(ctx); err != nil {
		return nil, err
	}
	o.addConfigFile()
	services, err := c.Services(ctx)
	if err != nil {
		return nil, err
	}
	o.addServices(services)
	rules, err := c.SecurityRules(ctx)
	if err != nil {
		return nil, err
	}
	o.SecurityRules = len(rules)
	proxies, err := c.Proxies(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := c.CA(ctx)
	if err != nil {
		return nil, err
	}
	o.addProxies(proxies, ca.Alarm, now)
	o.addCA(&ca)
	revoked, err := c.Revocations(ctx)
	if err != nil {
		return nil, err
	}
	o.Revocations = len(revoked)
	last, err := c.History(ctx, 0, 1)
	if err == nil && len(last) > 0 {
		o.LastChange = &last[0]
	}
	return o, err
}

func (o *overview) attend(format string, args ...any) {
	o.Attention = append(o.Attention, fmt.Sprintf(format, args...))
}

// addConfigFile tells what of the mesh file is not in force. Its warnings are for
// who asks after it (weir get status).
func (o *overview) addConfigFile() {
	f := o.ControlPlane.ConfigFile
	if f == nil {
		return
	}
	for _, e := range f.Errors {
		o.attend("the config file is not in force: %s", e)
	}
	for _, u := range f.Unresolved {
		o.attend("the config file has a host name that leads nowhere: %s", u)
	}
}

func (o *overview) addServices(services []api.ServiceSummary) {
	for i := range services {
		s := &services[i]
		o.TrafficRules += s.TrafficRules
		o.Endpoints.Healthy += s.HealthyEndpoints
		o.Endpoints.Unhealthy += s.Endpoints - s.HealthyEndpoints
		if s.Endpoints == 0 {
			continue // rules alone
		}
		o.Services.Total++
		switch s.HealthyEndpoints {
		case s.Endpoints:
			o.Services.Healthy++
		case 0:
			o.Services.Down++
			o.attend("service %s has no healthy endpoint (0 of %d)", s.Service(), s.Endpoints)
		default:
			o.Services.Unhealthy++
			o.attend("service %s has %d of %d endpoints healthy", s.Service(), s.HealthyEndpoints, s.Endpoints)
		}
	}
}

// leafEnds tells whether a proxy's certificate should have been renewed by now.
func leafEnds(p *api.ProxyStatus, alarm float64, now time.Time) bool {
	left := p.CertificateExpires - float64(now.UnixMilli())/1000
	if p.CertificateBegins == 0 {
		return left < leafEndsSoon.Seconds()
	}
	return left < alarm*(p.CertificateExpires-p.CertificateBegins)
}

func (o *overview) addProxies(proxies []api.ProxyStatus, alarm float64, now time.Time) {
	for i := range proxies {
		p := &proxies[i]
		o.Proxies[cmp.Or(p.State, "unknown")]++
		for _, r := range p.Resources {
			if r.Refused != "" {
				o.attend("proxy %s refused a change of %s and keeps what it had: %s", p.ID, r.Type, r.Refused)
			}
		}
		if p.CertificateExpires == 0 {
			continue
		}
		if leafEnds(p, alarm, now) {
			o.attend("the certificate of proxy %s ends at %s and was not renewed", p.ID, when(p.CertificateExpires))
		}
	}
}

// addCA tells when the root ends that signs, which certificates end soon, and of a
// rotation that waits.
func (o *overview) addCA(ca *api.CA) {
	for _, c := range ca.Certificates {
		ends := time.Unix(int64(c.Expires), 0).UTC()
		if c.Kind == api.KindRoot && c.Signs {
			o.RootExpires = ends
		}
		if c.Attention {
			o.attend("the %s certificate %s ends at %s, and nothing takes its place", c.Kind, c.Name, ends.Format(time.RFC3339))
		}
	}
	if f := ca.Files; f != nil && f.Problem != "" {
		o.attend("the files of the certificate authority are not in force: %s", f.Problem)
	} else if f != nil && f.State == "waiting" {
		o.attend("%s stands under a root that the mesh does not trust yet; go over to it with: weir ca rotate", f.Path)
	}
	if r := ca.Rotation; r != nil && (r.Stage == policy.StageTrust || r.Stage == policy.StageReissue) {
		o.Rotation = r.Stage
		for _, p := range r.Behind {
			o.attend("the rotation of the root waits for proxy %s: it %s", p.ID, p.Reason)
		}
	}
}

// write shows the overview.
func (o *overview) write(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...)) // an error stays for Flush
	}
	c := &o.ControlPlane
	row("control plane", "%s, version %s, up %v", c.Status, c.Version, time.Duration(c.Uptime)*time.Second)
	if c.Trouble != "" {
		row("store", "%s; shown is what was known", c.Trouble)
	}
	if c.ConfigFile != nil {
		row("config file", "%s", configFileText(c.ConfigFile)+warned(c.ConfigFile))
	}
	for _, m := range c.Members {
		leads := ""
		if m.Leader {
			leads = ", leads"
		}
		row("  "+m.Name, "%s, version %s, since %s, %d proxies%s", m.Address, m.Version, when(m.Since), m.Proxies, leads)
	}
	row("services", "%d: %d healthy, %d with unhealthy endpoints, %d down", o.Services.Total, o.Services.Healthy, o.Services.Unhealthy, o.Services.Down)
	row("endpoints", "%d healthy, %d unhealthy", o.Endpoints.Healthy, o.Endpoints.Unhealthy)
	row("rules", "%d traffic, %d security", o.TrafficRules, o.SecurityRules)
	row("proxies", "%d current, %d behind, %d refusing, %d elsewhere, %d away", o.Proxies[api.Current], o.Proxies[api.Behind], o.Proxies[api.Refusing],
		o.Proxies[api.Elsewhere], o.Proxies[api.Away])
	if !o.RootExpires.IsZero() {
		row("root", "ends %s", o.RootExpires.Format(time.RFC3339))
	}
	if o.Rotation != "" {
		row("rotation", "stage %s", stageNumbers[o.Rotation])
	}
	if o.Revocations > 0 {
		row("revocations", "%d", o.Revocations)
	}
	if r := o.LastChange; r != nil {
		row("last change", "revision %d, %s, by %s, %d resources", r.Revision, when(r.Time), by(r), r.Total)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(o.Attention) == 0 {
		_, err := fmt.Fprintln(w, "nothing needs attention")
		return err
	}
	_, err := fmt.Fprintf(w, "needs attention:\n  %s\n", strings.Join(o.Attention, "\n  "))
	return err
}
