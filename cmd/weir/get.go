package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weir-mesh/weir/controlplane/api"
	"github.com/weir-mesh/weir/policy"
)

// getter shows one kind of thing.
type getter struct {
	kind, short string
	named       string // what NAME is, "" if there is none
	show        func(*getting) error
	own         func(*options) *cobra.Command // in the place of show, for one with flags of its own
}

var getters = []getter{
	{"services", "the services of the mesh", "NAMESPACE/SERVICE", getServices, nil},
	{"endpoints", "where services answer", "NAMESPACE/SERVICE[/ID]", getEndpoints, nil},
	{"external-services", "the services outside the mesh", "NAMESPACE/SERVICE[/ID]", getExternalServices, nil},
	{"health", "what the health checks found", "NAMESPACE/SERVICE", getHealth, nil},
	{"traffic-rules", "where requests go, in the order of evaluation", "NAMESPACE/SERVICE[/ID]", getTrafficRules, nil},
	{"security-rules", "who may call whom", "ID", getSecurityRules, nil},
	{"circuits", "how circuits stand, and what was ordered of them", "NAMESPACE/SERVICE[/ID]", getCircuits, nil},
	{kind: "flows", own: newGetFlowsCommand},
	{"config", "the effective settings", "", getConfig, nil},
	{"proxies", "the connected proxies", "ID", getProxies, nil},
	{"status", "how the control plane is", "", getStatus, nil},
	{"metrics", "what the control plane and its proxies count", "", getMetrics, nil},
}

// getting is one run of a getter.
type getting struct {
	*options
	*api.Client
	ctx       context.Context
	cmd       *cobra.Command
	name      string // "" is all
	namespace string
}

func newGetCommand(opt *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "get KIND [NAME]", Short: "Show what the control plane knows",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%q is not a kind; kinds are %s%s", args[0], kindNames(), nearest(args[0]))
			}
			return fmt.Errorf("a kind is missing: %s", kindNames())
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	for _, g := range getters {
		if g.own != nil {
			cmd.AddCommand(g.own(opt))
			continue
		}
		cmd.AddCommand(g.command(opt))
	}
	return cmd
}

func kindNames() string {
	var names []string
	for _, g := range getters {
		names = append(names, g.kind)
	}
	return strings.Join(names, ", ")
}

func nearest(word string) string {
	if near := policy.Nearest(word, strings.Split(kindNames(), ", ")); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}

func (g getter) command(opt *options) *cobra.Command {
	var namespace string
	cmd := &cobra.Command{
		Use: g.kind, Short: "Show " + g.short, Args: cobra.NoArgs,
		RunE: runs(opt, func(cmd *cobra.Command, args []string) error {
			c, err := opt.client()
			if err != nil {
				return err
			}
			run := &getting{options: opt, Client: c, ctx: cmd.Context(), cmd: cmd, namespace: namespace}
			if len(args) == 1 {
				run.name = args[0]
			}
			return g.show(run)
		}),
	}
	if strings.HasSuffix(g.kind, "s") && g.kind != "status" && g.kind != "metrics" {
		cmd.Aliases = []string{strings.Replace(strings.TrimSuffix(g.kind, "s"), "proxie", "proxy", 1)}
	}
	if g.named != "" {
		cmd.Use += " [" + g.named + "]"
		cmd.Args = cobra.MaximumNArgs(1)
	}
	if strings.Contains(g.named, "SERVICE") {
		cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of a SERVICE that is named without one")
	}
	return cmd
}

func (g *getting) print(v any, text func(w io.Writer) error) error {
	return g.options.print(g.cmd, v, text)
}

// service reads NAME as a service's.
func (g *getting) service() (policy.ServiceName, error) {
	name, err := policy.ParseServiceName(g.name, g.namespace)
	if err != nil {
		return name, usagef("%v", err)
	}
	return name, nil
}

// target is what NAME asks for: one service, or all that there are, and of one
// perhaps only what has an id.
func (g *getting) target() (names []policy.ServiceName, id string, err error) {
	if parts := strings.Split(g.name, "/"); len(parts) == 3 && parts[2] != "" {
		g.name, id = parts[0]+"/"+parts[1], parts[2]
	}
	names, err = g.services()
	return names, id, err
}

// asDocuments tells whether resources are to be shown as apply takes them.
func (g *getting) asDocuments() bool { return g.output != "text" }

// printDocuments shows resources as apply takes them.
func (g *getting) printDocuments(docs []api.Exported) error {
	if g.output == "json" {
		return g.print(docs, nil)
	}
	for i := range docs {
		if i > 0 {
			if _, err := fmt.Fprintln(g.cmd.OutOrStdout(), "---"); err != nil {
				return err
			}
		}
		if err := g.print(docs[i], nil); err != nil {
			return err
		}
	}
	return nil
}

// exportAll shows the resources of services as documents.
func (g *getting) exportAll(names []policy.ServiceName, id string, of func(context.Context, policy.ServiceName, string) ([]api.Exported, error)) error {
	all := []api.Exported{}
	for _, name := range names {
		docs, err := of(g.ctx, name, id)
		if err != nil {
			return err
		}
		all = append(all, docs...)
	}
	return g.printDocuments(all)
}

// services are those that NAME asks for: one, or all that there are.
func (g *getting) services() ([]policy.ServiceName, error) {
	if g.name != "" {
		name, err := g.service()
		return []policy.ServiceName{name}, err
	}
	known, err := g.Services(g.ctx)
	var names []policy.ServiceName
	for i := range known {
		names = append(names, known[i].Service())
	}
	return names, err
}

// only keeps the things with a name, of which there must be one.
func only[T any](all []T, kind, name string, is func(*T) bool) ([]T, error) {
	for i := range all {
		if is(&all[i]) {
			return all[i : i+1], nil
		}
	}
	return nil, fmt.Errorf("there is no %s %q", kind, name)
}
