package main

import (
	"net/netip"

	"github.com/spf13/pflag"

	"github.com/weir-mesh/weir/redirect"
)

// scopeFlag is a flag that narrows what is redirected.
type scopeFlag struct {
	name, field, text string
	set               func(s *redirect.Scope, text string) error
}

// defineScope adds the flags for redirect.Scope, one for each field.
func (f *flags) defineScope(fl *pflag.FlagSet) {
	add := func(field, name, usage string, set func(*redirect.Scope, string) error) {
		part := &scopeFlag{name: name, field: field, set: set}
		fl.StringVar(&part.text, name, "", usage)
		f.scope = append(f.scope, part)
	}
	add("InboundPortsToIgnore", "inbound-ports-to-ignore", "TCP ports that reach the app directly, like 22,9000-9100",
		list(redirect.ParsePortRanges, func(s *redirect.Scope) *[]redirect.PortRange { return &s.InboundPortsToIgnore }))
	add("InboundPortsToInclude", "inbound-ports-to-include", "redirect only these TCP ports of the app",
		list(redirect.ParsePortRanges, func(s *redirect.Scope) *[]redirect.PortRange { return &s.InboundPortsToInclude }))
	add("InboundCIDRsToIgnore", "inbound-cidrs-to-ignore", "callers that reach the app directly, like 10.0.0.1,2001:db8::/32",
		list(redirect.ParsePrefixes, func(s *redirect.Scope) *[]netip.Prefix { return &s.InboundCIDRsToIgnore }))
	add("OutboundPortsToIgnore", "outbound-ports-to-ignore", "TCP ports that are dialled directly, like 22,9000-9100",
		list(redirect.ParsePortRanges, func(s *redirect.Scope) *[]redirect.PortRange { return &s.OutboundPortsToIgnore }))
	add("OutboundPortsToInclude", "outbound-ports-to-include", "redirect only connections to these TCP ports, and to virtual addresses",
		list(redirect.ParsePortRanges, func(s *redirect.Scope) *[]redirect.PortRange { return &s.OutboundPortsToInclude }))
	add("OutboundCIDRsToIgnore", "outbound-cidrs-to-ignore", "destinations that are dialled directly, like 10.0.0.0/8,2001:db8::1",
		list(redirect.ParsePrefixes, func(s *redirect.Scope) *[]netip.Prefix { return &s.OutboundCIDRsToIgnore }))
	add("OutboundCIDRsToInclude", "outbound-cidrs-to-include", "redirect only connections to these destinations, and to virtual addresses",
		list(redirect.ParsePrefixes, func(s *redirect.Scope) *[]netip.Prefix { return &s.OutboundCIDRsToInclude }))
	add("UIDsToIgnore", "uids-to-ignore", "users whose connections and DNS are left alone, like 0,1000-1010",
		list(redirect.ParseIDRanges, func(s *redirect.Scope) *[]redirect.IDRange { return &s.UIDsToIgnore }))
	add("GIDsToIgnore", "gids-to-ignore", "groups whose connections and DNS are left alone",
		list(redirect.ParseIDRanges, func(s *redirect.Scope) *[]redirect.IDRange { return &s.GIDsToIgnore }))
	add("CgroupsToIgnore", "cgroups-to-ignore", "directories of cgroup v2 whose connections and DNS are left alone, like system.slice/backup.service",
		list(redirect.ParseNames, func(s *redirect.Scope) *[]string { return &s.CgroupsToIgnore }))
	add("InterfacesToIgnore", "interfaces-to-ignore", "interfaces whose traffic is left alone both ways, like docker0,tun+",
		list(redirect.ParseNames, func(s *redirect.Scope) *[]string { return &s.InterfacesToIgnore }))
}

// list has what parse makes of a flag's text be a field of the scope.
func list[T any](parse func(string) (T, error), field func(*redirect.Scope) *T) func(*redirect.Scope, string) error {
	return func(s *redirect.Scope, text string) (err error) {
		*field(s), err = parse(text)
		return err
	}
}

// flagOf says which flag sets a field of redirect.Config.
func (f *flags) flagOf(field string) string {
	for _, part := range f.scope {
		if part.field == field {
			return part.name
		}
	}
	return flagOf[field]
}
