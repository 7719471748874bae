package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/redirect"
)

// flags is the command line as it was given.
type flags struct {
	netns                             string
	proxyUID                          uint32
	proxyMark, inboundMark            uint32
	outboundPort, inboundPort         uint16
	dnsPort, adminPort                uint16
	scope                             []*scopeFlag
	mode, ipv6                        string
	virtual4, virtual6                string
	noDNS, dryRun, verify, cleanup    bool
	preserveSource                    bool
	output                            string
	shortcut, cgroup                  string
	timeout                           time.Duration
	proxyUIDGiven, inboundMarkDerived bool
}

// flagOf says which flag sets a field of redirect.Config, but for those of its Scope.
var flagOf = map[string]string{
	"OutboundPort": "outbound-port", "InboundPort": "inbound-port", "DNSPort": "dns-port", "AdminPort": "admin-port",
	"Mark": "proxy-mark", "InboundMark": "inbound-mark", "ProxyUID": "proxy-uid",
	"PreserveSource": "preserve-source", "Mode": "iptables-mode", "IPv6": "ipv6", "VirtualIPv4": "virtual-ipv4", "VirtualIPv6": "virtual-ipv6",
}

func command(stdout io.Writer) *cobra.Command {
	var f flags
	cmd := &cobra.Command{
		Use:           "weir-init",
		Short:         "Redirect a network namespace's traffic to the weir proxy",
		Long:          "weir-init installs the iptables rules that send a network namespace's traffic to the weir proxy.\nIt needs CAP_NET_ADMIN. Running it again changes nothing, or mends what has drifted.",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.proxyUIDGiven = cmd.Flags().Changed("proxy-uid")
			f.inboundMarkDerived = !cmd.Flags().Changed("inbound-mark")
			return f.run(cmd.Context(), stdout)
		},
	}
	// Cobra calls this for unknown and malformed flags, and names them.
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{fmt.Errorf("unexpected argument %q", args[0])}
		}
		return nil
	}
	f.define(cmd)
	return cmd
}

func (f *flags) define(cmd *cobra.Command) {
	d, fl := redirect.DefaultConfig(), cmd.Flags()
	fl.StringVar(&f.netns, "netns", "", "network namespace, as a path or a name of ip netns (default this process's)")
	fl.Uint32Var(&f.proxyUID, "proxy-uid", 0, "let pass the proxy by this uid too, where it may not set marks; an app of this uid can then bypass it on purpose")
	fl.Uint32Var(&f.proxyMark, "proxy-mark", d.Mark, "socket mark of the proxy's connections to others")
	fl.Uint32Var(&f.inboundMark, "inbound-mark", d.InboundMark, "socket mark of the proxy's connections to its own app (--proxy-mark plus one where only that is given)")
	fl.Uint16Var(&f.outboundPort, "outbound-port", d.OutboundPort, "port of the proxy for outbound TCP")
	fl.Uint16Var(&f.inboundPort, "inbound-port", d.InboundPort, "port of the proxy for inbound TCP")
	fl.Uint16Var(&f.dnsPort, "dns-port", d.DNSPort, "port of the proxy for DNS")
	fl.Uint16Var(&f.adminPort, "admin-port", d.AdminPort, "port of the proxy for its administration, never redirected (0 for none)")
	f.defineScope(fl)
	fl.StringVar(&f.virtual4, "virtual-ipv4", d.VirtualIPv4.String(), "range of virtual addresses (empty for none)")
	fl.StringVar(&f.virtual6, "virtual-ipv6", d.VirtualIPv6.String(), "range of virtual addresses (empty for none)")
	fl.BoolVar(&f.preserveSource, "preserve-source", false, "bring the app's answers back to a proxy that runs with --app-source client")
	fl.BoolVar(&f.noDNS, "no-dns", false, "leave DNS alone")
	fl.StringVar(&f.ipv6, "ipv6", string(d.IPv6), "redirect IPv6: auto, on or off")
	fl.StringVar(&f.mode, "iptables-mode", string(d.Mode), "back end of iptables: auto, nft or legacy")
	fl.StringVar(&f.shortcut, "shortcut", shortcutOff, "let the kernel hand bytes between app and proxy past TCP/IP: on, off or auto (where it can be had)")
	fl.StringVar(&f.cgroup, "cgroup", "", "with --shortcut: directory of cgroup v2 in which app and proxy are (default the root)")
	fl.BoolVar(&f.dryRun, "dry-run", false, "print the rules and change nothing")
	fl.BoolVar(&f.verify, "verify", false, "make connections through the installed rules, report what was seen, install nothing")
	fl.BoolVar(&f.cleanup, "cleanup", false, "remove all that weir-init has installed")
	fl.StringVar(&f.output, "output", "text", "text or json")
	fl.DurationVar(&f.timeout, "timeout", time.Minute, "how long it may take in all")
	fl.Lookup("proxy-mark").DefValue = fmt.Sprintf("%#x", d.Mark) // as weir-proxy shows it
	fl.Lookup("inbound-mark").DefValue = fmt.Sprintf("%#x", d.InboundMark)
	fl.SortFlags = false
}

// config is the plan's settings, or a usageError that names the flag.
func (f *flags) config() (redirect.Config, error) {
	c := redirect.DefaultConfig()
	c.OutboundPort, c.InboundPort, c.DNSPort, c.AdminPort = f.outboundPort, f.inboundPort, f.dnsPort, f.adminPort
	c.Mark, c.InboundMark = f.proxyMark, f.inboundMark
	if f.inboundMarkDerived {
		c.InboundMark = f.proxyMark + 1
	}
	if f.proxyUIDGiven {
		c.ProxyUID = &f.proxyUID
	}
	c.PreserveSource, c.DNS, c.IPv6, c.Mode = f.preserveSource, !f.noDNS, redirect.IPv6Mode(f.ipv6), redirect.Mode(f.mode)
	var err error
	flagged := func(flag string, e error) {
		if err == nil && e != nil {
			err = usageError{fmt.Errorf("--%s: %w", flag, e)}
		}
	}
	var e error
	for _, part := range f.scope {
		flagged(part.name, part.set(&c.Scope, part.text))
	}
	c.VirtualIPv4, e = onePrefix(f.virtual4)
	flagged("virtual-ipv4", e)
	c.VirtualIPv6, e = onePrefix(f.virtual6)
	flagged("virtual-ipv6", e)
	return c, err
}

func onePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	return netip.ParsePrefix(s)
}

// check refuses what does not go together.
func (f *flags) check() error {
	if f.dryRun && f.verify || f.verify && f.cleanup || f.cleanup && f.dryRun {
		return usageError{errors.New("--dry-run, --verify and --cleanup exclude each other")}
	}
	if f.output != "text" && f.output != "json" {
		return usageError{fmt.Errorf("--output: %q, want text or json", f.output)}
	}
	if f.shortcut != shortcutOn && f.shortcut != shortcutOff && f.shortcut != shortcutAuto {
		return usageError{fmt.Errorf("--shortcut: %q, want on, off or auto", f.shortcut)}
	}
	return nil
}

func (f *flags) run(ctx context.Context, stdout io.Writer) error {
	if err := f.check(); err != nil {
		return err
	}
	cfg, err := f.config()
	if err != nil {
		return err
	}
	plan, err := redirect.NewPlan(cfg)
	if wrong, ok := errors.AsType[*redirect.ConfigError](err); ok {
		return usageError{fmt.Errorf("--%s: %s", f.flagOf(wrong.Field), wrong.Problem)}
	}
	if err != nil {
		return err
	}
	if f.dryRun {
		return f.show(stdout, cfg, plan)
	}
	path := ""
	if f.netns != "" {
		if path, err = redirect.NamespacePath(f.netns); err != nil {
			return usageError{fmt.Errorf("--netns: %w", err)}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	return redirect.InNamespace(path, func() error { return f.act(ctx, stdout, cfg, plan) })
}

// act does the one thing that was asked for.
func (f *flags) act(ctx context.Context, stdout io.Writer, cfg redirect.Config, plan *redirect.Plan) error {
	switch {
	case f.verify:
		report, err := plan.Verify(ctx)
		if err == nil {
			err = f.verifyShortcut(ctx, cfg, &report)
		}
		if err == nil {
			err = f.write(stdout, report)
		}
		if err == nil && !report.OK() {
			err = errChecksFailed
		}
		return err
	case f.cleanup:
		res, err := remove(ctx)
		return errors.Join(err, f.writeUnless(err, stdout, res))
	default:
		res, err := f.install(ctx, cfg, plan)
		return errors.Join(err, f.writeUnless(err, stdout, res))
	}
}

type printer interface{ Print(io.Writer) error }

func (f *flags) writeUnless(failed error, w io.Writer, p printer) error {
	if failed != nil {
		return nil
	}
	return f.write(w, p)
}

func (f *flags) write(w io.Writer, p printer) error {
	if f.output == "text" {
		return p.Print(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(p)
}

func (f *flags) show(w io.Writer, cfg redirect.Config, plan *redirect.Plan) error {
	var b strings.Builder
	if err := errors.Join(plan.Print(&b), f.printShortcut(&b, cfg)); err != nil {
		return err
	}
	if f.output == "text" {
		_, err := io.WriteString(w, b.String())
		return err
	}
	return json.NewEncoder(w).Encode(map[string]string{"plan": b.String()})
}
